"""The inbox with 100,000 open approvals: how Postgres finds its rows, and how many it has to look at."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio

from service.domain.principal import Principal
from service.embedded import Servers
from service.store import inbox, sessions
from service.store.database import EVERY, Conn, Database
from service.store.inbox import Wanted
from service.store.migrate import migrate
from tests.conftest import new_database
from tests.test_store import plans

FILL = """
insert into approvals (id, tenant, checkpoint_type, status, reasons, message, context, user_id, session_id, submitter,
    reviewers, on_timeout, timeout_s, created_at, expires_at, decided_at)
select gen_random_uuid(), 'big', case when n % 3 = 0 then 'payload_review' else 'response_review' end,
    case when n % 10 = 0 then 'approved' else 'pending' end, array['requested'], 'May this be sent ' || n,
    '{"payload": {"prompt": "a red fox"}}', 'u' || n % 100, 's' || n % 5000, 'sue',
    jsonb_build_object('quorum', 1, 'allow_self_approval', null,
        'users', case when n % 1000 = 7 then '["ann"]'::jsonb else '[]' end,
        'groups', case when n % 50 = 3 then '["legal"]'::jsonb else '[]' end),
    'reject', 3600, now() - n * interval '1 second', now() + n * interval '1 second',
    case when n % 10 = 0 then now() end
from generate_series(1, 110000) n
"""
ANN = Principal("ann", "big", "reviewer", ("legal", "ops"))
AFTER = (datetime(2030, 1, 1, tzinfo=UTC), UUID(int=1))
ASKED: dict[str, Wanted] = {
    "all": Wanted(),
    "checkpoint": Wanted(checkpoint="payload_review"),
    "session": Wanted(session="s77"),
    "text": Wanted(text="sent 99999"),
    "provider": Wanted(provider="echo"),
    "age": Wanted(older_than_s=3600, reason="req", group="legal"),
}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def crowded(servers: Servers) -> AsyncIterator[Database]:
    url = await new_database(servers, "full_of_approvals")
    await migrate(url)
    conn = await asyncpg.connect(url)
    await conn.execute("set synchronous_commit = off")
    await conn.execute(FILL)
    await conn.execute("vacuum analyze approvals")
    await conn.close()
    db = Database(url)
    yield db
    await db.close()


@pytest.mark.parametrize("name", ASKED)
async def test_the_inbox_is_walked_in_the_order_of_deadlines_whatever_is_asked(crowded: Database, name: str) -> None:
    def ask(conn: Conn) -> Awaitable[Any]:
        return inbox.entries(conn, ANN, ASKED[name], limit=1001)

    async with crowded.connection(EVERY) as conn:  # the driver looks types up with queries of its own, once
        await ask(conn)
    for plan in await plans(crowded, ask):
        assert "Index Scan using approvals_inbox on approvals" in plan, plan
        assert "Sort" not in plan, plan


LOOKS: dict[str, tuple[Callable[[Conn], Awaitable[Any]], str]] = {
    "sessions.find": (lambda c: sessions.find(c, [b"x", b"y"]), ""),
    "views": (lambda c: inbox.views(c, ANN), ""),
    "after": (lambda c: inbox.entries(c, ANN, Wanted(), after=AFTER, limit=51), "approvals_inbox"),
}


@pytest.mark.parametrize("name", LOOKS)
async def test_what_each_page_asks_reads_no_table_whole(crowded: Database, name: str) -> None:
    ask, index = LOOKS[name]
    async with crowded.connection(EVERY) as conn:
        await ask(conn)
    known, _ = await plans(crowded, ask)

    assert "Seq Scan on approvals" not in known, known
    assert index in known, known


async def test_text_is_found_in_names_without_regard_to_case_and_in_pieces_of_ids(crowded: Database) -> None:
    async with crowded.connection(EVERY) as conn:
        found = await conn.fetchrow(
            "select id, run_id from approvals where status = 'pending' and reviewers->'groups' = '[]'"
            " and reviewers->'users' = '[]' limit 1"
        )
        assert found is not None
        by_name = await inbox.entries(conn, ANN, Wanted(text="S77"), limit=2000)
        by_id = await inbox.entries(conn, ANN, Wanted(text=str(found["id"])[9:].upper()), limit=5)
        by_reason = await inbox.entries(conn, ANN, Wanted(reason="quested"), limit=5)

    assert len(by_name) > 20  # s77, s770 to s779
    assert [entry.id for entry in by_id] == [found["id"]]
    assert by_reason == [], "a reason is found by how it begins"


async def test_a_person_is_shown_what_names_them_and_what_names_nobody_else(crowded: Database) -> None:
    async with crowded.connection(EVERY) as conn:
        ann = await inbox.entries(conn, ANN, Wanted(), limit=200_000)
        bob = await inbox.entries(conn, Principal("bob", "big", "admin"), Wanted(), limit=200_000)
        sue = await inbox.entries(conn, Principal("u4", "big", "reviewer"), Wanted(user="u4"), limit=5)
        rows = await conn.fetch("select id, reviewers from approvals where status = 'pending' order by expires_at, id")

    free = [row["id"] for row in rows if not row["reviewers"]["users"] and not row["reviewers"]["groups"]]
    assert [entry.id for entry in bob] == free
    named = [r["id"] for r in rows if "ann" in r["reviewers"]["users"] or "legal" in r["reviewers"]["groups"]]
    theirs = {*free, *named}
    assert [entry.id for entry in ann] == [row["id"] for row in rows if row["id"] in theirs]
    assert len(sue) == 5  # at quorum 1 the ban is off
