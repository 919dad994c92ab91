"""Floor 7: the worker's door. Jobs unpack ids and call one function; beside them run heartbeat and sweep."""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from arq.constants import in_progress_key_prefix
from redis.exceptions import RedisError
from structlog.contextvars import bound_contextvars

from service import logs
from service.arq_worker import DRAINING
from service.commands import approvals, timers
from service.commands.watch import exposition
from service.domain.ids import uuid7
from service.errors import Unavailable
from service.exporter import exporting
from service.orchestrator import HITLOrchestrator
from service.queue import QUEUE_NAME
from service.runtime import Runtime, open_runtime
from service.settings import load_settings
from service.store import runs, workers

HIDE_AFTER_S: Final = 1.0
HIDDEN_FOR_MS: Final = 60_000

log = logs.get_logger("worker")


@dataclass(slots=True)
class Process:
    """What one worker process holds; arq's untyped ctx reaches no further than this."""

    runtime: Runtime
    orchestrator: HITLOrchestrator
    worker_id: str
    stack: AsyncExitStack
    background: asyncio.Task[None]
    running: dict[str, tuple[float, int]] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)


async def advance_run(ctx: dict[str, Any], run_id: str, token: int) -> None:
    process: Process = ctx["process"]
    started = time.monotonic()
    with bound_contextvars(run_id=run_id, job_id=ctx["job_id"]):
        log.info("job.started", job="advance_run")
        outcome = await process.orchestrator.advance(UUID(run_id))
        took_ms = round((time.monotonic() - started) * 1000)
        log.info("job.finished", job="advance_run", outcome=outcome, duration_ms=took_ms)


async def expire_approval(ctx: dict[str, Any], approval_id: str) -> None:
    process: Process = ctx["process"]
    with bound_contextvars(approval_id=approval_id, job_id=ctx["job_id"]):
        await _unless_away(approvals.expire(process.runtime.services, UUID(approval_id)))


async def remind_approval(ctx: dict[str, Any], approval_id: str) -> None:
    process: Process = ctx["process"]
    with bound_contextvars(approval_id=approval_id, job_id=ctx["job_id"]):
        await _unless_away(approvals.remind(process.runtime.services, UUID(approval_id)))


JOBS: Final = (advance_run, expire_approval, remind_approval)


async def on_startup(ctx: dict[str, Any]) -> None:
    settings = load_settings()
    logs.configure(process="worker", level=settings.log_level, fmt=settings.log_format)
    stack = AsyncExitStack()
    runtime = await stack.enter_async_context(open_runtime(settings, process="worker", redis=ctx["redis"]))
    worker_id = f"{socket.gethostname()}:{os.getpid()}:{uuid7().hex[-6:]}"
    orchestrator = HITLOrchestrator(runtime.services, worker_id=worker_id, lease_s=settings.hitl_lease_seconds)
    orchestrator.draining = ctx[DRAINING]
    runtime.services.notifier.on_stop(orchestrator.drop)
    await stack.enter_async_context(exporting(settings, lambda: exposition(runtime.services)))
    background = asyncio.get_running_loop().create_task(_background(ctx, runtime, orchestrator, worker_id))
    ctx["process"] = Process(runtime, orchestrator, worker_id, stack, background)
    log.info("worker.started", worker=worker_id, max_jobs=settings.hitl_max_jobs)


async def on_shutdown(ctx: dict[str, Any]) -> None:
    process: Process | None = ctx.get("process")
    if process is None:
        return
    process.background.cancel()
    await asyncio.wait([process.background], timeout=2)
    await _unless_away(_leave(process))
    await process.stack.aclose()
    log.info("worker.stopped", worker=process.worker_id)


async def on_job_start(ctx: dict[str, Any]) -> None:
    process: Process = ctx["process"]
    process.running[ctx["job_id"]] = (time.monotonic(), ctx["score"])


async def on_job_end(ctx: dict[str, Any]) -> None:
    """Give a hidden job its score back, so that one that was cancelled is due at once. Hooks never raise."""
    process: Process = ctx["process"]
    job_id = ctx["job_id"]
    process.running.pop(job_id, None)
    if job_id in process.hidden:
        process.hidden.discard(job_id)
        try:
            await process.runtime.redis.zadd(QUEUE_NAME, {job_id: ctx["score"]}, xx=True)
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("worker.poll_failed", error=type(error).__name__)


async def after_job_end(ctx: dict[str, Any]) -> None:
    ctx["wake"].set()  # a slot is free: look at once


async def _background(ctx: dict[str, Any], runtime: Runtime, orchestrator: HITLOrchestrator, worker_id: str) -> None:
    settings = runtime.settings
    beat = Heartbeat(runtime, orchestrator, worker_id)
    async with asyncio.TaskGroup() as group:
        group.create_task(_every(1, "notifier", runtime.services.notifier.run))
        group.create_task(_every(min(settings.hitl_lease_seconds / 4, 3), "heartbeat", beat.once))
        if settings.hitl_pg_pooler is None or settings.direct_database_url:
            group.create_task(_every(0.1, "presence", lambda: _be_present(runtime, worker_id)))
        group.create_task(_every(settings.hitl_sweep_seconds, "sweep", lambda: _sweep(runtime)))
        group.create_task(_every(HIDE_AFTER_S, "hide", lambda: _hide_running(ctx["process"])))


async def _every(seconds: float, name: str, once: Callable[[], Awaitable[None]]) -> None:
    """A loop that outlives the failures of its body."""
    while True:
        try:
            await once()
        except Exception as error:
            log.warning("worker.task_failed", task=name, error=type(error).__name__)
        await asyncio.sleep(seconds)


class Heartbeat:
    """Renews every lease of this process in one statement, and drops the runs whose lease is lost."""

    def __init__(self, runtime: Runtime, orchestrator: HITLOrchestrator, worker_id: str) -> None:
        self._runtime = runtime
        self._orchestrator = orchestrator
        self._worker_id = worker_id
        self._renewed = time.monotonic()

    async def once(self) -> None:
        mine = self._orchestrator.leases
        lease_s = self._runtime.settings.hitl_lease_seconds
        # what is left of the lease: this process must give its runs up before another may take them
        left_s = self._renewed + 0.9 * lease_s - time.monotonic()
        try:
            async with (
                asyncio.timeout(max(0.1, min(left_s, lease_s / 2))),
                self._runtime.services.db.connection() as conn,
            ):
                kept = await runs.renew(conn, mine, lease_s=lease_s) if mine else set()
                await self._runtime.services.db.read_clock(conn)
                await workers.beat(conn, self._worker_id, jobs=len(mine), max_jobs=self._runtime.settings.hitl_max_jobs)
        except (Unavailable, TimeoutError):
            if time.monotonic() - self._renewed > 0.8 * lease_s:
                self._drop(mine)
            return
        self._renewed = time.monotonic()
        self._drop([lease for lease in mine if lease not in kept])

    def _drop(self, lost: list[tuple[UUID, int]]) -> None:
        for run_id, token in lost:
            self._orchestrator.drop(run_id, token)


async def _be_present(runtime: Runtime, worker_id: str) -> None:
    """Hold this process's session lock until its connection ends: when the process dies, the kernel ends it,
    and the next sweep anywhere takes its runs over without waiting for their leases."""
    ended = asyncio.Event()
    try:
        async with runtime.services.db.session(runtime.settings.direct_database_url) as conn:
            conn.add_termination_listener(lambda _: ended.set())
            await workers.hold(conn, worker_id, secrets.randbits(31), max_jobs=runtime.settings.hitl_max_jobs)
            await ended.wait()
    except Unavailable:
        return


async def _sweep(runtime: Runtime) -> None:
    try:
        found = await timers.sweep(runtime.services)
    except Unavailable:
        return
    if found.total():
        log.info("sweep.finished", **{kind: count for kind, count in found.items() if count})


async def _hide_running(process: Process) -> None:
    """Push long jobs out of every worker's poll, which would pay four round trips for each of them.

    Both marks end by themselves a minute after this process does.
    """
    now = time.monotonic()
    long_running = [job_id for job_id, (started, _) in process.running.items() if now - started > HIDE_AFTER_S]
    if not long_running:
        return
    until_ms = round(time.time() * 1000) + HIDDEN_FOR_MS
    async with process.runtime.redis.pipeline(transaction=False) as pipe:
        for job_id in long_running:
            pipe.pexpire(in_progress_key_prefix + job_id, HIDDEN_FOR_MS)
            pipe.zadd(QUEUE_NAME, {job_id: until_ms}, xx=True)
            process.hidden.add(job_id)
        await pipe.execute()


async def _leave(process: Process) -> None:
    async with process.runtime.services.db.connection() as conn:
        await workers.leave(conn, process.worker_id)


async def _unless_away(work: Awaitable[Any]) -> None:
    """The sweep does it when Postgres is back."""
    try:
        await work
    except Unavailable:
        return
