"""What stands beside a list of runs: how many there are of a status, how far back is looked, and runs by their id."""

from datetime import datetime
from uuid import UUID

from service.domain.run import Run
from service.store.database import Conn
from service.store.runs import RunFilter, of_row


async def counts(conn: Conn, tenant: str, *, at_most: int) -> dict[str, int]:
    """The tenant's runs by status, each counted so far and one further."""
    rows = await conn.fetch(
        """
        select k.status, c.n
        from unnest(array['queued', 'running', 'awaiting_human', 'awaiting_provider', 'paused', 'completed', 'failed',
                          'cancelled']) as k (status)
        cross join lateral (select count(*) as n from (
            select from runs where tenant = $1 and status = k.status limit $2 + 1) as r) as c
        """,
        tenant,
        at_most,
    )
    return {row["status"]: row["n"] for row in rows}


async def counts_of(conn: Conn, tenant: str, wanted: RunFilter, *, at_most: int) -> dict[str, int]:
    """Likewise of the newest that match, whatever their status: so many and one further in all."""
    rows = await conn.fetch(
        """
        select status, count(*) as n from (
            select status from runs where tenant = $1
              and ($2::text is null or user_id = $2) and ($3::text is null or session_id = $3)
              and ($4::text is null or provider = $4) and ($5::timestamptz is null or created_at > $5)
              and ($6::timestamptz is null or created_at < $6)
            order by created_at desc, id desc limit $7 + 1) as newest
        group by status
        """,
        tenant, wanted.user_id, wanted.session_id, wanted.provider, wanted.created_after, wanted.created_before,
        at_most,
    )  # fmt: skip
    return {row["status"]: row["n"] for row in rows}


async def started_before(conn: Conn, tenant: str, *, newest: int) -> datetime | None:
    """When the last run before the tenant's newest so many was started; None where there are no more."""
    found: datetime | None = await conn.fetchval(
        "select created_at from runs where tenant = $1 order by created_at desc, id desc offset $2 limit 1",
        tenant,
        newest,
    )
    return found


async def between(conn: Conn, tenant: str, low: UUID, high: UUID, *, limit: int) -> list[Run]:
    """Runs by their ids, newest first."""
    rows = await conn.fetch(
        "select * from runs where tenant = $1 and id between $2 and $3 order by id desc limit $4",
        tenant, low, high, limit,
    )  # fmt: skip
    return [of_row(row) for row in rows]


async def of_approval(conn: Conn, tenant: str, approval_id: UUID) -> UUID | None:
    """The run that an approval belongs to."""
    found: UUID | None = await conn.fetchval(
        "select run_id from approvals where tenant = $1 and id = $2", tenant, approval_id
    )
    return found
