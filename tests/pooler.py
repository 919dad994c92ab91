"""A transaction pooler, as PgBouncer is one: each transaction goes to another server connection.

What one client sets for its session another finds, and the client itself does not: nothing is reset in between.
"""

import asyncio
import struct
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

STARTUP, SSL, CANCEL = 196608, 80877103, 80877102
TRACKED: Final = {"user", "database", "application_name", "client_encoding", "timezone"}


@dataclass
class Server:
    """One connection to Postgres, and how it greeted."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    greeting: bytes


@asynccontextmanager
async def pooled(database_url: str, *, size: int = 3) -> AsyncIterator[str]:
    """The URL of the same database behind a pooler."""
    user, database = database_url.split("//")[1].split("@")[0], database_url.split("/")[3].split("?")[0]
    upstream = database_url.split("host=")[1] + "/.s.PGSQL.5432"
    idle: asyncio.Queue[Server] = asyncio.Queue()
    servers = [await _connect(upstream, user, database) for _ in range(size)]
    for server in servers:
        idle.put_nowait(server)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _serve(reader, writer, idle)
        except* (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    with tempfile.TemporaryDirectory(prefix="pooler-") as folder:
        listener = await asyncio.start_unix_server(serve, str(Path(folder) / ".s.PGSQL.5432"))
        try:
            yield database_url.split("host=")[0] + f"host={folder}"
        finally:
            listener.close()
            for server in servers:
                server.writer.close()


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, idle: "asyncio.Queue[Server]") -> None:
    code, body = await _first(reader)
    if code == SSL:
        writer.write(b"N")
        code, body = await _first(reader)
    if code == CANCEL:
        return
    names = [name.decode().lower() for name in body.split(b"\0")[:-2:2]]
    assert set(names) <= TRACKED, f"unsupported startup parameter: {set(names) - TRACKED}"
    first = await idle.get()
    writer.write(first.greeting)
    idle.put_nowait(first)
    async with asyncio.TaskGroup() as group:
        bound: asyncio.Task[None] | None = None
        while True:
            kind, message = await _message(reader)
            if kind == b"X":
                return
            if bound is None or bound.done():
                server = await idle.get()  # the one that rested longest: another than last time
                bound = group.create_task(_hand_on(server, writer, idle))
            server.writer.write(message)


async def _hand_on(server: Server, writer: asyncio.StreamWriter, idle: "asyncio.Queue[Server]") -> None:
    """What the server says, until it is in no transaction any more and free for another."""
    while True:
        kind, message = await _message(server.reader)
        if kind == b"Z" and message[-1:] == b"I":
            idle.put_nowait(server)
            writer.write(message)
            return
        writer.write(message)


async def _connect(path: str, user: str, database: str) -> Server:
    reader, writer = await asyncio.open_unix_connection(path)
    fields = f"user\0{user}\0database\0{database}\0client_encoding\0UTF8\0timezone\0UTC\0\0".encode()
    writer.write(struct.pack("!ii", len(fields) + 8, STARTUP) + fields)
    greeting = b""
    kind = b""
    while kind != b"Z":
        kind, message = await _message(reader)
        assert kind != b"E", message
        greeting += message
    return Server(reader, writer, greeting)


async def _first(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    length, code = struct.unpack("!ii", await reader.readexactly(8))
    return code, await reader.readexactly(length - 8)


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    return head[:1], head + await reader.readexactly(struct.unpack("!i", head[1:])[0] - 4)
