"""A rolling deploy: web and worker processes are stopped and started again, one after another, under load.

`python -m tests.rolling [--rate 20] [--rounds 3] [--python PATH]` runs it on servers of its own and prints what it
counted; PATH is the interpreter of an install, this one by default. `make test` has shorter forms.
"""

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from service.cli.processes import Child
from service.embedded import Servers, lease
from tests.conftest import (
    WEB,
    WORKER,
    Provider,
    base_env,
    eventually,
    free_port,
    http_tool,
    own_runtime,
    run_body,
)

WEBS = ("web-a", "web-b")
WORKERS = ("worker-a", "worker-b")
# Who waits for a connection would speak to a process that has left; and a client lets go of an idle connection before
# the server does (uvicorn by itself after 5 s), or it may send on one that is just being closed.
LIMITS = httpx2.Limits(max_connections=None, keepalive_expiry=2)
AT_ONCE = 40
STEPS = ["information_review", "payload_review", "api_call", "response_review"]


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

    async def carry(self, provider_url: str, started: list[str]) -> None:
        """One run from its start to its end, each of its answers looked at."""
        body = run_body(http_tool(provider_url), policy="require_human", allowed_steps=["payload_review"])
        answer = await self.send("POST", "/hitl/run", json=body)
        assert answer.status_code == 202, answer.text
        run_id = answer.json()["run_id"]
        started.append(run_id)
        while (run := (await self.send("GET", f"/hitl/runs/{run_id}?wait=10")).json())["status"] != "completed":
            assert run["status"] in ("queued", "running", "awaiting_human"), run
            for approval in run["pending_actions"]:
                decision = {"action": "approve", "payload_sha256": approval["payload_sha256"]}
                url = f"/hitl/approvals/{approval['approval_id']}/decision"
                decided = await self.send("POST", url, json=decision)
                assert decided.status_code == 200, decided.text
        assert run["result"] == {"for": run_id}

    async def check_record(self, run_id: str) -> None:
        """No event is missing, no step done twice."""
        events = (await self.send("GET", f"/hitl/runs/{run_id}/events?limit=200")).json()["events"]
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert [event["data"]["step"] for event in events if event["type"] == "step.completed"] == STEPS
        once = Counter(event["type"] for event in events)
        assert all(
            once[kind] == 1
            for kind in ("approval.requested", "approval.decided", "provider.completed", "run.completed")
        ), once


@asynccontextmanager
async def deployed(
    servers: Servers, folder: Path, *, name: str = "rolling", redis_db: int = 3, python: str | Path = sys.executable
) -> AsyncIterator[Deploy]:
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(own_runtime(servers, name, redis_db=redis_db))
        env = base_env(
            servers,
            DATABASE_URL=str(runtime.settings.database_url),
            REDIS_URL=str(runtime.settings.redis_url),
            HITL_LEASE_SECONDS="10",
            HITL_DRAIN_SECONDS="20",
        )
        ports = {name: free_port() for name in WEBS}
        # -P: not the code of the working directory, where an install is meant
        commands = {
            **{name: [str(python), "-P", "-m", *WEB, "--port", str(port)] for name, port in ports.items()},
            **{name: [str(python), "-P", "-m", *WORKER] for name in WORKERS},
        }
        children = {}
        for name, command in commands.items():
            log = stack.enter_context((folder / f"{name}.log").open("ab"))
            port = str(ports.get(name, ports["web-a"]))
            children[name] = Child(name, command, env={**env, "HITL_PORT": port}, output=log.fileno(), cwd=folder)
            children[name].start()
            stack.push_async_callback(children[name].stop, 8)
        client = await stack.enter_async_context(httpx2.AsyncClient(timeout=30, limits=LIMITS, trust_env=False))
        deploy = Deploy(children, {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}, client)
        for name in WEBS:
            await deploy.until_ready(name)
        yield deploy


async def roll(deploy: Deploy, provider: Provider, *, rate: float, rounds: int = 1) -> list[str]:
    """So many runs a second begin while each process is restarted in turn; all of them are followed to their end and
    checked. Returns their ids."""
    provider.answer = lambda seen: (200, {"for": seen.headers["x-hitl-run-id"]})
    started: list[str] = []
    over = asyncio.Event()

    async def come(group: asyncio.TaskGroup) -> None:
        """At their own pace, whether or not those before are through; fewer where the machine cannot keep up."""
        room = asyncio.Semaphore(AT_ONCE)

        async def one() -> None:
            async with room:
                await deploy.carry(provider.url, started)

        while not over.is_set():
            if not room.locked():
                group.create_task(one())
            await asyncio.sleep(1 / rate)

    async def more(number: int) -> None:
        wanted = len(started) + number

        async def there() -> bool:
            return len(started) >= wanted

        await eventually(there, "load")

    async with asyncio.TaskGroup() as group:
        group.create_task(come(group))
        for _ in range(rounds):
            for name in (*WEBS, *WORKERS):
                await more(20)  # that meet all processes
                await deploy.restart(name)
        over.set()
    for run_id in started:
        await deploy.check_record(run_id)
    calls = [seen.headers["x-hitl-run-id"] for seen in provider.seen]
    assert sorted(calls) == sorted(started), "a call was repeated, or left out"
    return started


async def measure(servers: Servers, folder: Path, *, rate: float, rounds: int, python: Path) -> None:
    scripted = Provider()
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0)
    scripted.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/predict"
    async with deployed(servers, folder, python=python) as deploy:
        began = time.monotonic()
        done = await roll(deploy, scripted, rate=rate, rounds=rounds)
        took_s = time.monotonic() - began
    server.close()
    restarts = rounds * len((*WEBS, *WORKERS))
    sys.stdout.write(
        f"{restarts} processes restarted in {took_s:.0f} s under {len(done) / took_s:.0f} runs a second: "
        f"all completed, no request failed, no step lost or repeated, {len(scripted.seen)} provider calls\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", type=Path, default=Path(sys.executable))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hitl-rolling-") as folder, lease(Path(folder) / "data") as servers:
        asyncio.run(measure(servers, Path(folder), rate=given.rate, rounds=given.rounds, python=given.python))


if __name__ == "__main__":
    main()
