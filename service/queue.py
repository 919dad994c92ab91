"""Floor 4: arq and Redis as a starter of work. A job carries ids and says "look again", no more.

Everything here may fail or be lost: the state is committed before, and the sweep sends it again.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from inspect import signature
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

import orjson
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix
from arq.cron import CronJob
from arq.jobs import serialize_job
from arq.utils import timestamp_ms, to_unix_ms
from arq.worker import Function
from redis.asyncio import BlockingConnectionPool, Redis, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.domain.ids import job_id
from service.domain.run import Run, RunStatus
from service.logs import get_logger

QUEUE_NAME: Final = "hitl:queue"
WAKE_CHANNEL: Final = "hitl:wake"
EXPIRES_EXTRA_MS: Final = 30 * 86_400_000
SEND_TIMEOUT_S: Final = 1.0
AWAY_S: Final = 0.5
# What arq's enqueue_job does in three trips, and the hint that there is something to do, in one.
ENQUEUE: Final = f"""
if not redis.call('set', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 0 end
redis.call('zadd', KEYS[2], ARGV[3], ARGV[4])
if ARGV[5] == '1' then redis.call('publish', '{WAKE_CHANNEL}', '1') end
return 1
"""
_DAY: Final = timedelta(days=1)
_DECIDED_FIRST: Final = 40 * _DAY

log = get_logger("queue")


def serialize(job: dict[str, Any]) -> bytes:
    """JSON, never pickle: whoever can write to Redis must not run code in a worker."""
    return orjson.dumps(job)


def deserialize(data: bytes) -> dict[str, Any]:
    job: dict[str, Any] = orjson.loads(data)
    return job


def unreadable(data: bytes, functions: Mapping[str, Function | CronJob]) -> str | None:
    """Why no worker can run the job with this data, or None for one of ours."""
    try:
        job: Any = orjson.loads(data)
    except orjson.JSONDecodeError:
        return "not JSON"
    if not isinstance(job, dict) or not isinstance(job.get("f"), str):
        return "not a job"
    if job["f"] not in functions:
        return "unknown function"
    arguments, known = job.get("a"), list(signature(functions[job["f"]].coroutine).parameters.values())[1:]
    if not isinstance(arguments, list) or job.get("k") != {} or len(arguments) != len(known):
        return "wrong arguments"
    if not isinstance(job.get("et"), int) or not isinstance(job.get("t"), int | None):
        return "not a job"
    fits = (isinstance(given, wanted.annotation) for given, wanted in zip(arguments, known, strict=True))
    return None if all(fits) else "wrong arguments"


async def remove(redis: Redis, *names: str | bytes) -> None:
    """Take jobs out of the queue, with everything that arq keeps about them."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.zrem(QUEUE_NAME, *names)
        for name in names:
            raw = name if isinstance(name, bytes) else name.encode()
            pipe.delete(
                *(prefix.encode() + raw for prefix in (job_key_prefix, in_progress_key_prefix, retry_key_prefix))
            )
        await pipe.execute()


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
    def __init__(self, redis: ArqRedis, *, horizon_s: float) -> None:
        self._redis = redis
        self._enqueue = redis.register_script(ENQUEUE)
        self._horizon = timedelta(seconds=horizon_s)
        self._away_until = 0.0

    async def wake(self, run: Run) -> bool:
        """Send the wake-up of a run that is due, now or inside the horizon. Enqueue only after the commit.

        Returns whether Redis took a new job: False when it already had this one, or is away.
        """
        if run.due_at is None:
            return False
        now = datetime.now(UTC)
        if run.due_at > now + self._horizon:
            return False
        start = run.due_at if run.due_at > now else self._rank(run, now)
        return await self._send(
            "advance_run", str(run.id), run.fencing_token, name=job_id(run.id, run.fencing_token), at=start
        )

    async def arm_timer(self, approval_id: UUID, timer_no: int, expires_at: datetime) -> bool:
        """The deferred job of an approval's deadline. A moved deadline has a new number, and so a new id."""
        name = f"approval:{approval_id}:expire:{timer_no}"
        return await self._send("expire_approval", str(approval_id), name=name, at=expires_at)

    async def arm_reminder(self, approval_id: UUID, remind_at: datetime) -> bool:
        if remind_at > datetime.now(UTC) + self._horizon:
            return False
        name = f"approval:{approval_id}:remind:{round(remind_at.timestamp() * 1000)}"
        return await self._send("remind_approval", str(approval_id), name=name, at=remind_at)

    async def cancel_calls(self, run_id: UUID) -> bool:
        """Have a worker end at once what the run has going at its provider."""
        return await self._send("cancel_calls", str(run_id), name=f"cancel:{run_id}", at=datetime.now(UTC))

    @property
    def away(self) -> bool:
        """Redis did not answer a moment ago: hundreds that follow must not wait out each of them."""
        return time.monotonic() < self._away_until

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
            self._missed(error)
            return None
        return [Mark(score is not None, bool(mark)) for score, mark in zip(scores, marks, strict=True)]

    async def forget(self, *names: str) -> None:
        """Remove what dead jobs left in Redis: each would cost every poll of every worker."""
        if not names or self.away:
            return
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await remove(self._redis, *names)
        except (RedisError, OSError, TimeoutError) as error:
            self._missed(error)

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

    async def _send(self, function: str, *args: Any, name: str, at: datetime) -> bool:
        if self.away:
            return False
        now_ms, at_ms = timestamp_ms(), to_unix_ms(at)
        job = serialize_job(function, args, {}, None, now_ms, serializer=serialize)
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                expires_ms = max(0, at_ms - now_ms) + EXPIRES_EXTRA_MS
                due = int(at_ms <= now_ms)
                return bool(
                    await self._enqueue([job_key_prefix + name, QUEUE_NAME], [job, expires_ms, at_ms, name, due])
                )
        except (RedisError, OSError, TimeoutError) as error:
            self._missed(error)
            return False

    def _missed(self, error: Exception) -> None:
        self._away_until = time.monotonic() + AWAY_S
        log.warning("queue.wake_failed", error=type(error).__name__)
