"""Rows of `api_keys`: only a keyed hash of each is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
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
    prefix: str | None


async def insert(conn: Conn, key: ApiKey, hashed: bytes) -> None:
    await conn.execute(
        """
        insert into api_keys (id, tenant, name, role, subject, groups, hash, created_at, expires_at, prefix)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
        """,
        key.id, key.tenant, key.name, key.role, key.subject, list(key.groups), hashed, key.created_at,
        key.expires_at, key.prefix,
    )  # fmt: skip


async def find(conn: Conn, hashes: Sequence[bytes]) -> ApiKey | None:
    """The live key with one of these hashes (the current secret's and the previous one's)."""
    row = await conn.fetchrow(
        """
        select id, tenant, name, role, subject, groups, created_at, expires_at, revoked_at, used_at, prefix
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


@dataclass(frozen=True, slots=True)
class Held:
    """What a subject holds through one key; `live` is false for a key that is revoked or over."""

    role: Role
    groups: Sequence[str]
    live: bool


async def of_subject(conn: Conn, tenant: str, subject: str) -> list[Held]:
    rows = await conn.fetch(
        """
        select role, groups, revoked_at is null and (expires_at is null or expires_at > now()) as live
        from api_keys where tenant = $1 and subject = $2
        """,
        tenant,
        subject,
    )
    return [Held(**row) for row in rows]


async def note_use(conn: Conn, key_id: UUID, *, every: timedelta) -> None:
    """Set the last use, unless it was noted a moment ago or somebody is about to: nobody waits for anybody."""
    await conn.execute(
        """
        update api_keys set used_at = now() where id = (
            select id from api_keys where id = $1 and (used_at is null or used_at <= now() - $2::interval)
            for update skip locked)
        """,
        key_id,
        every,
    )


async def all_keys(conn: Conn) -> list[ApiKey]:
    rows = await conn.fetch(
        """
        select id, tenant, name, role, subject, groups, created_at, expires_at, revoked_at, used_at, prefix
        from api_keys order by created_at
        """
    )
    return [ApiKey(**row) for row in rows]


async def prefixes(conn: Conn, key_ids: Sequence[str]) -> dict[str, str]:
    """What the keys with these ids begin with, where that is known."""
    if not key_ids:
        return {}
    rows = await conn.fetch(
        "select id::text, prefix from api_keys where id::text = any($1) and prefix is not null", list(key_ids)
    )
    return {row["id"]: row["prefix"] for row in rows}


async def revoke(conn: Conn, key_id: UUID) -> bool:
    """Whether there was such a key; revoking twice keeps the first moment."""
    return bool(
        await conn.fetchval(
            "update api_keys set revoked_at = coalesce(revoked_at, now()) where id = $1 returning true",
            key_id,
        )
    )
