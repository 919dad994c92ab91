"""Use cases of the bytes that a tenant has stored: count them, and keep the count for those who start runs.

Nobody counts along with a start: that would make all starts of a tenant wait for one row. The count lags behind by
some seconds, and by more where there is more to count.
"""

import time
from datetime import timedelta
from typing import Final

from service.store import stored
from service.store.database import EVERY, Database

PAGE: Final = 2000
COUNT_EVERY_S: Final = 10.0
HOLD: Final = timedelta(minutes=10)
"""A worker that dies while it counts delays the next count by this."""
SHARE: Final = 20
"""Counting may take the twentieth part of the time, whatever there is to count."""


async def measure(db: Database, tenant: str) -> int:
    """The bytes of the tenant's documents and files. A page is a query of its own, so that none holds anything up."""
    size, after = 0, None
    while True:
        async with db.connection(tenant) as conn:
            page = await stored.page(conn, tenant, after, limit=PAGE)
        size, after = size + page.size, page.last
        if after is None:
            return size


async def measure_due(db: Database) -> int:
    """Count for those tenants whose time it is. Returns how many there were. Raises `Unavailable`."""
    done = 0
    while True:
        async with db.transaction(EVERY) as conn:
            tenant = await stored.due(conn, hold=HOLD)
        if tenant is None:
            return done
        began = time.monotonic()
        size = await measure(db, tenant)
        again_s = max(COUNT_EVERY_S, SHARE * (time.monotonic() - began))
        async with db.transaction(tenant) as conn:
            await stored.note(conn, tenant, size, again=timedelta(seconds=again_s))
        done += 1
