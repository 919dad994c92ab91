"""Every chain of events in the database, for the auditor: read in the caller's snapshot, a run at a time."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from uuid import UUID

import asyncpg
import orjson

from service.domain.audit import Head
from service.domain.event import Event, said
from service.store import content
from service.store.database import Conn

PREFETCH = 1000


@dataclass(frozen=True, slots=True)
class Found(Event):
    """An event as it lies there. `spelt`: its data byte for byte as this service writes it. `erased`: whether an
    erasure of its run's content is on record."""

    spelt: bool = True
    erased: bool = False


async def chains(conn: Conn, *, tenant: str | None, run_id: UUID | None) -> AsyncIterator[tuple[Head, list[Found]]]:
    """Each run's head and events, in order of the runs' ids; runs without events too. Inside a transaction."""
    head: Head | None = None
    found: list[Found] = []
    query = """
        select r.id, r.event_seq, r.event_hash, r.tenant as of, e.run_id, e.seq, e.tenant, e.type, e.at, e.actor,
               e.data::text as data, e.stands, e.prev_hash, k.wrapped, x.subject is not null as erased,
               coalesce(nullif(e.hash, ''), encode(e.digest, 'hex')) as hash
        from runs r left join events e on e.run_id = r.id
        left join content_keys k on k.subject = e.run_id and e.type = 'provider.progress'
        left join erased_content x on x.subject = e.run_id and e.type = 'provider.progress'
        where ($1::text is null or r.tenant = $1) and ($2::uuid is null or r.id = $2)
        order by r.id, e.seq
        """
    async for row in conn.cursor(query, tenant, run_id, prefetch=PREFETCH):
        if head is None or head.run_id != str(row["id"]):
            if head is not None:
                yield head, found
            head, found = Head(str(row["id"]), row["event_seq"], row["event_hash"], row["of"]), []
        if row["run_id"] is not None:
            found.append(_of_row(conn, row, found[-1].hash if found else ""))
    if head is not None:
        yield head, found


def _of_row(conn: Conn, row: asyncpg.Record, last: str) -> Found:
    data = orjson.loads(row["data"])
    event = content.event_of(conn, {**row, "data": data, "prev_hash": row["prev_hash"] or last})
    values = {name: getattr(event, name) for name in Event.__slots__}
    twice = row["stands"] is not None and isinstance(data, dict) and said(data) != data
    return Found(**values, spelt=orjson.dumps(data) == row["data"].encode() and not twice, erased=row["erased"])
