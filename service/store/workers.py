"""Rows of `workers`: who is there, by their own heartbeat."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from service.store.database import Conn


async def beat(conn: Conn, worker_id: str, *, jobs: int, max_jobs: int) -> None:
    await conn.execute(
        """
        insert into workers (id, jobs, max_jobs) values ($1, $2, $3)
        on conflict (id) do update set jobs = excluded.jobs, max_jobs = excluded.max_jobs, seen_at = now()
        """,
        worker_id,
        jobs,
        max_jobs,
    )


async def leave(conn: Conn, worker_id: str) -> None:
    await conn.execute("delete from workers where id = $1", worker_id)


async def forget_silent(conn: Conn, *, after_s: float) -> None:
    await conn.execute("delete from workers where seen_at < now() - $1::interval", timedelta(seconds=after_s))


async def present(conn: Conn) -> Sequence[Mapping[str, Any]]:
    """`{id, jobs, max_jobs, seen_at}` of the workers that were seen lately."""
    rows = await conn.fetch(
        "select id, jobs, max_jobs, seen_at from workers where seen_at > now() - interval '60 s' order by id"
    )
    return [dict(row) for row in rows]
