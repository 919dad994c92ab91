"""How many bytes a tenant has stored: counted now and then, in pages, and kept in `tenants` for who starts a run."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from service.store.database import Conn


@dataclass(frozen=True, slots=True)
class Page:
    """`last` is where the next page begins; None: there is none."""

    size: int
    last: tuple[datetime, UUID] | None


async def due(conn: Conn, *, hold: timedelta) -> str | None:
    """A tenant with such a limit whose bytes are to be counted, kept from other workers for that long."""
    name: str | None = await conn.fetchval(
        """
        update tenants set measure_at = now() + $1::interval where name = (
            select name from tenants
            where stored_bytes is not null and (measure_at is null or measure_at <= now())
            order by measure_at nulls first limit 1 for update skip locked)
        returning name
        """,
        hold,
    )
    return name


async def page(conn: Conn, tenant: str, after: tuple[datetime, UUID] | None, *, limit: int) -> Page:
    """Documents as they lie on disk, and files, of some of the tenant's runs, newest first. What lies beside its row
    is not read for it."""
    at, last = after or (None, None)
    row = await conn.fetchrow(
        """
        with page as (
            select id, created_at from runs where tenant = $1
               and ($2::timestamptz is null or (created_at, id) < ($2, $3::uuid))
            order by created_at desc, id desc limit $4)
        select (select coalesce(sum(
                    coalesce(pg_column_size(d.run_input), 0) + coalesce(pg_column_size(d.hitl_config), 0)
                    + coalesce(pg_column_size(d.tool_config), 0) + coalesce(pg_column_size(d.sealed), 0)
                    + coalesce(pg_column_size(d.description), 0) + coalesce(pg_column_size(d.payload), 0)
                    + coalesce(pg_column_size(d.output), 0) + coalesce(pg_column_size(d.raw_response), 0)
                    + coalesce(pg_column_size(d.result), 0)), 0)::bigint
                from page join run_documents d on d.run_id = page.id)
               + (select coalesce(sum(f.size), 0)::bigint
                  from page join files f on f.run_id = page.id where f.tenant = $1) as size,
               count(*) as runs, (array_agg(created_at order by created_at, id))[1] as at,
               (array_agg(id order by created_at, id))[1] as id
        from page
        """,
        tenant,
        at,
        last,
        limit,
    )
    assert row is not None
    return Page(row["size"], (row["at"], row["id"]) if row["runs"] == limit else None)


async def note(conn: Conn, tenant: str, size: int, *, again: timedelta) -> None:
    """Keep what was counted; it is counted again after that long."""
    await conn.execute(
        "update tenants set stored_bytes_now = $2, measure_at = now() + $3::interval where name = $1",
        tenant,
        size,
        again,
    )
