"""Statements in company: whoever comes while one trip to Postgres is under way goes along with the next.

Alone it costs nothing: the first goes at once. The more come, the more share a trip, a commit and a system call.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextvars import Context
from typing import Final, Generic, TypeVar

from service.errors import Unavailable

MOST: Final = 64  # in one trip: no commit holds its rows for long
K = TypeVar("K", bound=Hashable)
Q = TypeVar("Q")
A = TypeVar("A")


class Batch(Generic[K, Q, A]):
    """`together` answers several at once, in their order, or none of them: it raises, and has changed nothing.

    Those under one key go together, one trip of a key at a time. What keeps company from being served, once
    Postgres is there, is the fault of one: then each goes alone, and only that one's caller hears of it.
    """

    def __init__(self, together: Callable[[K, Sequence[Q]], Awaitable[Sequence[A]]]) -> None:
        self._together = together
        self._waiting: dict[K, list[tuple[Q, asyncio.Future[A]]]] = {}
        self._trips: dict[K, asyncio.Task[None]] = {}

    async def ask(self, question: Q, *, key: K) -> A:
        """The answer. Who is cancelled before the trip began was never there; later, the trip is waited for first,
        so that nobody goes on to undo what is only about to be written."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[A] = loop.create_future()
        answer.add_done_callback(_heard)
        asked = (question, answer)
        self._waiting.setdefault(key, []).append(asked)
        if key not in self._trips:  # owned here: it ends when nobody waits any more
            self._trips[key] = loop.create_task(self._serve(key), context=Context())
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            if asked in self._waiting.get(key, ()):
                self._waiting[key].remove(asked)
            else:
                await asyncio.wait({answer})
            raise

    async def _serve(self, key: K) -> None:
        try:
            while waiting := self._waiting.get(key):
                self._waiting[key] = waiting[MOST:]
                await self._trip(key, waiting[:MOST])
        finally:
            del self._trips[key]
            for _, answer in self._waiting.pop(key, ()):  # the loop ends, and nobody serves them any more
                answer.cancel()

    async def _trip(self, key: K, asked: Sequence[tuple[Q, "asyncio.Future[A]"]]) -> None:
        try:
            answers = await self._together(key, [question for question, _ in asked])
        except BaseException as error:
            if len(asked) > 1 and isinstance(error, Exception) and not isinstance(error, Unavailable):
                for one in asked:
                    await self._trip(key, [one])
                return
            for _, answer in asked:
                answer.set_exception(error)
            if not isinstance(error, Exception):
                raise
        else:
            for (_, answer), found in zip(asked, answers, strict=True):
                answer.set_result(found)


def _heard(answer: "asyncio.Future[A]") -> None:
    """Its caller may be gone: then nobody asks what it raised, and asyncio need not complain."""
    if not answer.cancelled():
        answer.exception()
