"""How often a process may ask one API with one token: a token bucket that also stops for everybody after a 429."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

BURST: Final = 1 / 6  # of a minute's share, at once


class Limiter:
    """Shared by all that use the token. Who would wait too long is sent away and told when to come back,
    each a little later than the one before, so that a crowd does not come back at once."""

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 60 / per_minute
        self._burst_s = 60 * BURST - self._interval
        self._clock = clock
        self._taken_until = 0.0  # the time up to which the shares are given away
        self._paused_until = 0.0
        self._promised_until = 0.0

    def pause(self, seconds: float) -> None:
        """Nobody goes on before that; a shorter pause does not end a longer one."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    async def admit(self, *, patience_s: float) -> float | None:
        """None: go, after a wait of at most `patience_s`; else the seconds after which to come back."""
        wait = self._wait()
        if wait <= patience_s:
            self._taken_until = max(self._taken_until, self._clock()) + self._interval
        while 0 < wait <= patience_s:
            await asyncio.sleep(wait)
            wait = self._paused_until - self._clock()  # it may have come meanwhile
        return None if wait <= 0 else self._promise()

    def _wait(self) -> float:
        now = self._clock()
        wait = max(self._taken_until - self._burst_s - now, self._paused_until - now)
        return wait if wait > 1e-6 else 0.0  # what is less is the float's, not the limit's

    def _promise(self) -> float:
        now = self._clock()
        self._promised_until = max(self._promised_until, now + self._wait()) + self._interval
        return self._promised_until - now
