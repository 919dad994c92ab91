"""Rows of `tenants`, and what a tenant has started so far."""

from collections.abc import Collection

from service.domain.run import LIVE
from service.domain.tenant import Tenant
from service.store.database import Conn


async def limited(conn: Conn) -> list[Tenant]:
    """Tenants with a limit on what they start, and what those that may not store everything have stored."""
    rows = await conn.fetch(
        """
        select name, starts_per_minute, live_runs, retention_days, stored_bytes, stored_bytes_now from tenants
        where starts_per_minute is not null or live_runs is not null or stored_bytes is not null
        """
    )
    return [Tenant(**row) for row in rows]


async def known(conn: Conn) -> list[Tenant]:
    """Every tenant that has limits or keys."""
    rows = await conn.fetch(
        """
        select name, starts_per_minute, live_runs, retention_days, stored_bytes,
               coalesce(stored_bytes_now, 0) as stored_bytes_now
        from (select name from tenants union select tenant from api_keys) as known (name)
        left join tenants using (name) order by name
        """
    )
    return [Tenant(**row) for row in rows]


async def save(conn: Conn, tenant: Tenant, given: Collection[str]) -> Tenant:
    """Set the fields that are `given`, leave the others. Returns the row as it stands."""
    row = await conn.fetchrow(
        """
        insert into tenants as t (name, starts_per_minute, live_runs, retention_days, stored_bytes, stored_bytes_now)
        values ($1, $2, $3, $4, $6, $7)
        on conflict (name) do update set updated_at = now(),
            starts_per_minute = case when 'starts_per_minute' = any($5) then $2 else t.starts_per_minute end,
            live_runs = case when 'live_runs' = any($5) then $3 else t.live_runs end,
            retention_days = case when 'retention_days' = any($5) then $4 else t.retention_days end,
            stored_bytes = case when 'stored_bytes' = any($5) then $6 else t.stored_bytes end,
            stored_bytes_now = case when 'stored_bytes' = any($5) then $7 else t.stored_bytes_now end
        returning name, starts_per_minute, live_runs, retention_days, stored_bytes, stored_bytes_now
        """,
        tenant.name, tenant.starts_per_minute, tenant.live_runs, tenant.retention_days, list(given),
        tenant.stored_bytes, tenant.stored_bytes_now,
    )  # fmt: skip
    assert row is not None
    return Tenant(**row)


async def take_turn(conn: Conn, tenant: str) -> None:
    """Let the tenant's starts count one after the other, until this transaction ends."""
    await conn.execute("select pg_advisory_xact_lock(hashtextextended($1, 11))", tenant)


async def live_runs(conn: Conn, tenant: str, *, at_most: int) -> int:
    """How many runs of the tenant are not final; counting ends at `at_most`. In the order of an index, or a limit
    would make Postgres take its chances with the whole table."""
    found: int = await conn.fetchval(
        """
        select count(*) from (
            select from unnest($2::text[]) as live (status) cross join lateral (
                select from runs where tenant = $1 and runs.status = live.status
                order by created_at desc, id desc limit $3) as found limit $3) as counted
        """,
        tenant, sorted(LIVE), at_most,
    )  # fmt: skip
    return found


async def nth_last_start_age_s(conn: Conn, tenant: str, n: int) -> float | None:
    """How long ago the tenant's n-th last start was, if that was within the last minute."""
    found: float | None = await conn.fetchval(
        """
        select extract(epoch from now() - created_at)::float8 from runs
        where tenant = $1 and created_at > now() - interval '1 minute'
        order by created_at desc, id desc offset $2 limit 1
        """,
        tenant, n - 1,
    )  # fmt: skip
    return found
