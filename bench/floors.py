"""What this machine can do at best, measured in the same run: every figure is also a ratio to one of these."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import asyncpg
from arq.connections import ArqRedis
from arq.worker import Worker, func
from redis.asyncio import ConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from bench.report import Figure
from bench.site import Site, answers, free_port, load, until

CLIENTS = 50
NAMES = ("bare_request", "commit_1", "commit_50", "redis_trip", "arq_job")


def create_app() -> Starlette:
    """One route that answers a small JSON, with nothing around it."""

    async def answer(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    return Starlette(routes=[Route("/readyz", answer)])


@contextmanager
def bare_web() -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", "bench.floors:create_app", "--no-access-log"]
    with subprocess.Popen([*command, "--log-level", "warning", "--port", str(port)]) as child:  # noqa: S603
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            child.terminate()


async def measure(site: Site, rounds: int) -> list[Figure]:
    with bare_web() as url:
        await until(lambda: answers(url))
        found = [await load("get", urls=[f"{url}/readyz"], clients=CLIENTS, count=5000) for _ in range(rounds)]
    requests = [len(one["took_s"]) / one["elapsed_s"] for one in found]
    await site.sql.execute("create table if not exists bench_floor (n bigint generated always as identity, at bigint)")
    singles = [await _commits(site, 1, 500) for _ in range(rounds)]
    many = [await _commits(site, CLIENTS, 5000) for _ in range(rounds)]
    await site.sql.execute("drop table bench_floor")
    return [
        Figure("bare_request", "a bare Starlette request, 50 clients", "1/s", requests),
        Figure("commit_1", "one insert committed, 1 connection", "ms", [1000 / rate for rate in singles]),
        Figure("commit_50", "one insert committed, 50 connections", "1/s", many),
        Figure("redis_trip", "Redis PING, 1 connection", "ms", [await _trip_ms(site) for _ in range(rounds)]),
        Figure(
            "arq_job", "arq jobs that do nothing, one worker of 100", "1/s", [await _jobs(site) for _ in range(rounds)]
        ),
    ]


async def _commits(site: Site, connections: int, count: int) -> float:
    rest = iter(range(count))

    async def one() -> None:
        for n in rest:
            await pool.execute("insert into bench_floor (at) values ($1)", n)

    async with asyncpg.create_pool(site.servers.database_url, min_size=connections, max_size=connections) as pool:
        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(connections)))
        return count / (time.perf_counter() - began)


async def _trip_ms(site: Site) -> float:
    took = []
    for _ in range(500):
        began = time.perf_counter()
        await site.redis.ping()
        took.append((time.perf_counter() - began) * 1000)
    return median(took)


async def _nothing(ctx: object) -> None:
    return None


async def _jobs(site: Site, count: int = 1000) -> float:
    pool = ArqRedis(pool_or_conn=ConnectionPool.from_url(site.servers.redis_url), default_queue_name="bench:floor")
    for _ in range(count):
        await pool.enqueue_job("nothing")
    worker = Worker(
        functions=[func(_nothing, name="nothing", keep_result=0)], redis_pool=pool, queue_name="bench:floor",
        burst=True, max_jobs=100, poll_delay=0, handle_signals=False,
    )  # fmt: skip
    began = time.perf_counter()
    await worker.main()
    took = time.perf_counter() - began
    await worker.close()
    return count / took
