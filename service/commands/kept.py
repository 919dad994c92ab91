"""What was looked up a moment ago, for all who ask the same: one look at a time, and it takes little of the time."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Final, TypeVar

FRESH_S: Final = 1.0
SHARE: Final = 20
"""Looking may take the twentieth part of the time, whatever one look takes."""
MOST: Final = 1000

T = TypeVar("T")


class Kept:
    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[float, Any]] = {}
        self._looking: dict[Hashable, asyncio.Lock] = {}
        self._dropped = 0

    async def of(self, key: Hashable, look: Callable[[], Awaitable[T]]) -> T:
        """What `look` says, or said a moment ago. What it raises is not kept."""
        lock = self._looking.setdefault(key, asyncio.Lock())
        async with lock:
            until, known = self._known.get(key, (0.0, None))
            if time.monotonic() < until:
                kept: T = known
                return kept
            began, dropped = time.monotonic(), self._dropped
            found = await look()
            ended = time.monotonic()
            if dropped == self._dropped:  # else it may be of before the change
                self._make_room()
                self._known[key] = (ended + max(FRESH_S, SHARE * (ended - began)), found)
            return found

    def drop(self, key: Hashable) -> None:
        """Look anew the next time: it is known to have changed."""
        self._known.pop(key, None)
        self._dropped += 1

    def _make_room(self) -> None:
        """What is over goes, and when that is not enough, everything."""
        if len(self._known) < MOST:
            return
        now = time.monotonic()
        self._known = {key: entry for key, entry in self._known.items() if now < entry[0]}
        if len(self._known) >= MOST:
            self._known.clear()
        self._looking = {key: lock for key, lock in self._looking.items() if lock.locked()}
