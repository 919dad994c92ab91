"""Upgrades: what each release left in the database is taken on to its end by today's code."""

import asyncio
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import asyncpg
import pytest

from service.commands.approvals import decide, expire
from service.commands.audit import Wanted, verify
from service.commands.callbacks import callback_url, take_callback
from service.commands.runs import resume_run
from service.commands.timers import sweep
from service.domain.approval import Order
from service.domain.event import event_hash
from service.domain.run import STATE_VERSION, RunStatus
from service.embedded import Servers
from service.runtime import Runtime, open_runtime
from service.store import approvals, events, runs
from service.store.database import EVERY
from service.store.migrate import _TABLE, _apply, migrate, migrations
from tests import state
from tests.acting import begin, look, sql, worker
from tests.conftest import ASK_ALWAYS, DEV, Provider, base_env, echo, new_database

FIXTURES = sorted(state.FOLDER.glob("*.json"))


async def as_left_by(fixture: Path, servers: Servers, provider: Provider, name: str = "upgraded") -> str:
    """A database with a release's rows, migrated to today; its URL."""
    url = await new_database(servers, f"{name}_{fixture.stem}")
    conn = await asyncpg.connect(url)
    await conn.execute(_TABLE)
    migrated = state.head(fixture)["migrated"]
    for migration in migrations():
        if migration.version <= migrated:
            await _apply(conn, migration, {})
    await state.load(conn, state.text(fixture), provider.url)
    await conn.close()
    await migrate(url)
    return url


async def push(runtime: Runtime, run_id: UUID) -> None:
    """One thing that takes this run nearer to its end."""
    services, run = runtime.services, await look(runtime, run_id)
    match run.status:
        case RunStatus.QUEUED:
            await sql(runtime, "update runs set due_at = now() where id = $1 and due_at is not null", run_id)
            await worker(runtime).advance(run_id)
        case RunStatus.RUNNING:
            await sql(runtime, "update runs set lease_until = now() - interval '1 s' where id = $1", run_id)
            await sweep(services)
        case RunStatus.AWAITING_HUMAN:
            async with services.db.connection(EVERY) as conn:
                question = (await approvals.open_of_run(conn, run_id))[0]
            edits = {"response": {"told": 1}} if question.checkpoint_type == "outcome_unknown" else None
            who = state.SECOND if question.decisions or question.reviewers.quorum > 1 else DEV
            who = state.FIRST if question.decisions and question.decisions[-1].actor == who.subject else who
            await decide(services, question.id, Order("approve", edits), who)
        case RunStatus.AWAITING_PROVIDER:
            query = parse_qs(urlsplit(callback_url(services, run.provider, run_id, run.call_no)).query)
            await take_callback(services, run_id, run.call_no, query["signature"][0], {"late": True})
        case RunStatus.PAUSED | RunStatus.FAILED:
            await resume_run(services, run_id, DEV)
        case RunStatus.COMPLETED | RunStatus.CANCELLED:
            raise AssertionError("it is over")


async def unfinished(runtime: Runtime) -> list[UUID]:
    async with runtime.services.db.connection(EVERY) as conn:
        rows = await conn.fetch(
            """
            select id from runs where status not in ('completed', 'cancelled')
              and not (status = 'failed' and error->>'recoverable' = 'false') order by created_at
            """
        )
    return [row["id"] for row in rows]


@pytest.mark.parametrize("fixture", FIXTURES, ids=[path.stem for path in FIXTURES])
async def test_what_a_release_left_is_taken_on_to_its_end(
    servers: Servers, provider: Provider, fixture: Path, tmp_path: Path
) -> None:
    url = await as_left_by(fixture, servers, provider)
    settings = state.settings(url, f"{servers.redis_url}?db=5")
    async with open_runtime(settings, process="test") as runtime:
        await state.relocate(runtime, state.PLACE, provider.url)
        begun = await unfinished(runtime)
        assert {(await look(runtime, run_id)).status for run_id in begun} == set(RunStatus) - {
            RunStatus.COMPLETED,
            RunStatus.CANCELLED,
        }
        for _ in range(20):
            for run_id in await unfinished(runtime):
                await push(runtime, run_id)
        assert await unfinished(runtime) == []
        for run_id in begun:
            run = await look(runtime, run_id)
            assert (run.status, run.state_version) == (RunStatus.COMPLETED, STATE_VERSION), run.error
        await whole(runtime)
        assert (await verify(runtime.services, Wanted(), ())).broken == []
        assert {seen.headers["authorization"] for seen in provider.seen} == {"Bearer sealed"}
    await exported(servers, url, tmp_path)


async def exported(servers: Servers, url: str, folder: Path) -> None:
    """Its record, in either form, verifies without the database, whatever these runs went through."""
    env, hitl = base_env(servers, DATABASE_URL=url, HITL_SECRET_KEY=state.SECRET), Path(sys.executable).parent / "hitl"
    for form, more in (("jsonl", ["--with-content"]), ("csv", [])):
        file = folder / form
        for arguments in (["export", "--format", form, "--out", file, *more], ["verify", file]):
            done = await asyncio.to_thread(
                subprocess.run, [hitl, "audit", *arguments], env=env, capture_output=True, text=True, check=False
            )
            assert (done.returncode, done.stderr) == (0, ""), done.stdout


async def whole(runtime: Runtime) -> None:
    """Every run's events are numbered without a gap and their hashes fit, over the upgrade."""
    async with runtime.services.db.connection(EVERY) as conn:
        for row in await conn.fetch("select id, event_seq, event_hash from runs"):
            told = await events.after(conn, "default", row["id"], 0, limit=1000)
            assert [event.seq for event in told] == list(range(1, row["event_seq"] + 1))
            assert all(event_hash(event) == event.hash for event in told)
            assert [event.prev_hash for event in told] == ["", *(event.hash for event in told[:-1])]
            assert told[-1].hash == row["event_hash"]


async def test_every_released_state_version_has_its_fixture() -> None:
    assert {state.head(path)["state_version"] for path in FIXTURES} == set(range(1, STATE_VERSION + 1))


async def test_an_older_releases_worker_leaves_what_a_newer_one_wrote_alone(empty: Runtime) -> None:
    """A rolling deploy: both are at work. The newer one's workers and sweeps take it on."""
    run_id = await begin(empty, echo())
    asking = await begin(empty, echo(), ASK_ALWAYS)
    await worker(empty).advance(asking)
    await sql(empty, "update approvals set expires_at = now()")
    held = await begin(empty, echo())
    async with empty.services.db.connection(EVERY) as conn:
        await runs.claim(conn, held, worker_id="newer", lease_s=1)
    await sql(empty, "update runs set lease_until = now() - interval '1 s' where id = $1", held)
    await sql(empty, "update runs set due_at = now() - interval '9 s' where id = $1", run_id)
    await sql(empty, "update runs set deadline_at = now() where id = $1", asking)
    await sql(empty, "update runs set state_version = $1", STATE_VERSION + 1)
    before = [await look(empty, each) for each in (run_id, asking, held)]
    await empty.redis.flushdb()
    assert await worker(empty).advance(run_id) == "nothing_due"
    found = await sweep(empty.services)
    del found["armed"]  # a hint, no more
    assert found.total() == 0
    assert not await expire(empty.services, await sql(empty, "select id from approvals"))
    assert [await look(empty, each) for each in (run_id, asking, held)] == before
    await sql(empty, "update runs set state_version = $1", STATE_VERSION)
    assert await worker(empty).advance(run_id) == "completed"


async def test_a_claim_does_not_make_a_run_older(empty: Runtime) -> None:
    run_id = await begin(empty, echo())
    assert (await look(empty, run_id)).state_version == STATE_VERSION
    await sql(empty, "update runs set state_version = 0 where id = $1", run_id)
    await worker(empty).advance(run_id)
    assert (await look(empty, run_id)).state_version == STATE_VERSION
