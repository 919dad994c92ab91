"""Deadlines: after outages, far away, a little early, by the thousand. Smaller numbers than `bench.timers`."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

from arq.constants import job_key_prefix

from service.commands import expiry, timers
from service.commands.approvals import decide
from service.commands.timers import last_sign, more, sweep
from service.domain.approval import Order
from service.domain.ids import job_id
from service.domain.policy import HitlConfig
from service.runtime import Runtime
from service.signals import QUEUE_NAME
from service.store import approvals, runs
from service.store.database import EVERY
from tests.acting import begin, look, sql, story, worker
from tests.conftest import ASK_ALWAYS, DEV, echo


async def waiting(runtime: Runtime, count: int, config: HitlConfig = ASK_ALWAYS) -> list[UUID]:
    """So many runs that wait for a human."""
    ids = [await begin(runtime, echo(), config) for _ in range(count)]
    hand = worker(runtime)
    await asyncio.gather(*(hand.advance(run_id) for run_id in ids))
    return ids


async def statuses(runtime: Runtime) -> dict[str, int]:
    async with runtime.services.db.connection(EVERY) as conn:
        rows = await conn.fetch("select status, count(*) from approvals group by status")
    return {row["status"]: row["count"] for row in rows}


# ---- many at once


async def test_what_fell_due_in_an_outage_is_caught_up_in_batches_by_several_sweeps_without_doing_it_twice(
    empty: Runtime,
) -> None:
    count = 3 * expiry.BATCH + 7
    ids = await waiting(empty, count)
    await sql(empty, "update approvals set expires_at = now()")
    done: list[int] = []

    async def drain() -> None:
        found = await sweep(empty.services)
        done.append(found["expired"])
        while more(found):
            found = await sweep(empty.services)
            done.append(found["expired"])

    await asyncio.gather(drain(), drain(), drain())
    while (await sweep(empty.services))["expired"]:
        raise AssertionError("a drain left something behind")
    assert sum(done) == count
    assert max(done) <= expiry.BATCH
    assert await statuses(empty) == {"expired": count}
    for run_id in ids[::20]:
        assert (await story(empty, run_id)).count("approval.expired") == 1


async def test_a_decision_gets_through_while_thousands_expire(empty: Runtime) -> None:
    """Its row is in no batch, and a batch is short."""
    await waiting(empty, 2 * expiry.BATCH)
    await sql(empty, "update approvals set expires_at = now()")
    asking = (await waiting(empty, 1))[0]
    async with empty.services.db.connection(EVERY) as conn:
        question = (await approvals.open_of_run(conn, asking))[0]
    _, decided = await asyncio.gather(
        sweep(empty.services), decide(empty.services, question.id, Order(action="approve"), DEV)
    )
    assert decided.approval.status == "approved"


async def test_a_decision_and_a_batch_that_meet_have_one_winner(empty: Runtime) -> None:
    ids = await waiting(empty, 20)
    await sql(empty, "update approvals set expires_at = now() + interval '0.15 s'")
    async with empty.services.db.connection(EVERY) as conn:
        questions = [(await approvals.open_of_run(conn, run_id))[0] for run_id in ids]

    async def answer(approval_id: UUID) -> str:
        try:
            return str((await decide(empty.services, approval_id, Order(action="approve"), DEV)).approval.status)
        except Exception as refusal:
            return type(refusal).__name__

    async def expiring() -> None:
        while (await statuses(empty)).get("pending", 0):
            await expiry.expire_batch(empty.services)

    answers = await asyncio.gather(*(answer(question.id) for question in questions), expiring())
    for question, said in zip(questions, answers, strict=False):
        async with empty.services.db.connection(EVERY) as conn:
            found = await approvals.get(conn, "default", question.id)
        assert found is not None
        assert (found.status == "approved") == (said == "approved"), (found.status, said)
        assert len(found.decisions) == (1 if said == "approved" else 0)


async def test_reminders_are_caught_up_once_each(empty: Runtime) -> None:
    ids = await waiting(empty, 5, HitlConfig(policy="require_human", remind_after_seconds=60))
    await sql(empty, "update approvals set remind_at = now() - interval '10 min'")  # ten of them were missed
    found = await asyncio.gather(*(sweep(empty.services) for _ in range(3)))
    assert sum(each["reminded"] for each in found) == 5
    for run_id in ids:
        assert (await story(empty, run_id)).count("approval.reminded") == 1
    assert await sql(empty, "select count(*) from approvals where remind_at > now() + interval '50 s'") == 5


# ---- on time


async def test_a_deadlines_job_that_is_early_by_its_clock_waits_for_the_moment(empty: Runtime) -> None:
    run_id = (await waiting(empty, 1))[0]
    approval_id = await sql(empty, "update approvals set expires_at = now() + interval '0.2 s' returning id")
    assert await expiry.expire_on_time(empty.services, approval_id)
    assert (await look(empty, run_id)).status == "cancelled"
    at, expires = await sql(empty, "select array[decided_at, expires_at] from approvals")
    assert at >= expires


async def test_a_job_whose_deadline_was_moved_away_does_not_wait_for_it(empty: Runtime) -> None:
    await waiting(empty, 1)
    approval_id = await sql(empty, "update approvals set expires_at = now() + interval '1 h' returning id")
    async with asyncio.timeout(20):
        assert not await expiry.expire_on_time(empty.services, approval_id)
        assert not await expiry.remind_on_time(empty.services, approval_id)
        assert not await expiry.expire_on_time(empty.services, UUID(int=7))
    assert await statuses(empty) == {"pending": 1}


async def test_a_deadline_a_year_away_is_nothing_in_redis_and_fires_when_its_row_says_so(empty: Runtime) -> None:
    config = HitlConfig(policy="require_human", timeout_seconds=366 * 86_400, remind_after_seconds=300 * 86_400)
    ids = await waiting(empty, 10, config)
    await empty.redis.flushdb()  # the wake-ups that the runs began with
    await sweep(empty.services)
    assert await empty.redis.dbsize() == 0
    await sql(empty, "update approvals set expires_at = now() where run_id = $1", ids[0])
    assert (await sweep(empty.services))["expired"] == 1
    assert (await look(empty, ids[0])).status == "cancelled"
    assert await statuses(empty) == {"expired": 1, "pending": 9}


# ---- wake-ups


async def test_a_lost_wake_up_is_found_behind_a_backlog_that_only_waits(empty: Runtime) -> None:
    backlog = [await begin(empty, echo()) for _ in range(timers.BATCH + 50)]
    await sql(empty, "update runs set due_at = due_at - interval '1 h'")
    lost = await begin(empty, echo())
    await sql(empty, "update runs set due_at = due_at - interval '4 s' where id = $1", lost)
    name = job_id(lost, 1)
    await empty.redis.zrem(QUEUE_NAME, name)
    await empty.redis.delete(job_key_prefix + name)
    assert (await sweep(empty.services))["woken"] == 1
    assert await empty.redis.zscore(QUEUE_NAME, name) is not None
    assert (await look(empty, backlog[0])).fencing_token == 1


async def test_a_job_that_stands_in_no_queue_gets_a_new_token(empty: Runtime) -> None:
    """Redis kept its data and lost its place: under that id it would never start."""
    run_id = await begin(empty, echo())
    await empty.redis.zrem(QUEUE_NAME, job_id(run_id, 1))
    await sql(empty, "update runs set due_at = due_at - interval '4 s'")
    assert (await sweep(empty.services))["woken"] == 1
    assert [name.decode() for name in await empty.redis.zrange(QUEUE_NAME, 0, -1)] == [job_id(run_id, 2)]


async def test_everything_lost_in_redis_is_woken_in_one_sweep(empty: Runtime) -> None:
    count = timers.BATCH + 30
    for _ in range(count):
        await begin(empty, echo())
    await empty.redis.flushdb()
    await sql(empty, "update runs set due_at = due_at - interval '4 s'")
    assert (await sweep(empty.services))["woken"] == count


# ---- taken over


async def test_a_take_over_says_how_long_the_run_really_stood_still(empty: Runtime) -> None:
    run_id = await begin(empty, echo())
    async with empty.services.db.transaction(EVERY) as conn:
        await runs.claim(conn, run_id, worker_id="w1", lease_s=10)
    # in a call for ten minutes, its worker's last heartbeat twelve seconds ago
    await sql(
        empty,
        "update runs set claimed_at = now() - interval '600 s', updated_at = now() - interval '600 s',"
        " lease_until = now() - interval '2 s'",
    )
    await sql(empty, "insert into workers (id, jobs, max_jobs, seen_at) values ('w1', 1, 9, now() - interval '12 s')")
    await sweep(empty.services)
    async with empty.services.db.connection(EVERY) as conn:
        told = await conn.fetchval("select data from events where run_id = $1 and type = 'run.recovered'", run_id)
    assert told["cause"] == "worker_silent"
    assert 11_900 <= told["stood_still_ms"] < 600_000  # our clock is a little behind Postgres's, never ahead


async def test_a_runs_last_sign_is_the_newest_there_is(empty: Runtime) -> None:
    run_id = await begin(empty, echo())
    async with empty.services.db.transaction(EVERY) as conn:
        run = await runs.claim(conn, run_id, worker_id="w1", lease_s=10)
    assert run is not None
    assert run.claimed_at is not None
    later = run.claimed_at + timedelta(seconds=5)
    assert last_sign(run, None) == run.claimed_at
    assert last_sign(run, later) == later
    assert last_sign(replace(run, updated_at=later), None) == later
