"""Floor 4: who else looks at an approval right now. In Redis only, for seconds: with Redis away nobody is seen."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

LASTS_S: Final = 8.0
ANSWER_S: Final = 1.0
AWAY_S: Final = 5.0


class Presence:
    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._away_until = 0.0

    async def look(self, subject: UUID, who: str) -> None:
        """Say that somebody looks at it; to be said again within `LASTS_S`."""
        key = _key(subject)
        now = time.time()
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zremrangebyscore(key, "-inf", now - LASTS_S)
            pipe.zadd(key, {who: now})
            pipe.expire(key, int(LASTS_S) + 1)
            await self._asked(pipe.execute)

    async def others(self, subject: UUID, who: str) -> list[str]:
        """The names of those who look at it too."""
        since = time.time() - LASTS_S

        async def ask() -> list[Any]:
            return list(await self._redis.zrangebyscore(_key(subject), since, "+inf"))

        names = {name.decode() if isinstance(name, bytes) else str(name) for name in await self._asked(ask)}
        return sorted(names - {who})

    async def _asked(self, ask: Callable[[], Awaitable[list[Any]]]) -> list[Any]:
        """What Redis answers, or nothing: nobody waits for a Redis that is away."""
        if time.monotonic() < self._away_until:
            return []
        try:
            async with asyncio.timeout(ANSWER_S):
                return await ask()
        except (RedisError, OSError, TimeoutError):
            self._away_until = time.monotonic() + AWAY_S
            return []


def _key(subject: UUID) -> str:
    return f"hitl:looking:{subject}"
