"""What is measured: embedded servers, webs and workers as processes of their own, and the CPU that each took."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import psutil
from redis.asyncio import Redis

from service.cli.processes import worker_command
from service.embedded import Servers

WEB: Final = ("uvicorn", "--no-access-log", "--log-level", "warning", "--ws", "websockets-sansio", "--factory")
OURS: Final = ("HITL_", "DATABASE_", "REDIS_", "OPENAI_", "REPLICATE_", "WEBSOCKET_", "DIRECT_", "OTEL_", "SENTRY_")
LIMIT_S: Final = 300.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Site:
    """The running parts. `urls` are the webs'; `sql` is a connection beside them, for looking."""

    servers: Servers
    folder: Path
    sql: Any  # asyncpg.Connection
    redis: Redis
    urls: list[str] = field(default_factory=list)
    webs: list[psutil.Process] = field(default_factory=list)
    workers: list[psutil.Process] = field(default_factory=list)

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        """Default settings, whatever the developer has set; logs as in production, into a file."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        return {
            **kept,
            "DATABASE_URL": self.servers.database_url,
            "REDIS_URL": self.servers.redis_url,
            "HITL_SECRET_KEY": self.servers.secret_key,
            "LOG_FORMAT": "json",
            **more,
        }

    @contextmanager
    def web(self, **more: str) -> Iterator[None]:
        port = free_port()
        command = [sys.executable, "-m", *WEB, "service.app:create_app", "--port", str(port)]
        with self._process(command, f"web-{port}", {**more, "HITL_PORT": str(port)}) as found:
            self.webs.append(found)
            self.urls.append(f"http://127.0.0.1:{port}")
            try:
                yield
            finally:
                at = self.webs.index(found)
                del self.webs[at], self.urls[at]

    @contextmanager
    def worker(self, **more: str) -> Iterator[None]:
        with self._process(worker_command(), f"worker-{len(self.workers)}", more) as found:
            self.workers.append(found)
            try:
                yield
            finally:
                self.workers.remove(found)

    @contextmanager
    def _process(self, command: list[str], name: str, more: Mapping[str, str]) -> Iterator[psutil.Process]:
        with (self.folder / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(command, env=self.environment(more), stdout=log, stderr=log)  # noqa: S603
            try:
                yield psutil.Process(child.pid)
            finally:
                child.terminate()
                child.wait(60)

    async def ready(self) -> None:
        """Every web answers and every worker has said that it is there."""
        await self.sql.execute("delete from workers where seen_at < now() - interval '5 s'")
        for url in self.urls:
            await until(lambda url=url: answers(url))
        await until(lambda: self._seen(len(self.workers)))

    async def _seen(self, count: int) -> bool:
        found = await self.sql.fetchval("select count(*) from workers where seen_at > now() - interval '4 s'")
        return int(found) >= count

    def cpu(self) -> dict[str, float]:
        """CPU seconds so far of web, worker, Postgres and Redis."""
        return {
            "web": sum(_cpu_s(each) for each in self.webs),
            "worker": sum(_cpu_s(each) for each in self.workers),
            "postgres": _family_cpu_s(psutil.Process(self.servers.postgres_pid)),
            "redis": _cpu_s(psutil.Process(self.servers.valkey_pid)),
        }

    async def runs(self, status: str) -> int:
        return int(await self.sql.fetchval("select count(*) from runs where status = $1", status))

    async def empty(self) -> None:
        """No runs, and nothing in Redis that remembers any."""
        # and no vacuum: of a table that was found empty Postgres believes that it stays so, and reads it whole
        await self.sql.execute("truncate runs, events, steps, idempotency_keys cascade")
        await self.redis.flushall()


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _family_cpu_s(process: psutil.Process) -> float:
    """With its children, those that have ended too."""
    times = process.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in process.children():
        try:
            total += _cpu_s(child)
        except psutil.NoSuchProcess:
            continue
    return float(total)


async def answers(url: str) -> bool:
    """Whether /readyz of a process that may not listen yet is 200."""
    host, _, port = url.removeprefix("http://").partition(":")
    try:
        reader, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return False
    try:
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return (await reader.readline()).startswith(b"HTTP/1.1 200")
    finally:
        writer.close()


async def until(check: Callable[[], Awaitable[Any]], *, every_s: float = 0.02) -> Any:
    async with asyncio.timeout(LIMIT_S):
        while not (found := await check()):
            await asyncio.sleep(every_s)
        return found


async def load(kind: str, **job: Any) -> dict[str, Any]:
    """Run `bench.load`, a process of its own, and return what it measured."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.load", kind, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(child.communicate(orjson.dumps(job)), LIMIT_S)
    if child.returncode != 0:
        raise RuntimeError(f"bench.load {kind} failed")
    found: dict[str, Any] = orjson.loads(out)
    return found


class Spent:
    """CPU and time between two looks."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._cpu = site.cpu()
        self._at = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._at

    def cpu_ms(self, count: int) -> dict[str, float]:
        """CPU milliseconds a piece of each part, and `all` of them."""
        now = self._site.cpu()
        parts = {name: (now[name] - before) * 1000 / count for name, before in self._cpu.items()}
        return {**parts, "all": sum(parts.values())}


@contextmanager
def parts(site: Site, *, webs: int = 1, workers: int = 1, **more: str) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(webs):
            stack.enter_context(site.web(**more))
        for _ in range(workers):
            stack.enter_context(site.worker(**more))
        yield
