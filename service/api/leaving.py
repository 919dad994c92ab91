"""How a web process leaves when it is told to: without failing a request that somebody has just sent.

uvicorn closes its listener and every idle connection the moment it is told to stop; what a client or a balancer
had just put on one of them is lost, and a long poll holds it up. So the first SIGTERM is kept back: `/readyz`
answers 503, each answer closes its connection, whoever waits gets what there is; and uvicorn is told as soon as
nobody asks any more, or when the grace is over. SIGINT, and a second SIGTERM, go through at once.
"""

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

GRACE_S: Final = 5.0
QUIET_S: Final = 1.0


class Leaving:
    def __init__(self) -> None:
        self.begun = False
        self._asked_at = time.monotonic()

    def asked(self) -> None:
        """A request came in."""
        self._asked_at = time.monotonic()

    @contextmanager
    def on_sigterm(self, begin: Callable[[], None]) -> Iterator[None]:
        """Call `begin` at the first SIGTERM, and hand the signal on to the server after the grace."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        servers: Any = signal.getsignal(signal.SIGTERM)
        tasks: set[asyncio.Task[None]] = set()

        def told(number: int, frame: FrameType | None) -> None:
            if self.begun or not callable(servers):
                _hand_on(servers, number, frame)
                return
            self.begun = True
            loop.call_soon_threadsafe(start, number, frame)

        def start(number: int, frame: FrameType | None) -> None:
            self.asked()  # the quiet is counted from here: who asks seldom must hear of it, too
            begin()
            tasks.add(loop.create_task(self._then(servers, number, frame)))

        signal.signal(signal.SIGTERM, told)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            signal.signal(signal.SIGTERM, servers)

    async def _then(self, servers: Any, number: int, frame: FrameType | None) -> None:
        end = time.monotonic() + GRACE_S
        while (now := time.monotonic()) < end and now - self._asked_at < QUIET_S:
            await asyncio.sleep(0.05)
        servers(number, frame)


def _hand_on(servers: Any, number: int, frame: FrameType | None) -> None:
    if callable(servers):
        servers(number, frame)
    else:
        signal.signal(number, servers)
        signal.raise_signal(number)
