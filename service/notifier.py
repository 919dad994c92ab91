"""Floor 4: hints that something changed, across processes by Redis pub/sub. They carry an id, never data;
whoever is hinted at looks into Postgres. With Redis away, followers poll slowly."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final, TypeVar
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.domain.ids import parse_id
from service.logs import get_logger

CHANNEL: Final = "hitl:changed"
STOP: Final = "stop:"
DELIVER: Final = "deliver"
RECONNECT_S: Final = 0.5
SEND_TIMEOUT_S: Final = 1.0
AWAY_S: Final = 0.5
SLOW_POLL_S: Final = 1.0
T = TypeVar("T")

log = get_logger("notifier")


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

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._followers: dict[UUID, set[asyncio.Event]] = {}
        self._all: set[asyncio.Event] = set()
        self._stops: list[Callable[[UUID], None]] = []
        self._senders: list[Callable[[], None]] = []
        self._away_until = 0.0
        self.leaving = False

    async def notify(self, *changed: UUID, stopped: Sequence[UUID] = (), deliver: bool = False) -> None:
        """Say which runs and approvals changed, which runs were ended under a worker that may be busy with them, and
        whether messages to the outside are due. Call it after the commit; a failure is only a delay."""
        for subject in changed:
            self._tell(subject)
        await self._publish(
            [*([DELIVER] if deliver else []), *(STOP + str(run_id) for run_id in stopped), *map(str, changed)]
        )

    async def run(self) -> None:
        """The process's subscription, until cancelled."""
        await listen(self._redis, CHANNEL, self._heard)

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

    async def _publish(self, messages: Sequence[str]) -> None:
        """All of them in one trip."""
        if not messages or time.monotonic() < self._away_until:  # a sweep of hundreds must not wait out each of them
            return
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S), self._redis.pipeline(transaction=False) as pipe:
                for message in messages:
                    pipe.publish(CHANNEL, message)
                await pipe.execute()
        except (RedisError, OSError, TimeoutError) as error:
            self._away_until = time.monotonic() + AWAY_S
            log.warning("notify.failed", error=type(error).__name__)

    def _heard(self, data: bytes) -> None:
        if not data or data == DELIVER.encode():
            for sender in self._senders:
                sender()
        if not data:  # messages may have been missed: everybody looks
            for subject in list(self._followers):
                self._tell(subject)
            self._tell_all()
            return
        text = data.decode("ascii", "replace")
        about = parse_id(text.removeprefix(STOP))
        if about is None:
            return
        if text.startswith(STOP):
            for heard in self._stops:
                heard(about)
        else:
            self._tell(about)

    def _tell(self, subject: UUID) -> None:
        for event in self._followers.get(subject, ()):
            event.set()
        self._tell_all()

    def _tell_all(self) -> None:
        for event in self._all:
            event.set()
