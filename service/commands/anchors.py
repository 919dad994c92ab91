"""Use case: anchor what changed in the record. One process does it, whichever comes first; the rest find it done."""

from datetime import datetime
from typing import Final

from service.commands.context import Services
from service.domain.anchor import Anchor, Signer, made
from service.logs import get_logger
from service.store import anchors
from service.store.anchors import Place
from service.store.database import EVERY

PAGE: Final = 5_000  # ends of one anchor: hashing them must not hold up the loop

log = get_logger("commands.anchors")


async def anchor_all(services: Services, *, every_s: float) -> int:
    """Anchor what changed since the last time, if that is long enough ago, in as many anchors as it takes."""
    count = 0
    while (anchor := await _one(services, every_s)) is not None:
        count += 1
        log.info("audit.anchored", anchor=anchor.n, runs=anchor.heads, hash=anchor.hash, key_id=anchor.seal.key_id)
        every_s = max(every_s, 1.0)  # a page that is full is followed up whatever the time
    return count


async def _one(services: Services, every_s: float) -> Anchor | None:
    signer = Signer(services.keyring)
    async with services.db.transaction(EVERY) as conn:
        if not await anchors.lead(conn):
            return None
        last = await anchors.last(conn, every_s=every_s)
        if last is not None and not last[2]:
            return None
        before = last[0] if last is not None else None
        place = last[1] if last is not None else None
        seen, ours = await anchors.current(conn, place.seen if place else None)
        place = _next(place if ours else None, seen)
        if place.since is None:
            ends = await anchors.ends(conn, beyond=place.beyond, limit=PAGE)
        else:
            ends = await anchors.changed(conn, place.since, beyond=place.beyond, limit=PAGE)
        if not ends and place.beyond is None:
            return None
        more = ends[-1].run_id if len(ends) == PAGE else None
        number, prev_hash = (before.n + 1, before.hash) if before else (1, "")
        anchor = made(number, _later(services, before), ends, prev_hash, signer)
        await anchors.insert(conn, anchor, ends, Place(place.since, place.seen, more))
    return anchor


def _next(place: Place | None, seen: str) -> Place:
    """Where to go on. What the first page of a round saw is what the next round looks at no more."""
    if place is None:  # the first time, or on a server that was restored: all runs
        return Place(None, seen, None)
    return place if place.beyond is not None else Place(place.seen, seen, None)


def _later(services: Services, before: Anchor | None) -> datetime:
    now = services.db.now()
    return max(now, before.at) if before else now
