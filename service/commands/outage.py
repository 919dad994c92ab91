"""Postgres away: what is in memory is written once it answers again, instead of being thrown away."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from service.errors import Unavailable

RETRY_S: Final = 0.2
T = TypeVar("T")


async def outlast(work: Callable[[], Awaitable[T]], *, for_s: float) -> T:
    """Do it, and do it again while Postgres is away, for so long. Raises `Unavailable`.

    `work` may have been committed though its answer was lost: it must bear being done twice.
    """
    end = time.monotonic() + for_s
    while True:
        try:
            return await work()
        except Unavailable:
            if time.monotonic() >= end:
                raise
        await asyncio.sleep(RETRY_S)
