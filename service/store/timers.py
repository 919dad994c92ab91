"""Open approvals whose moment has come, locked for one sweep: what another transaction holds is left to it."""

from collections.abc import Sequence
from uuid import UUID

from service.domain.approval import Approval
from service.domain.run import STATE_VERSION, Run
from service.store import approvals, runs
from service.store.database import Conn

Due = Sequence[tuple[Approval, Run | None]]


async def lock_expired(conn: Conn, *, limit: int) -> Due:
    """Past their deadline by Postgres's clock, soonest first, each with its run: the run is locked first."""
    found = await conn.fetch(
        """
        select r.* from approvals a join runs r on r.id = a.run_id
        where a.status = 'pending' and a.clock_stopped_at is null and a.expires_at <= now() and r.state_version <= $2
        order by a.expires_at limit $1 for update of r skip locked
        """,
        limit,
        STATE_VERSION,
    )
    held = {row["id"]: runs.of_row(row) for row in found}
    rows = await conn.fetch(
        """
        select * from approvals where run_id = any($1)
          and status = 'pending' and clock_stopped_at is null and expires_at <= now()
        order by expires_at for update skip locked
        """,
        list(held),
    )
    rows += await conn.fetch(
        """
        select * from approvals where run_id is null
          and status = 'pending' and clock_stopped_at is null and expires_at <= now()
        order by expires_at limit $1 for update skip locked
        """,
        limit,
    )
    return _one_each(await approvals.with_decisions(conn, rows), held)


async def lock_to_remind(conn: Conn, *, limit: int) -> Due:
    """Open still, and time to say so again; as `lock_expired`."""
    found = await conn.fetch(
        """
        select r.* from approvals a join runs r on r.id = a.run_id
        where a.status = 'pending' and a.clock_stopped_at is null and a.remind_at <= now() and r.state_version <= $2
        order by a.remind_at limit $1 for update of r skip locked
        """,
        limit,
        STATE_VERSION,
    )
    held = {row["id"]: runs.of_row(row) for row in found}
    rows = await conn.fetch(
        """
        select * from approvals where run_id = any($1)
          and status = 'pending' and clock_stopped_at is null and remind_at <= now()
        order by remind_at for update skip locked
        """,
        list(held),
    )
    rows += await conn.fetch(
        """
        select * from approvals where run_id is null
          and status = 'pending' and clock_stopped_at is null and remind_at <= now()
        order by remind_at limit $1 for update skip locked
        """,
        limit,
    )
    return _one_each(await approvals.with_decisions(conn, rows), held)


def _one_each(found: Sequence[Approval], held: dict[UUID, Run]) -> Due:
    """One approval of each run: what is done about it may change the run, and close its others."""
    taken: set[UUID] = set()
    due: list[tuple[Approval, Run | None]] = []
    for approval in found:
        if approval.run_id is None:
            due.append((approval, None))
        elif approval.run_id not in taken:
            taken.add(approval.run_id)
            due.append((approval, held[approval.run_id]))
    return due


async def left_s(conn: Conn, approval_id: UUID) -> tuple[float | None, float | None] | None:
    """Seconds by Postgres's clock until an open approval expires, and until it is reminded of; None for any other,
    and for one whose run a newer release wrote."""
    row = await conn.fetchrow(
        """
        select extract(epoch from expires_at - clock_timestamp())::float8 as expires,
               extract(epoch from remind_at - clock_timestamp())::float8 as reminds
        from approvals a where id = $1 and status = 'pending' and clock_stopped_at is null
          and not exists (select from runs r where r.id = a.run_id and r.state_version > $2)
        """,
        approval_id,
        STATE_VERSION,
    )
    return (row["expires"], row["reminds"]) if row else None
