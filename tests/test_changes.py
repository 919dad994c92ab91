"""The guarded write: whole or not at all, nobody waited for, and in company as alone."""

import asyncio
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from service.commands.callbacks import take_notice
from service.commands.runs import pause_run
from service.domain.event import EventType, Fact
from service.domain.plan import Pass
from service.domain.run import Run, RunStatus, advanced, move, released
from service.holding import passed_by
from service.runtime import Runtime
from service.store import changes, runs
from service.store.changes import Change
from service.store.database import EVERY
from tests.acting import begin, look, sql, story, worker
from tests.conftest import ASK_ALWAYS, DEV, echo


async def claimed(runtime: Runtime, count: int = 1) -> list[Run]:
    ids = [await begin(runtime, echo()) for _ in range(count)]
    async with runtime.services.db.connection(EVERY) as conn:
        found = await runs.claim_all(conn, ids, worker_id="w1", lease_s=30)
    assert list(found) == ids
    return [run for run, _ in found.values()]


def put_down(runtime: Runtime, run: Run) -> Change:
    """Any change will do."""
    now = runtime.services.db.now()
    step = runs.StepRecord(run.step, "completed", now, "policy", "passed")
    facts = [Fact(EventType.STEP_COMPLETED, "policy", {"step": run.step}), Fact(EventType.STEP_STARTED)]
    on = released(run, RunStatus.AWAITING_PROVIDER, now=now)
    return Change.of(run, on, facts, now=now, steps=[step], result={"response": 1})


async def written(runtime: Runtime, *wanted: Change) -> list[bool | None]:
    async with runtime.services.db.connection(EVERY) as conn:
        return await changes.write(conn, wanted)


async def trace(runtime: Runtime, run_id: UUID) -> tuple[Any, ...]:
    """Everything that a change could have left."""
    run = await look(runtime, run_id)
    steps = await sql(runtime, "select count(*) from steps where run_id = $1", run_id)
    result = await sql(runtime, "select result::text from run_documents where run_id = $1", run_id)
    return run, await story(runtime, run_id), steps, result


async def test_a_change_is_written_whole(empty: Runtime) -> None:
    (run,) = await claimed(empty)
    assert await written(empty, put_down(empty, run)) == [False]
    after, told, steps, result = await trace(empty, run.id)
    assert (after.status, after.version, after.event_seq, steps) == ("awaiting_provider", run.version + 1, 4, 1)
    assert told == ["run.created", "run.queued", "step.completed", "step.started"]
    assert result is not None


async def test_a_run_that_moved_on_refuses_the_change_and_nothing_is_left_of_it(empty: Runtime) -> None:
    (run,) = await claimed(empty)
    change = put_down(empty, run)
    await pause_run(empty.services, run.id, DEV)
    before = await trace(empty, run.id)
    assert await written(empty, change) == [None]
    assert await trace(empty, run.id) == before


async def test_another_token_refuses_the_change(empty: Runtime) -> None:
    (run,) = await claimed(empty)
    assert await written(empty, put_down(empty, replace(run, fencing_token=run.fencing_token - 1))) == [None]


async def test_a_run_that_somebody_has_locked_is_not_waited_for(empty: Runtime) -> None:
    one, other = await claimed(empty, 2)
    async with empty.services.db.transaction(EVERY) as conn:
        await runs.lock_any(conn, one.id)
        async with asyncio.timeout(5):
            assert await written(empty, put_down(empty, one), put_down(empty, other)) == [None, False]


async def test_of_two_changes_of_one_run_in_one_trip_one_is_written(empty: Runtime) -> None:
    (run,) = await claimed(empty)
    assert await written(empty, put_down(empty, run), put_down(empty, run)) == [False, None]


async def test_fifty_at_once_stand_as_if_each_had_gone_alone(empty: Runtime) -> None:
    many = await claimed(empty, 50)
    found = await asyncio.gather(*(empty.services.together.write(put_down(empty, run), EVERY) for run in many))
    assert found == [False] * 50
    for run in many:
        after, told, steps, _ = await trace(empty, run.id)
        assert (after.status, after.event_seq, len(told), steps) == ("awaiting_provider", 4, 4, 1)


async def test_the_fault_of_one_change_keeps_none_of_the_others(empty: Runtime) -> None:
    good, bad = await claimed(empty, 2)
    broken = put_down(empty, bad)
    broken = replace(broken, run=replace(broken.run, lease_until=bad.lease_until, status=RunStatus.QUEUED))
    together = empty.services.together
    found = await asyncio.gather(
        together.write(put_down(empty, good), EVERY), together.write(broken, EVERY), return_exceptions=True
    )
    assert found[0] is False
    assert isinstance(found[1], Exception), "the table's own constraint refuses a queued run with a lease"
    assert (await look(empty, bad.id)).status == "running"


async def test_a_run_with_an_open_question_is_not_completed_in_passing(empty: Runtime) -> None:
    run_id = await begin(empty, echo(), ASK_ALWAYS)
    assert await worker(empty).advance(run_id) == "awaiting_human"
    run = replace(await look(empty, run_id), status=RunStatus.RUNNING)
    now = empty.services.db.now()
    change = Change.of(run, move(run, RunStatus.COMPLETED, now=now), [], now=now)
    assert await written(empty, change) == [None]


async def test_a_completed_run_says_whether_somebody_stands_in_line(empty: Runtime) -> None:
    first = await begin(empty, echo(), session_id="s1")
    await begin(empty, echo(), session_id="s1", on_active_run="queue")
    async with empty.services.db.connection(EVERY) as conn:
        run, _ = (await runs.claim_all(conn, [first], worker_id="w1", lease_s=30))[first]
    now = empty.services.db.now()
    assert await written(empty, Change.of(run, move(run, RunStatus.COMPLETED, now=now), [], now=now)) == [True]


@pytest.mark.parametrize("known", [False, True], ids=["adopts", "stray"])
async def test_a_notice_moves_the_run_on_for_whoever_read_it_before(empty: Runtime, known: bool) -> None:
    (run,) = await claimed(empty)
    await sql(
        empty,
        "insert into provider_calls (run_id, number, tenant, idempotency_key, payload_sha256, status, started_at)"
        " values ($1, 1, 'default', $2, 'x', $3, now())",
        run.id,
        str(run.id),
        "answered" if known else "intent",
    )
    await take_notice(empty.services, run.id, 1, "p1")
    assert await written(empty, put_down(empty, run)) == [None]


async def test_a_run_that_cannot_be_opened_fails_alone_and_its_company_goes_on(empty: Runtime) -> None:
    ids = [await begin(empty, echo()) for _ in range(3)]
    await sql(empty, "update run_documents set hitl_config = '{\"defaults\": 99}' where run_id = $1", ids[1])
    hand = worker(empty)
    found = await asyncio.gather(*(hand.advance(run_id) for run_id in ids))
    assert found == ["completed", "internal_error", "completed"]
    broken = await look(empty, ids[1])
    assert (broken.status, (broken.error or {})["code"], broken.lease_until) == ("failed", "internal_error", None)


async def test_a_write_that_comes_late_after_an_outage_comes_to_nothing(empty: Runtime) -> None:
    """Postgres had it and had not begun: whoever lost the connection has read the run anew and goes on."""
    (run,) = await claimed(empty)
    hand = worker(empty)
    late = put_down(empty, run)
    held = await hand._reloaded(await hand._held((run, None)))
    assert await written(empty, late) == [None]
    assert held.run.version == run.version + 1
    assert await written(empty, put_down(empty, held.run)) == [False]


async def test_steps_are_passed_only_where_they_were_planned(empty: Runtime) -> None:
    (run,) = await claimed(empty)
    held = await worker(empty)._held((run, None))
    with pytest.raises(RuntimeError, match="no longer where"):
        passed_by(held, advanced(run), [Pass(run.step)], now=empty.services.db.now())


async def test_what_was_read_before_the_run_moved_on_is_not_taken_for_its_documents(empty: Runtime) -> None:
    run_id = await begin(empty, echo())
    async with empty.services.db.connection(EVERY) as conn:
        ((run, known),) = (await runs.claim_all(conn, [run_id], worker_id="w1", lease_s=30)).values()
    assert known is not None and known.docs.run_input["prompt"] == "a red fox" and run.fencing_token == 2


async def test_messages_of_a_company_are_written_with_it(empty: Runtime) -> None:
    runs_ = [await begin(empty, echo(), callback_url="https://example.com/hook") for _ in range(3)]
    assert await asyncio.gather(*map(worker(empty).advance, runs_)) == ["completed"] * 3
    told = await sql(empty, "select array_agg(type order by type) from deliveries where kind = 'webhook'")
    assert told == ["run.completed"] * 3
