"""What ten thousand runs that wait for a human cost: `python -m bench.waiting [RUNS]`.

Starts embedded servers, a web and a worker process of its own in a temporary folder.
"""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import psutil
from redis.asyncio import Redis

from service.embedded import Servers, lease
from service.signals import QUEUE_NAME
from service.store.migrate import migrate

RUNS = 10_000
CONCURRENCY = 50
TOOL = {"echo-agent-tool": {"data": {"example_input": {"prompt": "sample", "num_outputs": 1}}}}
BODY = {
    "run_input": {"prompt": "a red fox", "agent_tool_config": TOOL},
    "hitl_config": {"policy": "require_human"},
}
WORKER = ("arq", "worker_settings.WorkerSettings", "--custom-log-dict", "service.logs.ARQ_LOG_CONFIG")


@contextmanager
def process(folder: Path, env: dict[str, str], name: str, *args: str) -> Iterator[psutil.Process]:
    with (folder / f"{name}.log").open("wb") as log:
        child = subprocess.Popen([sys.executable, "-m", *args], env=env, stdout=log, stderr=log)  # noqa: S603
        try:
            yield psutil.Process(child.pid)
        finally:
            child.terminate()
            child.wait(30)


def environment(servers: Servers, port: int) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HITL_")}
    urls = {"DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url}
    return {
        **kept,
        **urls,
        "HITL_SECRET_KEY": servers.secret_key,
        "HITL_PORT": str(port),
        "LOG_FORMAT": "json",
        "LOG_LEVEL": "WARNING",
    }


async def until(check: Callable[[], Awaitable[Any]], every_s: float, limit_s: float = 600) -> Any:
    async with asyncio.timeout(limit_s):
        while True:
            try:
                if found := await check():
                    return found
            except httpx2.TransportError:
                pass
            await asyncio.sleep(every_s)


async def begin_all(client: httpx2.AsyncClient, count: int) -> list[str]:
    gate = asyncio.Semaphore(CONCURRENCY)

    async def one() -> str:
        async with gate:
            answer = await client.post("/hitl/run", json=BODY)
            answer.raise_for_status()
            return str(answer.json()["run_id"])

    return list(await asyncio.gather(*(one() for _ in range(count))))


async def finish(client: httpx2.AsyncClient, run_id: str) -> tuple[float, list[float]]:
    """Approve a waiting run at each checkpoint. Seconds in all, and from each decision to what came of it."""
    started = time.perf_counter()
    hops: list[float] = []
    while True:
        run = (await client.get(f"/hitl/runs/{run_id}", params={"wait": 30})).json()
        if hops:
            hops[-1] = time.perf_counter() - hops[-1]
        if run["status"] != "awaiting_human":
            assert run["status"] == "completed", run["status"]
            return time.perf_counter() - started, hops
        approval_id = run["pending_actions"][0]["approval_id"]
        hops.append(time.perf_counter())
        answer = await client.post(f"/hitl/approvals/{approval_id}/decision", json={"action": "approve"})
        answer.raise_for_status()


async def figures(conn: Any, redis: Redis, worker: psutil.Process, client: httpx2.AsyncClient) -> dict[str, Any]:
    memory = await redis.info("memory")
    tables = await conn.fetchval(
        "select sum(pg_total_relation_size(oid)) from pg_class"
        " where relkind = 'r' and relnamespace = 'public'::regnamespace"
    )
    cpu = worker.cpu_times()
    queue = (await client.get("/hitl/queue")).json()
    return {
        "worker RSS, MiB": worker.memory_info().rss / 2**20,
        "worker threads": worker.num_threads(),
        "worker CPU so far, s": cpu.user + cpu.system,
        "runs in progress": queue["in_progress"],
        "worker jobs (tasks)": sum(each["jobs"] for each in queue["workers"]),
        "arq queue entries": await redis.zcard(QUEUE_NAME),
        "Redis keys": await redis.dbsize(),
        "Redis used_memory, MiB": memory["used_memory"] / 2**20,
        "Postgres tables, MiB": int(tables) / 2**20,
    }


async def measure(servers: Servers, folder: Path, count: int) -> None:
    await migrate(servers.database_url)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = environment(servers, port)
    web = ("uvicorn", "--factory", "service.app:create_app", "--port", str(port), "--no-access-log")
    with ExitStack() as stack:
        stack.enter_context(process(folder, env, "web", *web, "--log-level", "warning"))
        worker = stack.enter_context(process(folder, env, "worker", *WORKER))
        conn = await asyncpg.connect(servers.database_url)
        redis = Redis.from_url(servers.redis_url)
        limits = httpx2.Limits(max_connections=CONCURRENCY)
        base = f"http://127.0.0.1:{port}"
        async with httpx2.AsyncClient(base_url=base, timeout=70, limits=limits, trust_env=False) as client:

            async def there() -> bool:
                ready = (await client.get("/readyz")).status_code == 200
                return ready and bool((await client.get("/hitl/queue")).json()["workers"])

            await until(there, 0.05)
            warm = (await begin_all(client, 20))[0]  # what a first run makes a process load
            await finish(client, warm)
            before = await figures(conn, redis, worker, client)
            started = time.perf_counter()
            ids = await begin_all(client, count)
            accepted_s = time.perf_counter() - started

            async def all_wait() -> bool:
                waiting = await conn.fetchval("select count(*) from runs where status = 'awaiting_human'")
                return bool(waiting >= count + 19)

            await until(all_wait, 0.1)
            waiting_s = time.perf_counter() - started

            async def idle() -> bool:
                queue = (await client.get("/hitl/queue")).json()
                due = await redis.zcount(QUEUE_NAME, "-inf", time.time() * 1000)
                return due == 0 and queue["in_progress"] == 0 and not any(each["jobs"] for each in queue["workers"])

            await until(idle, 0.2)
            after = await figures(conn, redis, worker, client)
            cpu = worker.cpu_times()
            await asyncio.sleep(10)
            idle_cpu = worker.cpu_times()
            percent = (idle_cpu.user + idle_cpu.system - cpu.user - cpu.system) * 10
            took_s, hops = await finish(client, ids[0])
            last_s, _ = await finish(client, ids[-1])
        await redis.aclose()
        await conn.close()
    per_run = (after["Postgres tables, MiB"] - before["Postgres tables, MiB"]) * 2**20 / count
    lines = [
        f"{count} runs that wait for a human ({os.cpu_count()} cores, embedded Postgres and Valkey, 1 web, 1 worker)",
        "",
        f"{'':<28}{'before':>12}{'while waiting':>16}",
        *(f"{name:<28}{before[name]:>12.6g}{after[name]:>16.6g}" for name in before),
        "",
        f"accepted over HTTP at {CONCURRENCY} in flight  {accepted_s:8.1f} s ({count / accepted_s:.0f} runs/s)",
        f"all of them waiting after             {waiting_s:8.1f} s ({count / waiting_s:.0f} runs/s)",
        f"Postgres per waiting run, bytes       {per_run:8.0f}",
        f"worker CPU over 10 s of waiting       {percent:8.1f} %",
        f"first run, 3 decisions to completed   {took_s * 1000:8.0f} ms"
        f" (each decision to the next stop: {', '.join(f'{hop * 1000:.0f}' for hop in hops)} ms)",
        f"last run, 3 decisions to completed    {last_s * 1000:8.0f} ms",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else RUNS
    with tempfile.TemporaryDirectory(prefix="hitl-bench-") as folder, lease(Path(folder) / "data") as servers:
        asyncio.run(measure(servers, Path(folder), count))


if __name__ == "__main__":
    main()
