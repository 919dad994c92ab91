"""How late timers are, with and without trouble: `python -m bench.timers [PART...]`.

Embedded servers and worker processes of its own in a temporary folder, default settings. The parts:
on-time, flushed, burst, catch-up, year, restart, redis-away; all of them without arguments (about five minutes).
"""

import asyncio
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2

from bench.waiting import TOOL, WORKER, environment, process, until
from service import logs
from service.commands import expiry
from service.commands.approvals import decide, expire
from service.commands.runs import StartRun, start_run
from service.domain.approval import Order
from service.domain.ids import uuid7
from service.domain.policy import HitlConfig
from service.domain.principal import Principal
from service.embedded import Servers, lease
from service.notifier import Notifier
from service.orchestrator import HITLOrchestrator
from service.queue import RunQueue, connect
from service.runtime import Runtime, open_runtime
from service.settings import Settings
from service.store import approvals, content, runs
from service.store.database import EVERY, Conn
from service.store.migrate import migrate

DEV = Principal("dev", "default", "admin")
APPROVE = Order("approve")
COPY = """
with anew as (
    select * from unnest($2::uuid[], $3::bytea[], $4::text[], $5::text[], $6::uuid[], $7::text[])
        as n (id, wrapped, asked, built, approval_id, shown)),
keys as (
    insert into content_keys (subject, tenant, wrapped) select id, 'default', wrapped from anew),
copies as (
    insert into runs select x.* from runs r, anew n, lateral jsonb_populate_record(r, jsonb_build_object('id', n.id)) x
    where r.id = $1),
documents as (
    insert into run_documents select x.* from run_documents d, anew n, lateral jsonb_populate_record(d,
        jsonb_build_object('run_id', n.id, 'run_input', n.asked, 'payload', n.built)) x
    where d.run_id = $1)
insert into approvals select x.* from approvals a, anew n, lateral jsonb_populate_record(a,
    jsonb_build_object('id', n.approval_id, 'run_id', n.id, 'context', n.shown, 'armed', false,
        'expires_at', now() + $8::float8 * interval '1 s' + random() * $9::float8 * interval '1 s')) x
where a.run_id = $1 and a.status = 'pending' returning id
"""


@dataclass
class Bench:
    servers: Servers
    runtime: Runtime
    folder: Path
    model: Any  # the run that is copied: it waits at its payload_review

    async def sql(self, statement: str, *args: Any) -> Any:
        async with self.runtime.services.db.connection(EVERY) as conn:
            return await conn.fetchval(statement, *args)

    async def waiting(self, count: int, *, from_s: float, spread_s: float) -> list[Any]:
        """So many approvals of as many runs; their ids. The deadlines lie from then on, over so long."""
        async with self.runtime.services.db.connection(EVERY) as conn:
            anew = await copies(conn, self.model, count)
            rows = await conn.fetch(COPY, self.model, *anew, from_s, spread_s, timeout=120)
            await conn.execute("analyze runs; analyze run_documents; analyze approvals")  # as autovacuum would in time
        return [row["id"] for row in rows]

    async def empty(self) -> None:
        await self.sql("delete from runs where id <> $1", self.model)

    @asynccontextmanager
    async def workers(self, count: int = 2, **more: str) -> AsyncIterator[None]:
        """Worker processes that have begun to work."""
        env = {**environment(self.servers, 0), **more}
        await self.sql("delete from workers")
        stack = ExitStack()
        try:
            for n in range(count):
                stack.enter_context(process(self.folder, env, f"worker{time.time_ns()}-{n}", *WORKER))

            async def there() -> bool:
                return bool(await self.sql("select count(*) >= $1 from workers where seen_at > started_at", count))

            await until(there, 0.05)
            yield
        finally:
            await asyncio.to_thread(stack.close)  # while they end, they may need what runs on this loop

    async def none_pending(self, ids: Sequence[Any]) -> bool:
        return not await self.sql("select count(*) from approvals where id = any($1) and status = 'pending'", ids)

    async def lateness(self, ids: Sequence[Any]) -> str:
        async with self.runtime.services.db.connection(EVERY) as conn:
            rows = await conn.fetch(
                "select extract(epoch from decided_at - expires_at)::float8 as s from approvals where id = any($1)", ids
            )
        return percentiles([row["s"] for row in rows])


def percentiles(seconds: list[float]) -> str:
    found = sorted(seconds)

    def at(part: float) -> str:
        return f"{found[min(len(found) - 1, int(part * len(found)))]:.2f}"

    return f"p50 {at(0.5)}  p90 {at(0.9)}  p99 {at(0.99)}  max {at(1)} s  ({len(found)})"


def say(what: str, found: str) -> None:
    sys.stdout.write(f"{what:<58} {found}\n")
    sys.stdout.flush()


# ---- the parts


async def on_time(bench: Bench) -> None:
    async with bench.workers():
        ids = await bench.waiting(1000, from_s=8, spread_s=52)
        await until(lambda: bench.none_pending(ids), 0.5)
    say("1,000 deadlines within a minute: lateness", await bench.lateness(ids))


async def flushed(bench: Bench) -> None:
    async with bench.workers():
        ids = await bench.waiting(1000, from_s=8, spread_s=52)
        await asyncio.sleep(6)  # they have their jobs now
        await bench.runtime.redis.flushall()
        await until(lambda: bench.none_pending(ids), 0.5)
    say("... FLUSHALL before the first of them: lateness", await bench.lateness(ids))


async def burst(bench: Bench) -> None:
    async with bench.workers():
        ids = await bench.waiting(1000, from_s=8, spread_s=0)
        await asyncio.sleep(6)
        await bench.runtime.redis.flushall()
        await until(lambda: bench.none_pending(ids), 0.2)
    say("... all at the same moment, after FLUSHALL: lateness", await bench.lateness(ids))


async def catch_up(bench: Bench) -> None:
    services = bench.runtime.services
    ids = await bench.waiting(500, from_s=-9, spread_s=0)
    started = time.perf_counter()
    for approval_id in ids:
        await expire(services, approval_id)
    say("expired one by one, a transaction each, one process", f"{500 / (time.perf_counter() - started):.0f} a second")
    await bench.waiting(1000, from_s=-9, spread_s=0)
    started = time.perf_counter()
    while await expiry.expire_batch(services):
        pass
    say(f"... in batches of {expiry.BATCH}", f"{1000 / (time.perf_counter() - started):.0f} a second")
    asked = await bench.waiting(400, from_s=3600, spread_s=60)
    ids = await bench.waiting(5000, from_s=-600, spread_s=300)
    took: list[float] = []
    silent: list[float] = []

    async def decide_meanwhile() -> None:
        for approval_id in asked:
            begun = time.perf_counter()
            await decide(services, approval_id, APPROVE, DEV)
            took.append(time.perf_counter() - begun)
            age = await bench.sql("select extract(epoch from now() - min(seen_at))::float8 from workers")
            silent.append(age or 0.0)
            if await bench.none_pending(ids):
                return
            await asyncio.sleep(0.05)

    async with bench.workers():
        await asyncio.gather(until(lambda: bench.none_pending(ids), 0.1), decide_meanwhile())
    span = "select extract(epoch from max(decided_at) - min(decided_at))::float8 from approvals where id = any($1)"
    seconds = await bench.sql(span, ids)
    say("5,000 overdue after an outage, two workers: all in", f"{seconds:.1f} s ({5000 / seconds:.0f} a second)")
    say("... a decision meanwhile", percentiles(took))
    say("... a worker's longest silence meanwhile (lease 10 s)", f"{max(silent):.1f} s")


async def year(bench: Bench) -> None:
    redis = bench.runtime.redis
    async with bench.workers():
        await redis.flushall()
        await asyncio.sleep(5)
        before, keys = (await redis.info("memory"))["used_memory"], await redis.dbsize()
        ids = await bench.waiting(10_000, from_s=366 * 86_400, spread_s=60)
        await asyncio.sleep(10)  # five sweeps
        after, now = (await redis.info("memory"))["used_memory"], await redis.dbsize()
        say("10,000 deadlines 366 days away: Redis keys, KiB", f"{now - keys:+d}, {(after - before) / 1024:+.1f}")
        await bench.sql("update approvals set expires_at = now() where id = $1", ids[0])
        await until(lambda: bench.none_pending(ids[:1]), 0.02)
    say("... one of them moved to now by SQL: lateness", await bench.lateness(ids[:1]))


async def restart(bench: Bench) -> None:
    """Everything dies with 10,000 runs waiting; the clock runs from the start of web and worker."""
    async with bench.workers(1):
        ids = await bench.waiting(10_000, from_s=86_400, spread_s=60)
    pid = int(next(bench.folder.glob("**/postmaster.pid")).read_text().split("\n")[0])
    os.kill(pid, signal.SIGKILL)

    async def away() -> bool:
        try:
            await bench.sql("select 1")
        except Exception:
            return False
        return True

    await until(away, 0.2)
    await bench.runtime.redis.flushall()
    with ExitStack() as stack:
        port = 18_811
        env = environment(bench.servers, port)
        web = ("uvicorn", "--factory", "service.app:create_app", "--port", str(port), "--no-access-log")
        started = time.perf_counter()
        stack.enter_context(process(bench.folder, env, "web", *web, "--log-level", "warning"))
        stack.enter_context(process(bench.folder, env, "worker", *WORKER))
        client = httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)

        async def ready() -> bool:
            return (await client.get("/readyz")).status_code == 200

        await until(ready, 0.02)
        ready_s = time.perf_counter() - started
        answer = await client.post(f"/hitl/approvals/{ids[5000]}/decision", json={"action": "approve"})
        answer.raise_for_status()
        run_id = answer.json()["run_id"]

        async def completed() -> bool:
            return bool((await client.get(f"/hitl/runs/{run_id}")).json()["status"] == "completed")

        await until(completed, 0.02)
        took_s = time.perf_counter() - started
        await client.aclose()
    say("restart with 10,000 waiting: ready, first run completed", f"{ready_s:.1f} s, {took_s:.1f} s")


async def redis_away(bench: Bench) -> None:
    """The worker and the decider reach Redis through a port that is closed for a while."""
    took: list[float] = []
    path = str(bench.servers.redis_url).removeprefix("unix://").split("?")[0]

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(path)

        async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                while data := await source.read(65_536):
                    target.write(data)
            target.close()

        await asyncio.gather(pass_on(reader, back), pass_on(there, writer), return_exceptions=True)

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    ids = await bench.waiting(10, from_s=86_400, spread_s=60)
    async with AsyncExitStack() as stack:
        cut = connect(f"redis://127.0.0.1:{port}")
        services = replace(bench.runtime.services, queue=RunQueue(cut, horizon_s=3600), notifier=Notifier(cut))
        await stack.enter_async_context(bench.workers(1, REDIS_URL=f"redis://127.0.0.1:{port}"))
        for approval_id, away_s in zip(ids, (0.2, 0.5, 1, 1.5, 2, 3, 4, 5, 8, 12), strict=True):
            server.close()
            for connection in await bench.runtime.redis.client_list():
                if connection["cmd"] != "client|list":
                    await bench.runtime.redis.client_kill_filter(_id=connection["id"])
            decided = await decide(services, approval_id, APPROVE, DEV)
            assert decided.run is not None
            await asyncio.sleep(away_s)
            server = await asyncio.start_server(relay, "127.0.0.1", port)
            back = time.perf_counter()
            run_id = decided.run.id

            async def completed(run_id: Any = run_id) -> bool:
                return bool(await bench.sql("select status = 'completed' from runs where id = $1", run_id))

            await until(completed, 0.02)
            took.append(time.perf_counter() - back)
        await cut.aclose(close_connection_pool=True)
    say("decided with Redis away 0.2 to 12 s: from its return", percentiles(took))


PARTS = {
    "on-time": on_time, "flushed": flushed, "burst": burst, "catch-up": catch_up, "year": year,
    "restart": restart, "redis-away": redis_away,
}  # fmt: skip


async def model(runtime: Runtime) -> Any:
    """A run that waits for a human, and completes once it is approved."""
    config = HitlConfig(policy="require_human", allowed_steps=["payload_review"])
    order = StartRun({"prompt": "a red fox", "agent_tool_config": TOOL}, config)
    run_id = (await start_run(runtime.services, order, DEV)).run_id
    hand = HITLOrchestrator(runtime.services, worker_id="bench", lease_s=30)
    assert await hand.advance(run_id) == "awaiting_human"
    return run_id


async def copies(conn: Conn, model_id: Any, count: int) -> list[list[Any]]:
    """What cannot be copied of a run in SQL: ids, and all that is sealed for them."""
    docs, (asked,) = await runs.documents(conn, model_id), await approvals.open_of_run(conn, model_id)
    rows = []
    for _ in range(count):
        run_id, approval_id = uuid7(), uuid7()
        pen, wrapped = content.new_pen(conn, run_id)
        rows.append(
            (
                run_id,
                wrapped,
                pen.seal("run_documents.run_input", run_input=docs.run_input, tool_config=docs.tool_config),
                pen.seal("run_documents.payload", description=docs.description, payload=docs.payload),
                approval_id,
                approvals.shown(pen, replace(asked, id=approval_id)),
            )
        )
    return [list(column) for column in zip(*rows, strict=True)]


async def measure(servers: Servers, folder: Path, parts: Sequence[str]) -> None:
    logs.configure(process="cli", level="CRITICAL")
    await migrate(servers.database_url)
    settings = Settings(
        database_url=servers.database_url,
        redis_url=servers.redis_url,
        hitl_secret_key=servers.secret_key,
        _env_file=None,
    )
    async with open_runtime(settings, process="bench") as runtime:
        bench = Bench(servers, runtime, folder, await model(runtime))
        for part in parts:
            await bench.runtime.redis.flushall()
            await PARTS[part](bench)
            await bench.empty()


def main() -> None:
    parts = sys.argv[1:] or list(PARTS)
    with tempfile.TemporaryDirectory(prefix="hitl-bench-") as folder, lease(Path(folder) / "data") as servers:
        sys.stdout.write(f"{os.cpu_count()} cores, embedded Postgres and Valkey, default settings\n\n")
        asyncio.run(measure(servers, Path(folder), parts))


if __name__ == "__main__":
    main()
