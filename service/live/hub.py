"""The hub: one subscription to hints and one query for news a process, fanned out to all who follow.

The query asks for whatever the last one's snapshot did not see, so that nothing is missed and nothing found
twice. Hints only say when to ask; without them it asks every second. Redis carries no data.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from service.domain.event import EventType
from service.domain.frame import question_frame
from service.domain.snapshot import Snapshot
from service.domain.view import approval_view
from service.errors import Unavailable
from service.live.reader import Ended, Item, Reader, Topic
from service.logs import get_logger
from service.notifier import SLOW_POLL_S, Notifier
from service.store import approvals, events, frames, keys
from service.store.database import EVERY, Database
from service.store.events import News

CHUNK: Final = 100
RETRY_S: Final = 0.5
KEYS_EVERY_S: Final = 0.5
GATHER_S: Final = 0.002

log = get_logger("live.hub")


@dataclass(frozen=True, slots=True)
class Found:
    """News as one look found it, between two snapshots."""

    news: News
    since: Snapshot
    until: Snapshot


class Hub:
    def __init__(self, db: Database, notifier: Notifier) -> None:
        self._db = db
        self._notifier = notifier
        self._readers: set[Reader] = set()
        self._followers: dict[Topic, set[Reader]] = {}
        self._seen: Snapshot | None = None
        self._starting = asyncio.Lock()
        self._followed = asyncio.Event()
        self._backlog: deque[Found] = deque()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow as long as the body lasts."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._tail()), group.create_task(self._check_credentials())]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    @contextmanager
    def attached(self, reader: Reader) -> Iterator[None]:
        """A reader for the length of its connection: it is let go when its key is, and forgotten at the end."""
        self._readers.add(reader)
        try:
            yield
        finally:
            self._readers.discard(reader)
            for topic in [topic for topic, readers in self._followers.items() if reader in readers]:
                self.leave(reader, topic)

    async def join(self, reader: Reader, topic: Topic) -> Snapshot:
        """Put news of the topic into the reader's queue from now on. All that the returned snapshot does not see
        will come; what it sees may come too and is left out by the subscription. Raises `Unavailable`."""
        self._followers.setdefault(topic, set()).add(reader)
        async with self._starting:
            if self._seen is None:
                async with self._db.connection(EVERY) as conn:
                    self._seen = await events.snapshot(conn)
        self._followed.set()
        async with self._db.connection(EVERY) as conn:  # later than what the hub has seen, so nothing lies between
            return await events.snapshot(conn)

    def leave(self, reader: Reader, topic: Topic) -> None:
        readers = self._followers.get(topic, set())
        readers.discard(reader)
        if not readers:
            self._followers.pop(topic, None)
        if not self._followers:
            self._followed.clear()
            self._seen = None
            self._backlog.clear()

    async def _tail(self) -> None:
        with self._notifier.follow_all() as changed:
            while True:
                await self._followed.wait()
                try:
                    await self._look()
                    await self._tell()
                except Unavailable:
                    await asyncio.sleep(RETRY_S)
                    continue
                except Exception as error:  # a fault of ours: whoever follows resumes from what it has
                    log.error("live.failed", error=type(error).__name__)
                    self._backlog.clear()
                    for reader in list(self._readers):
                        reader.end(Ended.BEHIND)
                    await asyncio.sleep(RETRY_S)
                await _within(changed, SLOW_POLL_S)
                await asyncio.sleep(GATHER_S)  # hints come in bursts: one look for all of them
                changed.clear()

    async def _look(self) -> None:
        since = self._seen
        if since is None:
            return
        async with self._db.connection(EVERY) as conn:
            until, found = await events.news(conn, since)
        if self._seen is not since:  # all left meanwhile, and others may have come: this is not theirs
            return
        self._seen = until
        self._backlog.extend(Found(item, since, until) for item in found)

    async def _tell(self) -> None:
        """Load what is followed, a bounded piece at a time, and hand it out. A piece that could not be loaded stays."""
        while self._backlog:
            piece = [self._backlog[n] for n in range(min(CHUNK, len(self._backlog)))]
            items = await self._items([found for found in piece if self._readers_of(_topics(found.news))])
            if not self._backlog or self._backlog[0] is not piece[0]:  # all left meanwhile
                return
            for _ in piece:
                self._backlog.popleft()
            for item in items:
                for reader in self._readers_of(item.topics):
                    reader.put(item)
            await asyncio.sleep(0)  # let the senders send before more comes

    async def _items(self, wanted: Sequence[Found]) -> list[Item]:
        if not wanted:
            return []
        shows = any(reader.frames for found in wanted for reader in self._readers_of(_topics(found.news)))
        run_places = [(f.news.run_id, f.news.seq) for f in wanted if f.news.run_id is not None]
        questions = [f.news.approval_id for f in wanted if f.news.approval_id is not None]
        async with self._db.connection(EVERY) as conn:
            told = await events.some(conn, run_places)
            shown = await frames.of_events(conn, told) if shows else [None] * len(told)
            asked = {a.id: a for a in await approvals.some(conn, questions)} if questions else {}
        by_place = {(event.run_id, event.seq): (event, frame) for event, frame in zip(told, shown, strict=True)}
        items: list[Item] = []
        for f in wanted:
            topics = _topics(f.news)
            if f.news.approval_id in asked:
                shown_question = question_frame(approval_view(asked[f.news.approval_id]))
                items.append(Item(topics, f.news.xid, f.since, f.until, None, shown_question))
            elif f.news.run_id is not None and (f.news.run_id, f.news.seq) in by_place:
                event, frame = by_place[f.news.run_id, f.news.seq]
                items.append(Item(topics, f.news.xid, f.since, f.until, event, frame))
        return items

    def _readers_of(self, topics: Sequence[Topic]) -> set[Reader]:
        return {reader for topic in topics for reader in self._followers.get(topic, ())}

    async def _check_credentials(self) -> None:
        """Let go whoever came with a key that is revoked or over (one query for all keys of the process), or with a
        token that is over."""
        while True:
            await asyncio.sleep(KEYS_EVERY_S)
            now = self._db.now()
            for reader in [reader for reader in self._readers if reader.until is not None and reader.until <= now]:
                reader.end(Ended.REVOKED)
            used = {reader.key_id for reader in self._readers if reader.key_id is not None}
            if not used:
                continue
            try:
                async with self._db.connection(EVERY) as conn:
                    valid = await keys.valid(conn, list(used))
            except Unavailable:
                continue
            except Exception as error:  # the hub goes on
                log.error("live.failed", error=type(error).__name__)
                continue
            for reader in list(self._readers):
                if reader.key_id is not None and reader.key_id in used - valid:
                    reader.end(Ended.REVOKED)


def _topics(news: News) -> tuple[Topic, ...]:
    found: list[Topic] = []
    if news.run_id is not None:
        found.append(run_topic(news.tenant, news.run_id))
    if news.session_id is not None:
        found.append(Topic("session", news.tenant, news.session_id))
    if news.user_id is not None:
        found.append(Topic("user", news.tenant, news.user_id))
    if news.type == EventType.APPROVAL_REQUESTED:
        found.append(Topic("inbox", news.tenant))
    return tuple(found)


def run_topic(tenant: str, run_id: UUID) -> Topic:
    return Topic("run", tenant, str(run_id))


async def _within(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
