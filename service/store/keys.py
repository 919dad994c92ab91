"""Rows of `api_keys`: only a keyed hash of each is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from service.domain.principal import Role
from service.store.database import Conn


@dataclass(frozen=True, slots=True)
class ApiKey:
    id: UUID
    tenant: str
    name: str
    role: Role
    subject: str
    groups: Sequence[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None


async def insert(conn: Conn, key: ApiKey, hashed: bytes) -> None:
    await conn.execute(
        """
        insert into api_keys (id, tenant, name, role, subject, groups, hash, created_at, expires_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        """,
        key.id, key.tenant, key.name, key.role, key.subject, list(key.groups), hashed, key.created_at,
        key.expires_at,
    )  # fmt: skip


async def find(conn: Conn, hashes: Sequence[bytes]) -> ApiKey | None:
    """The live key with one of these hashes (the current secret's and the previous one's)."""
    row = await conn.fetchrow(
        """
        select id, tenant, name, role, subject, groups, created_at, expires_at, revoked_at, used_at
        from api_keys where hash = any($1) and revoked_at is null and (expires_at is null or expires_at > now())
        """,
        list(hashes),
    )
    return ApiKey(**row) if row else None


async def valid(conn: Conn, key_ids: Sequence[UUID]) -> set[UUID]:
    """Those of the keys that are neither revoked nor over."""
    rows = await conn.fetch(
        """
        select id from api_keys
        where id = any($1) and revoked_at is null and (expires_at is null or expires_at > now())
        """,
        key_ids,
    )
    return {row["id"] for row in rows}


async def all_keys(conn: Conn) -> list[ApiKey]:
    rows = await conn.fetch(
        """
        select id, tenant, name, role, subject, groups, created_at, expires_at, revoked_at, used_at
        from api_keys order by created_at
        """
    )
    return [ApiKey(**row) for row in rows]


async def revoke(conn: Conn, key_id: UUID) -> bool:
    """Whether there was such a key; revoking twice keeps the first moment."""
    return bool(
        await conn.fetchval(
            "update api_keys set revoked_at = coalesce(revoked_at, now()) where id = $1 returning true",
            key_id,
        )
    )
