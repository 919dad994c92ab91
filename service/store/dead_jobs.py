"""Rows of `dead_jobs`: jobs that no worker could run, the newest thousand."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from service.store.database import Conn

KEPT: Final = 1000


@dataclass(frozen=True, slots=True)
class DeadJob:
    """`cause` is a fixed text or the class of an exception."""

    job_id: str
    cause: str
    worker_id: str
    at: datetime


async def bury(conn: Conn, job_id: str, cause: str, worker_id: str) -> None:
    await conn.execute("insert into dead_jobs (job_id, cause, worker_id) values ($1, $2, $3)", job_id, cause, worker_id)
    await conn.execute("delete from dead_jobs where id <= (select max(id) from dead_jobs) - $1", KEPT)


async def recent(conn: Conn, *, limit: int) -> list[DeadJob]:
    """Newest first."""
    rows = await conn.fetch("select job_id, cause, worker_id, at from dead_jobs order by id desc limit $1", limit)
    return [DeadJob(**dict(row)) for row in rows]
