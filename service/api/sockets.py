"""`GET /hitl/ws`: the handshake, and one connection's two tasks: one reads frames, one sends them."""

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from service import logs
from service.api.frames import SUBPROTOCOL, Subscribe, Unsubscribe, read_frame
from service.api.messages import answer, frame, refusal
from service.api.models import EmptyRequest, TicketView
from service.api.operation import Call, Operation, Reply, authenticate
from service.api.problems import on_refusal
from service.border.body import MAX_BYTES, parse
from service.border.origin import check_origin
from service.commands import tickets
from service.commands.context import Services
from service.commands.seen import note_seen
from service.domain.ids import parse_id
from service.domain.principal import Permission, Principal
from service.errors import HitlError, InvalidJson, NotFound, TooManySubscriptions
from service.live.hub import Hub
from service.live.reader import Ended, Reader, Subscription, Topic
from service.live.replay import replay
from service.store import runs

TICKET_PREFIX: Final = "hitl.ticket."
MAX_SUBSCRIPTIONS: Final = 1000
MAX_UNANSWERED: Final = 100
NOTED_AT_ONCE: Final = 50
STUCK_S: Final = 30.0
CLOSE_S: Final = 60.0
NORMAL, REVOKED, TOO_LARGE, RESTARTING, TRY_AGAIN = 1000, 1008, 1009, 1012, 1013
_CODES: Final = {Ended.BEHIND: TRY_AGAIN, Ended.REVOKED: REVOKED, Ended.STOPPING: RESTARTING}

log = logs.get_logger("api.sockets")


async def create_ticket(call: Call) -> Reply:
    """A ticket for one WebSocket handshake within a minute, for browsers: offer `hitl.ticket.<ticket>` as the second
    subprotocol."""
    ticket = await tickets.issue(call.services.db, call.principal)
    return Reply({"ticket": ticket, "expires_in_seconds": tickets.TICKET_S})


async def endpoint(socket: WebSocket) -> None:
    """One connection from its handshake to its end."""
    services: Services = socket.app.state.services
    hub: Hub = socket.app.state.hub
    try:
        check_origin(socket, services.public_url)
        principal = await _principal(socket, services)
    except HitlError as error:
        log.info("http.request", method="GET", route="/hitl/ws", status=error.status)
        await socket.send_denial_response(await _denial(socket, error))
        return
    offered: list[str] = socket.scope.get("subprotocols", [])
    await socket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
    started = time.monotonic()
    code = await Connection(socket, services, hub, principal).run()
    took_ms = round((time.monotonic() - started) * 1000)
    log.info("socket.closed", code=code, tenant=principal.tenant, actor=principal.subject, duration_ms=took_ms)


async def _principal(socket: WebSocket, services: Services) -> Principal:
    """By the header, or by the ticket. A ticket that is shown must be good, with auth off too."""
    shown = [p.removeprefix(TICKET_PREFIX) for p in socket.scope.get("subprotocols", []) if p.startswith(TICKET_PREFIX)]
    if shown and "authorization" not in socket.headers:
        return await tickets.redeem(services.db, shown[0])
    return await authenticate(socket, services, Permission.READ)


async def _denial(socket: WebSocket, error: HitlError) -> Response:
    return await on_refusal(Request({**socket.scope, "type": "http", "method": "GET"}), error)


class _Closed(Exception):
    def __init__(self, code: int, *, ours: bool) -> None:
        self.code, self.ours = code, ours


class Connection:
    """A client, read and answered by one task and sent to by the other. Nothing it sends ends more than itself."""

    def __init__(self, socket: WebSocket, services: Services, hub: Hub, principal: Principal) -> None:
        self._socket = socket
        self._services = services
        self._hub = hub
        self._principal = principal
        self._reader = Reader(principal.tenant, key_id=principal.key_id, until=principal.until)
        self._answers: deque[str] = deque()
        self._replays: deque[Subscription] = deque()
        self._shown: list[Mapping[str, Any]] = []
        self._joining = 0
        self._room = asyncio.Event()

    async def run(self) -> int:
        """Serve to the end; the close code."""
        ended = _Closed(NORMAL, ours=True)
        with self._hub.attached(self._reader):
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._receive())
                    group.create_task(self._send())
                    group.create_task(self._let_go())
            except* _Closed as closed:
                ended = _first(closed)
        if ended.ours:
            with suppress(WebSocketDisconnect, RuntimeError, TimeoutError):  # it was closed meanwhile, or is stuck
                async with asyncio.timeout(CLOSE_S):
                    await self._socket.close(ended.code)
        return ended.code

    # reading

    async def _receive(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                raise _Closed(message.get("code") or NORMAL, ours=False)
            text = message.get("text")
            if len(text.encode("utf-8", "surrogatepass") if text is not None else message["bytes"]) > MAX_BYTES:
                raise _Closed(TOO_LARGE, ours=True)
            await self._answer(await self._handled(text))

    async def _handled(self, text: str | None) -> dict[str, Any] | None:
        """The frame that answers at once; a subscription is answered by the sender, before what it brings."""
        try:
            if text is None:
                raise InvalidJson("a frame is text")
            match read_frame(parse(text.encode("utf-8", "surrogatepass"))):
                case Unsubscribe() as left:
                    return self._unsubscribe(left)
                case Subscribe() as wanted:
                    return await self._subscribe(wanted)
                case asked:
                    return await answer(self._services, self._principal, asked)
        except HitlError as error:
            return refusal(error)
        except Exception as error:
            log.error("live.frame_failed", error=type(error).__name__)
            return frame("error", {"code": "internal_error", "message": "the service met a fault of its own"})

    async def _subscribe(self, wanted: Subscribe) -> dict[str, Any] | None:
        topic = self._topic(wanted)
        known = self._reader.subscriptions.get(topic)
        if known is not None and wanted.after is None:  # it goes on as it was
            return frame("subscribed", wanted.echo())
        if known is None and len(self._reader.subscriptions) >= MAX_SUBSCRIPTIONS:
            raise TooManySubscriptions(f"a connection follows at most {MAX_SUBSCRIPTIONS} things")
        self._joining += 1
        try:
            if topic.kind == "run":
                await self._check_run(topic)
            start = await self._hub.join(self._reader, topic)
            subscription = Subscription(topic, start, wanted.after)
            self._reader.subscriptions[topic] = subscription
            self._answers.append(_text(frame("subscribed", wanted.echo())))
            if wanted.after is not None:
                self._replays.append(subscription)
        except HitlError as error:
            if known is None:
                self._hub.leave(self._reader, topic)
            return refusal(error, **wanted.echo())
        finally:
            self._joining -= 1
            self._reader.woken.set()
        return None

    def _unsubscribe(self, left: Unsubscribe) -> dict[str, Any]:
        topic = self._topic(left)
        if self._reader.subscriptions.pop(topic, None) is not None:
            self._hub.leave(self._reader, topic)
        return frame("unsubscribed", left.echo())

    def _topic(self, wanted: Subscribe) -> Topic:
        tenant = self._principal.tenant
        if wanted.run_id is not None:
            return Topic("run", tenant, wanted.run_id.lower())
        if wanted.session_id is not None:
            return Topic("session", tenant, wanted.session_id)
        if wanted.user_id is not None:
            return Topic("user", tenant, wanted.user_id)
        return Topic("inbox", tenant)

    async def _check_run(self, topic: Topic) -> None:
        run_id = parse_id(topic.name)
        async with self._services.db.connection(topic.tenant) as conn:
            if run_id is None or await runs.get(conn, topic.tenant, run_id) is None:
                raise NotFound("no such run")

    async def _answer(self, told: dict[str, Any] | None) -> None:
        """Queue an answer. A client that asks and does not read the answers is not read any further."""
        if told is not None:
            self._answers.append(_text(told))
            self._reader.woken.set()
        while len(self._answers) + len(self._replays) > MAX_UNANSWERED:
            self._room.clear()
            await self._room.wait()

    # sending

    async def _send(self) -> None:
        reader = self._reader
        while True:
            await reader.woken.wait()
            reader.woken.clear()
            await self._send_answers()
            while self._replays:
                await self._replay(self._replays.popleft())
                await self._send_answers()
            while not self._joining and not self._replays and (item := reader.take()) is not None:
                await self._send_text(item.frame_text)
                await self._note(item.frame)
                await self._send_answers()
            await self._note_shown()
            if self._replays and not self._joining:
                reader.woken.set()

    async def _let_go(self) -> None:
        """End when the hub says so, though the sender may be stuck at a client that does not read."""
        await self._reader.gone.wait()
        assert self._reader.ended is not None
        raise _Closed(_CODES[self._reader.ended], ours=True)

    async def _replay(self, wanted: Subscription) -> None:
        async for _, shown in replay(self._services.db, wanted):
            if self._reader.subscriptions.get(wanted.topic) is not wanted:  # it was left, or begun anew
                return
            await self._send_text(_text(shown))
            await self._note(shown)
            await self._send_answers()
        await self._note_shown()

    async def _note(self, shown: Mapping[str, Any] | None) -> None:
        """An approval that was sent to somebody has been shown to them: many at once, when many are sent."""
        if shown is not None and shown["type"] == "hitl_approval_request" and shown["data"] is not None:
            self._shown.append(shown["data"])
        if len(self._shown) >= NOTED_AT_ONCE:
            await self._note_shown()

    async def _note_shown(self) -> None:
        if self._shown:
            shown, self._shown = self._shown, []
            await note_seen(self._services, self._principal, shown, "websocket")

    async def _send_answers(self) -> None:
        while self._answers:
            await self._send_text(self._answers.popleft())
        self._room.set()

    async def _send_text(self, text: str) -> None:
        try:
            async with asyncio.timeout(STUCK_S):
                await self._socket.send_text(text)
        except TimeoutError:
            raise _Closed(TRY_AGAIN, ours=True) from None
        except (WebSocketDisconnect, RuntimeError):
            raise _Closed(NORMAL, ours=False) from None


def _first(group: BaseExceptionGroup[_Closed]) -> _Closed:
    found = group.exceptions[0]
    return found if isinstance(found, _Closed) else _first(found)


def _text(told: Any) -> str:
    return orjson.dumps(told).decode()


OPERATIONS = (
    Operation(
        "POST", "/hitl/ws/ticket", create_ticket, TicketView, status=201, body=EmptyRequest, body_required=False,
        tag="live",
    ),
)  # fmt: skip
