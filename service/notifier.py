"""Floor 4: hints that something changed, across processes by Redis pub/sub. They carry an id, never data;
whoever is hinted at looks into Postgres. With Redis away, followers poll slowly."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final, TypeVar
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.domain.ids import parse_id
from service.signals import CHANGED_CHANNEL, Signals

STOP: Final = "stop:"
DELIVER: Final = "deliver"
RECONNECT_S: Final = 0.5
SLOW_POLL_S: Final = 1.0
T = TypeVar("T")


async def listen(redis: Redis, channel: str, heard: Callable[[bytes], None]) -> None:
    """Call `heard` for every message, and once with b"" after each (re)subscription, until cancelled."""
    while True:
        try:
            async with redis.pubsub(ignore_subscribe_messages=True) as pubsub:
                await pubsub.subscribe(channel)
                heard(b"")
                while True:
                    message = await pubsub.get_message(timeout=5)
                    if message is not None:
                        heard(message["data"])
        except (RedisError, OSError, TimeoutError):
            await asyncio.sleep(RECONNECT_S)


class Notifier:
    """One subscription a process; fan-out inside it."""

    def __init__(self, redis: Redis, signals: Signals | None = None) -> None:
        self._redis = redis
        self._signals = signals or Signals(redis)
        self._followers: dict[UUID, set[asyncio.Event]] = {}
        self._all: set[asyncio.Event] = set()
        self._stops: list[Callable[[UUID], None]] = []
        self._senders: list[Callable[[], None]] = []
        self.leaving = False

    async def notify(self, *changed: UUID, stopped: Sequence[UUID] = (), deliver: bool = False) -> None:
        """Say which runs and approvals changed, which runs were ended under a worker that may be busy with them, and
        whether messages to the outside are due. Call it after the commit; a failure is only a delay."""
        self._tell(changed)
        hints = (*([DELIVER] if deliver else []), *(STOP + str(run_id) for run_id in stopped), *map(str, changed))
        self._signals.hint(*hints)

    async def run(self) -> None:
        """The process's subscription, until cancelled."""
        await listen(self._redis, CHANGED_CHANNEL, self._heard)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The subscription as long as the body lasts."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.run())
            try:
                yield
            finally:
                task.cancel()

    @contextmanager
    def follow(self, subject: UUID) -> Iterator[asyncio.Event]:
        """An event that is set whenever the subject may have changed."""
        changed = asyncio.Event()
        self._followers.setdefault(subject, set()).add(changed)
        try:
            yield changed
        finally:
            followers = self._followers[subject]
            followers.discard(changed)
            if not followers:
                del self._followers[subject]

    async def wait_until(
        self, subject: UUID, look: Callable[[], Awaitable[T]], done: Callable[[T], bool], *, timeout_s: float
    ) -> T:
        """Look until `done`, until the time is out, or until this process leaves; returns what was seen last.

        Between hints it looks again every second, for the hints that were lost.
        """
        end = time.monotonic() + timeout_s
        with self.follow(subject) as changed:
            while True:
                changed.clear()
                seen = await look()
                left = end - time.monotonic()
                if done(seen) or left <= 0 or self.leaving:
                    return seen
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(left, SLOW_POLL_S)):
                        await changed.wait()

    def leave(self) -> None:
        """This process is about to end: whoever waits gets what there is."""
        self.leaving = True
        self._heard(b"")

    @contextmanager
    def follow_all(self) -> Iterator[asyncio.Event]:
        """An event that is set whenever anything may have changed."""
        changed = asyncio.Event()
        self._all.add(changed)
        try:
            yield changed
        finally:
            self._all.discard(changed)

    def on_stop(self, heard: Callable[[UUID], None]) -> None:
        """Call `heard` for every run that was ended from outside."""
        self._stops.append(heard)

    @contextmanager
    def on_deliver(self, heard: Callable[[], None]) -> Iterator[None]:
        """Call `heard` whenever messages to the outside may be due."""
        self._senders.append(heard)
        try:
            yield
        finally:
            self._senders.remove(heard)

    def _heard(self, data: bytes) -> None:
        """What one message says: several hints, or b"" for messages that may have been missed: everybody looks."""
        hints = data.decode("ascii", "replace").split()
        if not data or DELIVER in hints:
            for sender in self._senders:
                sender()
        for run_id in _ids(hint.removeprefix(STOP) for hint in hints if hint.startswith(STOP)):
            for heard in self._stops:
                heard(run_id)
        if changed := _ids(hints) if data else list(self._followers):
            self._tell(changed)

    def _tell(self, changed: Iterable[UUID]) -> None:
        for subject in changed:
            for event in self._followers.get(subject, ()):
                event.set()
        for event in self._all:
            event.set()


def _ids(texts: Iterable[str]) -> list[UUID]:
    return [found for found in map(parse_id, texts) if found is not None]
