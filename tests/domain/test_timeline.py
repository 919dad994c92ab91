"""A run's events as a picture: every moment of the run is one thing, and each thing has its beginning and end."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from service.domain.event import Event, EventType, Fact, chain
from service.domain.run import FINAL, RunStatus, Step
from service.domain.timeline import MOVES, Kind, lanes, stretches
from tests.domain.make import NOW, a_run

E, S = EventType, RunStatus
Told = tuple[float, RunStatus, Step, Sequence[Fact]]


def after(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def story(*told: Told) -> list[Event]:
    """Events of transactions: when, what they left the run as, and their facts."""
    run, found = a_run(), []
    for at, status, step, facts in told:
        run, events = chain(replace(run, status=status, step=step), facts, at=after(at))
        found += events
    return found


def begun(at: float = 0) -> Told:
    return (at, S.QUEUED, Step.INFORMATION_REVIEW, [Fact(E.RUN_CREATED, "dev"), Fact(E.RUN_QUEUED)])


def step(kind: EventType, name: Step) -> Fact:
    return Fact(kind, "system", {"step": name})


def asked(at: float, approval: str = "a1", step_: Step = Step.PAYLOAD_REVIEW) -> Told:
    facts = [step(E.STEP_STARTED, step_)]
    data = {"approval_id": approval, "checkpoint_type": step_.value}
    return (at, S.AWAITING_HUMAN, step_, [*facts, Fact(E.APPROVAL_REQUESTED, "system", data)])


def answered(at: float, status: str = "approved", approval: str = "a1", **more: Any) -> Told:
    data = {"approval_id": approval, "status": status}
    left = more.get("left", Step.PAYLOAD_REVIEW)
    return (at, S.QUEUED, left, [Fact(E.APPROVAL_DECIDED, "ann", data), Fact(E.RUN_QUEUED)])


def seen(events: list[Event]) -> list[tuple[str, float, float | None]]:
    return [
        (one.kind.value, (one.since - NOW).total_seconds(), (one.until - NOW).total_seconds() if one.until else None)
        for one in stretches(events)
    ]


def test_waits_and_work_follow_each_other() -> None:
    called = Fact(E.PROVIDER_SUBMITTED, "provider:echo", {"call": 1, "try": 1})
    done = Fact(E.PROVIDER_COMPLETED, "provider:echo", {"call": 1, "try": 1, "ms": 3000})
    events = story(
        begun(),
        asked(2),
        answered(60),
        (61, S.RUNNING, Step.API_CALL, [step(E.STEP_COMPLETED, Step.PAYLOAD_REVIEW), called]),
        (64, S.COMPLETED, Step.COMPLETED, [done, Fact(E.RUN_COMPLETED)]),
    )

    assert seen(events) == [("queue", 0, 2), ("human", 2, 60), ("queue", 60, 61), ("provider", 61, 64)]


def test_what_goes_on_has_no_end() -> None:
    assert seen(story(begun(), asked(2))) == [("queue", 0, 2), ("human", 2, None)]


def test_a_pause_is_one_whatever_its_provider_says_meanwhile() -> None:
    called = Fact(E.PROVIDER_SUBMITTED, "provider:echo", {"call": 1, "try": 1})
    said = Fact(E.PROVIDER_COMPLETED, "provider:echo", {"call": 1, "try": 1})
    events = story(
        begun(),
        (1, S.RUNNING, Step.API_CALL, [called]),
        (3, S.PAUSED, Step.API_CALL, [Fact(E.RUN_PAUSED, "dev")]),
        (5, S.PAUSED, Step.API_CALL, [said]),
        (9, S.QUEUED, Step.API_CALL, [Fact(E.RUN_RESUMED, "dev")]),
    )

    assert seen(events) == [("queue", 0, 1), ("provider", 1, 3), ("pause", 3, 9), ("queue", 9, None)]


def test_a_run_that_goes_on_after_a_pause_while_it_is_called_is_at_its_provider() -> None:
    called = Fact(E.PROVIDER_SUBMITTED, "provider:echo", {"call": 1, "try": 1})
    events = story(
        begun(),
        (1, S.RUNNING, Step.API_CALL, [called]),
        (3, S.PAUSED, Step.API_CALL, [Fact(E.RUN_PAUSED, "dev")]),
        (5, S.RUNNING, Step.API_CALL, [Fact(E.RUN_RESUMED, "dev")]),
    )

    assert seen(events)[-1] == ("provider", 5, None)


def test_the_time_between_a_failure_and_its_requeue_is_nothing() -> None:
    events = story(
        begun(),
        (2, S.FAILED, Step.API_CALL, [Fact(E.RUN_FAILED, "system", {"code": "provider_unavailable"})]),
        (50, S.QUEUED, Step.API_CALL, [Fact(E.RUN_RESUMED, "dev", {"from": "failed"})]),
    )

    assert seen(events) == [("queue", 0, 2), ("queue", 50, None)]


def test_each_question_has_its_lane_with_how_it_came_out() -> None:
    vote = (30.0, S.AWAITING_HUMAN, Step.PAYLOAD_REVIEW, [Fact(E.APPROVAL_DECIDED, "bob", {"approval_id": "a1",
            "status": "pending"})])  # fmt: skip
    found = [one for one in lanes(story(begun(), asked(0.5), vote, answered(60, "edited"))) if one.kind is Kind.HUMAN]

    assert [(one.approval_id, one.name, one.since, one.until, one.ended, one.by) for one in found] == [
        ("a1", "payload_review", after(0.5), after(60), "edited", "ann")
    ]


def test_a_retry_ends_the_step_that_is_gone_back_from_and_begins_the_earlier_one_again() -> None:
    events = story(
        begun(),
        asked(1, "a2", Step.RESPONSE_REVIEW),
        answered(5, "retried", "a2", left=Step.PAYLOAD_REVIEW),
        (6, S.RUNNING, Step.API_CALL, [step(E.STEP_COMPLETED, Step.PAYLOAD_REVIEW)]),
    )

    steps = [(one.name, one.since, one.until, one.ended) for one in lanes(events) if one.kind is Kind.STEP]
    assert steps == [
        ("response_review", after(1), after(5), "again"),
        ("payload_review", after(5), after(6), "completed"),
    ]


def test_each_try_of_a_call_has_its_lane_and_so_has_the_wait_between() -> None:
    sent = [Fact(E.PROVIDER_SUBMITTED, "provider:echo", {"call": 1, "try": n}) for n in (1, 2)]
    failed = Fact(E.PROVIDER_FAILED, "provider:echo", {"call": 1, "try": 1, "code": "retry"})
    events = story(
        begun(),
        (0.2, S.RUNNING, Step.API_CALL, [sent[0]]),
        (1, S.QUEUED, Step.API_CALL, [failed, Fact(E.RUN_QUEUED, "system", {"reason": "retry"})]),
        (4, S.RUNNING, Step.API_CALL, [sent[1]]),
    )

    assert [(one.kind.value, one.attempt, one.ended) for one in lanes(events)] == [
        ("provider", 1, "retry"), ("queue", None, None), ("provider", 2, None),
    ]  # fmt: skip


DATA = st.fixed_dictionaries(
    {},
    optional={
        "step": st.sampled_from(Step), "approval_id": st.sampled_from("ab"), "checkpoint_type": st.just("deploy"),
        "status": st.sampled_from(["pending", "approved", "cancelled"]), "call": st.integers(1, 3),
        "try": st.integers(1, 3), "code": st.just("retry"),
    },
)  # fmt: skip
MOMENTS = st.lists(
    st.tuples(
        st.floats(0, 100), st.sampled_from(S), st.sampled_from(Step),
        st.lists(st.builds(Fact, st.sampled_from(sorted(MOVES)).map(E), st.just("x"), DATA), min_size=1, max_size=3),
    ),
    min_size=1, max_size=12,
)  # fmt: skip


@given(MOMENTS)
def test_whatever_the_events_are_the_stretches_neither_overlap_nor_turn_back(moments: list[Told]) -> None:
    events = story(*sorted(moments, key=lambda one: one[0]))
    found = stretches(events)

    for one, following in pairwise(found):
        assert one.until is not None
        assert one.since < one.until <= following.since
    left = RunStatus(str(events[-1].data["run_status"]))
    assert bool(found and found[-1].until is None) == (left not in FINAL)


@given(MOMENTS)
def test_whatever_the_events_are_no_lane_ends_before_it_begins(moments: list[Told]) -> None:
    events = story(*sorted(moments, key=lambda one: one[0]))

    for lane in lanes(events):
        assert events[0].at <= lane.since <= (lane.until or events[-1].at)
