"""Migrations, and the plans of the hot queries with 100,000 rows."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio

from service.embedded import Servers
from service.store import approvals, runs, tenants, timers
from service.store.approvals import InboxFilter
from service.store.database import EVERY, Conn, Database
from service.store.migrate import LOCK_KEY, MigrationError, migrate, migrations, pending
from service.store.runs import RunFilter
from tests.conftest import new_database

ROWS = 100_000

FILL = f"""
insert into runs (id, tenant, status, step, lease_until, worker_id, due_at, armed, status_since, woken_at,
    provider, tool, submitter, user_id, session_id, queues, created_at, updated_at, deadline_at, finished_at)
select gen_random_uuid(), 't' || n % 20, s.status, 'information_review',
    case when s.status = 'running' then now() + interval '10 s' - n % 20 * interval '1 s' end,
    case when s.status = 'running' then 'w' end,
    case when s.status = 'queued' and n % 3 > 0 then now() - n % 60 * interval '1 s' end,
    false, now(), now(), 'echo', 'echo-agent-tool', 'dev', 'u' || n % 1000, 's' || n % 5000, n % 3 = 0,
    now() - n * interval '1 s', now(),
    case when n % 50 = 0 then now() + n * interval '1 s' end,
    case when s.status in ('completed', 'failed') then now() end
from generate_series(1, {ROWS}) n, lateral (select case
    when n % 200 = 0 then 'queued' when n % 200 = 1 then 'running' when n % 200 = 2 then 'failed'
    when n % 5 = 0 then 'awaiting_human' else 'completed' end as status) s;
insert into approvals (id, tenant, run_id, checkpoint_type, status, reasons, message, context, user_id, session_id,
    submitter, reviewers, on_timeout, timeout_s, remind_at, created_at, expires_at, decided_at)
select gen_random_uuid(), tenant, id, 'payload_review',
    case when status = 'awaiting_human' then 'pending' else 'approved' end,
    '{{}}', 'm', '{{}}', user_id, session_id, 'dev', '{{}}', 'reject', 60,
    case when n % 10 = 0 then now() + n * interval '1 s' end, created_at,
    now() - interval '100 s' + n * interval '1 s', case when status <> 'awaiting_human' then now() end
from (select *, row_number() over () as n from runs) r;
"""


async def test_two_migrations_at_once_are_safe_and_another_does_nothing(servers: Servers) -> None:
    url = await new_database(servers, "twice")
    names = [migration.name for migration in migrations()]
    assert names
    assert sorted(await asyncio.gather(migrate(url), migrate(url))) == [[], names]
    assert await migrate(url) == []
    conn = await asyncpg.connect(url)
    assert await pending(conn) == []
    assert await conn.fetchval("select count(*) from schema_migrations") == len(names)
    await conn.close()


async def test_a_database_that_was_never_migrated_says_what_is_pending(servers: Servers) -> None:
    url = await new_database(servers, "bare")
    conn = await asyncpg.connect(url)
    assert await pending(conn) == [migration.name for migration in migrations()]
    await conn.close()


async def test_a_migration_that_was_edited_after_it_was_applied_is_refused(servers: Servers) -> None:
    url = await new_database(servers, "edited")
    await migrate(url)
    conn = await asyncpg.connect(url)
    await conn.execute("update schema_migrations set checksum = 'of another text'")
    with pytest.raises(MigrationError, match=r"0001_runs\.sql was edited"):
        await migrate(url)
    assert await conn.fetchval("select pg_try_advisory_lock($1)", LOCK_KEY)  # nobody was left holding the lock
    await conn.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def full(servers: Servers) -> AsyncIterator[Database]:
    """A database with 100,000 runs and as many approvals, most of them over."""
    url = await new_database(servers, "full_of_runs")
    await migrate(url)
    conn = await asyncpg.connect(url)
    await conn.execute("set synchronous_commit = off")
    await conn.execute(FILL)
    await conn.execute("analyze runs; analyze approvals")
    await conn.close()
    db = Database(url)
    yield db
    await db.close()


async def plans(db: Database, ask: Callable[[Conn], Awaitable[Any]]) -> list[str]:
    """How Postgres runs the first query that the function issues: with its arguments, and without knowing any."""
    issued: list[Any] = []
    async with db.connection(EVERY) as conn:
        change = conn.transaction()
        await change.start()
        with conn.query_logger(issued.append):
            await ask(conn)
            await asyncio.sleep(0)  # the logger is called by the loop
        query, args = issued[0].query, issued[0].args
        with_args = await conn.fetch(f"explain {query}", *args)
        await conn.execute(f"prepare known as {query}")
        await conn.execute("set local plan_cache_mode = force_generic_plan")
        nothing = f"({', '.join(['null'] * len(args))})" if args else ""
        generic = await conn.fetch(f"explain execute known{nothing}")
        await conn.execute("deallocate known")
        await change.rollback()
    return ["\n".join(row[0] for row in rows) for rows in (with_args, generic)]


NOW = datetime.now(UTC)
HOT: dict[str, tuple[Callable[[Conn], Awaitable[Any]], str]] = {
    "claim": (lambda c: runs.claim(c, UUID(int=1), worker_id="w", lease_s=10), "runs_pkey"),
    "lock_held": (lambda c: runs.find(c, UUID(int=1)), "runs_pkey"),
    "due_unclaimed": (lambda c: runs.due_unclaimed(c, for_s=3, limit=200), "runs_due"),
    "arm_due": (lambda c: runs.arm_due(c, horizon_s=3600, limit=200), "runs_due"),
    "lock_abandoned": (lambda c: runs.lock_abandoned(c, dead=["w9"], limit=200), "runs_leased"),
    "lock_past_deadline": (lambda c: runs.lock_past_deadline(c, limit=200), "runs_deadline"),
    "sessions_in_line": (lambda c: runs.sessions_in_line(c, limit=200), ""),
    "lock_next_in_session": (lambda c: runs.lock_next_in_session(c, "t3", "s3"), "runs_live_session"),
    "approvals.due": (lambda c: approvals.due(c, limit=200), "approvals_due"),
    "approvals.to_remind": (lambda c: approvals.to_remind(c, limit=200), "approvals_remind"),
    "timers.lock_expired": (lambda c: timers.lock_expired(c, limit=50), "approvals_due"),
    "timers.lock_to_remind": (lambda c: timers.lock_to_remind(c, limit=50), "approvals_remind"),
    "due_unclaimed after": (
        lambda c: runs.due_unclaimed(c, for_s=3, limit=200, after=(NOW, UUID(int=1))),
        "runs_due",
    ),
    "approvals.arm": (lambda c: approvals.arm(c, horizon_s=3600, limit=200), "approvals_unarmed"),
    "approvals.open_of_run": (lambda c: approvals.open_of_run(c, UUID(int=1)), "approvals_"),
    "last_actors": (lambda c: approvals.last_actors(c, UUID(int=1)), "approvals_by_run"),
    "inbox": (lambda c: approvals.inbox(c, "t3", InboxFilter(), limit=50), "approvals_inbox"),
    "inbox after": (
        lambda c: approvals.inbox(c, "t3", InboxFilter(after=(NOW, UUID(int=1))), limit=50),
        "approvals_inbox",
    ),
    "inbox of a user": (lambda c: approvals.inbox(c, "t3", InboxFilter(user_id="u3"), limit=50), "approvals_by_user"),
    "inbox of a session": (
        lambda c: approvals.inbox(c, "t3", InboxFilter(session_id="s3"), limit=50),
        "approvals_by_session",
    ),
    "tenants.live_runs": (lambda c: tenants.live_runs(c, "t3", at_most=100), "runs_by_status"),
    "tenants.nth_last_start_age_s": (lambda c: tenants.nth_last_start_age_s(c, "t3", 100), "runs_list"),
    "page": (lambda c: runs.page(c, "t3", RunFilter(), limit=50), "runs_list"),
    "page after": (lambda c: runs.page(c, "t3", RunFilter(before=(NOW, UUID(int=1))), limit=50), "runs_list"),
    "page by status": (lambda c: runs.page(c, "t3", RunFilter(statuses=["failed"]), limit=50), "runs_"),
    "page by session": (lambda c: runs.page(c, "t3", RunFilter(session_id="s3"), limit=50), "runs_by_session"),
    "page by user": (lambda c: runs.page(c, "t3", RunFilter(user_id="u3"), limit=50), "runs_by_user"),
}


@pytest.mark.parametrize("name", HOT)
async def test_a_hot_query_uses_an_index_with_a_hundred_thousand_rows(full: Database, name: str) -> None:
    ask, index = HOT[name]
    for plan in await plans(full, ask):
        assert "Seq Scan" not in plan, plan
    assert index in (await plans(full, ask))[0]
