"""Rows of `events`: appended with the change that made them true, never changed."""

from collections.abc import Sequence
from uuid import UUID

from service.domain.event import Event
from service.store.database import Conn


async def insert(conn: Conn, appended: Sequence[Event]) -> None:
    if appended:
        await conn.executemany(
            """
            insert into events (run_id, seq, tenant, type, at, actor, data, prev_hash, hash)
            values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
            """,
            [(e.run_id, e.seq, e.tenant, e.type, e.at, e.actor, e.data, e.prev_hash, e.hash) for e in appended],
        )


async def after(conn: Conn, tenant: str, run_id: UUID, seq: int, *, limit: int) -> list[Event]:
    """The run's events after `seq`, in order."""
    rows = await conn.fetch(
        """
        select run_id, seq, tenant, type, at, actor, data, prev_hash, hash from events
        where run_id = $1 and tenant = $2 and seq > $3 order by seq limit $4
        """,
        run_id,
        tenant,
        seq,
        limit,
    )
    return [Event(**row) for row in rows]
