"""What forgetting costs whoever works meanwhile: `python -m bench.retention [EVENTS]`, five million by default.

A run is taken through its three checkpoints, then copied by SQL until there are so many events, finished evenly over
100 days. Those over for more than 95 days are removed by `hitl purge`, those for more than 90 by what a worker does
every hour, each in a process of its own, while this one starts runs and decides their approvals. Embedded Postgres and
Valkey in a temporary folder.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.waiting import TOOL, environment
from service import logs
from service.commands.approvals import decide
from service.commands.purge import purge_by_policy
from service.commands.runs import StartRun, start_run
from service.commands.tenants import set_limits
from service.domain.approval import Order
from service.domain.policy import HitlConfig
from service.domain.principal import Principal
from service.domain.tenant import Tenant
from service.embedded import Servers, lease
from service.orchestrator import HITLOrchestrator
from service.runtime import Runtime, open_runtime
from service.settings import Settings, load_settings
from service.store.database import EVERY
from service.store.migrate import migrate

EVENTS = 5_000_000
DAYS, COMMAND_DAYS, KEPT_DAYS = 100, 95, 90
CALM_S, PAUSE_S = 30.0, 0.05
HITL = Path(sys.executable).parent / "hitl"
DEV = Principal("dev", "default", "admin")
APPROVE = Order("approve")
ASK = HitlConfig(policy="require_human")
ONE_STOP = HitlConfig(policy="require_human", allowed_steps=["payload_review"])

# each run once more, with all that belongs to it; its chain is not hashed anew, a purge does not look at it
COPY = """
with copies as (
    insert into runs select x.* from runs r, generate_series(1, $2::int) g,
        lateral jsonb_populate_record(r, jsonb_build_object('g', g, 'id', gen_random_uuid(), 'finished_at',
            now() - random() * $3::float8 * interval '1 day', 'created_at', now() - interval '100 days')) x
    where r.id = $1 returning id),
documents as (
    insert into run_documents select x.* from run_documents d, copies c,
        lateral jsonb_populate_record(d, jsonb_build_object('run_id', c.id)) x where d.run_id = $1),
stepped as (
    insert into steps select x.* from steps s, copies c,
        lateral jsonb_populate_record(s, jsonb_build_object('run_id', c.id)) x where s.run_id = $1),
called as (
    insert into provider_calls select x.* from provider_calls p, copies c,
        lateral jsonb_populate_record(p, jsonb_build_object('run_id', c.id, 'idempotency_key', c.id::text)) x
    where p.run_id = $1),
asked as (
    insert into approvals select x.* from approvals a, copies c,
        lateral jsonb_populate_record(a, jsonb_build_object('id', gen_random_uuid(), 'run_id', c.id)) x
    where a.run_id = $1 returning id),
decided as (
    insert into decisions select x.* from decisions d, asked a,
        lateral jsonb_populate_record(d, jsonb_build_object('approval_id', a.id)) x
    where d.approval_id = (select id from approvals where run_id = $1 limit 1))
insert into events select x.* from events e, copies c,
    lateral jsonb_populate_record(e, jsonb_build_object('run_id', c.id)) x where e.run_id = $1
"""
SIZES = """
select relname, pg_total_relation_size(oid) as bytes from pg_class
where relkind = 'r' and relnamespace = 'public'::regnamespace order by 2 desc limit 6
"""


@dataclass
class Probe:
    """How long the two things took that people wait for, in milliseconds."""

    starts: list[float] = field(default_factory=list)
    decisions: list[float] = field(default_factory=list)

    def show(self, what: str) -> None:
        say(f"{what}: a start", spread(self.starts))
        say(f"{what}: a decision", spread(self.decisions))


def spread(took_ms: list[float]) -> str:
    found = sorted(took_ms)
    p95 = found[int(0.95 * (len(found) - 1))]
    return f"p50 {statistics.median(found):7.1f}  p95 {p95:7.1f}  max {found[-1]:7.1f} ms  ({len(found)})"


def say(what: str, found: str) -> None:
    sys.stdout.write(f"{what:<44} {found}\n")
    sys.stdout.flush()


async def reviewed(runtime: Runtime, hand: HITLOrchestrator, config: HitlConfig, probe: Probe) -> Any:
    """A run from its start through each of its checkpoints to its end; its id."""
    order = StartRun({"prompt": "a red fox", "agent_tool_config": TOOL}, config)
    began = time.perf_counter()
    run_id = (await start_run(runtime.services, order, DEV)).run_id
    probe.starts.append((time.perf_counter() - began) * 1000)
    while await hand.advance(run_id) == "awaiting_human":
        async with runtime.services.db.connection(EVERY) as conn:
            open_one = await conn.fetchval("select id from approvals where run_id = $1 and status = 'pending'", run_id)
        began = time.perf_counter()
        await decide(runtime.services, open_one, APPROVE, DEV)
        probe.decisions.append((time.perf_counter() - began) * 1000)
    return run_id


@asynccontextmanager
async def probing(runtime: Runtime, hand: HITLOrchestrator) -> AsyncIterator[Probe]:
    """Runs that start and are decided, one after another with a pause between, as long as the body lasts."""
    probe, over = Probe(), asyncio.Event()

    async def go() -> None:
        while not over.is_set():
            await reviewed(runtime, hand, ONE_STOP, probe)
            await asyncio.sleep(PAUSE_S)

    async with asyncio.TaskGroup() as group:
        group.create_task(go())
        try:
            yield probe
        finally:
            over.set()


async def fill(runtime: Runtime, hand: HITLOrchestrator, events: int) -> None:
    model = await reviewed(runtime, hand, ASK, Probe())
    began = time.perf_counter()
    async with runtime.services.db.connection(EVERY) as conn:
        each = await conn.fetchval("select count(*) from events where run_id = $1", model)
        await conn.execute("set session_replication_role = replica")  # no look for the parent of what is copied with it
        await conn.execute("set synchronous_commit = off")
        left = events // each
        while left > 0:
            await conn.execute(COPY, model, min(left, 5000), float(DAYS), timeout=600)
            left -= 5000
        await conn.execute("reset all", timeout=600)
        await conn.execute("vacuum (analyze)", timeout=1800)
    found = f"{events // each} runs of {each} events in {time.perf_counter() - began:.0f} s"
    say("filled with", found)


async def sizes(runtime: Runtime, when: str) -> None:
    async with runtime.services.db.connection(EVERY) as conn:
        rows = await conn.fetch(SIZES)
        whole = await conn.fetchval("select pg_database_size(current_database())")
    parts = ", ".join(f"{row['relname']} {row['bytes'] / 2**20:.0f}" for row in rows)
    say(f"{when}: MiB", f"{whole / 2**20:.0f} in all ({parts})")


async def purged(servers: Servers, *command: str | Path) -> str:
    """A purge by a process of its own; what it printed."""
    child = await asyncio.create_subprocess_exec(
        *command,
        env=environment(servers, 0),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    told, _ = await child.communicate()
    assert child.returncode == 0, told
    return told.decode()


async def left(runtime: Runtime) -> tuple[int, int]:
    """`(runs, events)`."""
    async with runtime.services.db.connection(EVERY) as conn:
        row = await conn.fetchrow("select (select count(*) from runs), (select count(*) from events)", timeout=600)
    assert row is not None
    return row[0], row[1]


async def watch(runtime: Runtime, hand: HITLOrchestrator, servers: Servers, what: str, *command: str | Path) -> None:
    """A calm time, a purge, and how long starts and decisions took in both."""
    async with probing(runtime, hand) as calm:
        await asyncio.sleep(CALM_S)
    before = await left(runtime)
    async with probing(runtime, hand) as busy:
        began = time.perf_counter()
        await purged(servers, *command)
        took_s = time.perf_counter() - began
    after = await left(runtime)
    say(what, f"{before[0] - after[0] + len(busy.starts)} runs, {before[1] - after[1]} events net, {took_s:.1f} s")
    calm.show("  before it")
    busy.show("  during it")


async def measure(servers: Servers, events: int) -> None:
    logs.configure(process="cli", level="ERROR")
    await migrate(servers.database_url)
    settings = Settings(
        database_url=servers.database_url,
        redis_url=servers.redis_url,
        hitl_secret_key=servers.secret_key,
        _env_file=None,
    )
    async with open_runtime(settings, process="bench") as runtime:
        hand = HITLOrchestrator(runtime.services, worker_id="bench", lease_s=30)
        await fill(runtime, hand, events)
        await sizes(runtime, "filled")
        await watch(runtime, hand, servers, f"hitl purge --older-than {COMMAND_DAYS}", *by_command())
        await set_limits(runtime.services.db, Tenant("default", retention_days=KEPT_DAYS), {"retention_days"})
        await watch(runtime, hand, servers, f"the workers' own, kept {KEPT_DAYS} days", *by_policy())
        await sizes(runtime, "purged")
        async with runtime.services.db.connection(EVERY) as conn:
            await conn.execute("vacuum (analyze)", timeout=1800)
        await fill(runtime, hand, events // (DAYS // (DAYS - KEPT_DAYS)))
        await sizes(runtime, "filled again with as much")


def by_command() -> tuple[str | Path, ...]:
    return HITL, "purge", "--older-than", str(COMMAND_DAYS), "--json"


def by_policy() -> tuple[str | Path, ...]:
    return sys.executable, "-m", "bench.retention", "--turn"


async def turn() -> None:
    """What a worker does when it is its turn."""
    async with open_runtime(load_settings(), process="bench") as runtime:
        assert await purge_by_policy(runtime.services)


def main() -> None:
    if sys.argv[1:] == ["--turn"]:
        asyncio.run(turn())
        return
    events = int(sys.argv[1]) if len(sys.argv) > 1 else EVENTS
    with tempfile.TemporaryDirectory(prefix="hitl-bench-") as folder, lease(Path(folder) / "data") as servers:
        sys.stdout.write(f"{os.cpu_count()} cores, embedded Postgres and Valkey, load {os.getloadavg()[0]:.1f}\n\n")
        asyncio.run(measure(servers, events))


if __name__ == "__main__":
    main()
