"""The pages of runs and of operations over 200,000 runs: what each question reads, and what is estimated."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio

from service.commands import charts, operations
from service.domain import chart
from service.domain.chart import PERIODS, Window
from service.embedded import Servers
from service.store import deliveries, run_list, runs, series, standing
from service.store.database import EVERY, Conn, Database
from service.store.migrate import migrate
from service.store.runs import RunFilter
from tests.conftest import behind, new_database
from tests.test_store import plans

RUNS = """
insert into runs (id, tenant, status, step, status_since, woken_at, lease_until, worker_id, due_at, paused_at, provider,
    tool, submitter, user_id, session_id, created_at, updated_at, finished_at, error)
select gen_random_uuid(), case when n % 10 = 0 then 'small' else 'big' end, status, 'api_call', at, at,
    case when status = 'running' then now() end, case when status = 'running' then 'w' end,
    case when status = 'awaiting_provider' then now() + interval '1 hour' when status = 'queued' then at end,
    case when status = 'paused' then at end, 'echo', 'echo-agent-tool', 'sue', 'u' || n % 500, 's' || n % 5000, at, at,
    case when status in ('completed', 'failed', 'cancelled') then at + interval '1 minute' end,
    case when status = 'failed'
        then '{"code": "run_timeout", "message": null, "step": "api_call", "recoverable": true}'::jsonb end
from (select n, now() - n * interval '0.4 seconds' as at, case when n % 7 = 3 then 'awaiting_human'
          when n % 1000 = 1 then 'failed' when n % 1000 = 2 then 'queued' when n % 1000 = 5 then 'awaiting_provider'
          when n % 1000 = 6 then 'paused' when n % 1000 = 9 then 'running' else 'completed' end as status
      from generate_series(1, 200000) n) numbered
"""
APPROVALS = """
insert into approvals (id, tenant, run_id, checkpoint_type, status, reasons, message, context, submitter, reviewers,
    on_timeout, timeout_s, created_at, expires_at, decided_at)
select gen_random_uuid(), tenant, id, 'payload_review', case status when 'awaiting_human' then 'pending'
        when 'completed' then 'approved' else 'cancelled' end, array['requested'], '?', '{}', 'sue',
    '{"quorum": 1, "users": [], "groups": []}', 'reject', 3600, created_at, created_at + interval '9 days',
    case when status <> 'awaiting_human' then created_at + interval '50 seconds' end
from runs where status in ('awaiting_human', 'completed', 'failed')
"""
DELIVERIES = """
with lines as (
    insert into delivery_lines (subject, kind, tenant, run_id, target)
    select id, 'webhook', tenant, id, 'example.com' from runs where status in ('completed', 'failed'))
insert into deliveries (id, tenant, subject, kind, type, status, tries, created_at)
select gen_random_uuid(), tenant, id, 'webhook', 'run.completed',
    case when status = 'completed' then 'delivered' when user_id < 'u3' then 'dead' else 'waiting' end, 1, created_at
from runs where status in ('completed', 'failed')
"""
NOW = datetime.now(UTC)
EDGES = chart.bounds(PERIODS["24h"], NOW)
AT = UUID(int=1)
Ask = Callable[[Conn], Awaitable[Any]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def busy(servers: Servers) -> AsyncIterator[Database]:
    url = await new_database(servers, "full_of_runs")
    await migrate(url)
    conn = await asyncpg.connect(url)
    for statement in (RUNS, APPROVALS, DELIVERIES):
        await conn.execute(statement)
    for table in ("runs", "approvals", "deliveries", "delivery_lines"):
        await conn.execute(f"vacuum analyze {table}")
    await conn.close()
    db = Database(url)
    yield db
    await db.close()


LOOKS: dict[str, tuple[Ask, tuple[str, ...]]] = {
    "starts": (
        lambda c: series.starts(c, "big", chart.whole(EDGES), at_most=500),
        ("Index Only Scan using runs_list", "Index Only Scan Backward using runs_list"),
    ),
    "decided": (
        lambda c: series.decided(c, "big", chart.whole(EDGES), EDGES, at_most=500),
        ("Index Only Scan using approvals_decided",),
    ),
    "pending": (
        lambda c: series.pending(c, "big", EDGES, now=NOW, at_most=1000),
        ("Index Only Scan using approvals_waiting",),
    ),
    "counts": (lambda c: run_list.counts(c, "big", at_most=10_000), ("Index Only Scan using runs_by_status",)),
    "counts of": (
        lambda c: run_list.counts_of(c, "big", RunFilter(user_id="u7"), at_most=1000),
        ("runs_by_user",),
    ),
    "started before": (
        lambda c: run_list.started_before(c, "big", newest=100_000),
        ("Index Only Scan using runs_list",),
    ),
    "between": (lambda c: run_list.between(c, "big", AT, AT, limit=50), ("runs_pkey",)),
    "of approval": (lambda c: run_list.of_approval(c, "big", AT), ("approvals_pkey",)),
    "queue": (lambda c: runs.queue_figures(c, "big", at_most=10_000), ("runs_by_status",)),
    "messages": (
        lambda c: deliveries.figures_of(c, "big", at_most=10_000),
        ("Index Only Scan using deliveries_standing",),
    ),
    "dead": (lambda c: deliveries.recent(c, "big", status="dead", limit=10), ("deliveries_standing",)),
    "waiting": (lambda c: deliveries.recent(c, "big", status="waiting", limit=10), ("deliveries_standing",)),
    "backlog": (lambda c: standing.backlog(c, "big", at_most=1000), ("deliveries_standing",)),
    "held up": (
        lambda c: standing.held_up(
            c, "big", due_for=timedelta(seconds=9), long=timedelta(hours=1), among=1000, limit=11
        ),
        ("runs_by_status",),
    ),
    "overdue": (
        lambda c: standing.overdue(c, "big", for_=timedelta(seconds=9), limit=11),
        ("approvals_due", "approvals_inbox"),
    ),
    "longest asked": (lambda c: standing.longest_asked(c, "big", limit=10), ("approvals_waiting",)),
    "longest called": (lambda c: standing.longest_called(c, "big", among=1000, limit=10), ("runs_by_status",)),
    "by age": (
        lambda c: standing.by_age(c, "big", operations.AGES, at_most=10_000),
        ("Index Only Scan using approvals_waiting",),
    ),
    "failures": (lambda c: standing.failures(c, "big", among=1000, each=50), ("runs_by_status",)),
    "dead jobs": (lambda c: standing.dead_jobs(c, "big", limit=10), ("runs_pkey",)),
}


@pytest.mark.parametrize("name", LOOKS)
async def test_each_question_walks_along_an_index(busy: Database, name: str) -> None:
    ask, indexes = LOOKS[name]
    async with busy.connection(EVERY) as conn:  # the driver looks types up with queries of its own, once
        await ask(conn)
    known, _ = await plans(busy, ask)

    assert not any(f"Seq Scan on {table}" in known for table in ("runs", "approvals", "deliveries")), known
    assert any(index in known for index in indexes), known


async def test_a_tenants_role_reads_the_same_indexes_alone(busy: Database) -> None:
    """Behind the wall of the rows too, nothing but the index is looked at."""
    async with busy.connection("big") as conn:
        await series.pending(conn, "big", EDGES, now=NOW, at_most=1000)
        rows = await conn.fetch(
            "explain select count(*) from approvals where tenant = 'big' and status = 'pending' and created_at > now()"
        )

    assert "Index Only Scan using approvals_waiting" in "\n".join(row[0] for row in rows)


async def test_a_count_ends_one_beyond_its_bound(busy: Database) -> None:
    async with busy.connection("big") as conn:
        few = await run_list.counts(conn, "big", at_most=50)
        figures = await runs.queue_figures(conn, "big", at_most=50)
        exact = await runs.queue_figures(conn, "big")
        waiting = await conn.fetchval("select count(*) from runs where tenant = 'big' and status = 'awaiting_human'")

    assert (few["completed"], few["awaiting_human"], figures["awaiting_human"]) == (51, 51, 51)
    assert exact["awaiting_human"] == waiting > 10_000
    assert exact["oldest_queued_seconds"] == pytest.approx(figures["oldest_queued_seconds"], abs=60)


@pytest.mark.parametrize("period", ["24h", "7d"])
async def test_an_estimate_is_near_and_said_to_be_one(busy: Database, period: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(charts, "COUNTED", 200)
    found = await charts.look(busy, "big", period)
    async with behind(busy) as conn:
        row = await conn.fetchrow(
            """
            select (select count(*) from runs where tenant = 'big' and created_at >= $1) as starts,
                   (select count(*) from approvals where tenant = 'big' and status = 'approved' and decided_at >= $1)
                       as decisions,
                   (select count(*) from approvals where tenant = 'big' and status = 'pending') as waiting
            """,
            found.bars[0].since,
        )
    assert row is not None and found.estimated
    assert sum(bar.starts for bar in found.bars) == pytest.approx(row["starts"], rel=0.1)
    assert sum(bar.decisions for bar in found.bars) == pytest.approx(row["decisions"], rel=0.1)
    assert found.waiting == row["waiting"]


async def test_what_can_be_counted_is_counted(busy: Database) -> None:
    found = await charts.look(busy, "small", "1h")
    async with behind(busy) as conn:
        starts = await conn.fetchval(
            "select count(*) from runs where tenant = 'small' and created_at >= $1", found.bars[0].since
        )
        open_then = await conn.fetchval(
            """
            select sum(extract(epoch from least(coalesce(decided_at, $2), $2) - greatest(created_at, $1)))
                / extract(epoch from $2 - $1)
            from approvals where tenant = 'small' and created_at < $2 and coalesce(decided_at, $2) > $1
            """,
            found.bars[30].since,
            found.bars[30].until,
        )

    assert not found.estimated and sum(bar.starts for bar in found.bars) == starts
    assert found.bars[30].waiting == pytest.approx(float(open_then), abs=1)


async def test_a_burst_that_is_cut_off_costs_no_more_than_the_bound(busy: Database) -> None:
    edges = chart.bounds(PERIODS["7d"], NOW)
    async with busy.connection("big") as conn:
        found = await series.starts(conn, "big", [Window(0, edges[0], edges[-1])], at_most=100)

    assert found[0][0].n == 101
