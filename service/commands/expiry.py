"""Use cases of time: an approval's deadline and its reminders, one by its own job, or batches by the sweep."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final
from uuid import UUID

from service.commands.approvals import expire, log_silence, remind, say_again, silence
from service.commands.context import After, Services, carry_out
from service.errors import Unavailable
from service.logs import get_logger
from service.store import approvals, timers
from service.store.database import EVERY

# a decision about one of a batch waits for the whole of it
BATCH: Final = 50
EARLY_S: Final = 2.0

log = get_logger("commands.expiry")


async def expire_on_time(services: Services, approval_id: UUID) -> bool:
    """The deadline's own job: by another machine's clock it may be here a little before the moment."""
    left = await _left_s(services, approval_id)
    return await _come(left[0] if left else None) and await expire(services, approval_id)


async def remind_on_time(services: Services, approval_id: UUID) -> bool:
    """As `expire_on_time`, of the reminder."""
    left = await _left_s(services, approval_id)
    return await _come(left[1] if left else None) and await remind(services, approval_id)


async def expire_batch(services: Services) -> int:
    """The soonest of those past their deadline, in one transaction; others' are skipped. Returns how many."""
    after = After.nothing()
    async with services.db.transaction(EVERY) as conn:
        due = await timers.lock_expired(conn, limit=BATCH)
        changed = [await silence(conn, services, current, run, after) for current, run in due]
    for approval in changed:
        log_silence(approval)
    await carry_out(services, after)
    return len(changed)


async def remind_batch(services: Services) -> int:
    after = After.nothing()
    async with services.db.transaction(EVERY) as conn:
        due = await timers.lock_to_remind(conn, limit=BATCH)
        for current, run in due:
            await say_again(conn, services, current, run, after)
    await carry_out(services, after)
    return len(due)


async def expire_singly(services: Services) -> int:
    """For a batch that holds a row which cannot be dealt with: the others, each in a transaction of its own."""
    async with services.db.connection(EVERY) as conn:
        due = await approvals.due(conn, limit=4 * BATCH)
    return await _singly(expire, services, due)


async def remind_singly(services: Services) -> int:
    async with services.db.connection(EVERY) as conn:
        late = await approvals.to_remind(conn, limit=4 * BATCH)
    return await _singly(remind, services, late)


async def _singly(act: Callable[[Services, UUID], Awaitable[bool]], services: Services, due: list[UUID]) -> int:
    done = 0
    for approval_id in due:
        try:
            done += await act(services, approval_id)
        except Unavailable:
            raise
        except Exception as error:
            log.error("sweep.part_failed", part=act.__name__, error=type(error).__name__, approval_id=str(approval_id))
    return done


async def _left_s(services: Services, approval_id: UUID) -> tuple[float | None, float | None] | None:
    async with services.db.connection(EVERY) as conn:
        return await timers.left_s(conn, approval_id)


async def _come(left_s: float | None) -> bool:
    """Wait out what is left, if that is little: a moment far off was moved there, and has a job of its own."""
    if left_s is None or left_s > EARLY_S:
        return False
    if left_s > 0:
        await asyncio.sleep(left_s + 0.001)
    return True
