"""A stream that says when a page is no longer what it was; the page then asks for itself again.

What is asked is one small query, whose answer (the mark) stands for the page; a hint from the notifier asks at once,
and without hints it is asked every two seconds. The page says which mark it was made with, so that nothing falls
between the page and its stream.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Final

from sse_starlette import ServerSentEvent
from starlette.responses import Response

from service.border.stream import RETRY_MS, Stream
from service.commands import sessions
from service.console import cookies
from service.console.page import Visit
from service.errors import HitlError, Unavailable
from service.live.hub import Hub
from service.live.reader import Ended, Reader

IDLE_S: Final = 2.0
GATHER_S: Final = 0.15
APART_S: Final = 0.6
REST: Final = 4
Look = Callable[[], Awaitable[str]]


def changes(visit: Visit, look: Look, *, apart_s: float = APART_S) -> Response:
    """`changed` events, each with the mark of what the page is now; `gone` when the session is over. `apart_s`: how
    far apart at the least, since with each of them every reader asks for the page."""
    reader = Reader(visit.principal.tenant, key_id=visit.principal.key_id, frames=False)
    return Stream(reader, _told(visit, reader, look, apart_s))


async def _told(visit: Visit, reader: Reader, look: Look, apart_s: float) -> AsyncIterator[ServerSentEvent]:
    hub: Hub = visit.request.app.state.hub
    mark = visit.request.query_params.get("seen", "")
    yield ServerSentEvent(comment="here", retry=RETRY_MS, sep="\n")
    with hub.attached(reader), visit.services.notifier.follow_all() as changed:
        while reader.ended is None:
            changed.clear()
            began = time.monotonic()
            rested_at = began + apart_s
            try:
                now = await look()
                took_s = time.monotonic() - began
                theirs = await _still_in(visit)
            except Unavailable:  # Postgres comes back, and the mark is still known
                await _wait(reader, changed, rested_at)
                continue
            except HitlError:
                theirs = False
            if not theirs:
                reader.end(Ended.REVOKED)
            elif now != mark:
                mark = now
                yield ServerSentEvent(now, event="changed", sep="\n")
            else:
                rested_at = min(rested_at, began + (1 + REST) * took_s)
            await _wait(reader, changed, rested_at)
    if reader.ended is Ended.REVOKED:  # a process that stops says nothing: the stream comes again
        yield ServerSentEvent("gone", event="gone", sep="\n")


async def _wait(reader: Reader, changed: asyncio.Event, rested_at: float) -> None:
    """Until something may have changed, or nobody follows any more. Hints come in bursts, and what was told, or took
    long to find out, is followed by a rest."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(changed.wait()), group.create_task(reader.gone.wait())]
        await asyncio.wait(tasks, timeout=IDLE_S, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
    with suppress(TimeoutError):
        async with asyncio.timeout(max(GATHER_S, rested_at - time.monotonic())):
            await reader.gone.wait()


async def _still_in(visit: Visit) -> bool:
    if not visit.request.app.state.auth_required:
        return True
    token = cookies.read(visit.request, visit.services, cookies.SESSION)
    return await sessions.recognise(visit.services, token) is not None
