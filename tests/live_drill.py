"""Followers of runs while everything under them is restarted: `python -m tests.live_drill --followers 200 --runs 50`.

Half of them read Server-Sent Events, half WebSockets; each is cut off at random and comes again with what it saw
last. Meanwhile the web process is killed and restarted, and Valkey is flushed. Every follower must have seen every
event of its run exactly once and in order.
"""

import argparse
import asyncio
import random
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from service import queue
from service.embedded import lease
from service.store.migrate import migrate
from tests.conftest import WORKER, base_env, echo, free_port, process, run_body, until_ready
from tests.following import blocks, socket, stream

ASK = {"policy": "require_human", "allowed_steps": ["payload_review", "response_review"]}
AWAY = (httpx2.TransportError, OSError, ConnectionClosed, InvalidHandshake, EOFError, TimeoutError)
FINAL = ("run.completed", "run.failed", "run.cancelled")
CALM_S = 0.05
PATIENCE_S = 100.0  # a restart on a machine under load


@dataclass
class Site:
    """The service, its web process killable; `url` stays."""

    env: dict[str, str]
    folder: Path
    port: int
    stack: ExitStack
    child: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self) -> None:
        log = self.folder / "drill-web.log"
        args = ("uvicorn", "--factory", "service.app:create_app", "--port", str(self.port), "--no-access-log")
        env = {**self.env, "HITL_PORT": str(self.port)}
        self.child = self.stack.enter_context(process(*args, "--log-level", "warning", env=env, log=log))
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                return await asyncio.to_thread(until_ready, self.url, self.child, log)
            except AssertionError:
                if self.child.poll() is not None or time.monotonic() > end:
                    raise

    async def restart(self, *, kill: bool) -> None:
        assert self.child is not None
        if kill:
            self.child.kill()
        else:
            self.child.terminate()
        await asyncio.to_thread(self.child.wait, PATIENCE_S)
        await self.serve()


@dataclass
class Follower:
    """One reader of one run, or of a whole session, and all that it ever saw: run, seq and type."""

    site: Site
    client: httpx2.AsyncClient
    kind: str
    run_id: str
    session: str
    chance: random.Random
    seen: list[tuple[str, int, str]] = field(default_factory=list)
    last: str | None = None
    cuts: int = 0

    async def follow(self, runs: int) -> None:
        """Read until the end of as many runs, coming again as often as it takes."""
        over = 0
        while over < runs:
            patience = self.chance.randint(1, 12)
            try:
                async with aclosing(self._read()) as told:
                    async for run_id, seq, kind, last in told:
                        self.seen.append((run_id, seq, kind))
                        self.last = last
                        over += kind in FINAL
                        patience -= 1
                        if over == runs or patience == 0:
                            break
            except AWAY:
                await asyncio.sleep(CALM_S)
            self.cuts += 1

    def _read(self) -> AsyncGenerator[tuple[str, int, str, str | None], None]:
        return self._read_stream() if self.kind == "sse" else self._read_socket()

    async def _read_stream(self) -> AsyncGenerator[tuple[str, int, str, str | None], None]:
        path = f"/hitl/runs/{self.run_id}/events" if self.run_id else "/hitl/events"
        params = {} if self.run_id else {"session_id": self.session}
        async with stream(self.client, path, last=self.last, **params) as answer:
            if answer.status_code != 200:
                raise TimeoutError
            async for block in blocks(answer):
                self.last = block.id or self.last
                if block.data is not None:
                    yield block.json["run_id"], block.json["seq"], block.json["type"], block.id

    async def _read_socket(self) -> AsyncGenerator[tuple[str, int, str, str | None], None]:
        after = {run_id: seq for run_id, seq, _ in self.seen}
        topic = {"run_id": self.run_id} if self.run_id else {"session_id": self.session}
        async with socket(self.site.url) as live:
            try:
                await live.say("subscribe", {**topic, "after": after})
                while True:
                    frame = await live.hear()
                    if frame["type"] == "error":
                        raise TimeoutError
                    if "event" in frame:
                        yield frame["run_id"], frame["seq"], frame["event"], None
            finally:  # with frames unread, this client would wait ten seconds for the closing handshake
                live.connection.transport.abort()


async def persist(work: Callable[[], Awaitable[httpx2.Response]], *statuses: int) -> httpx2.Response:
    """Ask again until the service, which is being restarted, has answered."""
    while True:
        try:
            answer = await work()
            if answer.status_code in (200, 201, 202, *statuses):
                return answer
        except AWAY:
            pass
        await asyncio.sleep(CALM_S)


async def decide_all(client: httpx2.AsyncClient, run_id: str) -> None:
    """Approve whatever the run asks, to its end."""
    while True:
        run = (await persist(lambda: client.get(f"/hitl/runs/{run_id}", params={"wait": 2}))).json()
        if run["status"] in ("completed", "failed", "cancelled"):
            return
        for approval in run["pending_actions"]:
            path = f"/hitl/approvals/{approval['approval_id']}/decision"
            await persist(lambda path=path: client.post(path, json={"action": "approve"}), 409)  # type: ignore[misc]


@asynccontextmanager
async def opened_lines(followers: list[Follower]) -> AsyncIterator[None]:
    """The streams over a session begin before its runs do: their first id is where they begin."""
    for follower in followers:
        if follower.kind == "sse" and not follower.run_id:
            async with stream(follower.client, "/hitl/events", session_id=follower.session) as answer:
                async for block in blocks(answer):
                    follower.last = block.id
                    break
    yield


async def drill(site: Site, *, followers: int, runs: int, restarts: int, seed: int) -> dict[str, Any]:
    """Run it. Raises `AssertionError` for a follower that missed something, or saw it twice or out of order."""
    chance = random.Random(seed)
    session = f"drill-{seed}-{time.time_ns()}"
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=site.url, timeout=30, limits=limits, trust_env=False) as client:
        line = [Follower(site, client, kind, "", session, random.Random(chance.random())) for kind in ("sse", "ws")]
        async with opened_lines(line):
            body = {**run_body(echo(), **ASK), "session_id": session}  # type: ignore[arg-type]
            started = [await persist(lambda: client.post("/hitl/run", json=body)) for _ in range(runs)]
            ids: list[str] = [answer.json()["run_id"] for answer in started]
            crowd = [
                Follower(
                    site, client, ("sse", "ws")[n % 2], ids[n // 2 % runs], session, random.Random(chance.random())
                )
                for n in range(followers)
            ]
            async with asyncio.TaskGroup() as group:
                for follower in crowd:
                    group.create_task(follower.follow(1))
                for follower in line:
                    group.create_task(follower.follow(runs))
                group.create_task(_disturb(site, restarts, chance))
                gate = asyncio.Semaphore(max(1, runs // 5))
                for run_id in ids:
                    group.create_task(_gated(gate, client, run_id))
        events = {run_id: await _events(client, run_id) for run_id in ids}
    for follower in crowd:
        wanted = events[follower.run_id]
        assert [place[1:] for place in follower.seen] == wanted, (follower.kind, follower.run_id, follower.seen, wanted)
    for follower in line:
        for run_id, wanted in events.items():
            found = [(seq, kind) for about, seq, kind in follower.seen if about == run_id]
            assert found == wanted, (follower.kind, run_id, found, wanted)
    return {
        "followers": len(crowd) + len(line),
        "runs": runs,
        "restarts": restarts,
        "events_told": sum(len(follower.seen) for follower in [*crowd, *line]),
        "connections": sum(follower.cuts for follower in [*crowd, *line]),
    }


async def _gated(gate: asyncio.Semaphore, client: httpx2.AsyncClient, run_id: str) -> None:
    async with gate:
        await decide_all(client, run_id)


async def _disturb(site: Site, restarts: int, chance: random.Random) -> None:
    redis = queue.connect(site.env["REDIS_URL"])
    for n in range(restarts):
        await asyncio.sleep(chance.uniform(0.3, 0.8))
        await site.restart(kill=n % 2 == 0)
        if n == restarts // 2:
            await redis.flushdb()
    await redis.aclose(close_connection_pool=True)


async def _events(client: httpx2.AsyncClient, run_id: str) -> list[tuple[int, str]]:
    answer = await client.get(f"/hitl/runs/{run_id}/events", params={"limit": 200})
    return [(event["seq"], event["type"]) for event in answer.json()["events"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--followers", type=int, default=200)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="hitl-drill-"))
    with lease(folder / "data") as servers, ExitStack() as stack:
        asyncio.run(migrate(servers.database_url))
        env = base_env(servers)
        stack.enter_context(process(*WORKER, env=env, log=folder / "worker.log"))
        site = Site(env, folder, free_port(), stack)

        async def run() -> dict[str, Any]:
            await site.serve()
            return await drill(
                site, followers=given.followers, runs=given.runs, restarts=given.restarts, seed=given.seed
            )

        started = time.monotonic()
        told = asyncio.run(run())
        print({**told, "seconds": round(time.monotonic() - started, 1)})  # noqa: T201  it is a command


if __name__ == "__main__":
    main()
