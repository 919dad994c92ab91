"""A deploy: every process is stopped and started again, one after another, while runs and decisions come in."""

import asyncio
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from service.cli.processes import Child
from service.embedded import Servers
from tests.conftest import (
    WEB,
    WORKER,
    Provider,
    Stack,
    base_env,
    eventually,
    free_port,
    http_tool,
    own_runtime,
    process,
    run_body,
    until_ready,
)

WEBS = ("web-a", "web-b")
WORKERS = ("worker-a", "worker-b")


@dataclass
class Deploy:
    """Two web and two worker processes behind a balancer that leaves a web process alone which refuses a
    connection or closes one with its answer, until it is ready again. A request that was sent must be answered."""

    children: dict[str, Child]
    urls: dict[str, str]
    client: httpx2.AsyncClient
    up: list[str] = field(default_factory=list)

    async def send(self, method: str, path: str, **more: Any) -> httpx2.Response:
        while True:
            name = random.choice(self.up)
            with suppress(httpx2.ConnectError):
                answer = await self.client.request(method, self.urls[name] + path, **more)
                if answer.headers.get("connection") == "close":
                    self.down(name)
                return answer
            self.down(name)

    def down(self, name: str) -> None:
        if name in self.up:
            self.up.remove(name)

    async def restart(self, name: str) -> None:
        """SIGTERM, until it ended by itself; then it is started again."""
        child = self.children[name]
        assert child.process is not None
        child.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(child.process.wait, 30) in (0, -signal.SIGTERM)
        child.start()
        if name in WEBS:
            await self.until_ready(name)

    async def until_ready(self, name: str) -> None:
        async def ready() -> bool:
            try:
                return (await self.client.get(f"{self.urls[name]}/readyz")).status_code == 200
            except httpx2.TransportError:
                return False

        await eventually(ready, name)
        self.up.append(name)


@asynccontextmanager
async def deployed(servers: Servers, folder: Path) -> AsyncIterator[Deploy]:
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(own_runtime(servers, "rolling", redis_db=3))
        env = base_env(
            servers,
            DATABASE_URL=str(runtime.settings.database_url),
            REDIS_URL=str(runtime.settings.redis_url),
            HITL_LEASE_SECONDS="10",
            HITL_DRAIN_SECONDS="20",
        )
        ports = {name: free_port() for name in WEBS}
        commands = {
            **{name: [sys.executable, "-m", *WEB, "--port", str(port)] for name, port in ports.items()},
            **{name: [sys.executable, "-m", *WORKER] for name in WORKERS},
        }
        children = {}
        for name, command in commands.items():
            log = stack.enter_context((folder / f"{name}.log").open("ab"))
            port = str(ports.get(name, ports["web-a"]))
            children[name] = Child(name, command, env={**env, "HITL_PORT": port}, output=log.fileno())
            children[name].start()
            stack.push_async_callback(children[name].stop, 8)
        client = await stack.enter_async_context(httpx2.AsyncClient(timeout=30, trust_env=False))
        deploy = Deploy(children, {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}, client)
        for name in WEBS:
            await deploy.until_ready(name)
        yield deploy


async def test_a_rolling_restart_under_load_fails_no_request_and_repeats_no_call(
    servers: Servers, provider: Provider, tmp_path: Path
) -> None:
    provider.answer = lambda seen: (200, {"for": seen.headers["x-hitl-run-id"]})
    over = asyncio.Event()
    started: list[str] = []

    async def come(deploy: Deploy) -> None:
        """Runs, as long as processes are restarted; each is approved and followed to its end."""
        while not over.is_set():
            body = run_body(http_tool(provider.url), policy="require_human", allowed_steps=["payload_review"])
            answer = await deploy.send("POST", "/hitl/run", json=body)
            assert answer.status_code == 202, answer.text
            run_id = answer.json()["run_id"]
            started.append(run_id)
            while (run := (await deploy.send("GET", f"/hitl/runs/{run_id}?wait=10")).json())["status"] != "completed":
                assert run["status"] in ("queued", "running", "awaiting_human"), run
                for approval in run["pending_actions"]:
                    decision = {"action": "approve", "payload_sha256": approval["payload_sha256"]}
                    url = f"/hitl/approvals/{approval['approval_id']}/decision"
                    assert (await deploy.send("POST", url, json=decision)).status_code == 200
            assert run["result"] == {"for": run_id}

    async def more(number: int) -> None:
        wanted = len(started) + number

        async def there() -> bool:
            return len(started) >= wanted

        await eventually(there, "load")

    async with deployed(servers, tmp_path) as deploy:
        async with asyncio.TaskGroup() as group:
            for _ in range(12):
                group.create_task(come(deploy))
            await more(24)
            for name in (*WEBS, *WORKERS):
                await deploy.restart(name)
                await more(24)
            over.set()
    calls = [seen.headers["x-hitl-run-id"] for seen in provider.seen]
    assert sorted(calls) == sorted(started), "a call was repeated, or left out"


async def test_a_web_process_that_is_told_to_stop_answers_those_who_wait(stack: Stack, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "web.log"
    env = {**stack.env, "HITL_PORT": str(port)}
    url = f"http://127.0.0.1:{port}"
    with process(*WEB, "--port", str(port), env=env, log=log) as child:
        until_ready(url, child, log)
        async with httpx2.AsyncClient(base_url=url, timeout=70, trust_env=False) as client:
            question = {"checkpoint_type": "deploy", "message": "May it go out?", "context": {}}
            asked = (await client.post("/hitl/approvals", json=question)).json()
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(client.get(f"/hitl/approvals/{asked['approval_id']}?wait=60"))
                await asyncio.sleep(0)
                assert (await client.get("/healthz")).status_code == 200  # sent after the long poll
                child.send_signal(signal.SIGTERM)
            answer = waiting.result()
        assert (answer.status_code, answer.json()["status"]) == (200, "pending")
        assert answer.headers["connection"] == "close"
        assert await asyncio.to_thread(child.wait, 30) in (0, -signal.SIGTERM)
