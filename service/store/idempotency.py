"""Rows of `idempotency_keys`: one answer for one key and one body, for 7 days."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from service.store.database import Conn

KEPT: Final = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Stored:
    body_hash: str
    answer: Any


async def take(conn: Conn, tenant: str, key: str, body_hash: str) -> Stored | None:
    """Take the key for this transaction, or the first request's answer.

    A second request waits here until the first has committed or failed, so a hundred at once make one run.
    """
    taken = await conn.fetchval(
        """
        insert into idempotency_keys as k (tenant, key, body_hash) values ($1, $2, $3)
        on conflict (tenant, key) do update set body_hash = excluded.body_hash, answer = null, created_at = now()
            where k.created_at < now() - $4::interval
        returning true
        """,
        tenant,
        key,
        body_hash,
        KEPT,
    )
    if taken:
        return None
    row = await conn.fetchrow(
        "select body_hash, answer from idempotency_keys where tenant = $1 and key = $2", tenant, key
    )
    assert row is not None
    return Stored(row["body_hash"], row["answer"])


async def answer(conn: Conn, tenant: str, key: str, value: Any) -> None:
    await conn.execute("update idempotency_keys set answer = $3 where tenant = $1 and key = $2", tenant, key, value)
