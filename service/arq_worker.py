"""Floor 7: what arq 0.28's worker lacks for runs that last: it outlives Redis, wakes at once, and drains.

`install` puts both pieces where the arq CLI looks them up, as globals of `arq.worker`. The internals that
this leans on are pinned by tests/test_arq_pins.py, arq itself by its exact version.
"""

import asyncio
from collections.abc import AsyncGenerator
from signal import Signals
from typing import Any, Final

import arq.worker
from redis.exceptions import RedisError

from service.logs import get_logger
from service.notifier import listen
from service.queue import WAKE_CHANNEL

MAX_BACKOFF_S: Final = 2.0
DRAINING: Final = "draining"
WAKE: Final = "wake"

log = get_logger("arq")


class Worker(arq.worker.Worker):
    """arq's worker with a guarded poll. `ctx[DRAINING]` and `ctx[WAKE]` are events for our own jobs."""

    _failures = 0

    async def main(self) -> None:
        self.ctx[DRAINING] = asyncio.Event()
        self.ctx[WAKE] = _wake
        self.ctx["worker"] = self
        await self._until_redis_answers()
        # owned here: it ends with the poll loop
        listener = self.loop.create_task(listen(self.pool, WAKE_CHANNEL, lambda _: _wake.set()))
        try:
            await super().main()
        finally:
            listener.cancel()

    async def _until_redis_answers(self) -> None:
        """arq would exit at once; a worker that starts before its Redis waits for it instead."""
        while True:
            try:
                await self.pool.ping()
            except (RedisError, OSError, TimeoutError) as error:
                await self._back_off(error)
            else:
                self._failures = 0
                return

    async def _poll_iteration(self) -> None:
        self._reap()
        try:
            await super()._poll_iteration()
        except (RedisError, OSError, TimeoutError) as error:
            await self._back_off(error)
            self._count_slots_anew()
        else:
            self._failures = 0

    def _reap(self) -> None:
        """Take finished tasks away before arq does: its `t.result()` would end the worker with a job's error."""
        for job_id, task in list(self.tasks.items()):
            if task.done():
                del self.tasks[job_id]
                if not task.cancelled() and (error := task.exception()):
                    log.warning("worker.task_failed", job_id=job_id, error=type(error).__name__)

    async def _back_off(self, error: Exception) -> None:
        self._failures += 1
        log.warning("worker.poll_failed", error=type(error).__name__, failures=self._failures)
        await asyncio.sleep(min(MAX_BACKOFF_S, 0.05 * 2 ** min(self._failures, 6)))

    def _count_slots_anew(self) -> None:
        """`start_jobs` takes a slot before it asks Redis, and keeps it when Redis raises."""
        running = sum(not task.done() for task in self.tasks.values())
        self.job_counter = running
        self.sem = asyncio.BoundedSemaphore(self.max_jobs + 1)
        self.sem._value -= running

    def handle_sig_wait_for_completion(self, signum: Signals) -> None:
        if not self.allow_pick_jobs:
            return  # the second signal of an impatient supervisor changes nothing
        log.info("worker.draining", signal=signum.name)
        if DRAINING in self.ctx:
            self.ctx[DRAINING].set()
        super().handle_sig_wait_for_completion(signum)
        _wake.set()


_wake = asyncio.Event()


async def poll(step: float = 0.5) -> AsyncGenerator[float, None]:
    """In place of arq's fixed sleep: the next look comes with a wake-up, and after `step` seconds at the latest."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    while True:
        yield loop.time() - start
        try:
            async with asyncio.timeout(step):
                await _wake.wait()
        except TimeoutError:
            continue
        finally:
            _wake.clear()


def install() -> None:
    """Make the arq CLI run this worker."""
    namespace: Any = arq.worker
    namespace.Worker = Worker
    namespace.poll = poll
