"""Floor 4: what this process tells the others through Redis: jobs for the workers, hints to whoever follows.

Signals travel in company: what comes up while one trip is under way goes with the next, jobs and hints together.
Everything here may fail or be lost: the state is committed before, and the sweep and the slow poll find it.
"""

import asyncio
import time
from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Final

from arq.constants import job_key_prefix
from arq.utils import timestamp_ms
from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.logs import get_logger

QUEUE_NAME: Final = "hitl:queue"
WAKE_CHANNEL: Final = "hitl:wake"
CHANGED_CHANNEL: Final = "hitl:changed"
SEND_TIMEOUT_S: Final = 1.0
AWAY_S: Final = 0.5
MOST: Final = 100  # senders in one trip: Redis does nothing else meanwhile
# What arq's enqueue_job does in three trips, for many jobs, with the hint that there is something to do; returns which
# of them are new. KEYS: the queue, then each job's; ARGV: the hints, now, then of each job data, keep_ms, at_ms, name.
SEND: Final = f"""
local new, due = {{}}, false
for n = 2, #KEYS do
  local at = 4 * n - 5
  new[n - 1] = 0
  if redis.call('set', KEYS[n], ARGV[at], 'NX', 'PX', ARGV[at + 1]) then
    redis.call('zadd', KEYS[1], ARGV[at + 2], ARGV[at + 3])
    new[n - 1] = 1
    due = due or tonumber(ARGV[at + 2]) <= tonumber(ARGV[2])
  end
end
if due then redis.call('publish', '{WAKE_CHANNEL}', '1') end
if ARGV[1] ~= '' then redis.call('publish', '{CHANGED_CHANNEL}', ARGV[1]) end
return new
"""

log = get_logger("signals")


@dataclass(frozen=True, slots=True)
class Job:
    """A job as arq keeps it: its id, its data and for how long, and when it is due."""

    name: str
    data: bytes
    keep_ms: int
    at_ms: int


Sender = tuple[Sequence[Job], "asyncio.Future[list[bool]]"]


class Signals:
    """One trip at a time. While Redis is away, nothing is kept for it."""

    def __init__(self, redis: Redis) -> None:
        self._send = redis.register_script(SEND)
        self._senders: list[Sender] = []
        self._hints: dict[str, None] = {}
        self._carrier: asyncio.Task[None] | None = None
        self._away_until = 0.0

    @property
    def away(self) -> bool:
        """Redis did not answer a moment ago: hundreds that follow must not wait out each of them."""
        return time.monotonic() < self._away_until

    def missed(self, error: Exception, *, jobs: bool = True) -> None:
        """Redis did not answer; whether it was asked about jobs, or about hints alone."""
        self._away_until = time.monotonic() + AWAY_S
        if jobs:
            log.warning("queue.wake_failed", error=type(error).__name__)
        else:
            log.warning("notify.failed", error=type(error).__name__)

    def hint(self, *hints: str) -> None:
        """Publish them on `CHANGED_CHANNEL`, in one message with others. Nobody waits for it."""
        if hints and not self.away:
            self._hints.update(dict.fromkeys(hints))
            self._depart()

    async def enqueue(self, *jobs: Job) -> list[bool]:
        """Which of the jobs are new to Redis: none when it is away."""
        if not jobs or self.away:
            return [False] * len(jobs)
        answer: asyncio.Future[list[bool]] = asyncio.get_running_loop().create_future()
        self._senders.append((jobs, answer))
        self._depart()
        return await answer

    async def close(self) -> None:
        """Wait for what is under way."""
        if self._carrier is not None:
            await asyncio.wait([self._carrier])

    def _depart(self) -> None:
        if self._carrier is None:  # owned here: it ends when there is nothing to carry; its log lines are no caller's
            self._carrier = asyncio.get_running_loop().create_task(self._carry(), context=Context())

    async def _carry(self) -> None:
        try:
            while self._senders or self._hints:
                senders, self._senders = self._senders[:MOST], self._senders[MOST:]
                hints, self._hints = self._hints, {}
                new: list[int] = []
                try:
                    new = await self._trip([job for jobs, _ in senders for job in jobs], " ".join(hints))
                finally:
                    _answer(senders, new)
        finally:
            self._carrier = None
            self._drop()

    async def _trip(self, jobs: Sequence[Job], hints: str) -> list[int]:
        keys = [QUEUE_NAME, *(job_key_prefix + job.name for job in jobs)]
        arguments: list[Any] = [hints, timestamp_ms()]
        for job in jobs:
            arguments += (job.data, job.keep_ms, job.at_ms, job.name)
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                return list(await self._send(keys, arguments))
        except (RedisError, OSError, TimeoutError) as error:
            self.missed(error, jobs=bool(jobs))
            self._drop()  # who came meanwhile does not wait for another failure
            return []

    def _drop(self) -> None:
        dropped, self._senders, self._hints = self._senders, [], {}
        _answer(dropped, [])


def _answer(senders: Sequence[Sender], new: Sequence[int]) -> None:
    """Give each what came of its jobs, unless it has gone. What is missing was not sent."""
    rest = iter(new)
    for jobs, answer in senders:
        found = [bool(next(rest, 0)) for _ in jobs]
        if not answer.done():
            answer.set_result(found)
