"""A stream of Server-Sent Events that ends when its reader is let go."""

from collections.abc import AsyncIterator
from typing import Final, cast

import anyio
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from service.live.reader import Ended, Reader

HEARTBEAT_S: Final = 15
RETRY_MS: Final = 1000
STUCK_S: Final = 30.0
GRACE_S: Final = 1.0


class Stream(EventSourceResponse):
    """Ends when its generator does: at the end of the run, when the key is revoked, when the process stops, when
    the reader is behind; and when it is stuck. It resumes from the id that came last."""

    def __init__(self, reader: Reader, told: AsyncIterator[ServerSentEvent]) -> None:
        super().__init__(
            told,
            ping=HEARTBEAT_S,
            ping_message_factory=lambda: ServerSentEvent(comment="heartbeat", sep="\n"),
            sep="\n",
            send_timeout=STUCK_S,
            shutdown_event=cast("anyio.Event", _Stop(reader)),  # it is only ever set
            shutdown_grace_period=GRACE_S,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            return


class _Stop:
    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def set(self) -> None:
        self._reader.end(Ended.STOPPING)
