"""Rows of `console_sessions`: who is signed in to the console; only a keyed hash of the cookie's token is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from service.domain.principal import Principal, Proof
from service.store.database import Conn


@dataclass(frozen=True, slots=True)
class Session:
    principal: Principal
    expires_at: datetime


async def insert(conn: Conn, hashed: bytes, session: Session) -> None:
    """A new session; those that are over go with it."""
    who = session.principal
    await conn.execute(
        """
        with over as (
            delete from console_sessions where hash = any (array(
                select hash from console_sessions where expires_at < now() limit 100 for update skip locked)))
        insert into console_sessions (hash, tenant, subject, role, groups, key_id, expires_at, authenticated_by,
            credential)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        """,
        hashed, who.tenant, who.subject, who.role, list(who.groups), who.key_id, session.expires_at,
        who.proof.method, who.proof.credential,
    )  # fmt: skip


async def find(conn: Conn, hashes: Sequence[bytes]) -> Session | None:
    """The session with one of these hashes. None: unknown, over, or of a key that is no longer good."""
    row = await conn.fetchrow(
        """
        select subject, tenant, role, groups, key_id, expires_at, authenticated_by, credential from console_sessions s
        where hash = any($1) and expires_at > now()
          and (key_id is null or exists (select from api_keys k where k.id = s.key_id and k.revoked_at is null
               and (k.expires_at is null or k.expires_at > now())))
        """,
        list(hashes),
    )
    if row is None:
        return None
    shown = Proof(row["authenticated_by"], row["credential"])
    who = Principal(row["subject"], row["tenant"], row["role"], tuple(row["groups"]), row["key_id"], shown)
    return Session(who, row["expires_at"])


async def delete(conn: Conn, hashes: Sequence[bytes]) -> None:
    await conn.execute("delete from console_sessions where hash = any($1)", list(hashes))
