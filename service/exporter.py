"""Floor 7: `/metrics` and `/healthz` on a port of their own, where `HITL_METRICS_PORT` names one.

A worker has no web listener, and what is on the web listener needs a key. This one is for the inside of a
network: GET of two paths, one request a connection, nothing that a request says is trusted or kept.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from service import logs, metrics
from service.settings import Settings

HEAD_LIMIT: Final = 8192
TIMEOUT_S: Final = 10.0

log = logs.get_logger("metrics")

Exposition = Callable[[], Awaitable[bytes]]


@asynccontextmanager
async def exporting(settings: Settings, exposition: Exposition) -> AsyncIterator[None]:
    """Serve as long as the body lasts, on the web listener's address. A port that is taken (by another process of
    this machine, say) is told in the log, and the service does without."""
    if settings.hitl_metrics_port is None:
        yield
        return
    try:
        server = await asyncio.start_server(
            lambda r, w: _answer(r, w, exposition), settings.hitl_host, settings.hitl_metrics_port, limit=HEAD_LIMIT
        )
    except OSError as error:
        log.error("metrics.not_served", port=settings.hitl_metrics_port, error=type(error).__name__)
        yield
        return
    log.info("metrics.served", port=server.sockets[0].getsockname()[1])
    try:
        yield
    finally:
        server.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, exposition: Exposition) -> None:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(await _response(head.split(b"\r\n", 1)[0], exposition))
            await writer.drain()
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass
    finally:
        writer.close()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                await writer.wait_closed()


async def _response(request_line: bytes, exposition: Exposition) -> bytes:
    match request_line.split(b" "):
        case [b"GET", path, _] if path.partition(b"?")[0] == b"/metrics":
            return _packed("200 OK", await exposition(), metrics.CONTENT_TYPE)
        case [b"GET", b"/healthz", _]:
            return _packed("200 OK", b'{"status":"ok"}', "application/json")
        case [b"GET", _, _]:
            return _packed("404 Not Found", b"", "text/plain")
        case _:
            return _packed("405 Method Not Allowed", b"", "text/plain")


def _packed(status: str, body: bytes, content_type: str) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
