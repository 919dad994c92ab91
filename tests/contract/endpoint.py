"""A real HTTP endpoint whose answer may wait: what a provider does that the scripted one cannot."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from tests.conftest import Seen, _response

Handler = Callable[[Seen], Awaitable[tuple[int, Any]]]


@asynccontextmanager
async def endpoint(handler: Handler, port: int = 0) -> AsyncIterator[tuple[str, list[Seen]]]:
    """Serve until the block ends; its URL and what it received so far."""
    seen: list[Seen] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            request = Seen(head[0].split(" ")[1], headers, body)
            seen.append(request)
            writer.write(_response(*(await handler(request))))
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/predict", seen
    finally:
        server.close()


class Gate:
    """A handler that answers once it is opened."""

    def __init__(self, output: Any) -> None:
        self.opened = asyncio.Event()
        self.entered = asyncio.Event()
        self._output = output

    async def __call__(self, seen: Seen) -> tuple[int, Any]:
        self.entered.set()
        await self.opened.wait()
        return 200, self._output
