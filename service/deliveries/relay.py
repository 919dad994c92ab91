"""The relay: an external service that every event frame is sent to, by one WebSocket of each worker or by POST.

Its messages are never given up and never dead: while it is away they wait in Postgres, in order within each run.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import httpx2
import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.frames import CloseCode

from service import __version__
from service.commands.context import Services
from service.deliveries.answers import answer
from service.deliveries.sender import MARGIN_S
from service.domain.delivery import RELAY, RELAY_DELAY_MAX_S, envelope, relay_delay_s
from service.domain.event import Event
from service.domain.frame import question_frame
from service.domain.view import approval_view
from service.logs import get_logger
from service.store import approvals, deliveries, events, frames
from service.store.database import Conn
from service.store.deliveries import Line, Message

ANSWER_S: Final = 10.0
BATCH: Final = 10
ANSWERS_AT_ONCE: Final = 16
MAX_FRAME_BYTES: Final = 1024 * 1024

log = get_logger("deliveries.relay")


class Gate:
    """Closed for a growing while after each failure of the relay itself, so that it is not stormed."""

    def __init__(self) -> None:
        self._failures = 0
        self._until = 0.0

    @property
    def open(self) -> bool:
        return time.monotonic() >= self._until

    def passed(self) -> None:
        self._failures, self._until = 0, 0.0

    def failed(self) -> float:
        """Close it; for how many seconds."""
        if self.open:  # what was under way when it closed is the same failure
            self._failures += 1
            self._until = time.monotonic() + relay_delay_s(self._failures, jitter=random.random())  # noqa: S311
        return self._until - time.monotonic()


class Outbound:
    """What both forms of the relay share: read a line's next messages, have them sent, write what came of it."""

    kind = RELAY
    at_once = 8
    per_target = 8
    lease_s = ANSWER_S + 2 * MARGIN_S

    def __init__(self, services: Services, *, answer_s: float = ANSWER_S) -> None:
        self._services = services
        self._answer_s = answer_s
        self.gate = Gate()

    async def _deliver(self, line: Line, carry: Callable[[Sequence[bytes]], Awaitable[tuple[int, str | None]]]) -> None:
        """`carry` sends envelopes in order; how many were acknowledged, and a code when it was not all of them."""
        async with self._services.db.transaction(line.tenant) as conn:
            if not await deliveries.lock(conn, line):
                return
            messages = await deliveries.first(conn, line, limit=BATCH)
            envelopes = await _envelopes(conn, line, messages)
        taken, error = await carry(envelopes) if messages else (0, None)
        await self._settle(line, messages, taken, error)

    async def _settle(self, line: Line, messages: Sequence[Message], taken: int, error: str | None) -> None:
        wait = 0.0
        async with self._services.db.transaction(line.tenant) as conn:
            if not await deliveries.lock(conn, line):
                return
            if taken:
                await deliveries.forget(conn, [message.id for message in messages[:taken]])
            if error is not None:
                tries = messages[taken].tries + 1
                await deliveries.failed(conn, messages[taken].id, error=error, dead=False)
                wait = relay_delay_s(tries, jitter=random.random())  # noqa: S311  spread, not secrecy
            await deliveries.put_down(conn, line, wait=timedelta(seconds=wait))
        about = {"run_id": str(line.run_id) if line.run_id else None, "tenant": line.tenant}
        if taken:
            log.info("relay.delivered", **about, count=taken)
        if error is not None:
            log.warning("relay.failed", **about, code=error, count=len(messages) - taken)


class PostingRelay(Outbound):
    """The relay with `http(s)://`: each envelope is POSTed, and a 2xx acknowledges it."""

    def __init__(
        self,
        services: Services,
        client: httpx2.AsyncClient,
        url: str,
        api_key: str | None,
        *,
        answer_s: float = ANSWER_S,
    ) -> None:
        super().__init__(services, answer_s=answer_s)
        self._client = client
        self._url = url.rstrip("/") + "/api/update-status"
        self._headers = {"Content-Type": "application/json", "User-Agent": f"hitl-service/{__version__}"}
        if api_key is not None:
            self._headers["X-API-Key"] = api_key

    @property
    def ready(self) -> bool:
        return self.gate.open

    async def send(self, line: Line) -> None:
        await self._deliver(line, self._post_all)

    async def _post_all(self, envelopes: Sequence[bytes]) -> tuple[int, str | None]:
        end = asyncio.get_running_loop().time() + self._answer_s
        for count, body in enumerate(envelopes):
            try:
                async with asyncio.timeout_at(end):
                    answered = await self._client.post(self._url, content=body, headers=self._headers, timeout=None)
                status = answered.status_code
            except TimeoutError:
                if count == 0:  # else it is slow, not away: the rest goes with the next lease
                    self.gate.failed()
                return count, "timeout"
            except httpx2.TransportError:
                self.gate.failed()
                return count, "unreachable"
            if not 200 <= status < 300:
                if status == 429 or status >= 500:
                    self.gate.failed()
                return count, f"http_{status}"
            self.gate.passed()
        return len(envelopes), None


class SocketRelay(Outbound):
    """The relay with `ws(s)://`: a pong to a ping that was sent after a message acknowledges it.

    A pong comes from the relay's library, maybe before its program has seen the message: one message is under way at
    a time, so that a relay that dies loses none that it had no chance to keep.
    """

    at_once = 4
    lease_s = 2 * ANSWER_S + 2 * MARGIN_S

    def __init__(self, services: Services, url: str, api_key: str | None, *, answer_s: float = ANSWER_S) -> None:
        super().__init__(services, answer_s=answer_s)
        self._url = url
        self._headers = {"X-API-Key": api_key} if api_key is not None else {}
        self.on_ready: Callable[[], None] = lambda: None
        self._conn: ClientConnection | None = None
        self._turn = asyncio.Lock()

    @property
    def ready(self) -> bool:
        return self._conn is not None

    async def run(self) -> None:
        """Keep one connection to the relay, until cancelled."""
        while True:
            try:
                await self._connected()
            except (OSError, WebSocketException, TimeoutError) as error:
                log.warning("relay.disconnected", error=type(error).__name__)
            await asyncio.sleep(min(self.gate.failed(), RELAY_DELAY_MAX_S))

    async def _connected(self) -> None:
        async with connect(
            self._url, additional_headers=self._headers, user_agent_header=f"hitl-service/{__version__}", proxy=None,
            open_timeout=self._answer_s, ping_interval=20, ping_timeout=20, close_timeout=1, max_size=MAX_FRAME_BYTES,
        ) as conn:  # fmt: skip
            self._conn = conn
            log.info("relay.connected")
            self.on_ready()
            try:
                await self._listen(conn)
            except asyncio.CancelledError:
                await conn.close(CloseCode.GOING_AWAY)
                raise
            finally:
                self._conn = None

    async def _listen(self, conn: ClientConnection) -> None:
        """Take the frames that come back, some at once: pongs are read behind them."""
        slots = asyncio.Semaphore(ANSWERS_AT_ONCE)

        async def respond(text: str | bytes) -> None:
            try:
                told = await answer(self._services, text)
                if told is not None:
                    await conn.send(orjson.dumps(told).decode())
            except WebSocketException:
                return  # the answer is lost with its connection; the decision stands
            finally:
                slots.release()

        async with asyncio.TaskGroup() as group:
            with suppress(ConnectionClosed):
                async for text in conn:
                    await slots.acquire()
                    group.create_task(respond(text))
        log.warning("relay.disconnected", error=None)

    async def send(self, line: Line) -> None:
        await self._deliver(line, self._send_all)

    async def _send_all(self, envelopes: Sequence[bytes]) -> tuple[int, str | None]:
        """One after the other, as long as the lease is good for it: the rest goes with the next."""
        end = time.monotonic() + self._answer_s
        for count, body in enumerate(envelopes):
            async with self._turn:
                if time.monotonic() > end:
                    return count, None
                error = await self._send_one(body)
            if error is not None:
                return count, error
        return len(envelopes), None

    async def _send_one(self, body: bytes) -> str | None:
        conn = self._conn
        if conn is None:
            return "disconnected"
        try:
            async with asyncio.timeout(self._answer_s):
                await conn.send(body.decode())
                await (await conn.ping())
        except TimeoutError:
            conn.transport.abort()  # it hangs: a close handshake would hang too
            return "timeout"
        except (WebSocketException, OSError):
            return "disconnected"
        self.gate.passed()
        return None


async def _envelopes(conn: Conn, line: Line, messages: Sequence[Message]) -> list[bytes]:
    session_id, user_id = await deliveries.addressee(conn, line)
    told = await _frames(conn, line, messages)
    return [orjson.dumps(envelope(frame, session_id=session_id, user_id=user_id)) for frame in told]


async def _frames(conn: Conn, line: Line, messages: Sequence[Message]) -> list[dict[str, Any]]:
    if line.run_id is None:
        asked: list[UUID] = [message.approval_id for message in messages if message.approval_id is not None]
        return [question_frame(approval_view(found)) for found in await approvals.some(conn, asked)]
    found: list[Event] = await events.some(conn, [(line.run_id, m.seq) for m in messages if m.seq is not None])
    return await frames.of_events(conn, found)
