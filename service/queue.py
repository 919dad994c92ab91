"""Floor 4: arq and Redis as a starter of work. A job carries ids and says "look again", no more.

Everything here may fail or be lost: the state is committed before, and the sweep sends it again.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import compress
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

import orjson
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix
from arq.jobs import serialize_job
from arq.utils import timestamp_ms, to_unix_ms
from redis.asyncio import BlockingConnectionPool, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.domain.ids import job_id
from service.domain.run import Run, RunStatus
from service.signals import QUEUE_NAME, SEND_TIMEOUT_S, Job, Signals

EXPIRES_EXTRA_MS: Final = 30 * 86_400_000
_DAY: Final = timedelta(days=1)
_DECIDED_FIRST: Final = 40 * _DAY


def serialize(job: dict[str, Any]) -> bytes:
    """JSON, never pickle: whoever can write to Redis must not run code in a worker."""
    return orjson.dumps(job)


def deserialize(data: bytes) -> dict[str, Any]:
    job: dict[str, Any] = orjson.loads(data)
    return job


def connect(url: str, *, max_connections: int = 20) -> ArqRedis:
    """A client that outlives its server: bounded pool, timeouts, keep-alive, retries on every kind of loss.

    arq's own `RedisSettings.from_dsn` drops query parameters and turns host name checks off.
    """
    parts = urlsplit(url)
    options: dict[str, Any] = {
        "max_connections": max_connections,
        "timeout": 10,
        "socket_timeout": 10,
        "socket_connect_timeout": 2,
        "health_check_interval": 15,
        "retry": Retry(ExponentialBackoff(cap=1, base=0.05), 3),
        "retry_on_error": [RedisConnectionError, RedisTimeoutError, OSError],
        "username": parts.username,
        "password": parts.password,
        "db": int(dict(parse_qsl(parts.query)).get("db") or (parts.path.strip("/") if parts.hostname else "") or 0),
    }
    if parts.scheme == "unix":
        options |= {"connection_class": UnixDomainSocketConnection, "path": parts.path}
    else:
        options |= {
            "host": parts.hostname or "localhost",
            "port": parts.port or 6379,
            "socket_keepalive": True,
        }
    if parts.scheme == "rediss":
        options |= {"connection_class": SSLConnection, "ssl_check_hostname": True}
    return ArqRedis(
        pool_or_conn=BlockingConnectionPool(**options),
        job_serializer=serialize,
        job_deserializer=deserialize,
        default_queue_name=QUEUE_NAME,
        expires_extra_ms=EXPIRES_EXTRA_MS,
    )


@dataclass(frozen=True, slots=True)
class Mark:
    """What Redis knows of a job: whether it stands in the queue, and whether arq counts it as running."""

    queued: bool
    in_progress: bool


def cause(enqueued: datetime, score_ms: float) -> str:
    """What a job that arq has begun was sent for, by its rank: a `start`, a `decision` (or whatever else lets a run
    go on), or a `timer` whose moment has come."""
    ahead = enqueued - datetime.fromtimestamp(score_ms / 1000, UTC)
    if ahead < timedelta(seconds=-1):
        return "timer"
    return "decision" if ahead > _DECIDED_FIRST - _DAY else "start"


class RunQueue:
    """Give it the process's `signals`, so that its jobs travel with what the notifier has to say."""

    def __init__(self, redis: ArqRedis, *, horizon_s: float, signals: Signals | None = None) -> None:
        self._redis = redis
        self._signals = signals or Signals(redis)
        self._horizon = timedelta(seconds=horizon_s)

    async def wake(self, run: Run) -> bool:
        """Send the wake-up of a run that is due, now or inside the horizon. Enqueue only after the commit.

        Returns whether Redis took a new job: False when it already had this one, or is away.
        """
        return (await self.wake_all([run]))[0]

    async def wake_all(self, woken: Sequence[Run]) -> list[bool]:
        """The same for many, in one trip; what came of each, in order."""
        now = datetime.now(UTC)
        sent = [run.due_at is not None and run.due_at <= now + self._horizon for run in woken]
        new = iter(await self._signals.enqueue(*(self._wake_up(run, now) for run in compress(woken, sent))))
        return [due and next(new) for due in sent]

    def _wake_up(self, run: Run, now: datetime) -> Job:
        start = run.due_at if run.due_at is not None and run.due_at > now else self._rank(run, now)
        return _job("advance_run", str(run.id), run.fencing_token, name=job_id(run.id, run.fencing_token), at=start)

    async def arm_timer(self, approval_id: UUID, timer_no: int, expires_at: datetime) -> bool:
        """The deferred job of an approval's deadline. A moved deadline has a new number, and so a new id."""
        name = f"approval:{approval_id}:expire:{timer_no}"
        return await self._send(_job("expire_approval", str(approval_id), name=name, at=expires_at))

    async def arm_reminder(self, approval_id: UUID, remind_at: datetime) -> bool:
        if remind_at > datetime.now(UTC) + self._horizon:
            return False
        name = f"approval:{approval_id}:remind:{round(remind_at.timestamp() * 1000)}"
        return await self._send(_job("remind_approval", str(approval_id), name=name, at=remind_at))

    async def cancel_calls(self, run_id: UUID) -> bool:
        """Have a worker end at once what the run has going at its provider."""
        return await self._send(_job("cancel_calls", str(run_id), name=f"cancel:{run_id}", at=datetime.now(UTC)))

    @property
    def away(self) -> bool:
        """Redis did not answer a moment ago: hundreds that follow must not wait out each of them."""
        return self._signals.away

    async def known(self, names: Sequence[str]) -> list[Mark] | None:
        """What Redis knows of each of these jobs; None when it is away.

        A job that arq counts as running may be one whose worker died between arq's mark and our claim.
        """
        if not names:
            return []
        if self.away:
            return None
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S), self._redis.pipeline(transaction=False) as pipe:
                pipe.zmscore(QUEUE_NAME, list(names))
                for name in names:
                    pipe.exists(in_progress_key_prefix + name)
                scores, *marks = await pipe.execute()
        except (RedisError, OSError, TimeoutError) as error:
            self._signals.missed(error)
            return None
        return [Mark(score is not None, bool(mark)) for score, mark in zip(scores, marks, strict=True)]

    async def forget(self, *names: str) -> None:
        """Remove what dead jobs left in Redis: each would cost every poll of every worker."""
        if not names or self.away:
            return
        keys = [
            prefix + name for name in names for prefix in (job_key_prefix, in_progress_key_prefix, retry_key_prefix)
        ]
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S), self._redis.pipeline(transaction=True) as pipe:
                pipe.zrem(QUEUE_NAME, *names)
                pipe.delete(*keys)
                await pipe.execute()
        except (RedisError, OSError, TimeoutError) as error:
            self._signals.missed(error)

    async def ping(self) -> bool:
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                return bool(await self._redis.ping())
        except (RedisError, OSError, TimeoutError):
            return False

    def _rank(self, run: Run, now: datetime) -> datetime:
        """arq starts the lowest score first: what a human decided before any start, starts by priority."""
        started = run.claimed_at is not None or run.status is not RunStatus.QUEUED
        return now - (_DECIDED_FIRST if started else (run.priority + 10) * _DAY)

    async def _send(self, job: Job) -> bool:
        return (await self._signals.enqueue(job))[0]


def _job(function: str, *arguments: Any, name: str, at: datetime) -> Job:
    now_ms, at_ms = timestamp_ms(), to_unix_ms(at)
    data = serialize_job(function, arguments, {}, None, now_ms, serializer=serialize)
    return Job(name, data, max(0, at_ms - now_ms) + EXPIRES_EXTRA_MS, at_ms)
