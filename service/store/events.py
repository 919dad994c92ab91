"""Rows of `events`: appended with the change that made them true, never changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from service.domain.event import Event, said, shortened
from service.domain.snapshot import START, Snapshot
from service.store import content
from service.store.database import Conn


def columns(appended: Sequence[Event]) -> tuple[list[Any], ...]:
    """`seq, at, type, actor, data, stands, digest` of the events as arrays, to go along in the statement that
    writes their run: `unnest` of them is `(bigint, timestamptz, text, text, json, smallint, bytea)`."""
    kept = [shortened(e.data) for e in appended]
    return (
        [e.seq for e in appended],
        [e.at for e in appended],
        [e.type for e in appended],
        [e.actor for e in appended],
        [data for data, _ in kept],
        [number for _, number in kept],
        [bytes.fromhex(e.hash) for e in appended],
    )


async def after(conn: Conn, tenant: str, run_id: UUID, seq: int, *, limit: int) -> list[Event]:
    """The run's events after `seq`, in order."""
    rows = await conn.fetch(
        """
        select e.run_id, e.seq, e.tenant, e.type, e.at, e.actor, e.data, e.stands, k.wrapped,
               coalesce(nullif(e.hash, ''), encode(e.digest, 'hex')) as hash,
               coalesce(nullif(e.prev_hash, ''), (select coalesce(nullif(b.hash, ''), encode(b.digest, 'hex'))
                   from events b where b.run_id = e.run_id and b.seq = e.seq - 1), '') as prev_hash
        from events e
        left join content_keys k on k.subject = e.run_id and e.type = 'provider.progress'
        where e.run_id = $1 and e.tenant = $2 and e.seq > $3 order by e.seq limit $4
        """,
        run_id,
        tenant,
        seq,
        limit,
    )
    return [content.event_of(conn, row) for row in rows]


async def last_data(conn: Conn, run_id: UUID, kind: str) -> Any:
    """What the run's last event of this type said, or None."""
    row = await conn.fetchrow(
        """
        select e.run_id, e.seq, e.tenant, e.type, e.at, e.actor, e.data, e.stands, k.wrapped,
               coalesce(nullif(e.hash, ''), encode(e.digest, 'hex')) as hash,
               coalesce(nullif(e.prev_hash, ''), (select coalesce(nullif(b.hash, ''), encode(b.digest, 'hex'))
                   from events b where b.run_id = e.run_id and b.seq = e.seq - 1), '') as prev_hash
        from events e
        left join content_keys k on k.subject = e.run_id and e.type = 'provider.progress'
        where e.run_id = $1 and e.type = $2 order by e.seq desc limit 1
        """,
        run_id,
        kind,
    )
    return None if row is None else said(content.event_of(conn, row).data)


# Reading over many runs: what one snapshot sees and another does not (`domain.snapshot`).


@dataclass(frozen=True, slots=True)
class News:
    """One event that a reader has not seen, or one question that belongs to no run (then `run_id` is None)."""

    xid: int
    tenant: str
    run_id: UUID | None
    seq: int
    type: str
    session_id: str | None
    user_id: str | None
    approval_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """The runs of a session, or of a user, of one tenant."""

    tenant: str
    session_id: str | None = None
    user_id: str | None = None


async def snapshot(conn: Conn) -> Snapshot:
    """What is seen now."""
    return Snapshot.parse(await conn.fetchval("select pg_current_snapshot()::text"))


async def news(conn: Conn, since: Snapshot) -> tuple[Snapshot, list[News]]:
    """What came since, of all runs of all tenants, in the order of run and seq; and the snapshot that saw it.

    The limit keeps the planner, which cannot know how little is new, from reading all runs.
    """
    rows = await conn.fetch(
        """
        with unseen as (
            select e.xid, e.tenant, e.run_id, e.seq, e.type, r.session_id, r.user_id, null::uuid as approval_id
            from events e cross join lateral (select session_id, user_id from runs where id = e.run_id limit 1) r
            where e.xid >= pg_snapshot_xmin($1::text::pg_snapshot)
              and not pg_visible_in_snapshot(e.xid, $1::text::pg_snapshot)
            union all
            select q.xid, q.tenant, null, 0, 'approval.requested', null, null, q.approval_id from questions q
            where q.xid >= pg_snapshot_xmin($1::text::pg_snapshot)
              and not pg_visible_in_snapshot(q.xid, $1::text::pg_snapshot))
        select pg_current_snapshot()::text as seen, u.xid::text::bigint as xid, u.tenant, u.run_id, u.seq, u.type,
               u.session_id, u.user_id, u.approval_id
        from (select) as always left join unseen u on true order by u.run_id, u.seq
        """,
        str(since),
    )
    found = [News(**dict(list(row.items())[1:])) for row in rows if row["xid"] is not None]
    return Snapshot.parse(rows[0]["seen"]), found


async def asked(conn: Conn, tenant: str, approval_id: UUID) -> None:
    """Let readers of the tenant's inbox know of a question that belongs to no run."""
    await conn.execute("insert into questions (approval_id, tenant) values ($1, $2)", approval_id, tenant)


async def some(conn: Conn, keys: Sequence[tuple[UUID, int]]) -> list[Event]:
    """The events with these runs and seqs, in the order of run and seq."""
    rows = await conn.fetch(
        """
        select e.run_id, e.seq, e.tenant, e.type, e.at, e.actor, e.data, e.stands, k.wrapped,
               coalesce(nullif(e.hash, ''), encode(e.digest, 'hex')) as hash,
               coalesce(nullif(e.prev_hash, ''), (select coalesce(nullif(b.hash, ''), encode(b.digest, 'hex'))
                   from events b where b.run_id = e.run_id and b.seq = e.seq - 1), '') as prev_hash
        from unnest($1::uuid[], $2::bigint[]) as w (run_id, seq)
        join events e on e.run_id = w.run_id and e.seq = w.seq
        left join content_keys k on k.subject = e.run_id and e.type = 'provider.progress'
        order by e.run_id, e.seq
        """,
        [run_id for run_id, _ in keys],
        [seq for _, seq in keys],
    )
    return [content.event_of(conn, row) for row in rows]


async def of_runs(
    conn: Conn,
    tenant: str,
    positions: Mapping[UUID, int],
    until: Snapshot,
    *,
    types: Sequence[str] | None = None,
    beyond: tuple[UUID, int] = START,
    limit: int,
) -> list[Event]:
    """A page of what `until` sees of these runs after each one's seq, in the order of run and seq."""
    rows = await conn.fetch(
        """
        select e.run_id, e.seq, e.tenant, e.type, e.at, e.actor, e.data, e.stands, k.wrapped,
               coalesce(nullif(e.hash, ''), encode(e.digest, 'hex')) as hash,
               coalesce(nullif(e.prev_hash, ''), (select coalesce(nullif(b.hash, ''), encode(b.digest, 'hex'))
                   from events b where b.run_id = e.run_id and b.seq = e.seq - 1), '') as prev_hash
        from unnest($2::uuid[], $3::bigint[]) as p (run_id, seq) join events e on e.run_id = p.run_id and e.seq > p.seq
        left join content_keys k on k.subject = e.run_id and e.type = 'provider.progress'
        where e.tenant = $1 and pg_visible_in_snapshot(e.xid, $4::text::pg_snapshot)
          and ($5::text[] is null or e.type = any($5)) and (e.run_id, e.seq) > ($6, $7)
        order by e.run_id, e.seq limit $8
        """,
        tenant, list(positions), list(positions.values()), str(until), types, *beyond, limit,
    )  # fmt: skip
    return [content.event_of(conn, row) for row in rows]


async def of_line(
    conn: Conn,
    line: Line,
    positions: Mapping[UUID, int],
    until: Snapshot,
    *,
    beyond: tuple[UUID, int] = START,
    limit: int,
) -> list[Event]:
    """A page of what `until` sees of the line's runs, each after its position (none: from the first event)."""
    rows = await conn.fetch(
        """
        select e.run_id, e.seq, e.tenant, e.type, e.at, e.actor, e.data, e.stands, k.wrapped,
               coalesce(nullif(e.hash, ''), encode(e.digest, 'hex')) as hash,
               coalesce(nullif(e.prev_hash, ''), (select coalesce(nullif(b.hash, ''), encode(b.digest, 'hex'))
                   from events b where b.run_id = e.run_id and b.seq = e.seq - 1), '') as prev_hash
        from runs r left join unnest($4::uuid[], $5::bigint[]) as p (run_id, seq) on p.run_id = r.id
        join events e on e.run_id = r.id and e.seq > coalesce(p.seq, 0)
        left join content_keys k on k.subject = e.run_id and e.type = 'provider.progress'
        where r.tenant = $1 and ($2::text is null or r.session_id = $2) and ($3::text is null or r.user_id = $3)
          and pg_visible_in_snapshot(e.xid, $6::text::pg_snapshot) and (e.run_id, e.seq) > ($7, $8) and r.id >= $7
        order by e.run_id, e.seq limit $9
        """,
        line.tenant, line.session_id, line.user_id, list(positions), list(positions.values()), str(until), *beyond,
        limit,
    )  # fmt: skip
    return [content.event_of(conn, row) for row in rows]


async def of_line_since(
    conn: Conn, line: Line, since: Snapshot, until: Snapshot, *, beyond: tuple[UUID, int] = START, limit: int
) -> list[Event]:
    """A page of what `until` sees of the line's runs and `since` does not, in the order of run and seq."""
    rows = await conn.fetch(
        """
        select e.run_id, e.seq, e.tenant, e.type, e.at, e.actor, e.data, e.stands, k.wrapped,
               coalesce(nullif(e.hash, ''), encode(e.digest, 'hex')) as hash,
               coalesce(nullif(e.prev_hash, ''), (select coalesce(nullif(b.hash, ''), encode(b.digest, 'hex'))
                   from events b where b.run_id = e.run_id and b.seq = e.seq - 1), '') as prev_hash
        from events e join runs r on r.id = e.run_id
        left join content_keys k on k.subject = e.run_id and e.type = 'provider.progress'
        where r.tenant = $1 and ($2::text is null or r.session_id = $2) and ($3::text is null or r.user_id = $3)
          and e.xid >= pg_snapshot_xmin($4::text::pg_snapshot)
          and not pg_visible_in_snapshot(e.xid, $4::text::pg_snapshot)
          and pg_visible_in_snapshot(e.xid, $5::text::pg_snapshot) and (e.run_id, e.seq) > ($6, $7)
        order by e.run_id, e.seq limit $8
        """,
        line.tenant, line.session_id, line.user_id, str(since), str(until), *beyond, limit,
    )  # fmt: skip
    return [content.event_of(conn, row) for row in rows]
