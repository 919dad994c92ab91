"""Use case: forget what is over for longer than it is kept, in batches that hold nobody up."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from service.commands.context import Services
from service.domain.anchor import End, Signer, tombstone
from service.filestore import StoreFailed
from service.logs import get_logger
from service.store import anchors, chores, seen
from service.store import purge as store
from service.store.database import EVERY, Conn
from service.store.purge import Kept

BATCH: Final = 200
PURGE_EVERY_S: Final = 3600.0

log = get_logger("commands.purge")


async def kept(services: Services, *, tenant: str | None, days: int | None) -> list[Kept]:
    """How long whose record is kept: by each tenant's own policy, or `days` for the one named, or for all."""
    async with services.db.connection(EVERY) as conn:
        if days is None:
            return [one for one in await store.policies(conn) if tenant in (None, one.tenant)]
        names = [tenant] if tenant is not None else await store.tenants(conn)
        return [Kept(name, days) for name in names]


async def count(services: Services, one: Kept) -> dict[str, int]:
    """What a purge would remove: `{runs, files, questions}`."""
    async with services.db.connection(one.tenant) as conn:
        return await store.count(conn, one)


async def purge(
    services: Services, one: Kept, *, told: Callable[[int], None] = lambda _: None, rests: bool = False
) -> dict[str, int]:
    """Remove what is over for longer. `told` hears the number of runs of each batch; `rests`: for as long as one took.

    Files go before the rows that say where they are: what dies in between is found again. A file store that is away
    leaves the runs for the next time.
    """
    found: Counter[str] = Counter(runs=0, files=0, questions=0)
    began = time.monotonic()
    while True:
        batch_began = time.monotonic()
        async with services.db.connection(one.tenant) as conn:
            run_ids = await store.over(conn, one, limit=BATCH)
            places = await store.locations(conn, one.tenant, run_ids)
        try:
            for place in places:
                await services.files.remove(place)
        except StoreFailed as error:
            log.warning("purge.failed", tenant=one.tenant, error=type(error).__name__)
            break
        async with services.db.transaction(one.tenant) as conn:
            ends = await store.remove(conn, one, run_ids)
            await _bury(conn, services, ends)
        gone = len(ends)
        found.update(runs=gone, files=len(places))
        told(gone)
        if len(run_ids) < BATCH or not gone:
            break
        if rests:
            await asyncio.sleep(time.monotonic() - batch_began)
    while True:
        async with services.db.transaction(one.tenant) as conn:
            gone = await store.remove_questions(conn, one, limit=BATCH)
        found["questions"] += gone
        if gone < BATCH:
            break
    async with services.db.transaction(one.tenant) as conn:
        await seen.forget(conn, one.tenant, days=one.days)
    if found.total():
        took_ms = round((time.monotonic() - began) * 1000)
        log.info("purge.finished", tenant=one.tenant, days=one.days, duration_ms=took_ms, **found)
    return dict(found)


async def _bury(conn: Conn, services: Services, ends: Sequence[End]) -> None:
    """What is left of each run is signed: a deletion is no purge without it."""
    signer, now = Signer(services.keyring), services.db.now()
    await anchors.bury(conn, [tombstone(end, now, signer) for end in ends])


async def purge_by_policy(services: Services) -> bool:
    """What one worker of all does once an hour; every worker asks. Returns whether it was this one's turn.

    Between two batches it rests as long as one took: nobody waits for a purge, and others want the database.
    """
    async with services.db.connection(EVERY) as conn:
        if not await chores.take_turn(conn, "purge", every_s=PURGE_EVERY_S):
            return False
    for one in await kept(services, tenant=None, days=None):
        await purge(services, one, rests=True)
    async with services.db.transaction(EVERY) as conn:
        await store.remove_old_answers(conn)
    return True
