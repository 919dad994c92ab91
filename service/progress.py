"""Floor 5: what a provider tells of its answer so far, thinned out and written beside the stream."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from service.domain.canonical import JSON, NotCanonical, canonical
from service.errors import LeaseLost, Unavailable
from service.logs import get_logger

EVERY_S: Final = 0.25  # and the last state beside it: never more than five in a second
GROWN: Final = 1.05
STOP_S: Final = 2.0

Data = Mapping[str, JSON]

log = get_logger("progress")


class Progress:
    """The latest state, and its writer: a task of its own, so that a slow database does not hold up the stream.

    What is written grows each time by a twentieth at least, so that all that is kept of a text is no more than a
    small multiple of its length. `lost` is called when the run is no longer ours.
    """

    def __init__(self, write: Callable[[Data], Awaitable[None]], lost: Callable[[], None]) -> None:
        self._write = write
        self._lost = lost
        self._latest: Data | None = None
        self._written: Data | None = None
        self._size = 0.0
        self._news = asyncio.Event()
        self._stopped = asyncio.Event()
        self._writing = False
        self._writer: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """From now on, write what is told, by a task that begins with the first of it: most calls tell nothing."""
        self._writing = True

    def tell(self, data: Data) -> None:
        """What a provider calls, as often as it likes."""
        self._latest = dict(data)
        self._news.set()
        if self._writing and self._writer is None and not self._stopped.is_set():
            self._writer = asyncio.get_running_loop().create_task(self._run())  # owned here: it ends with the call

    @property
    def untold(self) -> Data | None:
        """The last state, if it is not written yet and can be."""
        if self._latest is None or self._latest == self._written or _size(self._latest) is None:
            return None
        return self._latest

    async def _run(self) -> None:
        """Write until `stop`, at most one state in `EVERY_S`."""
        try:
            while not self._stopped.is_set():
                await self._news.wait()
                self._news.clear()
                await self._write_latest()
                await self._pause()
        except LeaseLost:
            self._lost()
        except Exception as error:  # the call goes on: its end tells the last state
            log.error("http.error", error=type(error).__name__)

    async def stop(self) -> None:
        """Let a write that is under way end, for a moment."""
        self._stopped.set()
        self._news.set()
        if self._writer is not None:
            await asyncio.wait({self._writer}, timeout=STOP_S)
            self._writer.cancel()

    def cancel(self) -> None:
        self._stopped.set()
        if self._writer is not None:
            self._writer.cancel()

    async def _write_latest(self) -> None:
        data = self._latest
        if data is None or self._stopped.is_set():
            return
        size = _size(data)
        if size is None or size < self._size * GROWN:
            return
        try:
            await self._write(data)
        except Unavailable:
            return  # the next state is told instead
        self._written, self._size = data, size

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(EVERY_S):
                await self._stopped.wait()
        except TimeoutError:
            return


def _size(data: Data) -> int | None:
    """Its length as JSON; None for what an event cannot carry: half of a character that a stream was cut in."""
    try:
        return len(canonical(dict(data)))
    except NotCanonical:
        return None
