"""Use cases of tenants: set limits, and hold starts to them."""

import asyncio
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final

from service.commands import stored
from service.domain.tenant import Tenant
from service.errors import TenantLimit
from service.store import tenants
from service.store.database import EVERY, Conn, Database

FRESH_S: Final = 1.0
TRY_AGAIN_S: Final = 5
"""When a run of the tenant may have ended: nobody knows."""


class Limits:
    """The tenants that have limits, as Postgres had them a second ago: one look a second and process, whatever
    the number of starts, so that who has no limit pays nothing."""

    def __init__(self) -> None:
        self._known: Mapping[str, Tenant] = {}
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def of(self, db: Database, tenant: str) -> Tenant | None:
        if self._stale():
            async with self._reading:
                if self._stale():
                    await self._read(db)
        return self._known.get(tenant)

    def _stale(self) -> bool:
        return time.monotonic() - self._read_at > FRESH_S

    async def _read(self, db: Database) -> None:
        began_at = time.monotonic()
        async with db.connection(EVERY) as conn:
            self._known = {found.name: found for found in await tenants.limited(conn)}
        self._read_at = began_at


async def check(conn: Conn, limit: Tenant) -> None:
    """Raises `TenantLimit` when one more run would be one too many.

    Exact: until the start that asks is committed or refused, the tenant's other starts wait here. It comes last
    before the run is written, so that is short. What is stored was counted before: nobody waits for that.
    """
    if limit.stored_bytes is not None and limit.stored_bytes_now >= limit.stored_bytes:
        detail = f"the tenant may store {limit.stored_bytes} bytes"
        raise TenantLimit(detail, retry_after_s=math.ceil(stored.COUNT_EVERY_S))
    if limit.starts_per_minute is None and limit.live_runs is None:
        return
    await tenants.take_turn(conn, limit.name)
    if limit.starts_per_minute is not None:
        wait_s = await _wait_s(conn, limit.name, limit.starts_per_minute)
        if wait_s is not None:
            detail = f"the tenant may start {limit.starts_per_minute} runs a minute"
            raise TenantLimit(detail, retry_after_s=max(1, math.ceil(wait_s)))
    if limit.live_runs is not None:
        live = await tenants.live_runs(conn, limit.name, at_most=limit.live_runs)
        if live >= limit.live_runs:
            detail = f"the tenant may have {limit.live_runs} runs that are not over"
            raise TenantLimit(detail, retry_after_s=TRY_AGAIN_S)


async def set_limits(db: Database, tenant: Tenant, given: Collection[str]) -> Tenant:
    """Change the limits that are `given`; every process holds to them within 2 s. What is stored already is counted
    for it at once."""
    if tenant.stored_bytes is not None:
        tenant = replace(tenant, stored_bytes_now=await stored.measure(db, tenant.name))
    async with db.transaction(tenant.name) as conn:
        return await tenants.save(conn, tenant, given)


async def _wait_s(conn: Conn, name: str, most: int) -> float | None:
    """How long until one more start fits into the minute; None: it does now."""
    if most == 0:
        return 60.0
    age_s = await tenants.nth_last_start_age_s(conn, name, most)
    return None if age_s is None else 60.0 - age_s
