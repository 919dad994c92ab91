"""The rows that a release leaves behind: `python -m tests.state v1` writes those of this release's code.

A fixture is made once, when its release is; tests/test_upgrades.py lets every later release take the runs on.
"""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import asyncpg
import orjson

from service import logs
from service.commands.approvals import Question, ask, decide, expire
from service.commands.runs import Idempotency, cancel_run, pause_run
from service.domain.approval import Order
from service.domain.policy import HitlConfig, Reviewers
from service.domain.principal import Principal
from service.domain.run import STATE_VERSION
from service.embedded import lease
from service.orchestrator import LEASE_LOST
from service.runtime import Runtime, open_runtime
from service.settings import Settings
from service.store import approvals, content, runs
from service.store.database import EVERY
from service.store.migrate import migrate, migrations
from tests.acting import begin, sql, worker
from tests.conftest import DEV, Provider, echo, eventually, http_tool

FOLDER: Final = Path(__file__).parent / "fixtures" / "state"
SECRET: Final = "the secret key of every state fixture"
PLACE: Final = "http://provider.invalid/predict"
TABLES: Final = (
    "runs", "run_documents", "steps", "approvals", "decisions", "provider_calls", "events", "idempotency_keys",
    "content_keys",
)  # fmt: skip
SHIFTED: Final = {
    "runs": ("due_at", "lease_until", "deadline_at"),
    "approvals": ("expires_at", "remind_at", "claimed_until"),
    "provider_calls": ("deadline_at",),
}
YEAR: Final = 366 * 86_400
FIRST: Final = Principal("first", "default", "reviewer")
SECOND: Final = Principal("second", "default", "reviewer")


def settings(database_url: str, redis_url: str) -> Settings:
    return Settings(database_url=database_url, redis_url=redis_url, hitl_secret_key=SECRET, _env_file=None)


# ---- making


async def open_of(runtime: Runtime, run_id: UUID) -> UUID:
    async with runtime.services.db.connection(EVERY) as conn:
        return (await approvals.open_of_run(conn, run_id))[0].id


async def make(runtime: Runtime, provider: Provider) -> None:
    """Runs in every status, at every place where a run may stand."""
    services, hand = runtime.services, worker(runtime)
    asks = {"policy": "require_human", "timeout_seconds": YEAR}

    def tool(**config: Any) -> dict[str, Any]:
        return http_tool(provider.url, headers={"Authorization": "Bearer sealed"}, **config)

    async def advanced(config: HitlConfig, *script: Any, outcome: str, tool_: Any = None, **order: Any) -> UUID:
        provider.script = list(script)
        run_id = await begin(runtime, tool_ or tool(), config, **order)
        assert await hand.advance(run_id) == outcome
        return run_id

    auto = HitlConfig(policy="auto", timeout_seconds=YEAR)
    await begin(runtime, tool(), auto, session_id="s1", user_id="u1", idempotency=Idempotency("k1", "a hash"))
    for _ in range(2):
        await begin(runtime, tool(), auto, session_id="line", on_active_run="queue")
    for step in ("information_review", "payload_review", "response_review"):
        await advanced(HitlConfig(**asks, allowed_steps=[step]), outcome="awaiting_human")
    two = HitlConfig(**asks, reviewers=Reviewers(quorum=2), remind_after_seconds=YEAR / 2)
    voted = await advanced(two, outcome="awaiting_human")
    edit = Order("edit", {"prompt": "a blue fox"}, payload_sha256=None)
    await decide(services, await open_of(runtime, voted), edit, FIRST)
    await advanced(auto, (422, {"errors": [{"field": "num_outputs", "message": "x"}]}), outcome="awaiting_human")
    await advanced(auto, "hang", outcome="awaiting_human", tool_=tool(timeout_seconds=0.3))
    await advanced(auto, (202, {}), outcome="awaiting_provider")
    await advanced(auto, (503, {}), outcome="retry_later")
    paused = await advanced(HitlConfig(**asks), outcome="awaiting_human")
    await pause_run(services, paused, DEV)
    await pause_run(services, await begin(runtime, tool(), auto), DEV)
    await advanced(auto, (400, {}), outcome="failed")
    exhausted = await advanced(auto, (503, {}), outcome="retry_later")
    for _ in range(4):
        provider.script = [(503, {})]
        await sql(runtime, "update runs set due_at = now() where id = $1", exhausted)
        await hand.advance(exhausted)
    await advanced(auto, outcome="completed")
    await advanced(auto, outcome="completed", tool_=echo(cost_usd=0.25, quality=0.9))
    rejected = await advanced(HitlConfig(**asks), outcome="awaiting_human")
    await decide(services, await open_of(runtime, rejected), Order("reject", reason="no"), DEV)
    silent = await advanced(HitlConfig(**asks), outcome="awaiting_human")
    await sql(runtime, "update approvals set expires_at = now() where run_id = $1", silent)
    await expire(services, await open_of(runtime, silent))
    await cancel_run(services, await begin(runtime, tool(), auto), DEV, reason="changed my mind")
    await ask(services, Question("deploy", "Shall we?", {"payload": {"n": 1}}, timeout_s=YEAR), DEV)
    await vanish_in_call(runtime, provider, tool(), auto)
    claimed = await begin(runtime, tool(), auto)
    async with services.db.connection(EVERY) as conn:
        assert await runs.claim(conn, claimed, worker_id="gone", lease_s=30)


async def vanish_in_call(runtime: Runtime, provider: Provider, tool: Any, config: HitlConfig) -> None:
    """A run whose worker died between the intent and the answer."""
    provider.script = ["hang"]
    before = len(provider.seen)
    run_id = await begin(runtime, tool, config)
    task = asyncio.create_task(worker(runtime, "gone").advance(run_id))

    async def sent() -> bool:
        return len(provider.seen) > before

    await eventually(sent, "the request")
    task.cancel(LEASE_LOST)
    assert await task == "lease_lost"


async def dump(url: str, provider_url: str) -> bytes:
    conn = await asyncpg.connect(url)
    rows = {
        table: [orjson.loads(row[0]) for row in await conn.fetch(f"select row_to_json(t)::text from {table} t")]
        for table in TABLES
    }
    whole = {
        "state_version": STATE_VERSION,
        "migrated": migrations()[-1].version,
        "dumped_at": await conn.fetchval("select now()"),
        "tables": rows,
    }
    await conn.close()
    return orjson.dumps(whole).replace(provider_url.encode(), PLACE.encode()).replace(b"},{", b"},\n{") + b"\n"


async def main(name: str) -> None:
    logs.configure(process="cli", level="ERROR")
    provider = Provider()
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    provider.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/predict"
    with tempfile.TemporaryDirectory() as folder, lease(Path(folder) / "data") as servers:
        await migrate(servers.database_url)
        async with open_runtime(settings(servers.database_url, servers.redis_url), process="test") as runtime:
            await make(runtime, provider)
            await relocate(runtime, provider.url, PLACE)
        (FOLDER / f"{name}.json").write_bytes(await dump(servers.database_url, provider.url))
    server.close()


# ---- reading


def text(fixture: Path) -> bytes:
    return fixture.read_bytes()


def head(fixture: Path) -> dict[str, Any]:
    """`{state_version, migrated, dumped_at}` of the release that wrote it."""
    whole: dict[str, Any] = orjson.loads(fixture.read_bytes())
    del whole["tables"]
    return whole


async def load(conn: "asyncpg.Connection[asyncpg.Record]", raw: bytes, provider_url: str) -> None:
    """Put a fixture's rows into a database that was migrated as far as their release was.

    Moments that are still to come are as far off as they were.
    """
    whole = orjson.loads(raw.replace(PLACE.encode(), provider_url.encode()))
    for table in TABLES:
        for row in whole["tables"].get(table, ()):  # an earlier release had fewer
            columns = ", ".join(f'"{name}"' for name in row)
            one = orjson.dumps(row).decode()
            select = f"select {columns} from json_populate_record(null::{table}, $1::text::json)"
            await conn.execute(f"insert into {table} ({columns}) {select}", one)
    for table, moments in SHIFTED.items():
        changes = ", ".join(f"{name} = {name} + (now() - $1::text::timestamptz)" for name in moments)
        await conn.execute(f"update {table} set {changes}", whole["dumped_at"])


async def relocate(runtime: Runtime, here: str, there: str) -> None:
    """Put one address of the provider for another where it is sealed, in a tool's config."""
    async with runtime.services.db.transaction(EVERY) as conn:
        for row in await conn.fetch("select run_id from run_documents join content_keys on subject = run_id"):
            docs, pen = await runs.documents(conn, row["run_id"]), await content.pen(conn, row["run_id"])
            asked = {"run_input": docs.run_input, "tool_config": docs.tool_config}
            moved = orjson.loads(orjson.dumps(asked).replace(here.encode(), there.encode()))
            sealed = pen.seal("run_documents.run_input", **moved)
            await conn.execute("update run_documents set run_input = $2 where run_id = $1", row["run_id"], sealed)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
