"""`hitl purge`: what is over for longer than it is kept goes whole; nothing else goes, and the rest still verifies."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from service.commands.approvals import Question, ask, decide
from service.commands.context import Services
from service.commands.purge import purge, purge_by_policy
from service.commands.tenants import set_limits
from service.domain.approval import Order
from service.domain.file import StoredFile, location_of
from service.domain.ids import uuid7
from service.domain.tenant import Tenant
from service.embedded import Servers
from service.filestore import FolderStore, Missing
from service.runtime import Runtime
from service.store import audit, files
from service.store.database import EVERY
from service.store.purge import Kept
from tests.acting import begin, sql, worker
from tests.conftest import ASK_ALWAYS, DEV, base_env, echo

HITL = Path(sys.executable).parent / "hitl"


async def over(runtime: Runtime, days: float) -> UUID:
    """A run that was completed so many days ago."""
    run_id = await begin(runtime, echo())
    assert await worker(runtime).advance(run_id) == "completed"
    await sql(runtime, "update runs set finished_at = now() - $2 * interval '1 day' where id = $1", run_id, days)
    return run_id


async def left(runtime: Runtime) -> set[UUID]:
    async with runtime.services.db.connection(EVERY) as conn:
        return {row["id"] for row in await conn.fetch("select id from runs")}


async def with_file(services: Services, run_id: UUID) -> str:
    content, file_id = b"a picture", uuid7()

    async def pieces() -> AsyncIterator[bytes]:
        yield content

    await services.files.put(location_of(file_id), pieces())
    stored = StoredFile(
        file_id, "default", run_id, "a.png", "image/png", len(content), sha256(content).hexdigest(),
        location_of(file_id), services.db.now(),
    )  # fmt: skip
    async with services.db.transaction(EVERY) as conn:
        await files.insert(conn, [stored])
    return stored.location


async def test_what_is_over_for_longer_goes_whole_and_the_rest_verifies(empty: Runtime, tmp_path: Path) -> None:
    services = replace(empty.services, files=FolderStore(tmp_path))
    old, young = await over(empty, 31), await over(empty, 29)
    waiting = await begin(empty, echo(), ASK_ALWAYS)
    await worker(empty).advance(waiting)
    await sql(empty, "update runs set created_at = now() - interval '900 days' where id = $1", waiting)
    gone, stays = await with_file(services, old), await with_file(services, young)

    assert await purge(services, Kept("default", 30)) == {"runs": 1, "files": 1, "questions": 0}

    assert await left(empty) == {young, waiting}
    for table in ("events", "run_documents", "steps", "files", "provider_calls"):
        assert not await sql(empty, f"select count(*) from {table} where run_id = $1", old)
    assert [piece async for piece in await services.files.open(stays, 0, 9)] == [b"a picture"]
    with pytest.raises(Missing):
        await services.files.open(gone, 0, 9)
    async with services.db.reading(EVERY) as conn:
        chains = [(head.seq, len(found)) async for head, found in audit.chains(conn, tenant=None, run_id=None)]
    assert len(chains) == 2 and all(seq == length for seq, length in chains)
    assert await purge(services, Kept("default", 30)) == {"runs": 0, "files": 0, "questions": 0}


async def test_more_than_a_batch_goes_and_two_at_once_remove_each_once(
    empty: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.commands.purge.BATCH", 3)
    for _ in range(8):
        await over(empty, 10)
    done = await asyncio.gather(*(purge(empty.services, Kept("default", 5)) for _ in range(2)))
    rest = await purge(empty.services, Kept("default", 5))
    assert sum(each["runs"] for each in (*done, rest)) == 8
    assert await left(empty) == set()


async def test_a_run_that_is_taken_up_again_meanwhile_stays(empty: Runtime) -> None:
    run_id = await over(empty, 10)
    await sql(empty, "update runs set status = 'queued' where id = $1", run_id)
    assert (await purge(empty.services, Kept("default", 5)))["runs"] == 0
    assert await left(empty) == {run_id}


async def test_decided_questions_of_programs_go_and_open_ones_stay(empty: Runtime) -> None:
    questions = [await ask(empty.services, Question("deploy", f"May it go, {n}?", {}), DEV) for n in range(3)]
    for asked, _ in questions[:2]:
        await decide(empty.services, asked.id, Order("approve"), DEV)
    await sql(empty, "update approvals set decided_at = now() - interval '9 days' where id = $1", questions[0][0].id)

    assert (await purge(empty.services, Kept("default", 8)))["questions"] == 1

    assert await sql(empty, "select count(*) from approvals") == 2


async def test_each_tenant_has_its_own_policy_and_none_keeps_for_ever(empty: Runtime) -> None:
    await sql(empty, "delete from tenants")
    kept, short = await over(empty, 400), await over(empty, 400)
    await sql(empty, "update runs set tenant = 'short' where id = $1", short)
    await set_limits(empty.services.db, Tenant("short", retention_days=30), {"retention_days"})

    await sql(empty, "delete from chores")
    assert await purge_by_policy(empty.services)

    assert await left(empty) == {kept}
    await sql(empty, "delete from tenants")


async def test_one_worker_of_all_has_the_turn_once_an_hour(empty: Runtime) -> None:
    await sql(empty, "delete from chores")

    async def turns() -> int:
        return sum(await asyncio.gather(*(purge_by_policy(empty.services) for _ in range(8))))

    assert await turns() == 1
    assert await turns() == 0
    await sql(empty, "update chores set due_at = now() where name = 'purge'")
    assert await turns() == 1


async def test_whatever_goes_with_a_run_is_found_by_an_index(empty: Runtime) -> None:
    """A foreign key that cascades without one reads the whole table for each run that goes."""
    found = await sql(
        empty,
        """
        select string_agg(conrelid::regclass::text, ' ') from pg_constraint c
        where contype = 'f' and confdeltype = 'c' and confrelid in ('runs'::regclass, 'approvals'::regclass)
          and not exists (select from pg_index i where i.indrelid = c.conrelid and i.indkey[0] = c.conkey[1])
        """,
    )
    assert found is None


async def test_the_command_counts_first_and_then_removes(empty: Runtime, servers: Servers) -> None:
    for days in (3, 40, 50):
        await over(empty, days)
    urls = {"DATABASE_URL": str(empty.settings.database_url), "REDIS_URL": str(empty.settings.redis_url)}
    env = base_env(servers, **urls)

    async def hitl(*arguments: str) -> Any:
        done = await asyncio.to_thread(
            subprocess.run, [HITL, "purge", "--json", *arguments], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    expected = [{"id": "default", "tenant": "default", "days": 30, "runs": 2, "files": 0, "questions": 0}]
    assert await hitl("--older-than", "30", "--dry-run") == expected
    assert len(await left(empty)) == 3
    assert await hitl("--older-than", "30") == expected
    assert len(await left(empty)) == 1
    assert await hitl() == [], "nobody has a policy"
