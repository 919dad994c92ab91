"""Postgres restarts under a working worker: what was in memory is written once it is back, and nothing waits."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio

from service.commands.timers import sweep
from service.domain.run import Run
from service.embedded import Servers, lease
from service.errors import Unavailable
from service.providers.guard import guarded_client
from service.providers.http import HttpProvider
from service.providers.registry import Registry
from service.runtime import Runtime, open_runtime
from service.settings import Settings
from service.store.content import Vault
from service.store.database import EVERY, Conn, Database
from service.store.migrate import migrate
from service.worker import Heartbeat, Presence
from tests.acting import becomes, begin, docs_of, look, sql, story, within, worker
from tests.conftest import WORKER, Gated, Provider, base_env, echo, eventually, http_tool, process


@dataclass
class House:
    """Servers that a test may break, and the service's inside on them."""

    servers: Servers
    runtime: Runtime
    folder: Path

    async def postmaster(self) -> int:
        pid_file = next(self.folder.glob("**/postmaster.pid"))
        return int(pid_file.read_text().split("\n")[0])

    async def break_postgres(self) -> None:
        """SIGKILL, as a machine would die; its keeper starts it again. Returns once it is gone."""
        os.kill(await self.postmaster(), signal.SIGKILL)

        async def gone() -> bool:
            try:
                conn = await asyncpg.connect(self.servers.database_url, timeout=1)
            except (OSError, asyncpg.PostgresError, TimeoutError):
                return True
            conn.terminate()
            return False

        await eventually(gone, "the end of Postgres")

    async def back(self) -> None:
        async def answers() -> bool:
            try:
                conn = await asyncpg.connect(self.servers.database_url, timeout=1)
            except (OSError, asyncpg.PostgresError, TimeoutError):
                return False
            await conn.close()
            return True

        await eventually(answers, "Postgres")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def house(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    folder = tmp_path_factory.mktemp("house")
    with lease(folder / "data") as servers:
        await migrate(servers.database_url)
        settings = Settings(
            database_url=servers.database_url,
            redis_url=servers.redis_url,
            hitl_secret_key=servers.secret_key,
            _env_file=None,
        )
        async with open_runtime(settings, process="test") as runtime:
            yield House(servers, runtime, folder)


async def test_an_answer_that_came_while_postgres_was_away_is_written_once_it_is_back(
    house: House, gated: Gated
) -> None:
    gated.script = [(200, {"kept": 1})]
    run_id = await begin(house.runtime, http_tool(gated.url))
    task = asyncio.create_task(worker(house.runtime).advance(run_id))
    await within(gated.arrived)
    await house.break_postgres()
    gated.opened.set()
    assert await task == "completed"
    assert gated.effects == {f"{run_id}-1": 1}
    assert (await docs_of(house.runtime, run_id)).output == {"kept": 1}
    told = await story(house.runtime, run_id)
    assert (told.count("provider.completed"), told.count("provider.submitted")) == (1, 1)
    assert "run.recovered" not in told


async def test_a_worker_process_outlives_a_restart_of_postgres_without_waiting_for_its_leases(
    house: House, gated: Gated, tmp_path: Path
) -> None:
    """The lease is far longer than the deadline of this test."""
    env = base_env(house.servers, HITL_HTTP_ALLOW="loopback", HITL_LEASE_SECONDS="600", HITL_DRAIN_SECONDS="1")
    gated.script = [(200, {"kept": 2})]
    with process(*WORKER, env=env, log=tmp_path / "worker.log"):
        run_id = await begin(house.runtime, http_tool(gated.url))
        await within(gated.arrived)
        await house.break_postgres()
        gated.opened.set()
        run = await until_final(house, run_id)
        assert run.status == "completed", (tmp_path / "worker.log").read_text()
        assert gated.effects == {f"{run_id}-1": 1}
        assert "run.recovered" not in await story(house.runtime, run_id)
        held = await sql(house.runtime, "select count(*) from runs where lease_until is not null")
        assert held == 0
        follower = await begin(house.runtime, echo())  # it takes new work, too
        assert (await becomes(house.runtime, follower, "completed")).status == "completed"


async def until_final(house: House, run_id: UUID) -> Run:
    await house.back()
    return await becomes(house.runtime, run_id, "completed", "failed", "cancelled", "awaiting_human")


async def test_a_run_is_claimed_once_postgres_is_back(house: House) -> None:
    run_id = await begin(house.runtime, echo())
    await house.break_postgres()
    assert await worker(house.runtime).advance(run_id) == "completed"
    assert "run.recovered" not in await story(house.runtime, run_id)


async def test_a_worker_that_lost_the_run_meanwhile_writes_nothing(house: House, gated: Gated) -> None:
    run_id = await begin(house.runtime, http_tool(gated.url))
    task = asyncio.create_task(worker(house.runtime).advance(run_id))
    await within(gated.arrived)
    # what a sweep did while this worker was cut off
    await sql(
        house.runtime,
        "update runs set fencing_token = fencing_token + 1, status = 'queued', lease_until = null, worker_id = null,"
        " due_at = now() where id = $1",
        run_id,
    )
    await house.break_postgres()
    gated.opened.set()
    assert await task == "lease_lost"
    run = await look(house.runtime, run_id)
    assert (run.status, run.lease_until) == ("queued", None)
    assert (await docs_of(house.runtime, run_id)).output is None


class Deaf(Database):
    """A database that breaks off once, after the commit: what was written is not heard of."""

    def __init__(self, of: Runtime, *, deaf_at: int) -> None:
        super().__init__(str(of.settings.database_url), vault=Vault(of.services.keyring))
        self.left = deaf_at

    @asynccontextmanager
    async def _acquired(self) -> AsyncIterator[Conn]:
        async with super()._acquired() as conn:
            yield conn
        self.left -= 1
        if self.left == 0:
            raise Unavailable


class Once(HttpProvider):
    """An HTTP provider that does not honour an idempotency key: a second request would be a second effect."""

    name, tool, repeatable = "once", "once-agent-tool", False


@pytest.mark.parametrize("deaf_at", range(1, 4), ids=["claim", "intent", "answer"])
async def test_a_commit_whose_answer_was_lost_is_neither_lost_nor_done_twice(
    house: House, provider: Provider, deaf_at: int
) -> None:
    client = guarded_client(frozenset({"loopback"}))
    registry = Registry([Once(client)])
    tool = {"once-agent-tool": http_tool(provider.url)["http-agent-tool"]}
    services = replace(house.runtime.services, registry=registry)
    run_id = await begin(house.runtime, tool, services=services)
    db = Deaf(house.runtime, deaf_at=deaf_at)
    outcome = await worker(house.runtime, services=replace(services, db=db)).advance(run_id)
    assert outcome == ("lease_lost" if deaf_at == 3 else "completed")  # the run ended with its answer
    run = await look(house.runtime, run_id)
    assert (run.status, run.lease_until) == ("completed", None)
    assert len(provider.seen) == 1
    told = await story(house.runtime, run_id)
    assert told.count("provider.completed") == 1
    assert "run.recovered" not in told
    took_ms = await sql(
        house.runtime, "select data->>'ms' from events where run_id = $1 and type = 'provider.completed'", run_id
    )
    assert run.provider_ms == int(took_ms)
    await db.close()
    await client.aclose()


async def test_a_lost_claim_is_taken_up_by_one_of_those_who_ask(house: House, provider: Provider) -> None:
    run_id = await begin(house.runtime, http_tool(provider.url))
    db = Deaf(house.runtime, deaf_at=1)
    hand = worker(house.runtime, services=replace(house.runtime.services, db=db))
    outcomes = await asyncio.gather(*(hand.advance(run_id) for _ in range(5)))
    assert outcomes.count("completed") == 1
    assert len(provider.seen) == 1
    await db.close()


async def test_an_exhausted_pool_does_not_cost_a_worker_its_leases(house: House, gated: Gated) -> None:
    runtime = house.runtime
    run_id = await begin(runtime, http_tool(gated.url))
    hand = worker(runtime)
    call = asyncio.create_task(hand.advance(run_id))
    await within(gated.arrived)
    presence = Presence(runtime, "w1")
    holding = asyncio.create_task(presence.hold())

    async def held() -> bool:
        return bool(await sql(runtime, "select count(*) from workers where id = 'w1' and lock_id is not null"))

    await eventually(held, "the lock")
    before = await look(runtime, run_id)
    async with AsyncExitStack() as load:
        for _ in range(10):
            await load.enter_async_context(runtime.services.db.connection(EVERY))
        await Heartbeat(runtime, hand, "w1", presence).once()
    after = await look(runtime, run_id)
    assert before.lease_until is not None
    assert after.lease_until is not None
    assert after.lease_until != before.lease_until
    gated.opened.set()
    assert await call == "completed"
    holding.cancel()
    await sql(runtime, "delete from workers")


async def test_a_run_that_was_given_back_unheard_is_nobodys_and_is_woken_by_the_sweep(
    house: House, gated: Gated
) -> None:
    run_id = await begin(house.runtime, http_tool(gated.url))
    db = Deaf(house.runtime, deaf_at=4)
    call = asyncio.create_task(worker(house.runtime, services=replace(house.runtime.services, db=db)).advance(run_id))
    await within(gated.arrived)
    call.cancel()  # what arq does when the drain's time is out
    assert await call == "handed_over"
    run = await look(house.runtime, run_id)
    assert (run.status, run.lease_until) == ("queued", None)
    await house.runtime.redis.flushdb()
    await sql(house.runtime, "update runs set due_at = due_at - interval '4 s' where id = $1", run_id)
    assert (await sweep(house.runtime.services))["woken"] >= 1
    gated.opened.set()
    assert await worker(house.runtime).advance(run_id) == "completed"
    await db.close()


async def test_a_heartbeat_whose_own_connection_broke_renews_over_the_pool(house: House, gated: Gated) -> None:
    runtime = house.runtime
    run_id = await begin(runtime, http_tool(gated.url))
    hand = worker(runtime)
    call = asyncio.create_task(hand.advance(run_id))
    await within(gated.arrived)
    presence = Presence(runtime, "w2")
    holding = asyncio.create_task(presence.hold())

    async def held() -> bool:
        return bool(await sql(runtime, "select count(*) from workers where id = 'w2' and lock_id is not null"))

    await eventually(held, "the lock")
    before = await look(runtime, run_id)
    ends = "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'hitl-test-session'"
    assert await sql(runtime, ends)
    await Heartbeat(runtime, hand, "w2", presence).once()
    assert (await look(runtime, run_id)).lease_until != before.lease_until
    await holding  # it says that the lock is gone by ending; the worker takes it again
    gated.opened.set()
    assert await call == "completed"
    await sql(runtime, "delete from workers")
