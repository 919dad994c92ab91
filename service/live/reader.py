"""One connection that follows: what it wants, and what waits for it. Its memory is bounded."""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any, Final, Literal
from uuid import UUID

import orjson

from service.domain.event import Event, wire
from service.domain.snapshot import Snapshot

MAX_WAITING: Final = 1000
MAX_WAITING_BYTES: Final = 4 * 1024 * 1024


class Ended(StrEnum):
    """Why the hub lets a reader go."""

    BEHIND = "behind"
    REVOKED = "revoked"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Topic:
    """What can be followed. A tenant is part of it: nothing of another tenant is ever matched."""

    kind: Literal["run", "session", "user", "inbox"]
    tenant: str
    name: str = ""


@dataclass(frozen=True)
class Item:
    """One thing to tell. `since` and `until` are the snapshots between which it was found."""

    topics: tuple[Topic, ...]
    xid: int
    since: Snapshot
    until: Snapshot
    event: Event | None
    frame: Mapping[str, Any] | None

    @property
    def place(self) -> tuple[UUID, int]:
        assert self.event is not None
        return self.event.run_id, self.event.seq

    @cached_property
    def frame_text(self) -> str:
        """Encoded once for all who get it."""
        return orjson.dumps(self.frame).decode()

    @cached_property
    def event_text(self) -> str:
        assert self.event is not None
        return event_json(self.event)


def event_json(event: Event) -> str:
    return orjson.dumps(wire(event)).decode()


@dataclass(frozen=True, slots=True)
class Subscription:
    """A topic from a moment on. With `after` what `start` sees is replayed, beyond the seq of each run."""

    topic: Topic
    start: Snapshot
    after: Mapping[UUID, int] | None = None

    def replays(self, event: Event) -> bool:
        return self.after is not None and (self.topic.kind != "inbox" or event.run_id in self.after)

    def has(self, event: Event) -> bool:
        return self.after is not None and event.seq <= self.after.get(event.run_id, 0)


class Reader:
    """The hub puts, the connection's sender takes."""

    def __init__(
        self, tenant: str, *, key_id: UUID | None = None, until: datetime | None = None, frames: bool = True
    ) -> None:
        self.tenant = tenant
        self.key_id = key_id
        self.until = until
        self.frames = frames
        self.woken = asyncio.Event()
        self.gone = asyncio.Event()
        self.ended: Ended | None = None
        self.subscriptions: dict[Topic, Subscription] = {}
        self._waiting: deque[Item] = deque()
        self._bytes = 0

    def put(self, item: Item) -> None:
        if self.ended is not None:
            return
        self._waiting.append(item)
        self._bytes += self._size(item)
        too_much = self._bytes > MAX_WAITING_BYTES and len(self._waiting) > 1  # one alone may be as large as it is
        if too_much or len(self._waiting) > MAX_WAITING:
            self.end(Ended.BEHIND)
        self.woken.set()

    def take(self) -> Item | None:
        """The next thing to tell, or None. What a replay has told, or another subscription tells, is left out."""
        while self._waiting:
            item = self._waiting.popleft()
            self._bytes -= self._size(item)
            if self._wants(item):
                return item
        return None

    async def next(self) -> Item | None:
        """The next thing to tell, once there is one; None when the reader is let go."""
        while self.ended is None:
            if (item := self.take()) is not None:
                return item
            self.woken.clear()
            await self.woken.wait()
        return None

    def end(self, why: Ended) -> None:
        self.ended = self.ended or why
        self._waiting.clear()
        self._bytes = 0
        self.woken.set()
        self.gone.set()

    def _wants(self, item: Item) -> bool:
        fresh = False
        for topic in item.topics:
            wanted = self.subscriptions.get(topic)
            if wanted is None:
                continue
            if not wanted.start.sees(item.xid):
                fresh = fresh or item.event is None or not wanted.has(item.event)
            elif item.event is not None and wanted.replays(item.event):
                return False
        return fresh

    def _size(self, item: Item) -> int:
        return len(item.frame_text if self.frames else item.event_text)
