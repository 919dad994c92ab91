"""Rows of `workers`: who is there, by their own heartbeat."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from service.store.database import Conn

LOCK_CLASS: Final = 0x4849544C
RESTART_GRACE: Final = timedelta(seconds=5)


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


async def hold(conn: Conn, worker_id: str, lock_id: int, *, max_jobs: int) -> None:
    """Hold a session lock that the kernel ends with this process, and say which it is."""
    await conn.execute("select pg_advisory_lock($1, $2)", LOCK_CLASS, lock_id)
    await conn.execute(
        """
        insert into workers (id, jobs, max_jobs, lock_id) values ($1, 0, $2, $3)
        on conflict (id) do update set lock_id = excluded.lock_id, seen_at = now()
        """,
        worker_id,
        max_jobs,
        lock_id,
    )


async def dead(conn: Conn) -> set[str]:
    """Workers that held a lock and hold it no more. None while Postgres itself has only just started,
    since then nobody has had the time to take theirs again."""
    rows = await conn.fetch(
        """
        select id from workers w where lock_id is not null
          and pg_postmaster_start_time() < now() - $2::interval
          and not exists (select from pg_locks where locktype = 'advisory' and objsubid = 2 and granted
               and classid = $1::int8::oid and objid = w.lock_id::int8::oid
               and database = (select oid from pg_database where datname = current_database()))
        """,
        LOCK_CLASS,
        RESTART_GRACE,
    )
    return {row["id"] for row in rows}


async def last_signs(conn: Conn, worker_ids: Sequence[str]) -> dict[str, datetime]:
    """When each of these workers was seen last, of those that are known."""
    rows = await conn.fetch("select id, seen_at from workers where id = any($1)", worker_ids)
    return {row["id"]: row["seen_at"] for row in rows}


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
