"""Floor 4: the one place where content is sealed on its way into a row and opened on its way out.

The key of a run comes with the rows it opens, in the same query. A writer has mostly read them before: the keys that
a process has seen are remembered, for writing only. What was erased therefore cannot be read by who saw its key.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, TypeVar
from uuid import UUID

import asyncpg

from service.domain import content
from service.domain.event import Event, EventType, lengthened, said
from service.domain.keyring import Keyring
from service.errors import ContentErased, ContentUnreadable
from service.store.database import Conn

REMEMBERED: Final = 20_000

E = TypeVar("E", bound=Event)
Row = asyncpg.Record | Mapping[str, Any]


class Vault:
    """The keys of content, as one process knows them."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._seen: OrderedDict[UUID, bytes] = OrderedDict()
        self._late: set[UUID] = set()

    def made(self, subject: UUID, *, late: bool = False) -> bytes:
        """A new key for a new row of `content_keys`, wrapped. A `late` one, of something that was there before,
        is not remembered: its transaction may yet be rolled back."""
        key = content.new_key()
        if late:
            self._late.add(subject)
        else:
            self._remember(subject, key)
        return self._keyring.wrap(key, subject.bytes)

    def seen(self, subject: UUID) -> bytes | None:
        return self._seen.get(subject)

    def unwrapped(self, subject: UUID, wrapped: bytes) -> bytes:
        """Raises `ContentUnreadable`."""
        key = self._keyring.unwrap(wrapped, subject.bytes)
        if key is None:
            raise ContentUnreadable
        if subject not in self._late:
            self._remember(subject, key)
        return key

    def _remember(self, subject: UUID, key: bytes) -> None:
        self._seen[subject] = key
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)


def vault(conn: Conn) -> Vault:
    """That of the connection. Outside the pool, and in a pool without a keyring, no content is handled."""
    found = getattr(conn, "vault", None)
    if not isinstance(found, Vault):
        raise RuntimeError("this connection has no keys for content")
    return found


# ---- writing


@dataclass(frozen=True, slots=True)
class Pen:
    """Seals what is written of one run, or of one question that belongs to none."""

    subject: UUID
    key: bytes = field(repr=False)

    def seal(self, place: str, **values: Any) -> str | None:
        """Values of a row under one seal; None where there is nothing."""
        if all(value is None for value in values.values()):
            return None
        return content.seal(self.key, f"{self.subject}/{place}", values)

    def url(self, place: str, url: str | None, host: str | None) -> str | None:
        return None if url is None else content.seal_url(self.key, f"{self.subject}/{place}", url, host or "")

    def body(self, place: str, raw: bytes) -> bytes:
        return content.seal_bytes(self.key, f"{self.subject}/{place}", raw)

    def told(self, event: Event) -> Event:
        """The event as it is stored: what a provider told of its answer is content."""
        if event.type != EventType.PROVIDER_PROGRESS:
            return event
        stands = {name: value for name, value in event.data.items() if name not in said(event.data)}
        sealed = self.seal(f"events/{event.seq}", **said(event.data))
        return replace(event, data={content.SEALED: sealed, **stands})


def new_pen(conn: Conn, subject: UUID) -> tuple[Pen, bytes]:
    """For something new, and its key wrapped, to go along in the statement that writes it."""
    keys = vault(conn)
    wrapped = keys.made(subject)
    key = keys.seen(subject)
    assert key is not None
    return Pen(subject, key), wrapped


async def pen(conn: Conn, subject: UUID) -> Pen:
    """For something whose row is locked, or is written only as it was read. Mostly without a query; a run of before
    content was sealed gets its key now. Raises `ContentErased`."""
    keys = vault(conn)
    key = keys.seen(subject)
    if key is None:
        wrapped = await conn.fetchval("select wrapped from content_keys where subject = $1", subject)
        key = keys.unwrapped(subject, wrapped if wrapped is not None else await _late_key(conn, keys, subject))
    return Pen(subject, key)


async def _late_key(conn: Conn, keys: Vault, subject: UUID) -> bytes:
    wrapped: bytes | None = await conn.fetchval(
        """
        insert into content_keys (subject, tenant, wrapped)
        select $1, tenant, $2 from (select tenant from runs where id = $1
            union all select tenant from approvals where id = $1 and run_id is null) as known
        where not exists (select from erased_content where subject = $1)
        on conflict (subject) do update set wrapped = content_keys.wrapped returning wrapped
        """,
        subject,
        keys.made(subject, late=True),
    )
    if wrapped is None:
        raise ContentErased("its content was erased")
    return wrapped


async def rewrap(conn: Conn, keyring: Keyring, *, after: UUID, limit: int) -> tuple[list[UUID], int]:
    """A page of the keys that another master secret wrapped, in order, and how many of them could be wrapped anew."""
    rows = await conn.fetch(
        """
        select subject, wrapped from content_keys where subject > $1 and substring(wrapped for $2) <> $3
        order by subject limit $4 for update skip locked
        """,
        after,
        len(keyring.wrap_name),
        keyring.wrap_name,
        limit,
    )
    keys = {row["subject"]: keyring.unwrap(row["wrapped"], row["subject"].bytes) for row in rows}
    anew = {subject: keyring.wrap(key, subject.bytes) for subject, key in keys.items() if key is not None}
    await conn.execute(
        """
        update content_keys k set wrapped = n.wrapped from unnest($1::uuid[], $2::bytea[]) as n (subject, wrapped)
        where k.subject = n.subject
        """,
        list(anew),
        list(anew.values()),
    )
    return list(keys), len(anew)


# ---- reading


@dataclass(frozen=True, slots=True)
class Reader:
    """Opens what was stored of one subject; without its key there is nothing to be had."""

    subject: UUID
    key: bytes | None = field(repr=False)

    def values(self, row: Row, place: str, held_in: str, names: Sequence[str]) -> dict[str, Any]:
        """The values that are sealed together in the column `held_in`, or that stand open in columns of their own,
        where a release of before wrote them."""
        stored = row[held_in]
        if not content.is_sealed(stored):
            return {name: row[name] for name in names}
        return self._opened(place, stored) or dict.fromkeys(names)

    def url(self, place: str, stored: str | None) -> str | None:
        if stored is None or not content.is_sealed_url(stored):
            return stored
        if self.key is None:
            return None
        try:
            return content.opened_url(self.key, f"{self.subject}/{place}", stored)
        except content.Unreadable as error:
            raise ContentUnreadable from error

    def body(self, place: str, stored: bytes | None) -> bytes | None:
        if stored is None or not content.are_sealed(stored):
            return stored
        if self.key is None:
            return None
        try:
            return content.open_bytes(self.key, f"{self.subject}/{place}", stored)
        except content.Unreadable as error:
            raise ContentUnreadable from error

    def event(self, event: E) -> E:
        sealed = event.data.get(content.SEALED)
        if event.type != EventType.PROVIDER_PROGRESS or not content.is_sealed(sealed):
            return event
        opened = self._opened(f"events/{event.seq}", str(sealed))
        if opened is None:
            return replace(event, data=content.erased_data(event.data))
        stands = {name: value for name, value in event.data.items() if name != content.SEALED}
        return replace(event, data={**opened, **stands})

    def _opened(self, place: str, sealed: str) -> dict[str, Any] | None:
        if self.key is None:
            return None
        try:
            opened: dict[str, Any] = content.opened(self.key, f"{self.subject}/{place}", sealed)
        except content.Unreadable as error:
            raise ContentUnreadable from error
        return opened


def reader(conn: Conn, subject: UUID, wrapped: bytes | None) -> Reader:
    """`wrapped`: of the row of `content_keys`, read with what it opens. Raises `ContentUnreadable`."""
    return Reader(subject, None if wrapped is None else vault(conn).unwrapped(subject, wrapped))


async def reader_of(conn: Conn, subject: UUID) -> Reader:
    """For what was read before without its key."""
    key = vault(conn).seen(subject)
    if key is not None:
        return Reader(subject, key)
    return reader(conn, subject, await conn.fetchval("select wrapped from content_keys where subject = $1", subject))


def event_of(conn: Conn, row: Row) -> Event:
    """The event in a row that has `wrapped` beside its columns, where its type may hold content, and its hashes
    spelt out."""
    values = {**row, "data": lengthened(row["data"], row["stands"])}
    event = Event(**{name: values[name] for name in Event.__slots__})
    return event if event.type != EventType.PROVIDER_PROGRESS else opened_event(conn, event, values["wrapped"])


def opened_event(conn: Conn, event: E, wrapped: bytes | None) -> E:
    return reader(conn, event.run_id, wrapped).event(event)


async def erased_at(conn: Conn, subject: UUID) -> datetime | None:
    found: datetime | None = await conn.fetchval("select at from erased_content where subject = $1", subject)
    return found
