"""What a notice, a try and a look make of a call, for every state that it may be in."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.call import (
    MAX_CANCEL_TRIES,
    Accepted,
    Answered,
    CallStatus,
    InvalidInput,
    Notice,
    OutcomeUnknown,
    ProviderFailed,
    Rejected,
    Unreachable,
    cancel_again,
    look_after,
    looked,
    noticed,
    reference,
    strays,
    tried,
)
from tests.domain.make import NOW, a_call

S = CallStatus
PAST, FUTURE = NOW - timedelta(seconds=1), NOW + timedelta(seconds=1)
OUTCOMES = st.sampled_from(
    [
        Answered(1, 1),
        Answered(1, 1, provider_ref="a"),
        Answered(1, 1, provider_ref="b"),
        Accepted("a"),
        Accepted("b"),
        Accepted(),
        InvalidInput([]),
        Unreachable("?"),
        OutcomeUnknown("?"),
        Rejected("?"),
        ProviderFailed("?"),
    ]
)


@pytest.mark.parametrize(
    ("status", "ref", "wanted", "means"),
    [
        (S.INTENT, None, True, Notice.ADOPT),
        (S.RETRY, None, True, Notice.ADOPT),
        (S.UNKNOWN, None, True, Notice.ADOPT),
        (S.EXHAUSTED, None, True, Notice.ADOPT),
        (S.ACCEPTED, None, True, Notice.ADOPT),
        (S.ANSWERED, None, True, Notice.STRAY),
        (S.REJECTED, None, True, Notice.STRAY),
        (S.INTENT, None, False, Notice.STRAY),
        (S.UNKNOWN, None, False, Notice.STRAY),
        (S.ACCEPTED, "p1", True, Notice.LOOK),
        (S.UNKNOWN, "p1", True, Notice.LOOK),
        (S.ANSWERED, "p1", True, Notice.NOTHING),
        (S.FAILED, "p1", True, Notice.NOTHING),
        (S.ACCEPTED, "p1", False, Notice.NOTHING),
        (S.ACCEPTED, "p0", True, Notice.STRAY),
        (S.ANSWERED, "p0", False, Notice.STRAY),
    ],
)
def test_what_a_notice_means(status: S, ref: str | None, wanted: bool, means: Notice) -> None:
    assert noticed(a_call(status, provider_ref=ref), "p1", wanted=wanted) is means


@given(status=st.sampled_from(CallStatus), ref=st.sampled_from([None, "a"]), outcome=OUTCOMES, adopts=st.booleans())
def test_a_try_never_loses_a_reference(status: S, ref: str | None, outcome: Any, adopts: bool) -> None:
    """What began at the provider is the call's, or is ended; and what a notice settled stays settled."""
    before = a_call(status, provider_ref=ref)
    after = tried(before, outcome, now=NOW, adopts=adopts)
    if status not in (S.INTENT, S.ACCEPTED):
        assert after == before
    known = {r for r in (ref, reference(outcome)) if r}
    assert set(strays(before, after, outcome)) | {after.provider_ref} >= known or after.provider_ref is None
    assert after.provider_ref not in strays(before, after, outcome)
    if ref is not None:
        assert after.provider_ref is not None


@given(outcome=OUTCOMES)
def test_a_call_that_was_adopted_during_its_try_is_only_overtaken_by_its_answer(outcome: Any) -> None:
    after = tried(a_call(S.ACCEPTED, provider_ref="a"), outcome, now=NOW)
    assert after.status is (S.ANSWERED if isinstance(outcome, Answered) else S.ACCEPTED)
    if not isinstance(outcome, Answered):
        assert after.provider_ref == "a"


def test_a_try_without_an_answer_waits_for_its_notice_only_where_one_may_come() -> None:
    assert tried(a_call(), OutcomeUnknown("?"), now=NOW, adopts=True).status is S.INTENT
    assert tried(a_call(), OutcomeUnknown("?"), now=NOW).status is S.UNKNOWN


@given(outcome=OUTCOMES, late=st.booleans())
def test_a_look_goes_on_until_there_is_an_answer_or_no_more_time(outcome: Any, late: bool) -> None:
    call = a_call(S.ACCEPTED, provider_ref="a", deadline_at=PAST if late else FUTURE)
    after = looked(call, outcome, now=NOW)
    assert after.looks == 1
    if isinstance(outcome, Accepted | Unreachable):
        assert after.status is (S.UNKNOWN if late else S.ACCEPTED)
    else:
        assert after.status not in (S.ACCEPTED, S.INTENT)


@given(status=st.sampled_from(sorted(set(CallStatus) - {S.ACCEPTED})), outcome=OUTCOMES)
def test_a_look_changes_nothing_of_a_call_that_a_callback_settled(status: S, outcome: Any) -> None:
    assert looked(a_call(status), outcome, now=NOW) == a_call(status)


@given(looks=st.integers(0, 10_000), poll_s=st.floats(1, 3600), jitter=st.floats(0, 1))
def test_looks_are_never_further_apart_than_allowed(looks: int, poll_s: float, jitter: float) -> None:
    wait = look_after(looks, poll_s=poll_s, retry_after_s=None, jitter=jitter).total_seconds()
    assert 0.89 < wait <= poll_s + 1e-6
    assert look_after(looks, poll_s=poll_s, retry_after_s=10**9, jitter=jitter).total_seconds() == 3600


def test_a_cancel_is_tried_again_ever_more_rarely_and_then_no_more() -> None:
    waits = [cancel_again(n) for n in range(1, MAX_CANCEL_TRIES + 1)]
    assert waits[-1] is None
    seconds = [wait.total_seconds() for wait in waits if wait is not None]
    assert seconds == sorted(seconds)
    assert (seconds[0], seconds[-1]) == (1, 60)
