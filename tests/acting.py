"""Playing the worker: begin runs on a Runtime that nobody works on, advance them, look at what is left."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from service.commands.context import Services
from service.commands.runs import StartRun, start_run
from service.domain.policy import HitlConfig
from service.domain.run import Run
from service.orchestrator import HITLOrchestrator
from service.runtime import Runtime
from service.store import events, runs
from tests.conftest import DEADLINE_S, DEV, Provider, Seen, _response

AUTO = HitlConfig(policy="auto")


@dataclass
class Gated(Provider):
    """A provider that takes the request and answers once `opened` is set."""

    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.seen.append(Seen(head[0].split(" ")[1], headers, body))
            key = headers["idempotency-key"]
            self.effects[key] = self.effects.get(key, 0) + 1
            self.arrived.set()
            gone = asyncio.create_task(reader.read())
            opened = asyncio.create_task(self.opened.wait())
            await asyncio.wait([gone, opened], return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                self.hung_up.set()
                opened.cancel()
                return
            gone.cancel()
            writer.write(_response(*(self.script.pop(0) if self.script else (200, {"ok": True}))))
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.hung_up.set()
        finally:
            writer.close()


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
    **order: Any,
) -> UUID:
    """Start a run through the use case, as a web process would."""
    run_input = {"prompt": "a red fox", "agent_tool_config": tool}
    started = await start_run(services or runtime.services, StartRun(run_input, config, **order), DEV)
    return started.run_id


async def look(runtime: Runtime, run_id: UUID) -> Run:
    async with runtime.services.db.connection() as conn:
        run = await runs.find(conn, run_id)
    assert run is not None
    return run


async def story(runtime: Runtime, run_id: UUID) -> list[str]:
    """The types of the run's events, in order."""
    async with runtime.services.db.connection() as conn:
        return [event.type for event in await events.after(conn, "default", run_id, 0, limit=1000)]


async def sql(runtime: Runtime, statement: str, *args: Any) -> Any:
    """Change or read the database behind the service's back."""
    async with runtime.services.db.connection() as conn:
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
