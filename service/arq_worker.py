"""Floor 7: what arq 0.28's worker lacks for runs that last: it outlives Redis, wakes at once, and drains.

arq's CLI, settings, signals, health key and loop stay; a turn at the queue and a job's course are ours: arq asks Redis
nine times for each job, we once for all that begin and end at one time. `install` puts it where the arq CLI looks, as
globals of `arq.worker`. What this leans on is pinned by tests/test_arq_pins.py, arq itself by its exact version.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import cached_property, partial
from signal import Signals
from typing import Any, Final

import arq.worker
from arq.utils import ms_to_datetime, timestamp_ms
from redis.exceptions import RedisError

from service.logs import get_logger
from service.notifier import listen
from service.signals import WAKE_CHANNEL
from service.taking import Taken, Turnstile, UnreadableJob, read

MAX_BACKOFF_S: Final = 2.0
DRAINING: Final = "draining"
BURY: Final = "bury"

log = get_logger("arq")


class Worker(arq.worker.Worker):
    """arq's worker with turns of its own. `ctx[DRAINING]` is an event for our own jobs.

    A job that cannot be read or run is taken out of the queue and told to `ctx[BURY]`, with its id and the cause.
    No job is tried twice: what is still due, the sweep sends again.
    """

    _failures = 0
    _turning = False

    @cached_property
    def _here(self) -> dict[bytes, Taken]:
        """What runs here."""
        return {}

    @cached_property
    def _over(self) -> dict[bytes, float | None]:
        """What ended here, which Redis has not heard of; with a score what must run again."""
        return {}

    @cached_property
    def _turnstile(self) -> Turnstile:
        return Turnstile(self.pool, bound=self.queue_read_limit)

    async def main(self) -> None:
        self.ctx[DRAINING] = asyncio.Event()
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
        try:
            await self._turn()
            await self.heart_beat()
        except (RedisError, OSError, TimeoutError) as error:
            await self._back_off(error)
        else:
            self._failures = 0

    async def _turn(self) -> None:
        """Tell Redis what ended here, and begin as much as there is room for, the lowest score first."""
        room = self.max_jobs - len(self.tasks) if self.allow_pick_jobs else 0
        over = dict(self._over)
        if not room and not over:
            return
        self._turning = True
        try:
            taken = await self._turnstile.turn(over, slots=room, now_ms=timestamp_ms())
        finally:
            self._turning = False
        for name in over:
            del self._over[name]
        for job in taken:
            self._begin(job)

    def _begin(self, job: Taken) -> None:
        if job.name in self._here:  # Redis was away for longer than the mark held, and the job never stopped
            return
        self._here[job.name] = job
        task = self.tasks[_text(job.name)] = self.loop.create_task(self._run(job))
        task.add_done_callback(partial(self._end, job))

    def _end(self, job: Taken, task: asyncio.Task[bool]) -> None:
        del self._here[job.name]
        self.tasks.pop(_text(job.name), None)  # two names that are not text may look the same
        stopped = task.cancelled()
        if not stopped and (error := task.exception()):
            log.warning("worker.task_failed", job_id=_text(job.name), error=type(error).__name__)
        elif not stopped:
            stopped = not task.result()
        self._over[job.name] = job.score if stopped else None
        _wake.set()

    async def _run(self, job: Taken) -> bool:
        """Whether the job is over; one that was stopped is due again at once, for another worker."""
        try:
            await self._call(job)
        except asyncio.CancelledError:
            if (me := asyncio.current_task()) and me.cancelling():
                self.jobs_retried += 1
                return False
            await self._bury(job, "CancelledError")
        except UnreadableJob as error:
            await self._bury(job, str(error))
        except Exception as error:  # arq, which would log its arguments, hears nothing of it
            await self._bury(job, type(error).__name__)
        else:
            self.jobs_complete += 1
        return True

    async def _call(self, job: Taken) -> None:
        job_id = job.name.decode()
        if job.data is None:
            return
        order = read(job.data, self.functions)
        function = self.functions[order.function]
        at = {"job_id": job_id, "enqueue_time": ms_to_datetime(order.enqueued_ms), "score": int(job.score)}
        async with asyncio.timeout(function.timeout_s or self.job_timeout_s):
            await function.coroutine({**self.ctx, **at}, *order.arguments)

    async def _bury(self, job: Taken, cause: str) -> None:
        self.jobs_failed += 1
        log.error("job.buried", cause=cause)
        if BURY in self.ctx:
            await self.ctx[BURY](_text(job.name), cause)

    async def keep_hidden(self) -> None:
        """Say that what runs here still does, well within the minute for which that is believed."""
        if self._here:
            await self._turnstile.keep(list(self._here), now_ms=timestamp_ms())

    async def _back_off(self, error: Exception) -> None:
        self._failures += 1
        log.warning("worker.poll_failed", error=type(error).__name__, failures=self._failures)
        await asyncio.sleep(min(MAX_BACKOFF_S, 0.05 * 2 ** min(self._failures, 6)))

    def handle_sig_wait_for_completion(self, signum: Signals) -> None:
        if not self.allow_pick_jobs:
            return  # the second signal of an impatient supervisor changes nothing
        log.info("worker.draining", signal=signum.name)
        if DRAINING in self.ctx:
            self.ctx[DRAINING].set()
        super().handle_sig_wait_for_completion(signum)
        _wake.set()

    async def _sleep_until_tasks_complete(self) -> None:
        """Until nothing is under way, Redis knows it (unless it is away), and no turn brings more."""
        while self.tasks or self._turning or (self._over and not self._failures):
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """What the drain had to cut off is due again before arq lets go of Redis."""
        self.allow_pick_jobs = False
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        try:
            await self._turn()
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("worker.poll_failed", error=type(error).__name__, failures=self._failures + 1)
        await super().close()


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


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
