"""A pooler in transaction mode, as small as can be: any client's transaction on any of the server's sessions.

What a client says is kept until it asks for an answer, then sent to an idle session; the session is the client's until
it says that no transaction is open. Nothing is reset in between, and no prepared statement is followed: like PgBouncer
before 1.21 in its transaction mode.
"""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

SSL_REQUEST, CANCEL_REQUEST = 80877103, 80877102
Message = tuple[bytes, bytes]


@dataclass
class Session:
    """One session of the server."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@dataclass
class Pooler:
    sockets: str
    database: str
    url: str = ""
    idle: list[Session] = field(default_factory=list)
    parameters: list[bytes] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            if await _greeted(reader, writer):
                self.idle.append(await self._session())  # so that the parameters are known
                writer.write(_packed(b"R", struct.pack("!i", 0)) + b"".join(self.parameters))
                writer.write(_packed(b"K", struct.pack("!ii", 0, 0)) + _packed(b"Z", b"I"))
                await self._relay(reader, writer)
        writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = bytearray()
        answering: asyncio.Task[None] | None = None
        session: Session | None = None
        while True:
            kind, body = await _read(reader)
            if kind == b"X":
                return
            said += _packed(kind, body)
            if kind not in (b"Q", b"S", b"H"):  # query, sync, flush: it waits for an answer
                continue
            if answering is None or answering.done():
                session = await self._session()
                answering = asyncio.get_running_loop().create_task(self._answer(session, writer))
            assert session is not None
            session.writer.write(bytes(said))
            said.clear()

    async def _answer(self, session: Session, writer: asyncio.StreamWriter) -> None:
        """Pass on what the session says, until no transaction is open; then it is anybody's."""
        while True:
            kind, body = await _read(session.reader)
            if (kind, body) == (b"Z", b"I"):
                self.idle.append(session)
            writer.write(_packed(kind, body))
            if (kind, body) == (b"Z", b"I"):
                return

    async def _session(self) -> Session:
        if self.idle:
            return self.idle.pop()
        session = Session(*await asyncio.open_unix_connection(f"{self.sockets}/.s.PGSQL.5432"))
        names = b"user\0postgres\0database\0" + self.database.encode() + b"\0\0"
        session.writer.write(struct.pack("!ii", len(names) + 8, 196608) + names)
        parameters = []
        while True:
            kind, body = await _read(session.reader)
            if kind == b"S":
                parameters.append(_packed(kind, body))
            if kind == b"Z":
                self.parameters = parameters
                return session


async def _greeted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Whether this is a client that wants to talk."""
    while True:
        (size,) = struct.unpack("!i", await reader.readexactly(4))
        (code,) = struct.unpack("!i", (await reader.readexactly(size - 4))[:4])
        if code == CANCEL_REQUEST:
            return False
        if code != SSL_REQUEST:
            return True
        writer.write(b"N")


async def _read(reader: asyncio.StreamReader) -> Message:
    kind = await reader.readexactly(1)
    (size,) = struct.unpack("!i", await reader.readexactly(4))
    return kind, await reader.readexactly(size - 4)


def _packed(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


@asynccontextmanager
async def pooling(database_url: str) -> AsyncIterator[str]:
    """A pooler before this database of an embedded server; its URL."""
    parts = urlsplit(database_url)
    pooler = Pooler(parse_qs(parts.query)["host"][0], parts.path.strip("/"))
    server = await asyncio.start_server(pooler.serve, "127.0.0.1", 0)
    try:
        yield f"postgresql://postgres@127.0.0.1:{server.sockets[0].getsockname()[1]}{parts.path}"
    finally:
        server.close()
        for session in pooler.idle:
            session.writer.close()
