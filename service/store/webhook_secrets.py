"""Rows of `webhook_secrets`: sealed, one current for each tenant."""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from service.store.database import Conn


@dataclass(frozen=True, slots=True)
class SealedSecret:
    id: UUID
    sealed: bytes


async def signing(conn: Conn, tenant: str) -> list[SealedSecret]:
    """Those that sign now, the current one first."""
    rows = await conn.fetch(
        """
        select id, sealed from webhook_secrets where tenant = $1 and (retires_at is null or retires_at > now())
        order by retires_at is not null, created_at desc, id desc
        """,
        tenant,
    )
    return [SealedSecret(**row) for row in rows]


async def insert_current(conn: Conn, secret_id: UUID, tenant: str, sealed: bytes) -> None:
    """The tenant's current secret, unless somebody made one meanwhile."""
    await conn.execute(
        """
        insert into webhook_secrets (id, tenant, sealed) values ($1, $2, $3)
        on conflict (tenant) where retires_at is null do nothing
        """,
        secret_id,
        tenant,
        sealed,
    )


async def retire(conn: Conn, tenant: str, *, after: timedelta) -> None:
    """Let the current secret sign for this long beside the next; forget those that no longer sign."""
    await conn.execute("delete from webhook_secrets where tenant = $1 and retires_at <= now()", tenant)
    await conn.execute(
        "update webhook_secrets set retires_at = now() + $2::interval where tenant = $1 and retires_at is null",
        tenant,
        after,
    )


async def reseal(conn: Conn, secret_id: UUID, sealed: bytes) -> None:
    await conn.execute("update webhook_secrets set sealed = $2 where id = $1", secret_id, sealed)
