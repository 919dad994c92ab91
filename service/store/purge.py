"""What is over for longer than it is kept. A run goes with all that belongs to it, its chain of events too."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from service.domain.anchor import End
from service.store.database import Conn


@dataclass(frozen=True, slots=True)
class Kept:
    tenant: str
    days: int


async def policies(conn: Conn) -> list[Kept]:
    """Tenants whose record has an end."""
    rows = await conn.fetch(
        "select name as tenant, retention_days as days from tenants where retention_days is not null order by name"
    )
    return [Kept(**row) for row in rows]


async def tenants(conn: Conn) -> list[str]:
    """Every tenant that has a run or a question. A step from one to the next in the index, not a scan of all runs."""
    rows = await conn.fetch(
        """
        with recursive seen (tenant) as (
            select min(t) from (select min(tenant) as t from runs union all select min(tenant) from approvals) as first
            union all
            select (select min(t) from (select min(tenant) as t from runs where tenant > seen.tenant
                    union all select min(tenant) from approvals where tenant > seen.tenant) as next)
            from seen where seen.tenant is not null)
        select tenant from seen where tenant is not null
        """
    )
    return [row["tenant"] for row in rows]


async def count(conn: Conn, kept: Kept) -> dict[str, int]:
    """`{runs, files, questions}` that are over for longer."""
    row = await conn.fetchrow(
        """
        with gone as (select id from runs where tenant = $1 and finished_at < now() - $2::interval)
        select (select count(*) from gone) as runs,
               (select count(*) from files f join gone on f.run_id = gone.id where f.tenant = $1) as files,
               (select count(*) from approvals
                where tenant = $1 and run_id is null and decided_at < now() - $2::interval) as questions
        """,
        kept.tenant,
        timedelta(days=kept.days),
    )
    assert row is not None
    return dict(row)


async def over(conn: Conn, kept: Kept, *, limit: int) -> list[UUID]:
    """The oldest runs that are final for longer."""
    rows = await conn.fetch(
        "select id from runs where tenant = $1 and finished_at < now() - $2::interval order by finished_at limit $3",
        kept.tenant,
        timedelta(days=kept.days),
        limit,
    )
    return [row["id"] for row in rows]


async def locations(conn: Conn, tenant: str, run_ids: Sequence[UUID]) -> list[str]:
    """Where the bytes of their files lie."""
    rows = await conn.fetch("select location from files where tenant = $1 and run_id = any($2)", tenant, run_ids)
    return [row["location"] for row in rows]


async def remove(conn: Conn, kept: Kept, run_ids: Sequence[UUID]) -> list[End]:
    """Delete those of the runs that are still final: one that was resumed meanwhile stays. The service may not delete;
    the database's own function does (migration 0010). Returns how each one's chain ended."""
    rows = await conn.fetch(
        "select run_id, seq, hash from hitl_purge_runs($1, $2, $3)", run_ids, kept.tenant, timedelta(days=kept.days)
    )
    return [End(tenant=kept.tenant, **row) for row in rows]


async def remove_questions(conn: Conn, kept: Kept, *, limit: int) -> int:
    """Delete decided questions that belong to no run, likewise."""
    rows = await conn.fetch(
        "select id from hitl_purge_questions($1, $2, $3) as id", kept.tenant, timedelta(days=kept.days), limit
    )
    return len(rows)


async def remove_old_answers(conn: Conn) -> None:
    """Answers that no key asks for any more, of whatever tenant."""
    await conn.execute("delete from idempotency_keys where created_at < now() - interval '8 days'")
