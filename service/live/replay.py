"""What a subscription has missed, read in pages; nothing is held while the reader takes its time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final
from uuid import UUID

from service.domain.event import Event, EventType
from service.domain.snapshot import START, Snapshot
from service.errors import Unavailable
from service.live.reader import Subscription, Topic
from service.store import events, frames
from service.store.database import Conn, Database
from service.store.events import Line

PAGE: Final = 50
RETRY_S: Final = 0.5
Place = tuple[UUID, int]
Told = tuple[Event, Mapping[str, Any] | None]
Read = Callable[[Conn, Place], Awaitable[list[Event]]]


def replay(db: Database, wanted: Subscription, *, shows: bool = True) -> AsyncIterator[Told]:
    """What the subscription's start sees beyond `after`, run by run, with frames where they are shown."""
    after = wanted.after or {}
    topic = wanted.topic

    async def read(conn: Conn, beyond: Place) -> list[Event]:
        match topic.kind:
            case "run":
                positions = {run_id: after.get(run_id, 0) for run_id in (UUID(topic.name),)}
                return await events.of_runs(conn, topic.tenant, positions, wanted.start, beyond=beyond, limit=PAGE)
            case "inbox":
                types = [EventType.APPROVAL_REQUESTED.value]
                return await events.of_runs(
                    conn, topic.tenant, after, wanted.start, types=types, beyond=beyond, limit=PAGE
                )
            case "session" | "user":
                return await events.of_line(conn, line(topic), after, wanted.start, beyond=beyond, limit=PAGE)

    return _pages(db, topic.tenant, read, START, shows=shows)


def missed(db: Database, topic: Topic, since: Snapshot, until: Snapshot, beyond: Place = START) -> AsyncIterator[Told]:
    """What `until` sees of a session's or a user's runs and `since` does not, without frames."""

    async def read(conn: Conn, place: Place) -> list[Event]:
        return await events.of_line_since(conn, line(topic), since, until, beyond=place, limit=PAGE)

    return _pages(db, topic.tenant, read, beyond, shows=False)


def line(topic: Topic) -> Line:
    if topic.kind == "session":
        return Line(topic.tenant, session_id=topic.name)
    return Line(topic.tenant, user_id=topic.name)


async def _pages(db: Database, tenant: str, read: Read, beyond: Place, *, shows: bool) -> AsyncIterator[Told]:
    while True:
        try:
            async with db.connection(tenant) as conn:
                page = await read(conn, beyond)
                shown = await frames.of_events(conn, page) if shows else [None] * len(page)
        except Unavailable:  # Postgres comes back, and the place is still known
            await asyncio.sleep(RETRY_S)
            continue
        for told in zip(page, shown, strict=True):
            yield told
        if len(page) < PAGE:
            return
        beyond = (page[-1].run_id, page[-1].seq)
