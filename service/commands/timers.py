"""The sweep: the periodic search for lost work. Whatever a hint would have started is found here without one.

Several workers sweep at once; rows are locked with SKIP LOCKED, and each use case checks again under its lock.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable
from dataclasses import replace
from datetime import datetime
from typing import Final

from service.commands import approvals as approval_commands
from service.commands.context import After, Services, carry_out, finish, queued, release_next
from service.domain.event import EventType, Fact
from service.domain.ids import job_id
from service.domain.run import Run, RunStatus, fail, ms_between, woken
from service.errors import Unavailable
from service.logs import get_logger
from service.store import approvals, runs, workers
from service.store.database import Conn

BATCH: Final = 200
LOST_AFTER_S: Final = 3.0
SECOND_LOOK_S: Final = 0.5

log = get_logger("commands.timers")


async def sweep(services: Services) -> Counter[str]:
    """One pass over everything that may have been lost. Returns what was found, by kind.

    One row that cannot be dealt with must not keep the rest from being found. Raises `Unavailable`.
    """
    found: Counter[str] = Counter()
    async with services.db.connection() as conn:
        due = await approvals.due(conn, limit=BATCH)
        late = await approvals.to_remind(conn, limit=BATCH)
    found["recovered"] = await _tried("recover", recover_abandoned(services))
    found["timed_out"] = await _tried("end_overdue", end_overdue(services))
    for approval_id in due:
        found["expired"] += await _tried("expire", approval_commands.expire(services, approval_id))
    for approval_id in late:
        found["reminded"] += await _tried("remind", approval_commands.remind(services, approval_id))
    found["armed"] = await _tried("arm", arm(services))
    found["woken"] = await _tried("wake", wake_lost(services))
    found["released"] = await _tried("release", release_lines(services))
    async with services.db.connection() as conn:
        await workers.forget_silent(conn, after_s=3600)
    return found


async def _tried(part: str, work: Awaitable[int]) -> int:
    try:
        return await work
    except Unavailable:
        raise
    except Exception as error:
        log.error("sweep.part_failed", part=part, error=type(error).__name__)
        return 0


async def recover_abandoned(services: Services) -> int:
    """Take over runs whose worker fell silent: a new token refuses whatever it may still write."""
    after = After.nothing()
    dead = await dead_workers(services)
    async with services.db.transaction() as conn:
        abandoned = await runs.lock_abandoned(conn, dead=dead, limit=BATCH)
        now = services.db.now()
        for run in abandoned:
            cause = "worker_died" if run.worker_id in dead else "worker_silent"
            after.wake.append(await _taken_over(conn, run, now, cause))
            after.changed.append(run.id)
        if len(abandoned) < BATCH:
            for worker_id in dead:
                await workers.leave(conn, worker_id)
    await carry_out(services, after)
    for run in abandoned:
        await services.queue.forget(job_id(run.id, run.fencing_token - 1))
        log.warning("run.recovered", run_id=str(run.id), tenant=run.tenant, step=run.step, worker=run.worker_id)
    return len(abandoned)


async def dead_workers(services: Services) -> set[str]:
    """Workers whose session lock is free. Looked at twice: a connection that only broke is back in a moment."""
    async with services.db.connection() as conn:
        suspects = await workers.dead(conn)
    if not suspects:
        return suspects
    await asyncio.sleep(SECOND_LOOK_S)
    async with services.db.connection() as conn:
        return suspects & await workers.dead(conn)


async def end_overdue(services: Services) -> int:
    """Fail the runs whose own deadline passed."""
    after = After.nothing()
    async with services.db.transaction() as conn:
        overdue = await runs.lock_past_deadline(conn, limit=BATCH)
        now = services.db.now()
        for each in overdue:
            run = await runs.lock_any(conn, each.id)  # anew: the end of the one before may have given it its turn
            assert run is not None
            ended = fail(run, code="run_timeout", message="the run's time is out", recoverable=False, now=now)
            facts = [Fact(EventType.RUN_FAILED, "system", {"code": "run_timeout", "step": run.step})]
            await finish(conn, ended, facts, now=now, after=after, actor="system")
            after.stopped.append(run.id)
    await carry_out(services, after)
    for run in overdue:
        log.info("run.finished", run_id=str(run.id), tenant=run.tenant, status="failed", code="run_timeout")
    return len(overdue)


async def arm(services: Services) -> int:
    """Give deadlines that came inside the horizon their deferred jobs."""
    async with services.db.transaction() as conn:
        timers = await approvals.arm(conn, horizon_s=services.horizon_s, limit=BATCH)
        due = await runs.arm_due(conn, horizon_s=services.horizon_s, limit=BATCH)
    for timer in timers:
        await services.queue.arm_timer(timer["id"], timer["timer_no"], timer["expires_at"])
    for run in due:
        await services.queue.wake(run)
    return len(timers) + len(due)


async def wake_lost(services: Services) -> int:
    """Send again the wake-ups that nobody acted on. The same job id twice is one job."""
    async with services.db.connection() as conn:
        waiting = await runs.due_unclaimed(conn, for_s=LOST_AFTER_S, limit=BATCH)
    sent = 0
    for run in waiting:
        if await services.queue.wake(run):
            sent += 1
        elif await services.queue.stuck(job_id(run.id, run.fencing_token)):
            sent += await _out_of_limbo(services, run)
    return sent


async def release_lines(services: Services) -> int:
    """Let the first run of each session's line go, should its predecessor's end have missed it."""
    async with services.db.connection() as conn:
        sessions = await runs.sessions_in_line(conn, limit=BATCH)
    after = After.nothing()
    for tenant, session_id in sessions:
        async with services.db.transaction() as conn:
            await release_next(conn, tenant, session_id, now=services.db.now(), after=after)
    await carry_out(services, after)
    return len(after.wake)


async def _taken_over(conn: Conn, run: Run, now: datetime, cause: str) -> Run:
    assert run.lease_until is not None
    stood_still_ms = ms_between(run.updated_at, now)
    data = {"worker": run.worker_id, "cause": cause, "stood_still_ms": stood_still_ms, "step": run.step}
    facts = [Fact(EventType.RUN_RECOVERED, "system", data)]
    if run.status is RunStatus.PAUSED:  # it stays paused; only the dead worker's hold ends
        ready = replace(run, lease_until=None, worker_id=None, fencing_token=run.fencing_token + 1)
    else:
        ready = woken(run, now=now)
        facts.append(queued(ready, "recovered"))
    saved, _ = await runs.save(conn, ready, facts, now=now)
    return saved


async def _out_of_limbo(services: Services, run: Run) -> bool:
    """A worker died between arq's mark and our claim: that job id is blocked, so a new token and a new id."""
    async with services.db.transaction() as conn:
        current = await runs.lock_any(conn, run.id)
        if current is None or current.fencing_token != run.fencing_token or current.leased:
            return False
        now = services.db.now()
        ready = replace(current, fencing_token=current.fencing_token + 1, woken_at=now)
        ready, _ = await runs.save(conn, ready, [], now=now)
    await services.queue.wake(ready)
    await services.queue.forget(job_id(run.id, run.fencing_token))
    return True
