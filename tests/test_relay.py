"""Contract, section 8, "Relay": a stand-in that refuses, resets and hangs in turn gets every message, in order."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import httpx2
import orjson
import pytest
import pytest_asyncio
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from service.commands import approvals
from service.commands.approvals import Question
from service.commands.runs import cancel_run
from service.deliveries import relay as relays
from service.deliveries.relay import PostingRelay, SocketRelay
from service.deliveries.sender import Sender
from service.domain.delivery import relay_delay_s
from service.domain.policy import HitlConfig
from service.runtime import Runtime
from service.settings import Settings
from service.store import events
from service.store.content import Vault
from service.store.database import EVERY, Database
from tests.acting import begin, look, sql, worker
from tests.conftest import ASK_ALWAYS, DEV, Provider, Seen, echo, eventually

KEY = "relay-key"
AUTO = HitlConfig(policy="auto")


@pytest_asyncio.fixture(loop_scope="session")
async def site(empty: Runtime, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Runtime]:
    """`empty`, with a relay set, and without the waits between tries."""
    monkeypatch.setattr(relays, "relay_delay_s", lambda failures, *, jitter: 0.01)
    db = Database(str(empty.settings.database_url), relays=True, vault=Vault(empty.services.keyring))
    yield replace(empty, services=replace(empty.services, db=db))
    await db.close()


@dataclass
class Standin:
    """A relay behind a wire. `mischief` is what befalls the wire's next connections: refused, or reset, or silent,
    once so many bytes went through."""

    url: str = ""
    port: int = 0
    got: list[Any] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    mischief: list[tuple[str, int]] = field(default_factory=list)
    conns: list[ServerConnection] = field(default_factory=list)
    replies: list[Any] = field(default_factory=list)

    async def talk(self, conn: ServerConnection) -> None:
        assert conn.request is not None
        self.keys.append(conn.request.headers.get("X-API-Key"))
        self.conns.append(conn)
        with suppress(ConnectionClosed):
            async for text in conn:
                message = orjson.loads(text)
                (self.got if "sessionId" in message else self.replies).append(message)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        deed, limit = self.mischief.pop(0) if self.mischief else ("none", 0)
        if deed == "refuse":
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        answers = asyncio.create_task(self.pass_on(there, writer))
        passed = 0
        with suppress(ConnectionError):
            while data := await reader.read(4096):
                passed += len(data)
                if deed != "none" and passed > limit:
                    break
                back.write(data)
                await back.drain()
            if deed == "hang" and passed > limit:
                while await reader.read(4096):  # taken from the sender, and never seen by the relay
                    pass
        for end in (writer, back):
            end.transport.abort()
        await answers

    async def pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await source.read(4096):
                target.write(data)
                await target.drain()
            target.close()


@pytest_asyncio.fixture(loop_scope="session")
async def standin() -> AsyncIterator[Standin]:
    found = Standin()
    async with serve(found.talk, "127.0.0.1", 0, ping_interval=None) as server:
        found.port = next(iter(server.sockets)).getsockname()[1]
        wire = await asyncio.start_server(found.carry, "127.0.0.1", 0)
        found.url = f"ws://127.0.0.1:{wire.sockets[0].getsockname()[1]}/in"
        yield found
        wire.close()


@asynccontextmanager
async def connected(site: Runtime, url: str, *, workers: int = 1, answer_s: float = 5) -> AsyncIterator[None]:
    """Workers that keep a connection to the relay and send."""
    tasks: list[asyncio.Task[None]] = []
    for _ in range(workers):
        relay = SocketRelay(site.services, url, KEY, answer_s=answer_s)
        sender = Sender(site.services, relay, poll_s=0.02)
        relay.on_ready = sender.wake
        tasks += [asyncio.create_task(relay.run()), asyncio.create_task(sender.run())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def drained(site: Runtime) -> Callable[[], Awaitable[bool]]:
    async def empty() -> bool:
        return not await sql(site, "select count(*) from deliveries where kind = 'relay'")

    return empty


async def ended(site: Runtime, count: int, config: HitlConfig = AUTO) -> list[UUID]:
    runs = [await begin(site, echo(), config, session_id=f"s{n}", user_id="u") for n in range(count)]
    for run_id in runs:
        await worker(site).advance(run_id)
    return runs


async def check_whole(site: Runtime, got: list[Any], runs: list[UUID]) -> None:
    """Every event of every run arrived; first arrivals are in order."""
    for run_id in runs:
        async with site.services.db.connection(EVERY) as conn:
            wanted = [event.seq for event in await events.after(conn, "default", run_id, 0, limit=1000)]
        arrived = [m["data"]["seq"] for m in got if m["data"]["run_id"] == str(run_id)]
        assert list(dict.fromkeys(arrived)) == wanted


async def test_every_event_is_a_frame_in_the_envelope(site: Runtime, standin: Standin) -> None:
    (run_id,) = await ended(site, 1, ASK_ALWAYS)
    async with connected(site, standin.url):
        await eventually(drained(site), "the end")
    await check_whole(site, standin.got, [run_id])
    assert standin.keys == [KEY]
    asked = next(m for m in standin.got if m["status"] == "hitl_request")
    assert set(asked) == {"sessionId", "userId", "status", "action", "message", "data"}
    assert (asked["sessionId"], asked["userId"], asked["action"]) == ("s0", "u", "approval_required")
    assert asked["data"]["type"] == "hitl_approval_request"
    assert asked["data"]["data"]["run_id"] == str(run_id) and asked["data"]["data"]["status"] == "pending"
    assert [m["data"]["type"] for m in standin.got if m is not asked].count("hitl_approval_request") == 0


async def test_a_relay_that_refuses_resets_and_hangs_gets_every_message_in_order(
    site: Runtime, standin: Standin
) -> None:
    standin.mischief = [("refuse", 0), ("reset", 3000), ("hang", 9000), ("refuse", 0), ("hang", 700), ("reset", 20000)]
    runs = await ended(site, 200)
    async with connected(site, standin.url, workers=2, answer_s=0.5):
        await eventually(drained(site), "the end")
    assert standin.mischief == []
    await check_whole(site, standin.got, runs)


async def test_messages_wait_for_a_relay_that_is_away(site: Runtime, standin: Standin) -> None:
    async with connected(site, "ws://127.0.0.1:9/in"):
        runs = await ended(site, 3)
    assert await sql(site, "select sum(tries) from deliveries") == 0  # nobody tried what could not go
    async with connected(site, standin.url):
        await eventually(drained(site), "the end")
    await check_whole(site, standin.got, runs)


async def test_a_decision_comes_back_over_the_relay_and_is_acknowledged(site: Runtime, standin: Standin) -> None:
    (run_id,) = await ended(site, 1, ASK_ALWAYS)
    async with connected(site, standin.url):
        await eventually(drained(site), "the question")
        asked = next(m for m in standin.got if m["status"] == "hitl_request")["data"]["data"]
        (conn,) = standin.conns
        answers: list[Any] = [
            {"approval_id": asked["approval_id"], "action": "reject"},
            {"approval_id": "nobody-knows", "action": "approve"},
            {"approval_id": asked["approval_id"], "action": "approve", "unknown": 1},
            {"approval_id": asked["approval_id"], "action": "approve", "actor": "alice"},
        ]
        for text in ("not json", b"\x00\xff", "[]", '{"type": "echo"}', orjson.dumps(standin.got[0]).decode()):
            await conn.send(text)
        for count, data in enumerate(answers, 1):
            await conn.send(orjson.dumps({"type": "hitl_approval_response", "data": data}).decode())

            async def answered(count: int = count) -> bool:
                return len(standin.replies) == count

            await eventually(answered, "the ack")
        again = {"type": "hitl_approval_response", "data": {**answers[0], "reason": "late"}}
        await conn.send(orjson.dumps(again).decode())
        await eventually(lambda: _true(len(standin.replies) == 5), "the ack")
    assert {reply["type"] for reply in standin.replies} == {"hitl_approval_response_ack"}
    told = [(r["data"]["success"], r["data"].get("code") or r["data"]["status"]) for r in standin.replies]
    assert told == [
        (False, "validation_failed"),
        (False, "not_found"),
        (False, "validation_failed"),
        (True, "approved"),
        (False, "approval_already_decided"),
    ]
    row = await sql(site, "select actor || ' ' || channel from decisions")
    assert row == "alice relay"
    assert (await look(site, run_id)).status == "queued"


async def _true(value: bool) -> bool:
    return value


async def test_a_programs_question_goes_to_the_relay(site: Runtime, standin: Standin) -> None:
    asked, _ = await approvals.ask(site.services, Question("deploy", "May I?", {}, session_id="s9"), DEV)
    async with connected(site, standin.url):
        await eventually(drained(site), "the question")
    (message,) = standin.got
    assert (message["status"], message["sessionId"]) == ("hitl_request", "s9")
    assert message["data"]["data"]["approval_id"] == str(asked.id) and message["data"]["run_id"] is None


async def test_a_relay_over_http_gets_every_message_in_order(site: Runtime, provider: Provider) -> None:
    script: list[Any] = ["cut", (500, {}), "hang", (404, {}), (429, {})] * 2
    got: list[Any] = []

    def answer(seen: Seen) -> Any:
        entry = script.pop(0) if script and len(provider.seen) % 7 == 3 else (200, {})
        if entry == (200, {}):
            got.append(seen.json)
        return entry

    provider.answer = answer
    runs = await ended(site, 20)
    for run_id in runs[:3]:
        assert (await look(site, run_id)).status == "completed"
    base = provider.url.removesuffix("/predict")
    async with httpx2.AsyncClient(trust_env=False) as client:
        relay = PostingRelay(site.services, client, base, KEY, answer_s=1)
        sender = Sender(site.services, relay, poll_s=0.02)
        task = asyncio.create_task(sender.run())
        await eventually(drained(site), "the end")
        task.cancel()
        await asyncio.wait([task])
    assert script == []
    await check_whole(site, got, runs)
    assert {seen.path for seen in provider.seen} == {"/api/update-status"}
    assert {seen.headers["x-api-key"] for seen in provider.seen} == {KEY}


async def test_a_callback_and_the_relay_are_told_apart(site: Runtime, provider: Provider) -> None:
    run_id = await begin(site, echo(), ASK_ALWAYS, callback_url=provider.url)
    await worker(site).advance(run_id)
    await cancel_run(site.services, run_id, DEV, reason="enough")
    assert await sql(site, "select count(*) from deliveries where kind = 'webhook'") == 3
    event_count = await sql(site, "select count(*) from events")
    assert await sql(site, "select count(*) from deliveries where kind = 'relay'") == event_count


@pytest.mark.parametrize("jitter", [0.0, 1.0])
def test_the_relay_is_tried_at_least_every_thirty_seconds(jitter: float) -> None:
    waits = [relay_delay_s(failures, jitter=jitter) for failures in range(1, 100)]
    assert waits == sorted(waits) and waits[0] <= 1 and 20 <= waits[-1] <= 30


@pytest.mark.parametrize("url", ["ftp://x", "relay.example", "ws://"])
def test_a_relay_url_that_is_none_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ValueError, match="wss://"):
        Settings(websocket_url=url, _env_file=None)
