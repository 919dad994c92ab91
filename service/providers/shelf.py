"""A bounded memory of what was fetched: kept for a while, and fetched once for all who ask at the same time."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Shelf(Generic[T]):
    """Keeps values of `kind`; anything else that a fetch returns is a failure, told to those who wait and forgotten."""

    def __init__(self, kind: type[T], *, size: int, life_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._kind = kind
        self._size = size
        self._life_s = life_s
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, T]] = OrderedDict()
        self._under_way: dict[str, asyncio.Task[Any]] = {}

    async def get(self, key: str, fetch: Callable[[], Awaitable[R]]) -> T | R:
        kept = self._kept.get(key)
        if kept is not None and kept[0] > self._clock():
            self._kept.move_to_end(key)
            return kept[1]
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.get_running_loop().create_task(self._fetch(key, fetch))
        found: T | R = await asyncio.shield(task)  # who stops waiting does not stop the others
        return found

    async def aclose(self) -> None:
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fetch(self, key: str, fetch: Callable[[], Awaitable[R]]) -> R:
        try:
            found = await fetch()
        finally:
            del self._under_way[key]
        if isinstance(found, self._kind):
            self._kept[key] = (self._clock() + self._life_s, found)
            self._kept.move_to_end(key)
            while len(self._kept) > self._size:
                self._kept.popitem(last=False)
        return found
