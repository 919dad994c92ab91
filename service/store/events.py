"""Rows of `events`: appended with the change that made them true, never changed."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from service.domain.event import Event
from service.store.database import Conn


def columns(appended: Sequence[Event]) -> tuple[list[Any], ...]:
    """`seq, at, type, actor, data, prev_hash, hash` of the events as arrays, to go along in the statement that
    writes their run: `unnest` of them is `(bigint, timestamptz, text, text, json, text, text)`."""
    return (
        [e.seq for e in appended],
        [e.at for e in appended],
        [e.type for e in appended],
        [e.actor for e in appended],
        [e.data for e in appended],
        [e.prev_hash for e in appended],
        [e.hash for e in appended],
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


async def last_data(conn: Conn, run_id: UUID, kind: str) -> Any:
    """The data of the run's last event of this type, or None."""
    return await conn.fetchval(
        "select data from events where run_id = $1 and type = $2 order by seq desc limit 1", run_id, kind
    )
