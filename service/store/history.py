"""One run's rows as a person looks at them: bounded, whatever has happened to it."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from service.domain.call import ProviderCall
from service.domain.event import Event, EventType
from service.store import calls, content
from service.store.database import Conn


@dataclass(frozen=True, slots=True)
class Told:
    """What of a run's events is asked for: those before this seq (None: the newest), with or without progress."""

    before: int | None = None
    progress: bool = False


async def mark(conn: Conn, tenant: str, run_id: UUID) -> str | None:
    """Changes with every write of the run, and with its erasure; None: there is no such run."""
    found: str | None = await conn.fetchval(
        """
        select concat_ws('-', r.version, r.event_seq, e.subject is not null) from runs r
        left join erased_content e on e.subject = r.id where r.id = $1 and r.tenant = $2
        """,
        run_id,
        tenant,
    )
    return found


async def moves(conn: Conn, tenant: str, run_id: UUID, types: Collection[str], *, limit: int) -> list[Event]:
    """The run's newest events of these types, in their order; of none that holds content. `prev_hash` is left out."""
    rows = await conn.fetch(
        """
        select e.run_id, e.seq, e.tenant, e.type, e.at, e.actor, e.data, e.stands, null::bytea as wrapped,
               coalesce(nullif(e.hash, ''), encode(e.digest, 'hex')) as hash, '' as prev_hash
        from events e where e.run_id = $1 and e.tenant = $2 and e.type = any($3) and e.type <> 'provider.progress'
        order by e.seq desc limit $4
        """,
        run_id,
        tenant,
        list(types),
        limit,
    )
    return [content.event_of(conn, row) for row in reversed(rows)]


async def told(conn: Conn, tenant: str, run_id: UUID, wanted: Told, *, limit: int) -> list[Event]:
    """A page of the run's events, newest first."""
    rows = await conn.fetch(
        """
        select e.run_id, e.seq, e.tenant, e.type, e.at, e.actor, e.data, e.stands, k.wrapped,
               coalesce(nullif(e.hash, ''), encode(e.digest, 'hex')) as hash,
               coalesce(nullif(e.prev_hash, ''), (select coalesce(nullif(b.hash, ''), encode(b.digest, 'hex'))
                   from events b where b.run_id = e.run_id and b.seq = e.seq - 1), '') as prev_hash
        from events e
        left join content_keys k on k.subject = e.run_id and e.type = 'provider.progress'
        where e.run_id = $1 and e.tenant = $2 and ($3::bigint is null or e.seq < $3)
          and ($4 or e.type <> 'provider.progress')
        order by e.seq desc limit $5
        """,
        run_id, tenant, wanted.before, wanted.progress, limit,
    )  # fmt: skip
    return [content.event_of(conn, row) for row in rows]


async def progress_of(conn: Conn, tenant: str, run_id: UUID) -> tuple[int, Event | None]:
    """How often a provider told of its answer so far, and what it told last."""
    count: int = await conn.fetchval(
        "select count(*) from events where run_id = $1 and tenant = $2 and type = $3",
        run_id,
        tenant,
        EventType.PROVIDER_PROGRESS,
    )
    if not count:
        return 0, None
    row = await conn.fetchrow(
        """
        select e.run_id, e.seq, e.tenant, e.type, e.at, e.actor, e.data, e.stands, k.wrapped,
               coalesce(nullif(e.hash, ''), encode(e.digest, 'hex')) as hash,
               coalesce(nullif(e.prev_hash, ''), (select coalesce(nullif(b.hash, ''), encode(b.digest, 'hex'))
                   from events b where b.run_id = e.run_id and b.seq = e.seq - 1), '') as prev_hash
        from events e
        left join content_keys k on k.subject = e.run_id
        where e.run_id = $1 and e.tenant = $2 and e.type = $3 order by e.seq desc limit 1
        """,
        run_id,
        tenant,
        EventType.PROVIDER_PROGRESS,
    )
    return count, content.event_of(conn, row) if row else None


async def calls_of(conn: Conn, tenant: str, run_id: UUID, *, limit: int) -> list[ProviderCall]:
    """The run's newest provider calls, newest first."""
    rows = await conn.fetch(
        """
        select c.*, k.wrapped from provider_calls c left join content_keys k on k.subject = c.run_id
        where c.run_id = $1 and c.tenant = $2 order by c.number desc limit $3
        """,
        run_id,
        tenant,
        limit,
    )
    return [calls.of_row(conn, row) for row in rows]


async def purged_at(conn: Conn, tenant: str, run_id: UUID) -> datetime | None:
    """When a run that is gone was purged."""
    at: datetime | None = await conn.fetchval(
        "select at from purged_runs where run_id = $1 and tenant = $2", run_id, tenant
    )
    return at
