"""A transaction pooler, as PgBouncer is one: a client has a server connection from the first message of a transaction
to its end, and another for the next. It takes the one it had longest ago, so that nobody keeps the same by luck."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

SSL_REQUEST = 80877103
SERVERS = 3

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    return head + await reader.readexactly(int.from_bytes(head[1:], "big") - 4)


async def startup(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(4)
    return head + await reader.readexactly(int.from_bytes(head, "big") - 4)


class Pooler:
    def __init__(self, socket_dir: str) -> None:
        self._path = f"{socket_dir}/.s.PGSQL.5432"
        self.turns = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        servers: deque[Pair] = deque()
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            hello = await startup(reader)
            if int.from_bytes(hello[4:8], "big") == SSL_REQUEST:
                writer.write(b"N")
                hello = await startup(reader)
            for n in range(SERVERS):
                server = await asyncio.open_unix_connection(self._path)
                server[1].write(hello)
                servers.append(server)
                await self._until_ready(server[0], writer if n == 0 else None)
            async with asyncio.TaskGroup() as group:
                inbox: asyncio.Queue[bytes] = asyncio.Queue()
                reading = group.create_task(self._read(reader, inbox))
                while sent := await inbox.get():
                    servers[0][1].write(sent)
                    await self._turn(inbox, writer, servers[0])
                    servers.rotate(-1)
                    self.turns += 1
                reading.cancel()
        for _, each in servers:
            each.close()
        writer.close()

    async def _read(self, reader: asyncio.StreamReader, inbox: asyncio.Queue[bytes]) -> None:
        """What the client says, and nothing when it leaves."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while (sent := await message(reader))[:1] != b"X":
                inbox.put_nowait(sent)
        inbox.put_nowait(b"")

    async def _turn(self, inbox: asyncio.Queue[bytes], writer: asyncio.StreamWriter, server: Pair) -> None:
        """The rest of a transaction, or of one statement outside of any: until its server is idle."""
        async with asyncio.TaskGroup() as group:
            answering = group.create_task(self._until_idle(server[0], writer))
            while not answering.done():
                said = group.create_task(inbox.get())
                await asyncio.wait({said, answering}, return_when=asyncio.FIRST_COMPLETED)
                if not said.done():
                    said.cancel()
                elif sent := said.result():
                    server[1].write(sent)
                else:  # the client left in the middle
                    inbox.put_nowait(b"")
                    answering.cancel()
                    return

    async def _until_idle(self, server: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await self._until_ready(server, writer) != b"I":
            pass

    async def _until_ready(self, server: asyncio.StreamReader, writer: asyncio.StreamWriter | None) -> bytes:
        """Pass on what the server says until it is ready; its transaction's status."""
        while True:
            told = await message(server)
            if writer is not None:
                writer.write(told)
            if told[:1] == b"Z":
                return told[5:6]


@asynccontextmanager
async def pooled(socket_dir: str) -> AsyncIterator[tuple[Pooler, int]]:
    """The pooler and its port."""
    pooler = Pooler(socket_dir)
    server = await asyncio.start_server(pooler.serve, "127.0.0.1", 0)
    try:
        yield pooler, server.sockets[0].getsockname()[1]
    finally:
        server.close()
