"""Every chain of events in the database, for the auditor: read in one snapshot, a run at a time."""

from collections.abc import AsyncIterator
from uuid import UUID

from service.domain.audit import Head
from service.domain.event import Event
from service.store import content
from service.store.database import Conn

PREFETCH = 1000


async def chains(conn: Conn, *, tenant: str | None, run_id: UUID | None) -> AsyncIterator[tuple[Head, list[Event]]]:
    """Each run's head and events, in order of the runs' ids; runs without events too."""
    async with conn.transaction(isolation="repeatable_read", readonly=True):
        head: Head | None = None
        found: list[Event] = []
        query = """
            select r.id, r.event_seq, r.event_hash, e.run_id, e.seq, e.tenant, e.type, e.at, e.actor, e.data,
                   e.prev_hash, e.hash, k.wrapped
            from runs r left join events e on e.run_id = r.id
            left join content_keys k on k.subject = e.run_id and e.type = 'provider.progress'
            where ($1::text is null or r.tenant = $1) and ($2::uuid is null or r.id = $2)
            order by r.id, e.seq
            """
        async for row in conn.cursor(query, tenant, run_id, prefetch=PREFETCH):
            run, seq, last = row["id"], row["event_seq"], row["event_hash"]
            if head is None or head.run_id != str(run):
                if head is not None:
                    yield head, found
                head, found = Head(str(run), seq, last), []
            if row["run_id"] is not None:
                found.append(content.event_of(conn, row))
        if head is not None:
            yield head, found
