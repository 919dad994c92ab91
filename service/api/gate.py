"""Floor 7: what uvicorn leaves open at a connection. Nobody holds one by sending a letter at a time, or by not reading.

Body and answer of a request that the app works on are bounded by the app; these are the times before and after. The
app puts this in by itself, however uvicorn was started.
"""

import asyncio
import signal
import sys
from typing import Any, Final

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from service.api.edges import MAX_HEADERS_BYTES, SECURITY, bare_problem
from service.border.body import MAX_BYTES
from service.errors import BadRequest, HeadersTooLarge, HitlError, RequestTimeout

SOCKET_LINE: Final = 8000
"""A line of a WebSocket's handshake: the library gives up at 8192 without a word and keeps the connection."""


def mount() -> None:
    """Have uvicorn speak to its clients through this gate. It is not to be had from the app, but its signal handler
    leads to it, and it makes its listener after the app has started."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if not isinstance(server, uvicorn.Server):
        return
    config = server.config
    config.ws_per_message_deflate = False  # it costs each WebSocket 40 kB for as long as it idles
    config.ws_max_size = MAX_BYTES
    config.h11_max_incomplete_event_size = MAX_HEADERS_BYTES
    config.encoded_headers = [(name, value) for name, value in config.encoded_headers if name.lower() != b"server"]
    if config.http_protocol_class is H11Protocol:
        config.http_protocol_class = Gate
    if config.ws_protocol_class is WebSocketsSansIOProtocol:
        config.ws_protocol_class = SocketGate


class Gate(H11Protocol):
    """One connection. `HEAD_S`: how long a request may take until its body begins, the first and those that follow.
    `REST_S`: how long the rest of a body that was answered already is let come, so that the answer can be read.
    `STUCK_S`: how long an answer may wait for somebody to read it."""

    HEAD_S = 10.0
    REST_S = 5.0
    STUCK_S = 60.0

    _deadline: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._within(self.HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._flowing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        if self._refused:
            return
        if self.transport.is_closing() or self.transport.get_protocol() is not self or self._at_work():
            self._disarm()
        elif self._deadline is None:
            self._within(self.HEAD_S)

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        lines = [len(event.target) + 32, *(len(name) + len(value) + 4 for name, value in event.headers)]
        if max(lines) > SOCKET_LINE or len(lines) > 128:
            self._refuse(HeadersTooLarge)
            return
        self._disarm()
        super().handle_websocket_upgrade(event)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._abort_if_stuck()
        elif self.conn.their_state is h11.SEND_BODY and not self._at_work():
            self._within(self.REST_S)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._abort_if_stuck()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._abort_if_stuck()

    def resume_writing(self) -> None:
        self._flowing()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls this while it handles what h11 found wrong."""
        found = sys.exc_info()[1]
        large = isinstance(found, h11.RemoteProtocolError) and found.error_status_hint == HeadersTooLarge.status
        self._refuse(HeadersTooLarge if large else BadRequest)

    def _at_work(self) -> bool:
        cycle: Any = self.cycle  # None before the first
        return cycle is not None and not cycle.response_complete

    def _within(self, seconds: float) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(seconds, self._too_slow)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        """A request that began and did not come is told so; where there is nothing to answer, the line is cut."""
        self._deadline = None
        began = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if began and self.conn.our_state is h11.IDLE and not self._refused:
            self._refuse(RequestTimeout)
        elif not self.transport.is_closing():
            self.transport.close()
            self._abort_if_stuck()

    def _refuse(self, refusal: type[HitlError]) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer is on its way, or was given
            self.transport.close()
            return
        body = bare_problem(refusal)
        headers: Any = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            *SECURITY,
        ]
        for event in (h11.Response(status_code=refusal.status, headers=headers), h11.Data(body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self._refused = True
        if self._at_work():  # the app waits for the rest of what was no request: nobody waits for it any more
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write_eof()  # to close with something unread would take the answer back
        self._within(self.REST_S)

    def _abort_if_stuck(self) -> None:
        if self._stuck is None:
            self._stuck = self.loop.call_later(self.STUCK_S, self.transport.abort)

    def _flowing(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None


class SocketGate(WebSocketsSansIOProtocol):
    """One WebSocket: the app closes what is stuck, this sees to it that the connection goes too."""

    STUCK_S = 90.0

    _stuck: asyncio.TimerHandle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._flowing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stuck is None:
            self._stuck = self.loop.call_later(self.STUCK_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._flowing()
        super().resume_writing()

    def _flowing(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
