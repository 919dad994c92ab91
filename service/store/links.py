"""Rows of `links`: only a keyed hash of each token is kept."""

from collections.abc import Sequence

from service.domain.link import Link
from service.store.database import Conn


async def insert(conn: Conn, link: Link, hashed: bytes) -> None:
    await conn.execute(
        """
        insert into links (hash, tenant, approval_id, reviewer, payload_sha256, made_by, created_at, expires_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8)
        """,
        hashed, link.tenant, link.approval_id, link.reviewer, link.payload_sha256, link.made_by, link.created_at,
        link.expires_at,
    )  # fmt: skip


async def find(conn: Conn, hashes: Sequence[bytes]) -> Link | None:
    """The link with one of these hashes (the current secret's and the previous one's)."""
    row = await conn.fetchrow(
        """
        select tenant, approval_id, reviewer, payload_sha256, made_by, created_at, expires_at, used_at
        from links where hash = any($1)
        """,
        list(hashes),
    )
    return Link(**row) if row else None


async def use(conn: Conn, hashes: Sequence[bytes]) -> bool:
    """Use the link up, if nobody has; a second one waits here for the first one's end."""
    return bool(
        await conn.fetchval(
            "update links set used_at = now() where hash = any($1) and used_at is null returning true", list(hashes)
        )
    )
