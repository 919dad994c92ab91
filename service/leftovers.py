"""Floor 5: what a worker that was told to stop still has to hear or to keep of its provider calls."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final
from uuid import UUID

from service.commands.callbacks import take_notice
from service.commands.context import Services
from service.domain.call import Outcome, reference
from service.errors import Unavailable
from service.logs import get_logger
from service.providers.protocol import Provider, Request

HEAR_S: Final = 30.0  # how long a try whose worker was told to stop may still say what it has begun
KEEP_TRIES: Final = 10

log = get_logger("orchestrator")


def _leaves_something(provider: Provider) -> bool:
    """Whether a try may begin what only its own answer names, and what a second try would begin again."""
    return not provider.repeatable and (provider.poll_s is not None or provider.adopt_s > 0)


class Leftovers:
    """The tasks of one process that outlive their run's job for a moment; each is owned here until it is done."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._tasks: dict[asyncio.Task[None], UUID] = {}

    async def sent(self, provider: Provider, request: Request) -> Outcome:
        """What the provider answers. A try that may leave something behind that only its answer names is not cut
        off with its worker; any other is hung up on."""
        if not _leaves_something(provider):
            return await provider.call(request)
        sending = asyncio.get_running_loop().create_task(provider.call(request))
        try:
            return await asyncio.shield(sending)
        except asyncio.CancelledError:
            self.add(request.run_id, self._heard_out(request, sending))
            raise

    def keep(self, provider: Provider, request: Request, outcome: Outcome) -> None:
        """Keep what a try has begun, though its worker may no longer write: as if the provider had told us of it."""
        if _leaves_something(provider) and (ref := reference(outcome)) is not None:
            self.add(request.run_id, self._keep(request, ref))

    def add(self, run_id: UUID, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = run_id
        task.add_done_callback(self._done)

    async def of(self, run_id: UUID, *, timeout_s: float) -> None:
        """Wait a moment for what is left of this run."""
        mine = {task for task, about in self._tasks.items() if about == run_id}
        if mine:
            await asyncio.wait(mine, timeout=timeout_s)

    async def close(self, *, timeout_s: float) -> None:
        """Wait a moment for everything, and give up the rest."""
        if self._tasks:
            _, late = await asyncio.wait(set(self._tasks), timeout=timeout_s)
            for task in late:
                task.cancel()

    async def _heard_out(self, request: Request, sending: "asyncio.Task[Outcome]") -> None:
        try:
            await asyncio.wait({sending}, timeout=min(HEAR_S, request.timeout_s))
        finally:
            sending.cancel()
        if not sending.done() or sending.cancelled() or sending.exception() is not None:
            return
        if (ref := reference(sending.result())) is not None:
            await self._keep(request, ref)

    async def _keep(self, request: Request, provider_ref: str) -> None:
        for n in range(KEEP_TRIES):
            try:
                await take_notice(self._services, request.run_id, request.number, provider_ref)
                return
            except Unavailable:
                await asyncio.sleep(min(10.0, 0.5 * 2**n))

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("http.error", error=type(error).__name__)
