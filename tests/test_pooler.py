"""Behind a transaction pooler nothing that is set for a session holds: each transaction says anew who it is."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio

from service.commands import timers
from service.commands.approvals import decide
from service.commands.keys import NewKey, authenticate, create_key
from service.commands.purge import purge
from service.commands.runs import StartRun, start_run
from service.domain.approval import Order
from service.domain.principal import Principal
from service.embedded import Servers
from service.runtime import Runtime, open_runtime
from service.settings import Settings
from service.store import approvals, audit, runs, wall
from service.store.database import EVERY
from service.store.migrate import migrate
from service.store.purge import Kept
from tests.acting import look, sql, worker
from tests.conftest import ASK_ALWAYS, echo, new_database
from tests.pooler import pooled

SERVICE = Path(__file__).resolve().parents[1] / "service"
ANN, BOB = Principal("ann", "ann's", "admin"), Principal("bob", "bob's", "admin")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def behind_pooler(servers: Servers) -> AsyncIterator[Runtime]:
    url = await new_database(servers, "behind_pooler")
    await migrate(url)
    async with pooled(url) as pooled_url:
        settings = Settings(
            database_url=pooled_url, direct_database_url=url, redis_url=f"{servers.redis_url}?db=11",
            hitl_secret_key=servers.secret_key, hitl_pg_pooler="transaction", _env_file=None,
        )  # fmt: skip
        async with open_runtime(settings, process="test") as runtime:
            yield runtime


async def start(runtime: Runtime, who: Principal) -> UUID:
    run_input = {"prompt": "a red fox", "agent_tool_config": echo()}
    return (await start_run(runtime.services, StartRun(run_input, ASK_ALWAYS), who)).run_id


async def through(runtime: Runtime, who: Principal) -> UUID:
    """A run to its end, with every approval given."""
    run_id = await start(runtime, who)
    while not (await look(runtime, run_id)).final:
        await worker(runtime).advance(run_id)
        async with runtime.services.db.connection(who.tenant) as conn:
            waiting = await approvals.open_of_run(conn, run_id)
        for approval in waiting:
            await decide(runtime.services, approval.id, Order("approve"), who)
    return run_id


async def test_each_transaction_and_each_read_is_narrow_and_sees_its_tenant(behind_pooler: Runtime) -> None:
    db = behind_pooler.services.db

    async def looked(scope: wall.Scope, opened: str) -> tuple[bool, str, bool]:
        async with getattr(db, opened)(scope) as conn:
            await conn.fetchval("select pg_sleep(0.001)")
            row = await conn.fetchrow(
                """
                select current_user = hitl_role(), current_setting('hitl.tenant'), row_security_active('events')
                """
            )
            return tuple(row)

    asked = [(s, o) for s in ("ann's", "bob's", EVERY) for o in ("connection", "transaction", "reading")] * 8
    found = await asyncio.gather(*(looked(scope, opened) for scope, opened in asked))
    assert found == [(True, wall.said(scope), True) for scope, _ in asked]


async def test_runs_of_two_tenants_go_through_side_by_side(behind_pooler: Runtime) -> None:
    done = await asyncio.gather(*(through(behind_pooler, who) for who in (ANN, BOB) * 3))
    assert {(await look(behind_pooler, run_id)).status for run_id in done} == {"completed"}
    db = behind_pooler.services.db
    for who, theirs in ((ANN, done[1]), (BOB, done[0])):
        async with db.connection(who.tenant) as conn:
            assert {row[0] for row in await conn.fetch("select tenant from events")} == {who.tenant}
            assert await runs.find(conn, theirs) is None
    async with db.reading(EVERY) as conn:
        heads = [(head.seq, len(found)) async for head, found in audit.chains(conn, tenant=None, run_id=None)]
    assert len(heads) >= 6 and all(seq == count for seq, count in heads)


async def test_sweep_keys_and_purge_work_too(behind_pooler: Runtime) -> None:
    services = behind_pooler.services
    _, key = await create_key(services.db, services.keyring, NewKey("k", "reviewer", "ann's"))
    assert (await authenticate(services.db, services.keyring, key)).tenant == "ann's"
    await timers.sweep(services)
    old = await through(behind_pooler, ANN)
    await sql(behind_pooler, "update runs set finished_at = now() - interval '9 days' where id = $1", old)
    assert (await purge(replace(services), Kept("ann's", 5)))["runs"] == 1
    async with services.db.session(behind_pooler.settings.direct_database_url) as conn:
        assert await conn.fetchval("select current_user = hitl_role()")


async def test_the_pooler_of_these_tests_breaks_who_does_not_know_of_it(behind_pooler: Runtime) -> None:
    unaware = behind_pooler.settings.model_copy(update={"hitl_pg_pooler": None})
    async with open_runtime(unaware, process="test") as runtime:
        with pytest.raises(asyncpg.PostgresError, match="prepared statement"):
            await through(runtime, ANN)


def test_what_lives_in_a_session_is_in_two_places_that_go_past_the_pooler() -> None:
    """Migrations go to DIRECT_DATABASE_URL; a worker's sign of life too, and without one it does without."""
    session = re.compile(r"pg_(?:try_)?advisory_lock\b|\blisten [a-z]|\bnotify [a-z]|create temp|declare \w+ cursor")
    found = {
        path.relative_to(SERVICE).as_posix()
        for path in (SERVICE / "store").rglob("*.py")
        if session.search(path.read_text())
    }
    assert found == {"store/workers.py", "store/migrate.py"}
    door = (SERVICE / "worker.py").read_text()
    assert "if settings.hitl_pg_pooler is None or settings.direct_database_url:" in door
