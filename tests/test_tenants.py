"""Limits of a tenant: exact under concurrency, in force within 2 s, no matter to anybody else."""

import asyncio
from collections import Counter
from typing import Any
from uuid import UUID, uuid4

import pytest

from service.commands import tenants
from service.commands.runs import Idempotency, StartRun, cancel_run, start_run
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
