"""The worker as a process: it drains, it outlives Redis, it waits for its servers."""

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest_asyncio

from service.commands.approvals import decide
from service.domain.approval import Order
from service.domain.policy import HitlConfig
from service.embedded import Servers
from service.notifier import Notifier
from service.queue import RunQueue, connect
from service.runtime import Runtime
from service.store import approvals, workers
from service.store.database import EVERY
from tests.acting import becomes, begin, look, sql, story, within
from tests.conftest import (
    ASK_ALWAYS,
    DEV,
    WORKER,
    Gated,
    Provider,
    base_env,
    echo,
    eventually,
    free_port,
    http_tool,
    own_runtime,
    process,
)


@dataclass
class Site:
    """A database and a Redis database whose only workers are those that a test starts."""

    runtime: Runtime
    env: dict[str, str]
    folder: Path
    stack: AsyncExitStack

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def start(self, name: str, **env: str) -> "subprocess.Popen[bytes]":
        """A worker process, ended with the test."""
        block = process(*WORKER, env={**self.env, **env}, log=self.folder / f"{name}.log")
        return self.stack.enter_context(block)

    async def started(self, name: str, **env: str) -> "subprocess.Popen[bytes]":
        """A worker process that has begun to work."""
        child = self.start(name, **env)

        async def there() -> bool:
            assert child.poll() is None, self.log(name)
            return str(child.pid) in await self.pids()

        await eventually(there, f"the worker {name}")
        return child

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection to Redis through a port that a test opens and closes."""
        there, back = await asyncio.open_unix_connection(str(self.runtime.settings.redis_url).split("?")[0][7:])

        async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                while data := await source.read(65_536):
                    target.write(data)
            target.close()

        await asyncio.gather(pass_on(reader, back), pass_on(there, writer), return_exceptions=True)

    async def empty(self) -> None:
        await sql(self.runtime, "delete from approvals")
        await sql(self.runtime, "delete from runs")

    async def pids(self) -> list[str]:
        """Process ids of the workers that are there by their own heartbeat."""
        async with self.runtime.services.db.connection(EVERY) as conn:
            return [worker["id"].split(":")[1] for worker in await workers.present(conn)]


async def ended(child: "subprocess.Popen[bytes]") -> int:
    async with asyncio.timeout(15):
        return await asyncio.to_thread(child.wait, 15)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def place(servers: Servers) -> AsyncIterator[Runtime]:
    async with own_runtime(servers, "worked", redis_db=2) as runtime:
        yield runtime


@pytest_asyncio.fixture(loop_scope="session")
async def site(place: Runtime, servers: Servers, tmp_path: Path) -> AsyncIterator[Site]:
    env = base_env(
        servers,
        DATABASE_URL=str(place.settings.database_url),
        REDIS_URL=str(place.settings.redis_url),
        HITL_HTTP_ALLOW="loopback",
        HITL_DRAIN_SECONDS="1",
    )
    async with AsyncExitStack() as stack:
        yield Site(place, env, tmp_path, stack)


async def test_a_drained_workers_call_goes_on_at_another_under_the_same_key(site: Site, gated: Gated) -> None:
    first = await site.started("first")
    run_id = await begin(site.runtime, http_tool(gated.url))
    await within(gated.arrived)
    await site.started("second")
    held = await look(site.runtime, run_id)
    gated.arrived.clear()
    first.send_signal(signal.SIGTERM)
    await within(gated.arrived)  # the second worker is in the call now
    assert await ended(first) == 0, site.log("first")
    gated.opened.set()
    run = await becomes(site.runtime, run_id, "completed", "failed", "awaiting_human")
    assert run.status == "completed"
    assert gated.effects == {f"{run_id}-1": 2}
    assert held.worker_id is not None
    assert "run.recovered" not in await story(site.runtime, run_id)
    assert "worker.stopped" in site.log("first")
    assert str(first.pid) not in await site.pids()  # it said goodbye


async def test_a_call_that_ends_within_the_drain_is_not_repeated(site: Site, gated: Gated) -> None:
    first = await site.started("first", HITL_DRAIN_SECONDS="10")
    run_id = await begin(site.runtime, http_tool(gated.url))
    await within(gated.arrived)
    first.send_signal(signal.SIGTERM)
    gated.opened.set()
    assert await ended(first) == 0, site.log("first")
    assert (await look(site.runtime, run_id)).status in ("queued", "completed")
    await site.started("second")
    assert (await becomes(site.runtime, run_id, "completed")).status == "completed"
    assert gated.effects == {f"{run_id}-1": 1}


async def test_an_idle_worker_stops_at_once(site: Site) -> None:
    child = await site.started("idle", HITL_DRAIN_SECONDS="30")
    child.send_signal(signal.SIGTERM)
    assert await ended(child) == 0, site.log("idle")  # within far less than its drain


async def test_a_killed_workers_run_goes_on_elsewhere(site: Site, gated: Gated) -> None:
    first = await site.started("first", HITL_LEASE_SECONDS="1")
    run_id = await begin(site.runtime, http_tool(gated.url))
    await within(gated.arrived)
    await site.started("second", HITL_LEASE_SECONDS="1")
    gated.arrived.clear()
    first.kill()
    await within(gated.arrived)
    gated.opened.set()
    assert (await becomes(site.runtime, run_id, "completed")).status == "completed"
    assert gated.effects == {f"{run_id}-1": 2}
    assert "run.recovered" in await story(site.runtime, run_id)
    await sql(site.runtime, "delete from workers")


async def test_a_worker_outlives_its_redis_connections(site: Site, provider: Provider, gated: Gated) -> None:
    child = await site.started("tough")
    busy = await begin(site.runtime, http_tool(gated.url))
    await within(gated.arrived)
    for _ in range(3):
        for connection in await site.runtime.redis.client_list():
            if connection["db"] == "2" and connection["cmd"] != "client|list":
                await site.runtime.redis.client_kill_filter(_id=connection["id"])
        run_id = await begin(site.runtime, http_tool(provider.url))
        await becomes(site.runtime, run_id, "completed")
        assert child.poll() is None, site.log("tough")
    gated.opened.set()
    await becomes(site.runtime, busy, "completed")
    assert gated.effects == {f"{busy}-1": 1}
    assert provider.effects and set(provider.effects.values()) == {1}


async def test_a_worker_that_starts_before_its_redis_waits_for_it(site: Site) -> None:
    port = free_port()
    child = site.start("early", REDIS_URL=f"redis://127.0.0.1:{port}/2")

    async def waiting() -> bool:
        assert child.poll() is None, site.log("early")
        return site.log("early").count("worker.poll_failed") >= 2

    await eventually(waiting, "the wait")

    server = await asyncio.start_server(site.relay, "127.0.0.1", port)
    run_id = await begin(site.runtime, echo(), ASK_ALWAYS)
    await becomes(site.runtime, run_id, "awaiting_human")
    child.send_signal(signal.SIGTERM)
    assert await ended(child) == 0, site.log("early")
    server.close()


async def test_timers_that_redis_lost_all_fire(site: Site) -> None:
    """Their jobs are flushed away before any is due."""
    count = 60
    await site.empty()
    await site.started("keeper")
    for _ in range(count):
        await begin(site.runtime, echo(), HitlConfig(policy="require_human", timeout_seconds=4))

    async def asked() -> bool:
        return bool(await sql(site.runtime, "select count(*) = $1 from approvals", count))

    await eventually(asked, "the questions")
    await site.runtime.redis.flushdb()

    async def over() -> bool:
        return bool(await sql(site.runtime, "select count(*) = $1 from approvals where status = 'expired'", count))

    await eventually(over, "the end of all")
    assert await sql(site.runtime, "select count(*) from approvals where decided_at < expires_at") == 0


async def test_a_decision_taken_while_redis_is_away_is_acted_on_once_it_is_back(site: Site) -> None:
    port = free_port()
    server = await asyncio.start_server(site.relay, "127.0.0.1", port)
    child = await site.started("cut", REDIS_URL=f"redis://127.0.0.1:{port}/2")
    run_id = await begin(site.runtime, echo(), HitlConfig(policy="require_human", allowed_steps=["payload_review"]))
    await becomes(site.runtime, run_id, "awaiting_human")
    server.close()
    for connection in await site.runtime.redis.client_list():
        if connection["db"] == "2" and connection["cmd"] != "client|list":
            await site.runtime.redis.client_kill_filter(_id=connection["id"])

    async def noticed() -> bool:
        assert child.poll() is None, site.log("cut")
        return "worker.poll_failed" in site.log("cut")

    await eventually(noticed, "the loss")
    dead = connect(f"redis://127.0.0.1:{port}")
    services = replace(site.runtime.services, queue=RunQueue(dead, horizon_s=3600), notifier=Notifier(dead))
    async with services.db.connection(EVERY) as conn:
        asked = (await approvals.open_of_run(conn, run_id))[0]
    await decide(services, asked.id, Order(action="approve"), DEV)
    server = await asyncio.start_server(site.relay, "127.0.0.1", port)
    assert (await becomes(site.runtime, run_id, "completed")).status == "completed"
    await dead.aclose(close_connection_pool=True)
    child.kill()  # so that it does not wait for a Redis that goes away again
    server.close()


async def test_after_a_restart_of_everything_the_first_decision_is_acted_on_with_many_waiting(site: Site) -> None:
    count = 80
    await site.empty()
    first = await site.started("before")
    config = HitlConfig(policy="require_human", allowed_steps=["payload_review"])
    ids = await asyncio.gather(*(begin(site.runtime, echo(), config) for _ in range(count)))

    async def all_wait() -> bool:
        return bool(await sql(site.runtime, "select count(*) = $1 from approvals where status = 'pending'", count))

    await eventually(all_wait, "the wait of all")
    first.kill()
    await site.runtime.redis.flushdb()
    async with site.runtime.services.db.connection(EVERY) as conn:
        asked = (await approvals.open_of_run(conn, ids[-1]))[0]
    await decide(site.runtime.services, asked.id, Order(action="approve"), DEV)
    await site.runtime.redis.flushdb()
    site.start("after")
    assert (await becomes(site.runtime, ids[-1], "completed")).status == "completed"
    assert await sql(site.runtime, "select count(*) from runs where status = 'awaiting_human'") == count - 1
    await site.empty()
