"""What one try of a provider call comes to, and when the next one is due."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.call import (
    MAX_TRIES,
    Accepted,
    Answered,
    CallStatus,
    InvalidInput,
    Outcome,
    OutcomeUnknown,
    ProviderFailed,
    Rejected,
    Unreachable,
    backoff,
    settled,
)
from tests.domain.make import NOW, a_call

S = CallStatus


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Answered({"a": 1}, "raw"), S.ANSWERED),
        (Answered(None, None), S.ANSWERED),
        (Accepted("ref"), S.ACCEPTED),
        (InvalidInput([{"field": "prompt"}]), S.INVALID),
        (Unreachable("503"), S.RETRY),
        (OutcomeUnknown("late"), S.UNKNOWN),
        (Rejected("403"), S.REJECTED),
        (ProviderFailed("aborted"), S.FAILED),
    ],
)
def test_each_outcome_has_its_status(outcome: Outcome, status: CallStatus) -> None:
    call = settled(a_call(), outcome, now=NOW)
    assert call.status is status
    assert call.finished_at == (None if status is S.ACCEPTED else NOW)
    assert (call.idempotency_key, call.number, call.tries) == ("k", 1, 1)


def test_an_answer_is_kept_whole() -> None:
    outcome = Answered({"o": 1}, {"r": 2}, provider_ref="p", quality=0.5, safety_flags=["nsfw"], cost_usd=0.1)
    call = settled(a_call(), outcome, now=NOW)
    kept = (call.output, call.raw, call.provider_ref, call.quality, call.safety_flags, call.cost_usd)
    assert kept == ({"o": 1}, {"r": 2}, "p", 0.5, ("nsfw",), 0.1)


def test_an_answer_without_a_reference_keeps_the_one_it_was_accepted_under() -> None:
    accepted = settled(a_call(), Accepted("ref"), now=NOW)
    assert settled(accepted, Answered(1, 1), now=NOW).provider_ref == "ref"


@pytest.mark.parametrize("tries", range(1, 8))
def test_there_are_five_tries_in_all(tries: int) -> None:
    call = settled(a_call(tries=tries), Unreachable("503"), now=NOW)
    assert call.status is (S.RETRY if tries < 5 else S.EXHAUSTED)
    assert MAX_TRIES == 5


@pytest.mark.parametrize("tries", [1, MAX_TRIES])
def test_a_try_that_we_held_back_ourselves_is_none(tries: int) -> None:
    call = settled(a_call(tries=tries), Unreachable("full", 3.0, held_back=True), now=NOW)
    assert (call.status, call.tries) == (S.RETRY, tries - 1)


@given(jitter=st.floats(0, 1), tries=st.integers(1, 4))
def test_the_wait_grows_whatever_the_jitter(jitter: float, tries: int) -> None:
    wait = backoff(tries, retry_after_s=None, jitter=jitter).total_seconds()
    longer = backoff(tries + 1, retry_after_s=None, jitter=0).total_seconds()
    assert 0.5 * 2 ** (tries - 1) <= wait <= 0.75 * 2 ** (tries - 1)
    assert wait < longer


@given(jitter=st.floats(0, 1), tries=st.integers(1, 5), hint=st.floats(0, 10**6))
def test_retry_after_is_never_cut_short_and_never_for_ever(jitter: float, tries: int, hint: float) -> None:
    wait = backoff(tries, retry_after_s=hint, jitter=jitter).total_seconds()
    assert wait >= min(hint, 3600) - 1e-6
    assert wait <= 3600
    assert wait >= backoff(tries, retry_after_s=None, jitter=jitter).total_seconds()


@pytest.mark.parametrize(("hint", "seconds"), [(None, 0.5), (0, 0.5), (-5, 0.5), (0.5, 0.5), (7, 7), (86_400, 3600)])
def test_the_wait_is_the_longer_of_both(hint: Any, seconds: float) -> None:
    assert backoff(1, retry_after_s=hint, jitter=0).total_seconds() == seconds
