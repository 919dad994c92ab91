"""Rows of `ws_tickets`: each good for one handshake; only its hash is kept."""

from datetime import timedelta

from service.domain.principal import Principal, Proof
from service.store.database import Conn


async def insert(conn: Conn, hashed: bytes, principal: Principal, *, lasts_s: float) -> None:
    """A new ticket; those that nobody used go with it."""
    await conn.execute(
        """
        with over as (
            delete from ws_tickets where hash = any (array(
                select hash from ws_tickets where expires_at < now() limit 100 for update skip locked)))
        insert into ws_tickets (hash, tenant, subject, role, groups, key_id, expires_at, authenticated_by, credential)
        values ($1, $2, $3, $4, $5, $6, now() + $7, $8, $9)
        """,
        hashed, principal.tenant, principal.subject, principal.role, list(principal.groups), principal.key_id,
        timedelta(seconds=lasts_s), principal.proof.method, principal.proof.credential,
    )  # fmt: skip


async def take(conn: Conn, hashed: bytes) -> Principal | None:
    """Use the ticket up. None: unknown, used, too old, or of a key that is no longer good."""
    row = await conn.fetchrow(
        """
        delete from ws_tickets t where hash = $1 and expires_at > now()
           and (key_id is null or exists (select from api_keys k where k.id = t.key_id and k.revoked_at is null
                and (k.expires_at is null or k.expires_at > now())))
        returning subject, tenant, role, groups, key_id, authenticated_by, credential
        """,
        hashed,
    )
    if row is None:
        return None
    shown = Proof(row["authenticated_by"], row["credential"]) if row["authenticated_by"] else None
    return Principal(row["subject"], row["tenant"], row["role"], tuple(row["groups"]), row["key_id"], shown)
