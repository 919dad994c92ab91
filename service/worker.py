"""Floor 7: the worker's door. Jobs unpack ids and call one function; beside them run heartbeat and sweep."""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from uuid import UUID

from redis.exceptions import RedisError
from structlog.contextvars import bound_contextvars

from service import __version__, arq_worker, faults, logs, metrics, tracing
from service.arq_worker import BURY, DRAINING
from service.commands import cancels, expiry, timers
from service.commands.anchors import anchor_all
from service.commands.erasure import rewrap
from service.commands.purge import purge_by_policy
from service.commands.stored import measure_due
from service.commands.watch import exposition
from service.delivering import deliver
from service.domain.ids import uuid7
from service.errors import HitlError, Unavailable
from service.exporter import exporting
from service.orchestrator import HITLOrchestrator
from service.queue import cause
from service.runtime import Runtime, collect_rarely, open_runtime
from service.settings import Settings, load_or_exit, load_settings, require_or_exit
from service.store import dead_jobs, runs, workers
from service.store.database import EVERY, Conn, answering
from service.taking import HIDDEN_FOR_MS

HIDE_S: Final = HIDDEN_FOR_MS / 4000
PRESENCE_LOOK_S: Final = 1.0
PURGE_LOOK_S: Final = 60.0
REWRAP_EVERY_S: Final = 3600.0
ANCHOR_LOOK_S: Final = 60.0

log = logs.get_logger("worker")


@dataclass(slots=True)
class Process:
    """What one worker process holds; arq's untyped ctx reaches no further than this."""

    runtime: Runtime
    orchestrator: HITLOrchestrator
    worker_id: str
    stack: AsyncExitStack
    background: asyncio.Task[None]


def prepared() -> Settings:
    """The settings, with what must be in place before arq makes its worker. A bad one ends the process."""
    settings = require_or_exit(load_or_exit())
    arq_worker.install()
    expected = (HitlError, RedisError, OSError)
    faults.start(settings.sentry_dsn, process="worker", version=__version__, expected=expected)
    return settings


async def advance_run(ctx: dict[str, Any], run_id: str, token: int) -> None:
    process: Process = ctx["process"]
    await _told(ctx, "advance_run", process.orchestrator.advance(UUID(run_id)), run_id=run_id)


async def _told(ctx: dict[str, Any], job: str, work: Awaitable[str], **ids: str) -> None:
    """Do the job with its ids on every line of the log, and tell of it in one."""
    started, waited_ms = time.monotonic(), _waited_ms(ctx)
    with bound_contextvars(job_id=ctx["job_id"], **ids):
        log.info("job.started", job=job, cause=cause(ctx["enqueue_time"], ctx["score"]), waited_ms=waited_ms)
        outcome = await work
        took_ms = round((time.monotonic() - started) * 1000)
        log.info("job.finished", job=job, outcome=outcome, waited_ms=waited_ms, duration_ms=took_ms)


def _waited_ms(ctx: dict[str, Any]) -> int:
    """Since the wake-up was sent, or since its moment: arq's score, which ranks what is due before that."""
    due: float = max(ctx["enqueue_time"].timestamp(), ctx["score"] / 1000)
    return max(0, round((time.time() - due) * 1000))


@tracing.traced("expire_approval", kind="consumer")
async def expire_approval(ctx: dict[str, Any], approval_id: str) -> None:
    work = expiry.expire_on_time(ctx["process"].runtime.services, UUID(approval_id))
    await _told(ctx, "expire_approval", _done(work), approval_id=approval_id)


@tracing.traced("remind_approval", kind="consumer")
async def remind_approval(ctx: dict[str, Any], approval_id: str) -> None:
    work = expiry.remind_on_time(ctx["process"].runtime.services, UUID(approval_id))
    await _told(ctx, "remind_approval", _done(work), approval_id=approval_id)


async def cancel_calls(ctx: dict[str, Any], run_id: str) -> None:
    work = cancels.cancel_due(ctx["process"].runtime.services, run_id=UUID(run_id))
    await _told(ctx, "cancel_calls", _done(work), run_id=run_id)


async def _done(work: Awaitable[bool | int]) -> str:
    try:
        return "done" if await work else "nothing_due"
    except Unavailable:
        return "database_away"  # the sweep does it when Postgres is back


JOBS: Final = (advance_run, expire_approval, remind_approval, cancel_calls)


async def on_startup(ctx: dict[str, Any]) -> None:
    settings = load_settings()
    logs.configure(process="worker", level=settings.log_level, fmt=settings.log_format)
    stack = AsyncExitStack()
    await stack.enter_async_context(faults.flushing())
    await stack.enter_async_context(
        tracing.exporting(settings.otel_exporter_otlp_endpoint, process="worker", version=__version__)
    )
    runtime = await stack.enter_async_context(open_runtime(settings, process="worker", redis=ctx["redis"]))
    worker_id = f"{socket.gethostname()}:{os.getpid()}:{uuid7().hex[-6:]}"
    orchestrator = HITLOrchestrator(runtime.services, worker_id=worker_id, lease_s=settings.hitl_lease_seconds)
    orchestrator.draining = ctx[DRAINING]
    runtime.services.notifier.on_stop(orchestrator.drop)
    ctx[BURY] = partial(_bury, runtime, worker_id)
    await stack.enter_async_context(exporting(settings, lambda: exposition(runtime.services)))
    background = asyncio.get_running_loop().create_task(_background(ctx, runtime, orchestrator, worker_id))
    ctx["process"] = Process(runtime, orchestrator, worker_id, stack, background)
    collect_rarely()
    log.info("worker.started", worker=worker_id, max_jobs=settings.hitl_max_jobs)


async def on_shutdown(ctx: dict[str, Any]) -> None:
    process: Process | None = ctx.get("process")
    if process is None:
        return
    process.background.cancel()
    await asyncio.wait([process.background], timeout=2)
    await process.orchestrator.close()
    await _unless_away(_leave(process))
    await process.stack.aclose()
    log.info("worker.stopped", worker=process.worker_id)


async def _background(ctx: dict[str, Any], runtime: Runtime, orchestrator: HITLOrchestrator, worker_id: str) -> None:
    settings, db = runtime.settings, runtime.services.db
    presence = Presence(runtime, worker_id)
    beat = Heartbeat(runtime, orchestrator, worker_id, presence)
    async with asyncio.TaskGroup() as group:
        group.create_task(_every(1, "notifier", runtime.services.notifier.run))
        group.create_task(_every(min(settings.hitl_lease_seconds / 4, 3), "heartbeat", beat.once))
        if settings.hitl_pg_pooler is None or settings.direct_database_url:
            group.create_task(_every(0.1, "presence", presence.hold))
        group.create_task(_every(settings.hitl_sweep_seconds, "sweep", lambda: _sweep(runtime)))
        # beside the sweep: a provider that is slow to answer must not hold it up
        group.create_task(_every(settings.hitl_sweep_seconds, "cancels", lambda: _cancel_due(runtime)))
        group.create_task(_every(settings.hitl_sweep_seconds, "stored", lambda: _unless_away(measure_due(db))))
        group.create_task(_every(1, "deliveries", lambda: deliver(runtime)))
        group.create_task(_every(PURGE_LOOK_S, "purge", lambda: _unless_away(purge_by_policy(runtime.services))))
        group.create_task(_every(REWRAP_EVERY_S, "rewrap", lambda: _unless_away(rewrap(runtime.services))))
        group.create_task(_every(min(ANCHOR_LOOK_S, settings.hitl_anchor_seconds), "anchor", lambda: _anchor(runtime)))
        group.create_task(_every(HIDE_S, "hide", ctx["worker"].keep_hidden))


async def _every(seconds: float, name: str, once: Callable[[], Awaitable[None]]) -> None:
    """A loop that outlives the failures of its body."""
    while True:
        try:
            await once()
        except Exception as error:
            log.warning("worker.task_failed", task=name, error=type(error).__name__)
        await asyncio.sleep(seconds)


class Presence:
    """This process's session lock, on a connection of its own beside the pool.

    When the process dies, the kernel ends the connection, and the next sweep anywhere takes its runs over
    without waiting for their leases.
    """

    def __init__(self, runtime: Runtime, worker_id: str) -> None:
        self._runtime = runtime
        self._worker_id = worker_id
        self._conn: Conn | None = None

    async def hold(self) -> None:
        """Hold the lock until the connection ends."""
        settings = self._runtime.settings
        ended = asyncio.Event()
        try:
            async with self._runtime.services.db.session(settings.direct_database_url) as conn:
                conn.add_termination_listener(lambda _: ended.set())
                await workers.hold(conn, self._worker_id, secrets.randbits(31), max_jobs=settings.hitl_max_jobs)
                self._conn = conn
                # looked at too: asyncpg does not tell its listeners of an end in the middle of a statement
                while not (ended.is_set() or conn.is_closed()):
                    with suppress(TimeoutError):
                        async with asyncio.timeout(PRESENCE_LOOK_S):
                            await ended.wait()
        except Unavailable:
            return
        finally:
            self._conn = None

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Conn]:
        """The connection, for the heartbeat alone; one of the pool where there is none. Raises `Unavailable`."""
        db = self._runtime.services.db
        if self._conn is None:
            async with db.connection(EVERY) as pooled:
                yield pooled
        else:
            with answering():
                yield self._conn


class Heartbeat:
    """Renews every lease of this process in one statement, and drops the runs whose lease is lost."""

    def __init__(
        self, runtime: Runtime, orchestrator: HITLOrchestrator, worker_id: str, presence: Presence | None = None
    ) -> None:
        self._runtime = runtime
        self._orchestrator = orchestrator
        self._worker_id = worker_id
        self._presence = presence or Presence(runtime, worker_id)
        self._renewed = time.monotonic()

    async def once(self) -> None:
        mine = self._orchestrator.leases
        lease_s = self._runtime.settings.hitl_lease_seconds
        try:
            try:  # a pool that load has exhausted must not cost a worker its leases
                kept = await self._beat(mine, self._presence.connection())
            except (Unavailable, TimeoutError):
                kept = await self._beat(mine, self._runtime.services.db.connection(EVERY))
        except (Unavailable, TimeoutError):
            if time.monotonic() - self._renewed > 0.8 * lease_s:
                self._drop(mine)
            return
        self._renewed = time.monotonic()
        self._drop([lease for lease in mine if lease not in kept])

    async def _beat(
        self, mine: list[tuple[UUID, int]], connection: AbstractAsyncContextManager[Conn]
    ) -> set[tuple[UUID, int]]:
        settings = self._runtime.settings
        lease_s = settings.hitl_lease_seconds
        # what is left of the lease: this process must give its runs up before another may take them
        left_s = self._renewed + 0.9 * lease_s - time.monotonic()
        async with asyncio.timeout(max(0.1, min(left_s, lease_s / 3))), connection as conn:
            kept = await runs.renew(conn, mine, lease_s=lease_s) if mine else set()
            await self._runtime.services.db.read_clock(conn)
            await workers.beat(conn, self._worker_id, jobs=len(mine), max_jobs=settings.hitl_max_jobs)
            return kept

    def _drop(self, lost: list[tuple[UUID, int]]) -> None:
        for run_id, token in lost:
            self._orchestrator.drop(run_id, token)


async def _sweep(runtime: Runtime) -> None:
    """One pass, and others at once while there is more than a pass takes: an outage leaves much behind."""
    more = True
    while more:
        started = time.monotonic()
        try:
            found = await timers.sweep(runtime.services)
        except Unavailable:
            return
        metrics.SWEPT_AT.set_to_current_time()
        if found.total():
            took_ms = round((time.monotonic() - started) * 1000)
            log.info("sweep.finished", duration_ms=took_ms, **{kind: count for kind, count in found.items() if count})
        more = timers.more(found)


async def _cancel_due(runtime: Runtime) -> None:
    await _unless_away(cancels.cancel_due(runtime.services))


async def _anchor(runtime: Runtime) -> None:
    await anchor_all(runtime.services, every_s=runtime.settings.hitl_anchor_seconds)


async def _leave(process: Process) -> None:
    async with process.runtime.services.db.connection(EVERY) as conn:
        await workers.leave(conn, process.worker_id)


async def _bury(runtime: Runtime, worker_id: str, job_id: str, cause: str) -> None:
    """List a job that could not be run. With Postgres away it stands in the log only."""
    name = "".join(c if c.isprintable() else "?" for c in job_id)[:200]

    async def write() -> None:
        async with runtime.services.db.transaction(EVERY) as conn:
            await dead_jobs.bury(conn, name, cause, worker_id)

    await _unless_away(write())


async def _unless_away(work: Awaitable[Any]) -> None:
    """The sweep does it when Postgres is back."""
    try:
        await work
    except Unavailable:
        return
