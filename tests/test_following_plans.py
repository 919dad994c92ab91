"""The plans of what followers ask, with 100,000 runs and as many events."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio

from service.domain.snapshot import Snapshot
from service.embedded import Servers
from service.store import events, keys, tickets
from service.store.database import EVERY, Conn, Database
from service.store.events import Line
from service.store.migrate import migrate
from tests.conftest import new_database
from tests.test_store import FILL, plans

EVENTS = """
insert into events (run_id, seq, tenant, type, at, actor, data, prev_hash, hash, xid)
select id, 1, tenant, 'run.created', now(), 'dev', '{}', '', '', row_number() over (order by created_at)::text::xid8
from runs
"""
SINCE, NOW, ONE = Snapshot(99_990, 99_990, frozenset()), Snapshot(100_100, 100_100, frozenset()), UUID(int=1)
HOT: dict[str, tuple[Callable[[Conn], Awaitable[Any]], str]] = {
    "news": (lambda c: events.news(c, SINCE), "events_xid"),
    "of_runs": (lambda c: events.of_runs(c, "t3", {ONE: 0}, NOW, limit=50), "events_pkey"),
    "of_line session": (lambda c: events.of_line(c, Line("t3", session_id="s3"), {}, NOW, limit=50), "runs_by_session"),
    "of_line user": (lambda c: events.of_line(c, Line("t3", user_id="u3"), {}, NOW, limit=50), "runs_by_user"),
    "of_line_since": (
        lambda c: events.of_line_since(c, Line("t3", user_id="u3"), SINCE, NOW, limit=50),
        "events_xid",
    ),
    "tickets.take": (lambda c: tickets.take(c, b"x"), ""),
    "keys.valid": (lambda c: keys.valid(c, [ONE]), ""),
}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def told(servers: Servers) -> AsyncIterator[Database]:
    url = await new_database(servers, "full_of_events")
    await migrate(url)
    conn = await asyncpg.connect(url)
    await conn.execute("set synchronous_commit = off")
    await conn.execute(FILL.partition("insert into approvals")[0])
    await conn.execute(EVENTS)
    await conn.execute("analyze runs; analyze events")
    await conn.close()
    db = Database(url)
    yield db
    await db.close()


@pytest.mark.parametrize("name", HOT)
async def test_what_followers_ask_uses_an_index(told: Database, name: str) -> None:
    ask, index = HOT[name]
    async with told.connection(EVERY) as conn:  # the driver looks types up with queries of its own, once
        await ask(conn)
    known, unknown = await plans(told, ask)

    for plan in (known, unknown):
        assert "Seq Scan on events" not in plan, plan
        assert "Seq Scan on runs" not in plan, plan
    assert index in known, known
