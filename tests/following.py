"""Clients of the live doors, as a user would write them: a WebSocket, and a reader of Server-Sent Events."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import orjson
from websockets.asyncio.client import ClientConnection, connect

from tests.conftest import DEADLINE_S


@dataclass
class Socket:
    """A WebSocket that keeps what it has read."""

    connection: ClientConnection
    seen: list[dict[str, Any]] = field(default_factory=list)

    async def say(self, kind: str, data: Any = None) -> None:
        await self.connection.send(orjson.dumps({"type": kind, "data": data}).decode())

    async def hear(self, *kinds: str) -> dict[str, Any]:
        """The next frame, or the next of these types; fails at the deadline."""
        async with asyncio.timeout(DEADLINE_S):
            while True:
                frame: dict[str, Any] = orjson.loads(await self.connection.recv())
                self.seen.append(frame)
                if not kinds or frame["type"] in kinds:
                    return frame

    async def ask(self, kind: str, data: Any = None, *answers: str) -> dict[str, Any]:
        await self.say(kind, data)
        return await self.hear(*answers)

    async def until_over(self) -> list[dict[str, Any]]:
        """All frames up to the one that ends the run."""
        first = len(self.seen)
        await self.hear("hitl_completion")
        return self.seen[first:]

    async def ended(self) -> int:
        """The close code, once the server closes."""
        async with asyncio.timeout(DEADLINE_S):
            await self.connection.wait_closed()
        assert self.connection.close_code is not None
        return self.connection.close_code


@asynccontextmanager
async def socket(base_url: str, *protocols: str, **options: Any) -> AsyncIterator[Socket]:
    url = "ws" + base_url.removeprefix("http") + "/hitl/ws"
    offered: Any = list(protocols or ("hitl.v1",))
    async with connect(url, subprotocols=offered, proxy=None, max_size=None, **options) as connection:
        yield Socket(connection)


@dataclass
class Block:
    """One block of an event stream, its fields as they stood in it."""

    id: str | None = None
    event: str | None = None
    data: str | None = None
    retry: str | None = None

    @property
    def json(self) -> Any:
        assert self.data is not None
        return orjson.loads(self.data)


async def blocks(answer: httpx2.Response) -> AsyncIterator[Block]:
    """The blocks of an open stream, comments left out."""
    block: dict[str, str] = {}
    async for line in answer.aiter_lines():
        if line.startswith(":"):
            continue
        if line:
            name, _, value = line.partition(":")
            block[name] = value.removeprefix(" ")
        elif block:
            yield Block(**block)
            block = {}


@asynccontextmanager
async def stream(
    client: httpx2.AsyncClient, path: str, last: str | None = None, **params: Any
) -> AsyncIterator[httpx2.Response]:
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last is not None else {})
    async with client.stream("GET", path, headers=headers, params=params) as answer:
        yield answer


async def told(answer: httpx2.Response, count: int | None = None) -> list[Block]:
    """The blocks that hold an event: this many, or all to the end; fails at the deadline."""
    found: list[Block] = []
    async with asyncio.timeout(DEADLINE_S):
        async for block in blocks(answer):
            if block.data is not None:
                found.append(block)
            if len(found) == count:
                break
    return found
