"""The sender: takes lines that are due, has a channel send what they hold, and puts them down again.

One for each channel and worker process. A line's lease keeps its messages in order, whoever sends them; nothing is
sent inside a transaction; a sender that dies leaves its lease to run out, and the next sends the same again.
"""

import asyncio
import time
from collections import Counter
from contextlib import suppress
from typing import Final, Protocol

from service.commands.context import Services
from service.domain.delivery import Kind
from service.domain.ids import uuid7
from service.errors import Unavailable
from service.logs import get_logger
from service.store import deliveries
from service.store.database import EVERY
from service.store.deliveries import Line

MARGIN_S: Final = 5.0
RELEASE_TIMEOUT_S: Final = 1.0

log = get_logger("deliveries.sender")


class Channel(Protocol):
    """A way to the outside. `at_once`: lines in all; `per_target`: lines to one target; `lease_s`: what sending the
    messages of one line takes at most, and `MARGIN_S`."""

    kind: Kind
    at_once: int
    per_target: int
    lease_s: float

    @property
    def ready(self) -> bool: ...

    async def send(self, line: Line) -> None:
        """Send what is first in the line, write what came of it, and put the line down.
        Raises `Unavailable` with Postgres away."""
        ...


class Sender:
    def __init__(self, services: Services, channel: Channel, *, poll_s: float) -> None:
        self._services = services
        self._channel = channel
        self._poll_s = poll_s
        self._look = asyncio.Event()
        self._active: Counter[str] = Counter()

    def wake(self) -> None:
        """Look at once: something may be due."""
        self._look.set()

    async def run(self) -> None:
        """Send until cancelled. With Postgres away it waits."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._look.clear()
                with suppress(Unavailable):
                    await self._start_due(group)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_s):
                        await self._look.wait()

    async def once(self) -> int:
        """Send what is due now and no more; how many lines there were."""
        async with asyncio.TaskGroup() as group:
            return await self._start_due(group)

    async def _start_due(self, group: asyncio.TaskGroup) -> int:
        started = 0
        while self._channel.ready and (free := self._channel.at_once - self._active.total()) > 0:
            found = await self._claim(free)
            surplus: list[Line] = []
            for line in found:
                if self._active[line.target] >= self._channel.per_target:
                    surplus.append(line)
                else:
                    self._active[line.target] += 1
                    group.create_task(self._send(line))
                    started += 1
            if surplus:  # one target must not take what others wait for
                async with self._services.db.connection(EVERY) as conn:
                    await deliveries.release(conn, surplus)
            if len(found) < free:
                break
        return started

    async def _claim(self, free: int) -> list[Line]:
        busy = [target for target, count in self._active.items() if count >= self._channel.per_target]
        async with self._services.db.connection(EVERY) as conn:
            return await deliveries.claim(
                conn, self._channel.kind, busy=busy, lease_id=uuid7(), lease_s=self._channel.lease_s, limit=free
            )

    async def _send(self, line: Line) -> None:
        end = time.monotonic() + self._channel.lease_s - MARGIN_S
        try:
            async with asyncio.timeout(end - time.monotonic()):
                await self._channel.send(line)
        except (Unavailable, TimeoutError):
            pass  # the lease runs out, and somebody sends the same again
        except asyncio.CancelledError:
            await asyncio.shield(self._release(line))
            raise
        except Exception as error:  # the door
            log.error("worker.task_failed", task=f"deliver_{line.kind}", error=type(error).__name__)
        finally:
            self._active[line.target] -= 1
            self._active += Counter()  # drops what is zero
            self._look.set()

    async def _release(self, line: Line) -> None:
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S), self._services.db.connection(EVERY) as conn:
                await deliveries.release(conn, [line])
        except (Unavailable, TimeoutError):
            return  # it runs out
