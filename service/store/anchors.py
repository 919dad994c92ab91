"""Rows of `anchors`, `anchored_heads` and `purged_runs`: what holds the record to what it was."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import asyncpg

from service.domain.anchor import Anchor, End, Seal, Tombstone
from service.store.database import Conn

PREFETCH = 1000
LONG_S = 300.0  # an hour of events may take its time
COLUMNS = ("n", "at", "heads", "root", "prev_hash", "hash", "key_id", "public_key", "signature")


@dataclass(frozen=True, slots=True)
class Place:
    """How far anchoring has come. `since` None: it goes through all runs; `beyond`: the last run of a page."""

    since: str | None
    seen: str
    beyond: UUID | None


async def lead(conn: Conn) -> bool:
    """Be the one who anchors, until the transaction ends; False: somebody else is."""
    leads: bool = await conn.fetchval("select pg_try_advisory_xact_lock(hashtextextended('hitl:anchor', 9))")
    return leads


async def last(conn: Conn, *, every_s: float) -> tuple[Anchor, Place, bool] | None:
    """The last anchor, where it left off, and whether it is time for another."""
    row = await conn.fetchrow(
        """
        select n, at, heads, root, prev_hash, hash, key_id, public_key, signature, since, seen, beyond,
               beyond is not null or at <= now() - $1::interval as due
        from anchors order by n desc limit 1
        """,
        timedelta(seconds=every_s),
    )
    if row is None:
        return None
    *_, since, seen, beyond, due = row.values()
    return _anchor(row), Place(since, seen, beyond), due


async def current(conn: Conn, before: str | None) -> tuple[str, bool]:
    """What is seen now, and whether `before` is of this server's past: after a restore it may not be."""
    row = await conn.fetchrow(
        """
        select pg_current_snapshot()::text as seen,
               coalesce(pg_snapshot_xmax($1::text::pg_snapshot) <= pg_snapshot_xmax(pg_current_snapshot()), false)
                   as ours
        """,
        before,
    )
    assert row is not None
    return row["seen"], row["ours"]


async def changed(conn: Conn, since: str, *, beyond: UUID | None, limit: int) -> list[End]:
    """Where the chains end that `since` did not see whole, in the order of runs."""
    rows = await conn.fetch(
        """
        select distinct on (run_id) run_id, tenant, seq, coalesce(nullif(hash, ''), encode(digest, 'hex')) as hash
        from events
        where xid >= pg_snapshot_xmin($1::text::pg_snapshot) and not pg_visible_in_snapshot(xid, $1::text::pg_snapshot)
          and xid < pg_snapshot_xmax(pg_current_snapshot())  -- not what a restore brought from another server
          and ($2::uuid is null or run_id > $2)
        order by run_id, seq desc limit $3
        """,
        since,
        beyond,
        limit,
        timeout=LONG_S,
    )
    return [End(**row) for row in rows]


async def ends(conn: Conn, *, beyond: UUID | None, limit: int) -> list[End]:
    """Where the chains of all runs end, in the order of runs."""
    rows = await conn.fetch(
        """
        select id as run_id, tenant, event_seq as seq, event_hash as hash from runs
        where ($1::uuid is null or id > $1) and event_seq > 0 order by id limit $2
        """,
        beyond,
        limit,
    )
    return [End(**row) for row in rows]


async def insert(conn: Conn, anchor: Anchor, ends: Sequence[End], place: Place) -> None:
    await conn.execute(
        """
        with anchored as (
            insert into anchors
                (n, at, heads, root, prev_hash, hash, key_id, public_key, signature, since, seen, beyond)
            values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12))
        insert into anchored_heads (n, run_id, tenant, seq, hash)
        select $1, h.* from unnest($13::uuid[], $14::text[], $15::bigint[], $16::text[]) as h
        """,
        anchor.n, anchor.at, anchor.heads, anchor.root, anchor.prev_hash, anchor.hash, anchor.seal.key_id,
        anchor.seal.public_key, anchor.seal.signature, place.since, place.seen, place.beyond,
        [end.run_id for end in ends], [end.tenant for end in ends], [end.seq for end in ends],
        [end.hash for end in ends],
    )  # fmt: skip


async def all_anchors(conn: Conn) -> list[Anchor]:
    """In their order: a few an hour at most."""
    rows = await conn.fetch(
        "select n, at, heads, root, prev_hash, hash, key_id, public_key, signature from anchors order by n"
    )
    return [_anchor(row) for row in rows]


async def ends_of(conn: Conn, n: int) -> list[End]:
    rows = await conn.fetch("select run_id, tenant, seq, hash from anchored_heads where n = $1 order by run_id", n)
    return [End(**row) for row in rows]


async def ends_of_runs(conn: Conn, run_ids: Sequence[UUID]) -> dict[UUID, list[End]]:
    """What was anchored of these runs, the earliest first."""
    rows = await conn.fetch(
        "select run_id, tenant, seq, hash from anchored_heads where run_id = any($1) order by n", list(run_ids)
    )
    found: dict[UUID, list[End]] = {}
    for row in rows:
        found.setdefault(row["run_id"], []).append(End(**row))
    return found


async def gone(conn: Conn, *, tenant: str | None, run_id: UUID | None) -> AsyncIterator[tuple[End, bool]]:
    """What was anchored last of runs that are not there, and whether a purge accounts for it: run by run."""
    query = """
        select distinct on (h.run_id) h.run_id, h.tenant, h.seq, h.hash,
               coalesce(p.tenant = h.tenant and (p.seq > h.seq or (p.seq = h.seq and p.hash = h.hash)), false) as purged
        from anchored_heads h left join purged_runs p on p.run_id = h.run_id
        where not exists (select from runs r where r.id = h.run_id)
          and ($1::text is null or h.tenant = $1) and ($2::uuid is null or h.run_id = $2)
        order by h.run_id, h.n desc
        """
    async for row in conn.cursor(query, tenant, run_id, prefetch=PREFETCH, timeout=LONG_S):
        *end, purged = row.values()
        yield End(*end), purged


async def bury(conn: Conn, stones: Sequence[Tombstone]) -> None:
    await conn.executemany(
        """
        insert into purged_runs (run_id, tenant, seq, hash, at, key_id, public_key, signature)
        values ($1, $2, $3, $4, $5, $6, $7, $8) on conflict do nothing
        """,
        [
            (s.end.run_id, s.end.tenant, s.end.seq, s.end.hash, s.at, s.seal.key_id, s.seal.public_key,
             s.seal.signature)
            for s in stones
        ],
    )  # fmt: skip


async def tombstones(conn: Conn, *, tenant: str | None, run_id: UUID | None) -> AsyncIterator[Tombstone]:
    query = """
        select run_id, tenant, seq, hash, at, key_id, public_key, signature from purged_runs
        where ($1::text is null or tenant = $1) and ($2::uuid is null or run_id = $2) order by run_id
        """
    async for row in conn.cursor(query, tenant, run_id, prefetch=PREFETCH):
        run, of, seq, last_hash, at, *seal = row.values()
        yield Tombstone(End(run, of, seq, last_hash), at, Seal(*seal))


def _anchor(row: asyncpg.Record) -> Anchor:
    n, at, heads, root, prev_hash, own_hash, *seal = (row[name] for name in COLUMNS)
    return Anchor(n, at, heads, root, prev_hash, own_hash, Seal(*seal))
