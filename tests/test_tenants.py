"""Limits of a tenant: exact under concurrency, in force within 2 s, no matter to anybody else."""

import asyncio
from collections import Counter
from typing import Any
from uuid import UUID, uuid4

import pytest

from service.commands import tenants
from service.commands.runs import Idempotency, StartRun, cancel_run, start_run
from service.commands.stored import measure_due
from service.commands.tenants import set_limits
from service.domain.policy import HitlConfig
from service.domain.principal import Principal
from service.domain.tenant import Tenant
from service.errors import HitlError, SessionBusy, TenantLimit
from service.runtime import Runtime
from service.store.database import EVERY
from tests.acting import sql
from tests.conftest import echo, eventually


async def limited(runtime: Runtime, **limits: int | None) -> Principal:
    """A principal of a new tenant with these limits, which every process has seen."""
    tenant = f"t-{uuid4().hex[:8]}"
    await set_limits(runtime.services.db, Tenant(tenant, **limits), limits)
    runtime.services.limits._read_at = float("-inf")
    return Principal("sue", tenant, "submitter")


async def one(runtime: Runtime, who: Principal, **order: Any) -> UUID | HitlError:
    run_input = {"prompt": "a red fox", "agent_tool_config": echo()}
    try:
        started = await start_run(runtime.services, StartRun(run_input, HitlConfig(policy="auto"), **order), who)
    except HitlError as refusal:
        return refusal
    return started.run_id


async def many(runtime: Runtime, who: Principal, n: int) -> list[UUID | HitlError]:
    return list(await asyncio.gather(*(one(runtime, who) for _ in range(n))))


@pytest.mark.parametrize(
    "limits", [{"starts_per_minute": 5}, {"live_runs": 5}, {"starts_per_minute": 9, "live_runs": 5}]
)
async def test_of_many_starts_at_once_exactly_as_many_as_may_are_taken(empty: Runtime, limits: dict[str, int]) -> None:
    who = await limited(empty, **limits)

    answers = await many(empty, who, 20)

    assert Counter(type(answer) for answer in answers)[TenantLimit] == 15
    assert await sql(empty, "select count(*) from runs where tenant = $1", who.tenant) == 5
    for refusal in (a for a in answers if isinstance(a, HitlError)):
        assert (refusal.status, refusal.code) == (429, "tenant_limit")
        assert refusal.retry_after_s is not None
        assert 1 <= refusal.retry_after_s <= 60


async def test_a_run_that_is_over_makes_room_for_another(empty: Runtime) -> None:
    who = await limited(empty, live_runs=1)
    first = await one(empty, who)
    assert isinstance(first, UUID)
    assert isinstance(await one(empty, who), TenantLimit)

    await cancel_run(empty.services, first, who, reason=None)

    assert isinstance(await one(empty, who), UUID)


async def test_a_minute_later_there_is_room_again_and_retry_after_says_when(empty: Runtime) -> None:
    who = await limited(empty, starts_per_minute=2)
    await many(empty, who, 2)
    move = "update runs set created_at = created_at - $2 * interval '1 second' where tenant = $1 returning true"

    await sql(empty, move, who.tenant, 40.0)
    refusal = await one(empty, who)
    assert isinstance(refusal, TenantLimit)
    assert refusal.retry_after_s is not None
    assert refusal.retry_after_s <= 20

    await sql(empty, move, who.tenant, 21.0)
    assert isinstance(await one(empty, who), UUID)


async def test_one_who_replaces_their_run_needs_no_room_and_one_who_may_not_loses_nothing(empty: Runtime) -> None:
    who = await limited(empty, live_runs=1)
    first = await one(empty, who, session_id="s")

    second = await one(empty, who, session_id="s", on_active_run="cancel_previous")
    assert isinstance(second, UUID)
    assert await sql(empty, "select status from runs where id = $1", first) == "cancelled"

    await set_limits(empty.services.db, Tenant(who.tenant, starts_per_minute=2), ["starts_per_minute"])
    empty.services.limits._read_at = float("-inf")
    assert isinstance(await one(empty, who, session_id="s", on_active_run="cancel_previous"), TenantLimit)
    assert await sql(empty, "select status from runs where id = $1", second) == "queued"
    assert isinstance(await one(empty, who, session_id="s", on_active_run="reject"), SessionBusy)


async def test_the_first_answer_again_is_no_start(empty: Runtime) -> None:
    who = await limited(empty, starts_per_minute=1, live_runs=1)
    key = Idempotency("k", "0" * 64)
    first = await one(empty, who, idempotency=key)

    assert {await one(empty, who, idempotency=key) for _ in range(3)} == {first}
    assert isinstance(await one(empty, who, idempotency=Idempotency("other", "0" * 64)), TenantLimit)
    await set_limits(empty.services.db, Tenant(who.tenant), ["starts_per_minute", "live_runs"])
    empty.services.limits._read_at = float("-inf")
    refused_before = await one(empty, who, idempotency=Idempotency("other", "0" * 64))
    assert isinstance(refused_before, UUID), "a refusal is not the key's answer"


async def test_a_limit_is_in_force_within_two_seconds_and_for_its_tenant_alone(empty: Runtime) -> None:
    who, other = await limited(empty), Principal("sue", f"t-{uuid4().hex[:8]}", "submitter")
    assert isinstance(await one(empty, who), UUID)

    await set_limits(empty.services.db, Tenant(who.tenant, live_runs=0), ["live_runs"])

    async def refused() -> bool:
        return isinstance(await one(empty, who), TenantLimit)

    await eventually(refused, "the limit")
    assert tenants.FRESH_S < 2
    assert not any(isinstance(answer, HitlError) for answer in await many(empty, other, 10))


async def test_whoever_has_no_limit_waits_for_nobodys_turn(empty: Runtime) -> None:
    who, other = await limited(empty, live_runs=9), Principal("sue", f"t-{uuid4().hex[:8]}", "submitter")

    async with empty.services.db.transaction(EVERY) as conn:
        for tenant in (who.tenant, other.tenant):
            await conn.execute("select pg_advisory_xact_lock(hashtextextended($1, 11))", tenant)
        waiting = asyncio.ensure_future(one(empty, who))
        async with asyncio.timeout(10):
            assert isinstance(await one(empty, other), UUID)
        assert not waiting.done()
    assert isinstance(await waiting, UUID)


# --- bytes stored -------------------------------------------------------------------------------------------


async def counted(runtime: Runtime, tenant: str) -> int:
    """What starts are held to, once a worker has counted anew."""
    await sql(runtime, "update tenants set measure_at = null where name = $1", tenant)
    await measure_due(runtime.services.db)
    runtime.services.limits._read_at = float("-inf")
    found: int = await sql(runtime, "select stored_bytes_now from tenants where name = $1", tenant)
    return found


async def test_over_its_bytes_a_tenant_starts_nothing_and_below_them_again(empty: Runtime) -> None:
    who = await limited(empty, stored_bytes=3000)
    first = await one(empty, who, idempotency=Idempotency("k", "0" * 64))
    assert isinstance(first, UUID)
    assert 0 < await counted(empty, who.tenant) < 3000
    noise = "".join(uuid4().hex for _ in range(200))  # nothing that compresses away
    await sql(empty, "update run_documents set output = to_json($2::text) where run_id = $1", first, noise)
    assert await counted(empty, who.tenant) > 3000

    refusal = await one(empty, who)
    assert isinstance(refusal, TenantLimit)
    assert (refusal.status, refusal.code) == (429, "tenant_limit") and refusal.retry_after_s
    assert await one(empty, who, idempotency=Idempotency("k", "0" * 64)) == first
    assert isinstance(await one(empty, Principal("sue", f"t-{uuid4().hex[:8]}", "submitter")), UUID)

    await sql(empty, "delete from runs where id = $1", first)
    assert await counted(empty, who.tenant) == 0
    assert isinstance(await one(empty, who), UUID)


async def test_files_count_and_every_page_of_runs_does(empty: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.commands.stored.PAGE", 3)
    who = await limited(empty, stored_bytes=10**9)
    started = [run for run in await many(empty, who, 7) if isinstance(run, UUID)]
    documents = await counted(empty, who.tenant)
    add = """
        insert into files (id, tenant, run_id, name, media_type, size, sha256, location, created_at)
        values (gen_random_uuid(), $2, $1, 'a', 'image/png', 1000000, '', '', now())
    """
    for run_id in started:
        await sql(empty, add, run_id, who.tenant)
    assert await counted(empty, who.tenant) == documents + 7_000_000


async def test_what_is_stored_when_the_limit_is_set_counts_at_once(empty: Runtime) -> None:
    who = await limited(empty)
    await many(empty, who, 3)
    saved = await set_limits(empty.services.db, Tenant(who.tenant, stored_bytes=1), ["stored_bytes"])
    assert saved.stored_bytes_now > 1
    empty.services.limits._read_at = float("-inf")
    assert isinstance(await one(empty, who), TenantLimit)
    kept = await set_limits(empty.services.db, Tenant(who.tenant, live_runs=9), ["live_runs"])
    assert (kept.stored_bytes, kept.stored_bytes_now) == (1, saved.stored_bytes_now)


async def test_two_workers_count_a_tenant_once(empty: Runtime) -> None:
    who = await limited(empty, stored_bytes=5)
    await sql(empty, "update tenants set measure_at = 'infinity' where name <> $1", who.tenant)
    assert sum(await asyncio.gather(*(measure_due(empty.services.db) for _ in range(4)))) == 1
    assert await measure_due(empty.services.db) == 0


async def test_starts_of_a_tenant_with_only_that_limit_do_not_wait_for_each_other(empty: Runtime) -> None:
    who = await limited(empty, stored_bytes=10**9)
    async with empty.services.db.transaction(EVERY) as conn:
        await conn.execute("select pg_advisory_xact_lock(hashtextextended($1, 11))", who.tenant)
        async with asyncio.timeout(10):
            assert isinstance(await one(empty, who), UUID)
