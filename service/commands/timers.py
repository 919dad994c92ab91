"""The sweep: the periodic search for lost work. Whatever a hint would have started is found here without one.

Several workers sweep at once; rows are locked with SKIP LOCKED, and each use case checks again under its lock.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

from service.commands import expiry
from service.commands.context import After, Services, carry_out, each, finish, queued, release_next
from service.domain.altered import altered
from service.domain.call import CallStatus
from service.domain.event import EventType, Fact
from service.domain.ids import job_id
from service.domain.run import Run, RunStatus, fail, ms_between, woken
from service.errors import Unavailable
from service.logs import get_logger
from service.store import approvals, calls, runs, workers
from service.store.database import EVERY, Conn

BATCH: Final = 200
PAGES: Final = 25
LOST_AFTER_S: Final = 1.0
LIMBO_AFTER: Final = timedelta(seconds=3)
SECOND_LOOK_S: Final = 0.5

log = get_logger("commands.timers")


async def sweep(services: Services) -> Counter[str]:
    """One pass over everything that may have been lost, in bounded batches. Returns what was found, by kind.

    One row that cannot be dealt with must not keep the rest from being found. Raises `Unavailable`.
    """
    found: Counter[str] = Counter()
    found["recovered"] = await _tried("recover", recover_abandoned(services))
    found["timed_out"] = await _tried("end_overdue", end_overdue(services))
    found["expired"] = await _tried("expire", expiry.expire_batch(services), lambda: expiry.expire_singly(services))
    found["reminded"] = await _tried("remind", expiry.remind_batch(services), lambda: expiry.remind_singly(services))
    found["armed"] = await _tried("arm", arm(services))
    found["woken"] = await _tried("wake", wake_lost(services))
    found["released"] = await _tried("release", release_lines(services))
    async with services.db.connection(EVERY) as conn:
        await workers.forget_silent(conn, after_s=3600)
    return found


def more(found: Counter[str]) -> bool:
    """Whether a pass took as much of a kind as it may: there is more to be done now."""
    batches = {"recovered": BATCH, "timed_out": BATCH, "armed": BATCH, "expired": expiry.BATCH}
    batches["reminded"] = expiry.BATCH
    return any(found[kind] >= size for kind, size in batches.items())


async def _tried(part: str, work: Awaitable[int], otherwise: Callable[[], Awaitable[int]] | None = None) -> int:
    try:
        return await work
    except Unavailable:
        raise
    except Exception as error:
        log.error("sweep.part_failed", part=part, error=type(error).__name__)
    return await otherwise() if otherwise else 0


async def recover_abandoned(services: Services) -> int:
    """Take over runs whose worker fell silent: a new token refuses whatever it may still write."""
    after = After.nothing()
    told: list[tuple[Run, str, int]] = []
    dead = await dead_workers(services)
    async with services.db.transaction(EVERY) as conn:
        abandoned = await runs.lock_abandoned(conn, dead=dead, limit=BATCH)
        now = services.db.now()
        signs = await workers.last_signs(conn, [run.worker_id for run in abandoned if run.worker_id])
        for run in abandoned:
            cause = "worker_died" if run.worker_id in dead else "worker_silent"
            stood_still_ms = ms_between(last_sign(run, signs.get(run.worker_id or "")), now)
            told.append((run, cause, stood_still_ms))
            after.wake.append(await _taken_over(conn, run, now, cause, stood_still_ms))
            after.changed.append(run.id)
        if len(abandoned) < BATCH:
            for worker_id in dead:
                await workers.leave(conn, worker_id)
    await carry_out(services, after)
    await services.queue.forget(*(job_id(run.id, run.fencing_token - 1) for run in abandoned))
    for run, cause, stood_still_ms in told:
        log.warning(
            "run.recovered", run_id=str(run.id), tenant=run.tenant, step=run.step, worker=run.worker_id,
            cause=cause, stood_still_ms=stood_still_ms,
        )  # fmt: skip
    return len(abandoned)


async def dead_workers(services: Services) -> set[str]:
    """Workers whose session lock is free. Looked at twice: a connection that only broke is back in a moment."""
    async with services.db.connection(EVERY) as conn:
        suspects = await workers.dead(conn)
    if not suspects:
        return suspects
    await asyncio.sleep(SECOND_LOOK_S)
    async with services.db.connection(EVERY) as conn:
        return suspects & await workers.dead(conn)


async def end_overdue(services: Services) -> int:
    """Fail the runs whose own deadline passed."""
    after = After.nothing()
    async with services.db.transaction(EVERY) as conn:
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
    return len(overdue)


async def arm(services: Services) -> int:
    """Give deadlines that came inside the horizon their deferred jobs."""
    async with services.db.transaction(EVERY) as conn:
        timers = await approvals.arm(conn, horizon_s=services.horizon_s, limit=BATCH)
        due = await runs.arm_due(conn, horizon_s=services.horizon_s, limit=BATCH)
    await each(lambda timer: services.queue.arm_timer(timer["id"], timer["timer_no"], timer["expires_at"]), timers)
    await services.queue.wake_all(due)
    return len(timers) + len(due)


async def wake_lost(services: Services) -> int:
    """Send again the wake-ups that nobody acted on. The same job id twice is one job.

    A backlog that only waits for a slot must not hide a lost one behind it, so it is paged through.
    """
    sent = 0
    after = None
    for _ in range(PAGES):
        async with services.db.connection(EVERY) as conn:
            waiting = await runs.due_unclaimed(conn, for_s=LOST_AFTER_S, limit=BATCH, after=after)
        sent += await _wake_page(services, waiting)
        if len(waiting) < BATCH or services.queue.away:
            break
        assert waiting[-1].due_at is not None
        after = (waiting[-1].due_at, waiting[-1].id)
    return sent


async def _wake_page(services: Services, waiting: Sequence[Run]) -> int:
    marks = await services.queue.known([job_id(run.id, run.fencing_token) for run in waiting])
    if marks is None:
        return 0
    found = list(zip(waiting, marks, strict=True))
    lost = [run for run, mark in found if not mark.queued]
    sent = await services.queue.wake_all(lost)
    refused = [run for run, taken in zip(lost, sent, strict=True) if not taken]
    stuck = [run for run, mark in found if mark.queued and mark.in_progress] + await _unqueued(services, refused)
    freed = await each(lambda run: _out_of_limbo(services, run), [run for run in stuck if _long_due(services, run)])
    return sum(sent) + sum(freed)


async def _unqueued(services: Services, refused: Sequence[Run]) -> list[Run]:
    """Runs whose job arq knows and will never start: it stands in no queue."""
    marks = await services.queue.known([job_id(run.id, run.fencing_token) for run in refused])
    return [run for run, mark in zip(refused, marks, strict=True) if not mark.queued] if marks else []


def _long_due(services: Services, run: Run) -> bool:
    return run.due_at is not None and run.due_at < services.db.now() - LIMBO_AFTER


async def release_lines(services: Services) -> int:
    """Let the first run of each session's line go, should its predecessor's end have missed it."""
    async with services.db.connection(EVERY) as conn:
        sessions = await runs.sessions_in_line(conn, limit=BATCH)
    after = After.nothing()
    for tenant, session_id in sessions:
        async with services.db.transaction(tenant) as conn:
            await release_next(conn, tenant, session_id, now=services.db.now(), after=after)
    await carry_out(services, after)
    return len(after.wake)


def last_sign(run: Run, seen_at: datetime | None) -> datetime:
    """When the run was last known to be in its worker's hands: the worker's heartbeat, its claim, its last write."""
    signs = (seen_at, run.claimed_at, run.updated_at if run.status is RunStatus.RUNNING else None)
    return max((at for at in signs if at is not None), default=run.updated_at)


async def _taken_over(conn: Conn, run: Run, now: datetime, cause: str, stood_still_ms: int) -> Run:
    data = {"worker": run.worker_id, "cause": cause, "stood_still_ms": stood_still_ms, "step": run.step}
    facts = [Fact(EventType.RUN_RECOVERED, "system", data)]
    if run.status is RunStatus.PAUSED:  # it stays paused; only the dead worker's hold ends
        call = await calls.get(conn, run.id, run.call_no)
        goes_on = call is not None and call.status is CallStatus.ACCEPTED and call.provider_ref is not None
        ready = altered(
            run, lease_until=None, worker_id=None, fencing_token=run.fencing_token + 1, due_at=now if goes_on else None
        )
    else:
        ready = woken(run, now=now)
        facts.append(queued(ready, "recovered"))
    saved, _ = await runs.save(conn, ready, facts, now=now)
    return saved


async def _out_of_limbo(services: Services, run: Run) -> bool:
    """A worker died between arq's mark and our claim: that job id is blocked, so a new token and a new id."""
    async with services.db.transaction(run.tenant) as conn:
        current = await runs.lock_any(conn, run.id)
        if current is None or current.fencing_token != run.fencing_token or current.leased:
            return False
        now = services.db.now()
        ready = altered(current, fencing_token=current.fencing_token + 1, woken_at=now)
        ready, _ = await runs.save(conn, ready, [], now=now)
    await services.queue.wake(ready)
    await services.queue.forget(job_id(run.id, run.fencing_token))
    return True
