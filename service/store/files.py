"""Rows of `files`."""

from collections.abc import Sequence
from uuid import UUID

from service.domain.file import StoredFile
from service.store.database import Conn


async def insert(conn: Conn, added: Sequence[StoredFile]) -> None:
    await conn.executemany(
        """
        insert into files (id, tenant, run_id, name, media_type, size, sha256, location, created_at)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        """,
        [(f.id, f.tenant, f.run_id, f.name, f.media_type, f.size, f.sha256, f.location, f.created_at) for f in added],
    )


async def get(conn: Conn, tenant: str, file_id: UUID) -> StoredFile | None:
    row = await conn.fetchrow(
        """
        select id, tenant, run_id, name, media_type, size, sha256, location, created_at from files
        where id = $1 and tenant = $2
        """,
        file_id,
        tenant,
    )
    return StoredFile(**row) if row else None


async def of_run(conn: Conn, tenant: str, run_id: UUID) -> list[StoredFile]:
    rows = await conn.fetch(
        """
        select id, tenant, run_id, name, media_type, size, sha256, location, created_at from files
        where tenant = $1 and run_id = $2 order by created_at, id
        """,
        tenant,
        run_id,
    )
    return [StoredFile(**row) for row in rows]
