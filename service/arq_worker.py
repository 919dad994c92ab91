"""Floor 7: what arq 0.28's worker lacks for runs that last: it outlives Redis, wakes at once, and drains.

`install` puts both pieces where the arq CLI looks them up, as globals of `arq.worker`. The internals that
this leans on are pinned by tests/test_arq_pins.py, arq itself by its exact version.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import wraps
from signal import Signals
from typing import Any, Final

import arq.worker
from arq.constants import job_key_prefix
from redis.exceptions import RedisError, ResponseError

from service.logs import get_logger
from service.notifier import listen
from service.queue import WAKE_CHANNEL, remove, unreadable

MAX_BACKOFF_S: Final = 2.0
DRAINING: Final = "draining"
WAKE: Final = "wake"
BURY: Final = "bury"

log = get_logger("arq")


class Worker(arq.worker.Worker):
    """arq's worker with a guarded poll. `ctx[DRAINING]` and `ctx[WAKE]` are events for our own jobs.

    A job that cannot be read or run is taken out of the queue and told to `ctx[BURY]`, with its id and the cause.
    """

    _failures = 0

    async def main(self) -> None:
        self.ctx[DRAINING] = asyncio.Event()
        self.ctx[WAKE] = _wake
        self.ctx["worker"] = self
        for function in self.functions.values():
            function.coroutine = self._buried_when_it_fails(function.coroutine)
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

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        """One at a time: what arq trips over in one must not keep the others from starting."""
        for name in job_ids:
            if self.job_counter >= self.max_jobs:
                return
            try:
                await super().start_jobs([name])
            except (RedisError, OSError, TimeoutError):
                raise
            except Exception as error:
                self._count_slots_anew()
                await self._bury(name, type(error).__name__)

    async def run_job(self, job_id: str, score: int) -> None:
        cause = await self._unreadable(job_id)
        if cause is None:
            await super().run_job(job_id, score)
        else:
            await self._bury(job_id.encode(), cause)

    async def _unreadable(self, job_id: str) -> str | None:
        try:
            data = await self.pool.get(job_key_prefix + job_id)
        except ResponseError:
            return "not a job's key"
        # without data it is one whose end crossed our look: arq forgets it, the sweep wakes what is due
        return None if data is None else unreadable(data, self.functions)

    async def _bury(self, name: bytes, cause: str) -> None:
        log.error("job.buried", cause=cause)
        await remove(self.pool, name)
        if BURY in self.ctx:
            await self.ctx[BURY](name.decode("utf-8", "backslashreplace"), cause)

    def _buried_when_it_fails(self, run: Any) -> Any:
        """The job's function; its fault is listed, and arq, which would log its arguments, hears nothing of it."""

        @wraps(run)
        async def guarded(ctx: dict[Any, Any], *args: Any) -> None:
            try:
                await run(ctx, *args)
            except Exception as error:
                await self._bury(ctx["job_id"].encode(), type(error).__name__)

        return guarded

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
    """Make the arq CLI run this worker, on uvloop where there is one: arq takes the loop that it finds set.
    uvicorn, which serves the web process, looks for uvloop by itself."""
    namespace: Any = arq.worker
    namespace.Worker = Worker
    namespace.poll = poll
    with suppress(ImportError):
        import uvloop

        asyncio.set_event_loop(uvloop.new_event_loop())
