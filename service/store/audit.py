"""Every chain of events in the database, for the auditor: read in the caller's snapshot, a run at a time."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson

from service.domain.audit import Head
from service.domain.event import Event
from service.store.database import Conn

PREFETCH = 1000


@dataclass(frozen=True, slots=True)
class Found(Event):
    """An event as it lies there. `spelt`: its data byte for byte as this service writes it."""

    spelt: bool = True


async def chains(conn: Conn, *, tenant: str | None, run_id: UUID | None) -> AsyncIterator[tuple[Head, list[Found]]]:
    """Each run's head and events, in order of the runs' ids; runs without events too. Inside a transaction."""
    head: Head | None = None
    found: list[Found] = []
    query = """
        select r.id, r.event_seq, r.event_hash, r.tenant as of, e.run_id, e.seq, e.tenant, e.type, e.at, e.actor,
               e.data::text, e.prev_hash, e.hash
        from runs r left join events e on e.run_id = r.id
        where ($1::text is null or r.tenant = $1) and ($2::uuid is null or r.id = $2)
        order by r.id, e.seq
        """
    async for row in conn.cursor(query, tenant, run_id, prefetch=PREFETCH):
        run, seq, last, of, *event = row.values()
        if head is None or head.run_id != str(run):
            if head is not None:
                yield head, found
            head, found = Head(str(run), seq, last, of), []
        if event[0] is not None:
            found.append(_of_row(event))
    if head is not None:
        yield head, found


def _of_row(values: Sequence[Any]) -> Found:
    run_id, seq, tenant, kind, at, actor, text, prev_hash, own_hash = values
    data = orjson.loads(text)
    spelt = orjson.dumps(data) == text.encode()
    return Found(run_id, seq, tenant, kind, at, actor, data, prev_hash, own_hash, spelt)
