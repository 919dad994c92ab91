"""Real servers for every test: Postgres, Valkey, a web process, a worker process, a scripted provider.

`stack` is the whole service as a user runs it; `quiet` is the same service's inside, on a database and a
Redis of its own that no worker looks at, for tests that play the worker themselves.
"""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import hypothesis
import orjson
import pytest
import pytest_asyncio

from service.domain.policy import HitlConfig
from service.domain.principal import Principal
from service.embedded import Servers, lease
from service.runtime import Runtime, open_runtime
from service.settings import Settings
from service.store.database import EVERY, Conn, Database
from service.store.migrate import migrate

DEADLINE_S = 20.0

# The same examples at every run: what is red is red for everybody. `make fuzz` searches for new ones.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None)
hypothesis.settings.register_profile("search", deadline=None, max_examples=3000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))
OURS = ("HITL_", "DATABASE_", "REDIS_", "OPENAI_", "REPLICATE_", "WEBSOCKET_", "DIRECT_", "OTEL_", "SENTRY_")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Stack:
    """A running service: where it listens, what it was started with, and its logs."""

    base_url: str
    env: dict[str, str]
    folder: Path

    def log(self, process: str) -> str:
        return (self.folder / f"{process}.log").read_text()


def base_env(servers: Servers, **more: str) -> dict[str, str]:
    """The environment of a process of the service; what the developer has set does not leak in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return {
        **kept,
        "DATABASE_URL": servers.database_url,
        "REDIS_URL": servers.redis_url,
        "HITL_SECRET_KEY": servers.secret_key,
        "HITL_SWEEP_SECONDS": "0.5",
        "HITL_LEASE_SECONDS": "3",
        "HITL_DRAIN_SECONDS": "5",
        "HITL_ANCHOR_SECONDS": "1",
        "LOG_FORMAT": "json",
        **more,
    }


@contextmanager
def process(*args: str, env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One process of the service, its output in a file, ended with the block."""
    with (
        log.open("ab") as out,
        subprocess.Popen([sys.executable, "-m", *args], env=env, stdout=out, stderr=out) as child,
    ):
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                child.kill()


WEB = ("uvicorn", "--factory", "service.app:create_app", "--no-access-log", "--log-level", "warning")
WORKER = ("arq", "worker_settings.WorkerSettings", "--custom-log-dict", "service.logs.ARQ_LOG_CONFIG")


@contextmanager
def web(env: dict[str, str], folder: Path, name: str = "web") -> Iterator[str]:
    """A web process that answers /readyz; its base URL."""
    port = free_port()
    log = folder / f"{name}.log"
    with process(*WEB, "--port", str(port), env={**env, "HITL_PORT": str(port)}, log=log) as child:
        url = f"http://127.0.0.1:{port}"
        until_ready(url, child, log)
        yield url


def until_ready(url: str, child: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + 60  # a cold start beside three other tests' processes
    while time.monotonic() < end:
        assert child.poll() is None, log.read_text()
        try:
            if httpx2.get(f"{url}/readyz").status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.02)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with lease(tmp_path_factory.mktemp("servers")) as found:
        yield found


@pytest.fixture(scope="session")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Web and worker as separate processes, auth off."""
    folder = tmp_path_factory.mktemp("stack")
    asyncio.run(migrate(servers.database_url))
    env = base_env(servers)
    with web(env, folder) as url, process(*WORKER, env=env, log=folder / "worker.log"):
        yield Stack(url, env, folder)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def client(stack: Stack) -> AsyncIterator[httpx2.AsyncClient]:
    limits = httpx2.Limits(max_connections=200, keepalive_expiry=2)  # sooner than the server lets go of it
    async with httpx2.AsyncClient(base_url=stack.base_url, timeout=70, limits=limits, trust_env=False) as found:
        yield found


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def quiet(servers: Servers) -> AsyncIterator[Runtime]:
    """The service's inside with nobody at work: a database and a Redis database of its own."""
    async with own_runtime(servers, "quiet", redis_db=1) as runtime:
        yield runtime


@asynccontextmanager
async def own_runtime(servers: Servers, name: str, *, redis_db: int) -> AsyncIterator[Runtime]:
    """The service's inside on a new database of that name, once a session, and a Redis database of its own."""
    url = await new_database(servers, name)
    await migrate(url)
    redis_url = f"{servers.redis_url}?db={redis_db}"
    settings = Settings(database_url=url, redis_url=redis_url, hitl_secret_key=servers.secret_key, _env_file=None)
    async with open_runtime(settings, process="test") as runtime:
        yield runtime


async def new_database(servers: Servers, name: str) -> str:
    """A new, empty database; its URL."""
    admin = await asyncpg.connect(servers.database_url)
    await admin.execute(f"create database {name}")
    await admin.close()
    return servers.database_url.replace("/postgres?", f"/{name}?")


@pytest_asyncio.fixture(loop_scope="session")
async def empty(quiet: Runtime) -> Runtime:
    """`quiet`, with nothing in it."""
    async with behind(quiet.services.db) as conn:
        await conn.execute(
            "delete from approvals; delete from runs; delete from idempotency_keys; delete from workers;"
            "delete from anchors; delete from purged_runs; delete from approval_views"
        )
    await quiet.redis.flushdb()
    return quiet


@asynccontextmanager
async def behind(db: Database) -> AsyncIterator[Conn]:
    """A transaction behind the service's back: as the owner of the tables, who may do anything to any row."""
    async with db.transaction(EVERY) as conn:
        await conn.execute("set local role none")
        yield conn


@dataclass
class Seen:
    """One request as the provider received it."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


@dataclass
class Provider:
    """A real HTTP endpoint that answers by script; when the script is over it answers 200 with `{"ok": true}`.

    A script entry is `(status, body)` or `(status, body, headers)`, or the string "cut" (the connection is
    dropped before an answer), or "hang" (no answer until the server closes).
    """

    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    script: list[Any] = field(default_factory=list)
    answer: Callable[[Seen], Any] | None = None
    effects: dict[str, int] = field(default_factory=dict)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            seen = Seen(head[0].split(" ")[1], headers, body)
            self.seen.append(seen)
            key = headers.get("idempotency-key", "")
            self.effects[key] = self.effects.get(key, 0) + 1
            entry = self.script.pop(0) if self.script else (self.answer(seen) if self.answer else (200, {"ok": True}))
            if entry == "hang":
                await reader.read()
            elif entry != "cut":
                writer.write(_response(*entry))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def _response(status: int, body: Any, headers: dict[str, str] | None = None) -> bytes:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    fields = {"content-type": "application/json", "content-length": str(len(raw)), "connection": "close"}
    lines = [f"{name}: {value}" for name, value in {**fields, **(headers or {})}.items()]
    return f"HTTP/1.1 {status} X\r\n".encode() + "\r\n".join([*lines, "", ""]).encode() + raw


@pytest_asyncio.fixture(loop_scope="session")
async def provider() -> AsyncIterator[Provider]:
    scripted = Provider()
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0)
    scripted.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/predict"
    yield scripted
    server.close()


@dataclass
class Gated(Provider):
    """A provider that takes the request and answers once `opened` is set."""

    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.seen.append(Seen(head[0].split(" ")[1], headers, body))
            key = headers["idempotency-key"]
            self.effects[key] = self.effects.get(key, 0) + 1
            self.arrived.set()
            gone = asyncio.create_task(reader.read())
            opened = asyncio.create_task(self.opened.wait())
            await asyncio.wait([gone, opened], return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                self.hung_up.set()
                opened.cancel()
                return
            gone.cancel()
            writer.write(_response(*(self.script.pop(0) if self.script else (200, {"ok": True}))))
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.hung_up.set()
        finally:
            writer.close()


@pytest_asyncio.fixture(loop_scope="session")
async def gated() -> AsyncIterator[Gated]:
    found = Gated()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/predict"
    yield found
    found.opened.set()
    server.close()


def echo(example: dict[str, Any] | None = None, **config: Any) -> dict[str, Any]:
    """A run input's agent_tool_config for the echo provider."""
    return {"echo-agent-tool": {"data": {"example_input": example or {"prompt": "sample", "num_outputs": 1}, **config}}}


def http_tool(url: str, example: dict[str, Any] | None = None, **config: Any) -> dict[str, Any]:
    data = {"url": url, "example_input": example or {"prompt": "sample", "num_outputs": 1}, **config}
    return {"http-agent-tool": {"data": data}}


def run_body(tool: dict[str, Any], *, prompt: str = "a red fox", policy: str = "auto", **hitl: Any) -> dict[str, Any]:
    """A body for POST /hitl/run."""
    return {
        "run_input": {"prompt": prompt, "agent_tool_config": tool},
        "hitl_config": {"policy": policy, **hitl},
    }


async def start(client: httpx2.AsyncClient, body: dict[str, Any], **headers: str) -> str:
    """Start a run and return its id."""
    answer = await client.post("/hitl/run", json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["run_id"])


async def settled(client: httpx2.AsyncClient, run_id: str, *statuses: str) -> dict[str, Any]:
    """The run once it is final or awaits a human, or has one of the statuses; fails at the deadline."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        run: dict[str, Any] = (await client.get(f"/hitl/runs/{run_id}", params={"wait": 0 if statuses else 5})).json()
        if run["status"] in (statuses or ("completed", "failed", "cancelled", "awaiting_human")):
            return run
        if statuses:
            await asyncio.sleep(0.02)
    raise AssertionError(f"the run is still {run['status']} at {run['current_step']}")


async def at(client: httpx2.AsyncClient, run_id: str, checkpoint: str) -> dict[str, Any]:
    """The run's open approval, once it waits at this checkpoint."""
    run = await settled(client, run_id)
    assert run["status"] == "awaiting_human", run
    approval: dict[str, Any] = run["pending_actions"][0]
    assert approval["checkpoint_type"] == checkpoint, approval["checkpoint_type"]
    return approval


async def decide(client: httpx2.AsyncClient, approval_id: str, action: str, **more: Any) -> httpx2.Response:
    return await client.post(f"/hitl/approvals/{approval_id}/decision", json={"action": action, **more})


async def eventually(check: Callable[[], Any], what: str = "it") -> Any:
    """The first truthy answer of an async check; fails at the deadline."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        if found := await check():
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(f"{what} did not come")


DEV = Principal("dev", "default", "admin")
ASK_ALWAYS = HitlConfig(policy="require_human")
