"""Playing the worker: begin runs on a Runtime that nobody works on, advance them, look at what is left."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from service.commands.context import Services
from service.commands.runs import StartRun, start_run
from service.domain.plan import Documents
from service.domain.policy import HitlConfig
from service.domain.run import Run
from service.orchestrator import HITLOrchestrator
from service.runtime import Runtime
from service.store import events, runs
from service.store.database import EVERY
from tests.conftest import DEADLINE_S, DEV, behind

AUTO = HitlConfig(policy="auto")


async def within(event: asyncio.Event) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await event.wait()


def worker(runtime: Runtime, name: str = "w1", *, services: Services | None = None) -> HITLOrchestrator:
    return HITLOrchestrator(services or runtime.services, worker_id=name, lease_s=30)


async def begin(
    runtime: Runtime,
    tool: Mapping[str, Any],
    config: HitlConfig = AUTO,
    *,
    services: Services | None = None,
    prompt: str = "a red fox",
    **order: Any,
) -> UUID:
    """Start a run through the use case, as a web process would."""
    run_input = {"prompt": prompt, "agent_tool_config": tool}
    started = await start_run(services or runtime.services, StartRun(run_input, config, **order), DEV)
    return started.run_id


async def look(runtime: Runtime, run_id: UUID) -> Run:
    async with runtime.services.db.connection(EVERY) as conn:
        run = await runs.find(conn, run_id)
        assert run is not None
        return replace(run, error=await runs.error_of(conn, run))


async def docs_of(runtime: Runtime, run_id: UUID) -> Documents:
    """The run's documents, opened."""
    async with runtime.services.db.connection(EVERY) as conn:
        return await runs.documents(conn, run_id)


async def story(runtime: Runtime, run_id: UUID) -> list[str]:
    """The types of the run's events, in order."""
    async with runtime.services.db.connection(EVERY) as conn:
        return [event.type for event in await events.after(conn, "default", run_id, 0, limit=1000)]


async def sql(runtime: Runtime, statement: str, *args: Any) -> Any:
    """Change or read the database behind the service's back."""
    async with behind(runtime.services.db) as conn:
        return await conn.fetchval(statement, *args)


async def becomes(runtime: Runtime, run_id: UUID, *statuses: str) -> Run:
    """The run once it has one of the statuses; fails at the deadline."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        run = await look(runtime, run_id)
        if run.status in statuses:
            return run
        await asyncio.sleep(0.02)
    raise AssertionError(f"the run is still {run.status} at {run.step}: {run.error}")
