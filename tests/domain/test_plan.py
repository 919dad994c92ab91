"""What a run does next, for every step and every state of its call."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.call import CallStatus
from service.domain.plan import Abilities, Action, Ask, Build, Call, Fail, Finish, Pass, Poll, Suspend, next_action
from service.domain.policy import Checkpoint, HitlConfig
from service.domain.run import Step
from tests.domain.make import NOW, PAYLOAD, a_call, a_run, documents

S = CallStatus
HUMAN = HitlConfig(policy="require_human")
THRESHOLDS = HitlConfig(policy="auto_with_thresholds")
UNKNOWN = Ask(Checkpoint.OUTCOME_UNKNOWN, ["provider.outcome_unknown"])
PAST, FUTURE = NOW - timedelta(seconds=1), NOW + timedelta(seconds=1)


def after(
    step: Step,
    docs: Any = None,
    call: Any = None,
    *,
    repeatable: bool = True,
    polls: bool = False,
    adopt_s: float = 0,
    **run: Any,
) -> Action:
    provider = Abilities(repeatable, polls, adopt_s)
    return next_action(a_run(step=step, **run), docs or documents(), call, provider=provider, now=NOW)


def test_a_payload_is_built_before_anything_is_asked() -> None:
    for config in (HUMAN, THRESHOLDS, HitlConfig(policy="auto")):
        assert after(Step.INFORMATION_REVIEW, documents(config, payload=None)) == Build()


@pytest.mark.parametrize(
    ("config", "changes", "asked", "action"),
    [
        (HitlConfig(policy="auto"), {}, {}, Pass(Step.INFORMATION_REVIEW)),
        (HUMAN, {}, {}, Ask(Checkpoint.INFORMATION_REVIEW, ["policy.require_human"])),
        (HUMAN, {}, {"information_review": ["policy.require_human"]}, Pass(Step.INFORMATION_REVIEW)),
        (HUMAN, {}, {"payload_review": ["policy.require_human"]},
         Ask(Checkpoint.INFORMATION_REVIEW, ["policy.require_human"])),
        (THRESHOLDS, {"about": {"confidence": 0.9}}, {}, Pass(Step.INFORMATION_REVIEW)),
        (THRESHOLDS, {"about": {"confidence": 0.89}}, {}, Ask(Checkpoint.INFORMATION_REVIEW, ["confidence.below"])),
        (HitlConfig(policy="auto"), {"payload": {"n": 1}}, {}, Ask(Checkpoint.INFORMATION_REVIEW, ["missing.prompt"])),
        (HitlConfig(policy="auto"), {"payload": {"prompt": " "}}, {"information_review": ["missing.prompt"]},
         Ask(Checkpoint.INFORMATION_REVIEW, ["missing.prompt"])),
    ],
)  # fmt: skip
def test_the_information_is_reviewed(config: HitlConfig, changes: Any, asked: Any, action: Action) -> None:
    assert after(Step.INFORMATION_REVIEW, documents(config, **changes), asked=asked) == action


@pytest.mark.parametrize(
    ("config", "changes", "run", "action"),
    [
        (HitlConfig(policy="auto"), {}, {}, Pass(Step.PAYLOAD_REVIEW)),
        (HUMAN, {}, {}, Ask(Checkpoint.PAYLOAD_REVIEW, ["policy.require_human"])),
        (HUMAN, {}, {"asked": {"payload_review": ["policy.require_human"]}}, Pass(Step.PAYLOAD_REVIEW)),
        (HitlConfig(policy="auto"), {"payload": {"prompt": "to ann@example.com"}}, {},
         Ask(Checkpoint.PAYLOAD_REVIEW, ["safety.pii"])),
        (HUMAN, {"payload": {"prompt": "to ann@example.com"}},
         {"asked": {"payload_review": ["policy.require_human"]}}, Ask(Checkpoint.PAYLOAD_REVIEW, ["safety.pii"])),
        (HitlConfig(policy="auto"), {"payload": {"prompt": "a DRAGON"}, "about": {"flag_words": {"dragon": "nsfw"}}},
         {}, Ask(Checkpoint.PAYLOAD_REVIEW, ["safety.nsfw"])),
        (HitlConfig(max_payload_changes=1), {}, {}, Pass(Step.PAYLOAD_REVIEW)),
        (HitlConfig(max_payload_changes=1), {"payload": {**PAYLOAD, "n": 2}}, {},
         Ask(Checkpoint.PAYLOAD_REVIEW, ["changes.above"])),
        (HitlConfig(review_thresholds={"max_cost_usd": 1}), {}, {"estimated_usd": 1.0}, Pass(Step.PAYLOAD_REVIEW)),
        (HitlConfig(review_thresholds={"max_cost_usd": 1}), {}, {"estimated_usd": 1.1},
         Ask(Checkpoint.PAYLOAD_REVIEW, ["cost.above"])),
    ],
)  # fmt: skip
def test_the_payload_is_reviewed(config: HitlConfig, changes: Any, run: Any, action: Action) -> None:
    assert after(Step.PAYLOAD_REVIEW, documents(config, **changes), **run) == action


@pytest.mark.parametrize(
    ("call", "repeatable", "action"),
    [
        (None, True, Call(None)),
        (None, False, Call(None)),
        (a_call(S.ANSWERED), False, Pass(Step.API_CALL)),
        (a_call(S.RETRY), False, Call(a_call(S.RETRY))),
        (a_call(S.INTENT), True, Call(a_call(S.INTENT))),
        (a_call(S.INTENT), False, UNKNOWN),
        (a_call(S.INTENT, deadline_at=PAST), True, UNKNOWN),
        (a_call(S.INTENT, deadline_at=NOW), True, UNKNOWN),
        (a_call(S.INTENT, deadline_at=FUTURE), True, Call(a_call(S.INTENT, deadline_at=FUTURE))),
        (a_call(S.INTENT, deadline_at=None), True, Call(a_call(S.INTENT, deadline_at=None))),
        (a_call(S.ACCEPTED, deadline_at=FUTURE), True, Suspend(FUTURE)),
        (a_call(S.ACCEPTED, deadline_at=None), True, Suspend(None)),
        (a_call(S.ACCEPTED, deadline_at=NOW), True, UNKNOWN),
        (a_call(S.INVALID), True, Ask(Checkpoint.ERROR_RECOVERY, ["provider.error"])),
        (a_call(S.UNKNOWN), True, UNKNOWN),
        (a_call(S.REJECTED, problem="status 403"), True, Fail("provider_rejected", "status 403", recoverable=False)),
        (a_call(S.EXHAUSTED, problem="503"), True, Fail("provider_unavailable", "503", recoverable=True)),
        (a_call(S.FAILED, problem="aborted"), True, Fail("provider_failed", "aborted", recoverable=False)),
    ],
)
def test_each_state_of_a_call_has_one_next_thing(call: Any, repeatable: bool, action: Action) -> None:
    assert after(Step.API_CALL, call=call, repeatable=repeatable) == action


@pytest.mark.parametrize(
    ("call", "abilities", "action"),
    [
        (a_call(S.ACCEPTED, provider_ref="p1"), {"polls": True}, Poll()),
        (a_call(S.ACCEPTED, provider_ref="p1", deadline_at=PAST), {"polls": True}, Poll()),  # the last look
        (a_call(S.ACCEPTED, provider_ref=None), {"polls": True}, Suspend(NOW + timedelta(seconds=300))),
        (a_call(S.ACCEPTED, provider_ref="p1"), {"polls": False}, Suspend(NOW + timedelta(seconds=300))),
        (a_call(S.INTENT), {"adopt_s": 60}, Suspend(NOW + timedelta(seconds=60))),
        (a_call(S.INTENT, started_at=NOW - timedelta(seconds=60)), {"adopt_s": 60}, UNKNOWN),
        (a_call(S.INTENT), {"adopt_s": 60, "repeatable": True}, Call(a_call(S.INTENT))),
        (a_call(S.UNKNOWN), {"adopt_s": 60, "polls": True}, UNKNOWN),
    ],
)
def test_a_call_at_a_provider_that_can_be_looked_at(call: Any, abilities: Any, action: Action) -> None:
    assert after(Step.API_CALL, call=call, **{"repeatable": False, **abilities}) == action


@given(status=st.sampled_from(CallStatus), repeatable=st.booleans(), late=st.integers(-5, 5), tries=st.integers(1, 9))
def test_a_call_that_may_have_happened_is_sent_again_only_under_a_key_and_in_time(
    status: CallStatus, repeatable: bool, late: int, tries: int
) -> None:
    call = a_call(status, deadline_at=NOW + timedelta(seconds=late), tries=tries)
    action = after(Step.API_CALL, call=call, repeatable=repeatable)
    if isinstance(action, Call):
        assert status is S.RETRY or (status is S.INTENT and repeatable and late > 0)
        assert action.again == call


@pytest.mark.parametrize(
    ("config", "call", "run", "action"),
    [
        (HitlConfig(policy="auto"), a_call(S.ANSWERED), {}, Pass(Step.RESPONSE_REVIEW)),
        (HUMAN, a_call(S.ANSWERED), {}, Ask(Checkpoint.RESPONSE_REVIEW, ["policy.require_human"])),
        (HUMAN, a_call(S.ANSWERED), {"asked": {"response_review": ["policy.require_human"]}},
         Pass(Step.RESPONSE_REVIEW)),
        (HitlConfig(policy="auto"), a_call(S.ANSWERED, safety_flags=("nsfw",)), {},
         Ask(Checkpoint.RESPONSE_REVIEW, ["safety.nsfw"])),
        (HitlConfig(review_thresholds={"response_quality_min": 0.5}), a_call(S.ANSWERED, quality=0.4), {},
         Ask(Checkpoint.RESPONSE_REVIEW, ["quality.below"])),
    ],
)  # fmt: skip
def test_the_response_is_reviewed(config: HitlConfig, call: Any, run: Any, action: Action) -> None:
    assert after(Step.RESPONSE_REVIEW, documents(config), call, **run) == action


def test_a_run_whose_steps_are_done_is_finished() -> None:
    assert after(Step.COMPLETED) == Finish()


@given(
    step=st.sampled_from([Step.INFORMATION_REVIEW, Step.PAYLOAD_REVIEW]),
    policy=st.sampled_from(["auto", "require_human", "auto_with_thresholds"]),
    payload=st.fixed_dictionaries({}, optional={"prompt": st.sampled_from(["", " ", None, "fox", "a@b.example"])}),
    confidence=st.floats(0, 1),
)
def test_whoever_answers_every_question_gets_through_unless_something_is_missing(
    step: Step, policy: Any, payload: Any, confidence: float
) -> None:
    docs = documents(HitlConfig(policy=policy), payload=payload, about={"confidence": confidence})
    action = after(step, docs)
    if isinstance(action, Ask):
        again = after(step, docs, asked={action.checkpoint: list(action.reasons)})
        missing = [reason for reason in action.reasons if reason.startswith("missing.")]
        assert again == (Ask(action.checkpoint, missing) if missing else Pass(step))
