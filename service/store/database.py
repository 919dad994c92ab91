"""The pool, transactions, and Postgres's clock. The only module that opens connections."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

import asyncpg
import orjson
from asyncpg.pool import PoolConnectionProxy

from service import metrics
from service.errors import Unavailable
from service.store import wall
from service.store.wall import EVERY, Scope, Sight

__all__ = ["EVERY", "Conn", "Database", "Outbox", "Scope", "answering", "outbox", "server_facts"]

# in quotes: asyncpg's classes are generic for the type checker only
Conn: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"

_AWAY: Final = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # what a connection raises whose server died under it
    TimeoutError,
)
ACQUIRE_TIMEOUT_S: Final = 10.0
STEPPED_BACK: Final = timedelta(seconds=1)


@dataclass(slots=True)
class Outbox:
    """What a connection knows of messages to the outside: whether there is a relay, and whether this transaction
    wrote any."""

    relays: bool = False
    filled: bool = False


class _Connection(asyncpg.Connection):
    """One that costs no journey to say whose rows it sees: that goes along with BEGIN, and a session keeps it."""

    outbox: Outbox
    vault: object  # the keys of content: `store.content` knows them
    sight: Sight

    def get_reset_query(self) -> str:
        """Nothing is to be undone at release: a transaction's settings end with it (asyncpg rolls back an open one),
        and what the session sees is known."""
        return ""

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        if self.sight.with_begin and query.startswith("BEGIN") and not args:
            query, self.sight.with_begin = f"{query} {self.sight.with_begin}", ""
        return await super().execute(query, *args, timeout=timeout)


def outbox(conn: Conn) -> Outbox:
    """That of the connection; outside the pool nobody sends."""
    found = getattr(conn, "outbox", None)
    return found if isinstance(found, Outbox) else Outbox()


class Database:
    """One pool a process. `pooler` does without what a transaction pooler cannot carry; with `relays` every event is
    also a message to the relay; without a `vault` no content can be written or read.

    Whoever asks for a connection says whose rows it is to see (`service.store.wall`): a door its caller's tenant.
    """

    def __init__(
        self, url: str, *, max_size: int = 10, pooler: bool = False, application: str = "hitl", relays: bool = False,
        vault: object = None,
    ) -> None:  # fmt: skip
        self.relays = relays
        self._vault = vault
        self._filled = False
        self._url = url
        self._max_size = max_size
        self._pooler = pooler
        self._application = application
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._opening = asyncio.Lock()
        self._offset = timedelta(0)
        self._latest = datetime.min.replace(tzinfo=UTC)

    def now(self) -> datetime:
        """Postgres's time, as each new connection of this process measured it, and no earlier than what it has told."""
        return max(datetime.now(UTC) + self._offset, self._latest)

    def heard(self, at: datetime) -> None:
        """Postgres has told of this moment as its own now: what this process writes next came after it."""
        self._latest = max(self._latest, at)

    async def open(self) -> None:
        """Connect. Raises `Unavailable` while Postgres is away; the next use tries again."""
        async with self._opening:
            if self._pool is not None:
                return
            try:
                self._pool = await asyncpg.create_pool(
                    self._url,
                    min_size=1,
                    max_size=self._max_size,
                    init=self._init,
                    timeout=5,
                    command_timeout=30,
                    server_settings={"application_name": self._application, "timezone": "UTC"},
                    statement_cache_size=0 if self._pooler else 100,
                    connection_class=_Connection,
                )
            except _AWAY as error:
                raise Unavailable from error

    async def close(self) -> None:
        if self._pool is not None:
            pool, self._pool = self._pool, None
            try:
                await asyncio.wait_for(pool.close(), 5)
            except (TimeoutError, *_AWAY):
                pool.terminate()

    @asynccontextmanager
    async def connection(self, scope: Scope) -> AsyncIterator[Conn]:
        """A connection for reading, or for one statement that is whole by itself. Raises `Unavailable` when Postgres is
        away.

        Behind a pooler it is a transaction: what is set would not hold any longer, and two statements might reach
        two servers.
        """
        async with self._acquired() as conn:
            if self._pooler:
                async with self._begun(conn, scope):
                    yield conn
            else:
                await _see(conn, scope)
                yield conn

    @asynccontextmanager
    async def transaction(self, scope: Scope) -> AsyncIterator[Conn]:
        """A transaction: committed at the end, rolled back by any exception."""
        async with self._acquired() as conn:
            box = outbox(conn)
            box.filled = False
            async with self._begun(conn, scope):
                yield conn
            self._filled = self._filled or box.filled

    def take_filled(self) -> bool:
        """Whether messages to the outside were committed since this was asked last."""
        filled, self._filled = self._filled, False
        return filled

    @asynccontextmanager
    async def reading(self, scope: Scope) -> AsyncIterator[Conn]:
        """A transaction that sees one moment and can change nothing."""
        async with self._acquired() as conn, self._begun(conn, scope, isolation="repeatable_read", readonly=True):
            yield conn

    @asynccontextmanager
    async def session(self, url: str | None = None) -> AsyncIterator[Conn]:
        """A connection of its own beside the pool, for what lives as long as a session. Raises `Unavailable`."""
        try:
            conn = await asyncpg.connect(
                url or self._url, timeout=5, server_settings={"application_name": f"{self._application}-session"}
            )
        except _AWAY as error:
            raise Unavailable from error
        try:
            with answering():
                await wall.take_role(conn, lasting=True)
                await conn.execute(wall.lasting(EVERY))
                yield conn
        finally:
            conn.terminate()

    @asynccontextmanager
    async def _acquired(self) -> AsyncIterator[Conn]:
        if self._pool is None:
            await self.open()
        assert self._pool is not None
        with answering():
            started = time.monotonic()
            async with self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S) as conn:
                metrics.POOL_WAIT.observe(time.monotonic() - started)
                await wall.narrow(conn, _sight(conn), lasting=not self._pooler)
                yield conn

    @asynccontextmanager
    async def _begun(self, conn: Conn, scope: Scope, **kind: Any) -> AsyncIterator[None]:
        """A transaction that sees this. The words go along with BEGIN, so they cost no journey."""
        sight = _sight(conn)
        if self._pooler:
            sight.with_begin = wall.local(scope, sight.role)
        elif sight.seen != scope:
            sight.with_begin = wall.local(scope)
        async with conn.transaction(**kind):
            yield

    async def read_clock(self, conn: Conn) -> None:
        """Measure Postgres's clock again. Without half the round trip added: behind by that much and never
        ahead, or what is due "now" would not be yet."""
        there: datetime = await conn.fetchval("select clock_timestamp()")
        self._offset = there - datetime.now(UTC)
        if self._latest > there + STEPPED_BACK:  # its clock was set
            self._latest = there

    async def _init(self, conn: Conn) -> None:
        assert isinstance(conn, _Connection)
        conn.outbox = Outbox(self.relays)
        conn.vault = self._vault
        conn.sight = Sight()
        await wall.narrow(conn, conn.sight, lasting=not self._pooler)
        for kind in ("json", "jsonb"):
            mark = b"\x01" if kind == "jsonb" else b""
            await conn.set_type_codec(
                kind,
                schema="pg_catalog",
                format="binary",
                encoder=_encoder(mark),
                decoder=_decoder(len(mark)),
            )
        await conn.fetchval("select clock_timestamp()")  # so that the next time is one journey, not two
        await self.read_clock(conn)


def _sight(conn: Conn) -> Sight:
    found: Sight = conn.sight  # type: ignore[union-attr]  # the pool's proxy hands on what `_Connection` has
    return found


async def _see(conn: Conn, scope: Scope) -> None:
    """Let the session see this, if it does not already."""
    sight = _sight(conn)
    if sight.seen != scope:
        sight.seen = None  # until it is answered
        await conn.execute(wall.lasting(scope))
        sight.seen = scope


@contextmanager
def answering() -> Iterator[None]:
    """Raises `Unavailable` for what asyncpg raises when Postgres is away."""
    try:
        yield
    except asyncpg.DataError:
        raise  # ours: a value of the wrong shape, though asyncpg counts it among interface errors
    except _AWAY as error:
        raise Unavailable from error


def _encoder(mark: bytes) -> Any:
    return lambda value: mark + orjson.dumps(value)


def _decoder(skip: int) -> Any:
    return lambda data: orjson.loads(memoryview(data)[skip:])


async def server_facts(conn: Conn) -> dict[str, Any]:
    """`{version, fsync, synchronous_commit, full_page_writes, now}` of the server: for the doctor."""
    row = await conn.fetchrow(
        """
        select current_setting('server_version') as version, current_setting('fsync') as fsync,
               current_setting('synchronous_commit') as synchronous_commit,
               current_setting('full_page_writes') as full_page_writes, clock_timestamp() as now
        """
    )
    assert row is not None
    return dict(row)
