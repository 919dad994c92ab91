"""The one table of moves, and what a move does to a run."""

from datetime import timedelta
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.run import (
    FINAL,
    LIVE,
    STEPS,
    TOTAL_STEPS,
    TRANSITIONS,
    RunStatus,
    Step,
    advanced,
    cancel,
    check_live,
    fail,
    move,
    ms_between,
    released,
    woken,
)
from service.errors import RunPaused, RunState
from tests.domain.make import NOW, a_run

S = RunStatus
PAIRS = list(product(RunStatus, RunStatus))
ALLOWED = [(a, b) for a, b in PAIRS if b in TRANSITIONS[a]]
REFUSED = [(a, b) for a, b in PAIRS if b not in TRANSITIONS[a]]


def test_the_table_names_every_status_and_no_status_moves_to_itself() -> None:
    assert set(TRANSITIONS) == set(RunStatus)
    assert all(status not in ways for status, ways in TRANSITIONS.items())


def test_the_only_way_out_of_an_end_is_to_take_up_a_failure() -> None:
    assert {S.COMPLETED, S.FAILED, S.CANCELLED} == FINAL
    assert {(a, b) for a, b in ALLOWED if a in FINAL} == {(S.FAILED, S.QUEUED)}
    assert set(RunStatus) - FINAL == LIVE


def test_every_live_run_can_be_cancelled_and_fail_and_every_unpaused_one_paused() -> None:
    for status in LIVE:
        assert {S.CANCELLED, S.FAILED} <= TRANSITIONS[status]
        assert status is S.PAUSED or S.PAUSED in TRANSITIONS[status]


def test_only_a_running_run_completes() -> None:
    assert [a for a, b in ALLOWED if b is S.COMPLETED] == [S.RUNNING]


def test_every_status_can_be_reached() -> None:
    reached, size = {S.QUEUED}, 0
    while size != len(reached):
        size = len(reached)
        reached |= {b for a in reached for b in TRANSITIONS[a]}
    assert reached == set(RunStatus)


@pytest.mark.parametrize(("a", "b"), REFUSED)
def test_a_move_that_is_not_in_the_table_is_refused(a: RunStatus, b: RunStatus) -> None:
    with pytest.raises(RunState) as refusal:
        move(a_run(status=a), b, now=NOW)
    assert refusal.value.extra == {"run_status": a}


@pytest.mark.parametrize(("a", "b"), ALLOWED)
@given(ms=st.integers(0, 10**9))
def test_a_move_adds_the_time_up_where_it_was_spent(a: RunStatus, b: RunStatus, ms: int) -> None:
    before = a_run(status=a, queue_ms=7, human_ms=11, provider_ms=13, lease_until=NOW, worker_id="w", paused_at=NOW)
    later = NOW + timedelta(milliseconds=ms)

    after = move(before, b, now=later)

    spent = {S.QUEUED: "queue_ms", S.AWAITING_HUMAN: "human_ms", S.AWAITING_PROVIDER: "provider_ms"}.get(a)
    for name in ("queue_ms", "human_ms", "provider_ms"):
        assert getattr(after, name) - getattr(before, name) == (ms if name == spent else 0)
    assert (after.status, after.status_since) == (b, later)
    assert (after.paused_at is None) == (a is S.PAUSED)
    if b in FINAL:
        assert (after.finished_at, after.lease_until, after.worker_id, after.due_at) == (later, None, None, None)


def test_a_clock_that_went_back_takes_no_time_away() -> None:
    after = move(a_run(status=S.QUEUED, queue_ms=5), S.RUNNING, now=NOW - timedelta(hours=1))
    assert after.queue_ms == 5
    assert ms_between(NOW, NOW - timedelta(days=1)) == 0


@given(choices=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 10**6)), max_size=30))
def test_no_walk_loses_or_doubles_time(choices: list[tuple[int, int]]) -> None:
    run, now = a_run(), NOW
    spent: dict[str, int] = {}
    for choice, ms in choices:
        ways = sorted(TRANSITIONS[run.status])
        if not ways:
            break
        now += timedelta(milliseconds=ms)
        spent[run.status] = spent.get(run.status, 0) + ms
        run = move(run, ways[choice % len(ways)], now=now)
    assert run.queue_ms == spent.get("queued", 0)
    assert run.human_ms == spent.get("awaiting_human", 0)
    assert run.provider_ms == spent.get("awaiting_provider", 0)


@pytest.mark.parametrize("status", sorted(LIVE - {S.QUEUED}))
def test_whoever_is_woken_has_a_token_that_was_never_used_and_no_worker(status: RunStatus) -> None:
    run = a_run(status=status, fencing_token=4, lease_until=NOW, worker_id="w", armed=True, due_at=None)
    ready = woken(run, now=NOW)
    assert (ready.status, ready.fencing_token, ready.due_at) == (S.QUEUED, 5, NOW)
    assert (ready.lease_until, ready.worker_id, ready.armed) == (None, None, False)


def test_a_queued_run_is_woken_without_a_move() -> None:
    since = NOW - timedelta(hours=1)
    ready = woken(a_run(status_since=since), now=NOW, due_at=NOW + timedelta(seconds=5))
    assert (ready.status, ready.status_since, ready.fencing_token) == (S.QUEUED, since, 2)
    assert (ready.woken_at, ready.due_at) == (NOW, NOW + timedelta(seconds=5))


@pytest.mark.parametrize("status", [S.COMPLETED, S.CANCELLED])
def test_a_finished_run_is_not_woken_cancelled_or_failed(status: RunStatus) -> None:
    run = a_run(status=status)
    with pytest.raises(RunState):
        woken(run, now=NOW)
    with pytest.raises(RunState):
        cancel(run, code="c", message="m", now=NOW)
    with pytest.raises(RunState):
        fail(run, code="c", message="m", recoverable=True, now=NOW)


@pytest.mark.parametrize("status", sorted(LIVE))
def test_an_end_says_where_and_why_and_refuses_whoever_still_writes(status: RunStatus) -> None:
    run = a_run(status=status, step=Step.API_CALL, fencing_token=3)
    failed = fail(run, code="c", message="m", recoverable=True, now=NOW)
    assert failed.error == {"code": "c", "message": "m", "step": "api_call", "recoverable": True}
    assert (failed.status, failed.fencing_token) == (S.FAILED, 4)
    ended = cancel(run, code="c", message="m", now=NOW)
    assert ended.error == {"code": "c", "message": "m", "step": "api_call", "recoverable": False}
    assert (ended.status, ended.fencing_token) == (S.CANCELLED, 4)


def test_a_run_that_is_put_down_is_held_by_nobody() -> None:
    run = released(a_run(status=S.RUNNING, lease_until=NOW, worker_id="w"), S.AWAITING_HUMAN, now=NOW)
    assert (run.lease_until, run.worker_id, run.released_at, run.leased) == (None, None, NOW, False)


@pytest.mark.parametrize("status", list(RunStatus))
def test_only_a_live_run_that_is_not_paused_is_decided_about(status: RunStatus) -> None:
    expected: Any = RunPaused if status is S.PAUSED else RunState if status in FINAL else None
    if expected is None:
        check_live(a_run(status=status))
    else:
        with pytest.raises(expected):
            check_live(a_run(status=status))


def test_steps_go_one_by_one_and_a_step_done_again_takes_no_progress_away() -> None:
    run = a_run()
    seen = [run.step]
    while run.step is not Step.COMPLETED:
        run = advanced(run)
        seen.append(run.step)
    assert tuple(seen) == STEPS
    assert run.completed_steps == TOTAL_STEPS
    assert advanced(a_run(step=Step.PAYLOAD_REVIEW, completed_steps=3)).completed_steps == 3
