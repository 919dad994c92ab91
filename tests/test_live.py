"""Followers while what is under them fails: restarts, a lost Redis, broken connections, readers that do not read."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import asyncpg
import httpx2
import pytest
import pytest_asyncio
from websockets.exceptions import ConnectionClosed

from service.embedded import Servers
from service.store.migrate import migrate
from tests.conftest import (
    DEADLINE_S,
    WORKER,
    Stack,
    base_env,
    echo,
    free_port,
    new_database,
    process,
    run_body,
    start,
    until_ready,
    web,
)
from tests.following import blocks, socket, stream, told
from tests.live_drill import Site, drill

HITL = Path(sys.executable).parent / "hitl"
UVICORN = ("uvicorn", "--factory", "service.app:create_app", "--no-access-log", "--log-level", "warning", "--port")


@contextmanager
def running(line: list[str], env: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("ab") as out, subprocess.Popen(line, env=env, stdout=out, stderr=out) as child:
        try:
            yield child
        finally:
            child.kill()


@pytest_asyncio.fixture(loop_scope="session")
async def site(servers: Servers, tmp_path: Path) -> AsyncIterator[Site]:
    """A service of its own, its web process to be killed."""
    url = await new_database(servers, f"drill_{uuid4().hex}")
    await migrate(url)
    env = base_env(servers, DATABASE_URL=url, REDIS_URL=f"{servers.redis_url}?db=5")
    with ExitStack() as stack:
        stack.enter_context(process(*WORKER, env=env, log=tmp_path / "worker.log"))
        made = Site(env, tmp_path, free_port(), stack)
        await made.serve()
        yield made


@pytest.mark.timeout(400)
async def test_every_follower_sees_every_event_once_and_in_order(site: Site) -> None:
    """The full form: python -m tests.live_drill --followers 200 --runs 50."""
    await drill(site, followers=40, runs=10, restarts=3, seed=7)


@pytest.mark.parametrize("command", ["uvicorn", "hitl web"])
async def test_a_web_process_that_is_told_to_stop_says_so_to_all_who_follow(
    stack: Stack, client: httpx2.AsyncClient, command: str, tmp_path: Path
) -> None:
    port = free_port()
    line = [sys.executable, "-m", *UVICORN, str(port)] if command == "uvicorn" else [str(HITL), "web"]
    env = {**stack.env, "HITL_PORT": str(port)}
    url = f"http://127.0.0.1:{port}"
    run_id = await start(client, run_body(echo(), policy="require_human"))
    with running(line, env, tmp_path / "web.log") as child:
        await asyncio.to_thread(until_ready, url, child, tmp_path / "web.log")
        async with (
            httpx2.AsyncClient(base_url=url, timeout=70, trust_env=False) as own,
            socket(url) as live,
            socket(url) as idle,
            stream(own, f"/hitl/runs/{run_id}/events") as answer,
            stream(own, "/hitl/events", user_id="u") as line,
        ):
            await live.ask("subscribe", {"run_id": run_id})
            child.send_signal(signal.SIGTERM)
            assert [await live.ended(), await idle.ended()] == [1012, 1012]
            assert (await told(answer))[0].id == "1"
            assert await told(line) == []
        async with asyncio.timeout(DEADLINE_S):
            status = await asyncio.to_thread(child.wait)
    assert status in (0, -signal.SIGTERM)
    assert "lib" not in (tmp_path / "web.log").read_text()


async def test_without_redis_followers_are_told_all_the_same(
    stack: Stack, client: httpx2.AsyncClient, tmp_path: Path
) -> None:
    """Also a ticket: it was made at one web process, and is good at any other."""
    ticket = (await client.post("/hitl/ws/ticket")).json()["ticket"]
    session = str(uuid4())
    with web({**stack.env, "REDIS_URL": "redis://127.0.0.1:1"}, tmp_path) as url:
        async with (
            httpx2.AsyncClient(base_url=url, timeout=70, trust_env=False) as own,
            socket(url, "hitl.v1", f"hitl.ticket.{ticket}") as live,
            stream(own, "/hitl/events", session_id=session) as line,
        ):
            assert (await own.post("/hitl/ws/ticket")).status_code == 201
            await live.ask("subscribe", {"session_id": session})
            await start(client, {**run_body(echo()), "session_id": session})
            frames = await live.until_over()
            found = await told(line, len(frames))

    assert [frame["seq"] for frame in frames] == list(range(1, len(frames) + 1))
    assert [block.json["seq"] for block in found] == [frame["seq"] for frame in frames]


async def test_broken_database_connections_lose_nothing(site: Site) -> None:
    session = str(uuid4())
    killer = await asyncpg.connect(site.env["DATABASE_URL"])
    async with (
        httpx2.AsyncClient(base_url=site.url, timeout=70, trust_env=False) as own,
        socket(site.url) as live,
        stream(own, "/hitl/events", session_id=session) as line,
    ):
        await live.ask("subscribe", {"session_id": session})
        ids = []
        for _ in range(5):
            await killer.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'hitl-web'"
                " and datname = current_database()"
            )
            answer = await own.post("/hitl/run", json={**run_body(echo()), "session_id": session})
            if answer.status_code == 202:
                ids.append(answer.json()["run_id"])
        assert ids
        for _ in ids:
            await live.until_over()
        frames = [frame for frame in live.seen if "event" in frame]
        found = await told(line, len(frames))
    await killer.close()

    for run_id in ids:
        seqs = [frame["seq"] for frame in frames if frame["run_id"] == run_id]
        assert seqs == list(range(1, len(seqs) + 1))
        assert [block.json["seq"] for block in found if block.json["run_id"] == run_id] == seqs


async def test_a_reader_that_does_not_read_is_let_go_and_holds_up_nobody(site: Site) -> None:
    big = {"checkpoint_type": "big", "message": "?", "context": {"a": "x" * 500_000}}
    async with (
        httpx2.AsyncClient(base_url=site.url, timeout=70, trust_env=False) as own,
        socket(site.url, max_queue=1, compression=None) as asleep,
        socket(site.url) as awake,
    ):
        for live in (asleep, awake):
            await live.ask("subscribe", {"inbox": True})
        wanted = []
        for _ in range(60):
            wanted.append((await own.post("/hitl/approvals", json=big)).json()["approval_id"])
            assert (await awake.hear())["data"]["approval_id"] == wanted[-1]
        with suppress(ConnectionClosed):
            while True:
                await asleep.hear()
        assert await asleep.ended() == 1013

    got = [frame["data"]["approval_id"] for frame in asleep.seen[1:]]
    assert got == wanted[: len(got)]


async def test_a_stream_that_nobody_reads_ends_and_resumes(site: Site) -> None:
    """The reader is behind: the stream is cut where it was, and its last id brings the rest."""
    session = str(uuid4())
    async with httpx2.AsyncClient(base_url=site.url, timeout=70, trust_env=False) as own:
        async with stream(own, "/hitl/events", session_id=session) as line:
            async for block in blocks(line):
                last = block.id
                break
        ids = [await start(own, {**run_body(echo()), "session_id": session}) for _ in range(60)]
        seen: list[tuple[str, int]] = []
        over = 0
        while over < len(ids):
            async with stream(own, "/hitl/events", last=last, session_id=session) as line:
                for block in await told(line, 7 if over < len(ids) - 1 else 1):
                    last = block.id
                    seen.append((block.json["run_id"], block.json["seq"]))
                    over += block.json["type"] == "run.completed"

    for run_id in ids:
        seqs = [seq for about, seq in seen if about == run_id]
        assert seqs == list(range(1, len(seqs) + 1))
    assert len(set(seen)) == len(seen)
