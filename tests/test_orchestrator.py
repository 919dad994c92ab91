"""The orchestrator, its leases and the sweep, with the test in the worker's place."""

import asyncio
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import orjson
import pytest
from arq.constants import in_progress_key_prefix, job_key_prefix

from service.commands.approvals import decide
from service.commands.context import Services
from service.commands.runs import cancel_run, pause_run, resume_run
from service.commands.timers import sweep
from service.domain.approval import Approval, Order
from service.domain.call import Description, Outcome
from service.domain.ids import job_id
from service.domain.policy import EscalateTo, HitlConfig
from service.errors import LeaseLost
from service.notifier import Notifier
from service.orchestrator import LEASE_LOST, HITLOrchestrator
from service.providers import protocol
from service.providers.guard import guarded_client
from service.providers.http import HttpProvider
from service.providers.protocol import Request
from service.providers.registry import Registry
from service.queue import RunQueue, connect
from service.runtime import Runtime
from service.signals import QUEUE_NAME
from service.store import approvals, calls, events, runs
from service.store.database import EVERY
from service.worker import Heartbeat
from tests.acting import AUTO, becomes, begin, docs_of, look, sql, story, within, worker
from tests.conftest import ASK_ALWAYS, DEV, Gated, Provider, echo, free_port, http_tool


async def in_call(runtime: Runtime, gated: Gated, run_id: UUID, hand: HITLOrchestrator) -> "asyncio.Task[str]":
    """A worker that is inside the provider call of this run."""
    gated.arrived.clear()
    task = asyncio.create_task(hand.advance(run_id))
    await within(gated.arrived)
    return task


async def open_approval(runtime: Runtime, run_id: UUID) -> Approval:
    async with runtime.services.db.connection(EVERY) as conn:
        found = await approvals.open_of_run(conn, run_id)
    assert len(found) == 1
    return found[0]


async def silence_worker(runtime: Runtime, run_id: UUID) -> None:
    """Its heartbeat has not come for longer than the lease."""
    await sql(runtime, "update runs set lease_until = now() - interval '1 s' where id = $1", run_id)


async def vanish(task: "asyncio.Task[str]") -> None:
    """The worker is gone without writing another word."""
    task.cancel(LEASE_LOST)
    assert await task == "lease_lost"


async def jobs(runtime: Runtime) -> dict[str, float]:
    return {name.decode(): score for name, score in await runtime.redis.zrange(QUEUE_NAME, 0, -1, withscores=True)}


async def call_of(runtime: Runtime, run_id: UUID, number: int = 1) -> Any:
    async with runtime.services.db.connection(EVERY) as conn:
        found = await calls.get(conn, run_id, number)
    assert found is not None
    return found


# ---- claims and tokens


async def test_only_one_of_twenty_concurrent_claims_wins(empty: Runtime) -> None:
    run_id = await begin(empty, echo())

    async def claim(n: int) -> Any:
        async with empty.services.db.connection(EVERY) as conn:
            return await runs.claim(conn, run_id, worker_id=f"w{n}", lease_s=30)

    won = [run for run in await asyncio.gather(*map(claim, range(20))) if run is not None]
    assert len(won) == 1
    stored = await look(empty, run_id)
    assert (stored.worker_id, stored.fencing_token) == (won[0].worker_id, 2)


async def test_twenty_workers_at_once_make_one_provider_call(empty: Runtime, provider: Provider) -> None:
    run_id = await begin(empty, http_tool(provider.url))
    outcomes = await asyncio.gather(*(worker(empty, f"w{n}").advance(run_id) for n in range(20)))
    assert sorted(outcomes) == ["completed"] + ["nothing_due"] * 19
    assert len(provider.seen) == 1


async def test_a_stale_fencing_token_cannot_save(empty: Runtime) -> None:
    run_id = await begin(empty, echo())
    async with empty.services.db.transaction(EVERY) as conn:
        claimed = await runs.claim(conn, run_id, worker_id="w1", lease_s=30)
    assert claimed is not None
    await silence_worker(empty, run_id)
    await sweep(empty.services)
    with pytest.raises(LeaseLost):
        async with empty.services.db.transaction(EVERY) as conn:
            await runs.lock_held(conn, run_id, claimed.fencing_token)
    async with empty.services.db.connection(EVERY) as conn:
        assert await runs.renew(conn, [(run_id, claimed.fencing_token)], lease_s=30) == set()


async def test_a_run_that_is_not_due_is_not_claimed(empty: Runtime) -> None:
    run_id = await begin(empty, echo())
    await sql(empty, "update runs set due_at = now() + interval '1 h' where id = $1", run_id)
    assert await worker(empty).advance(run_id) == "nothing_due"
    assert (await look(empty, run_id)).status == "queued"


async def test_a_run_that_waits_for_a_human_holds_nothing(empty: Runtime) -> None:
    run_id = await begin(empty, echo(), ASK_ALWAYS)
    hand = worker(empty)
    assert await hand.advance(run_id) == "awaiting_human"
    run = await look(empty, run_id)
    assert (run.status, run.lease_until, run.worker_id, run.due_at) == ("awaiting_human", None, None, None)
    assert hand.leases == []
    assert await worker(empty).advance(run_id) == "nothing_due"


async def test_a_run_that_waits_for_a_provider_holds_no_lease(empty: Runtime, provider: Provider) -> None:
    provider.script = [(202, {})]
    run_id = await begin(empty, http_tool(provider.url))
    hand = worker(empty)
    assert await hand.advance(run_id) == "awaiting_provider"
    run = await look(empty, run_id)
    assert (run.status, run.lease_until, run.worker_id) == ("awaiting_provider", None, None)
    assert run.due_at == (await call_of(empty, run_id)).deadline_at
    assert hand.leases == []


async def test_a_provider_that_never_calls_back_ends_in_a_question(empty: Runtime, provider: Provider) -> None:
    provider.script = [(202, {})]
    run_id = await begin(empty, http_tool(provider.url))
    await worker(empty).advance(run_id)
    await sql(empty, "update provider_calls set deadline_at = now() - interval '9 s' where run_id = $1", run_id)
    await sql(empty, "update runs set due_at = now() - interval '9 s' where id = $1", run_id)
    await empty.redis.flushdb()
    await sweep(empty.services)
    assert job_id(run_id, 2) in await jobs(empty)
    assert await worker(empty).advance(run_id) == "awaiting_human"
    assert (await open_approval(empty, run_id)).checkpoint_type == "outcome_unknown"
    assert len(provider.seen) == 1


# ---- a worker vanishes


async def test_a_vanished_workers_run_is_recovered_and_its_zombie_refused(empty: Runtime, gated: Gated) -> None:
    run_id = await begin(empty, http_tool(gated.url))
    zombie = await in_call(empty, gated, run_id, worker(empty, "zombie"))
    before = await look(empty, run_id)
    await silence_worker(empty, run_id)
    assert (await sweep(empty.services))["recovered"] == 1
    ready = await look(empty, run_id)
    assert (ready.status, ready.fencing_token, ready.lease_until) == ("queued", before.fencing_token + 1, None)
    assert "run.recovered" in await story(empty, run_id)
    assert job_id(run_id, ready.fencing_token) in await jobs(empty)

    gated.opened.set()
    assert await zombie == "lease_lost"
    assert await look(empty, run_id) == ready
    assert await worker(empty, "w2").advance(run_id) == "completed"
    assert list(gated.effects.values()) == [2]  # two requests, one idempotency key: one effect


async def test_the_sweep_clears_away_the_job_of_the_vanished_worker(empty: Runtime) -> None:
    run_id = await begin(empty, echo())
    dead = job_id(run_id, 1)
    async with empty.services.db.transaction(EVERY) as conn:
        await runs.claim(conn, run_id, worker_id="w1", lease_s=30)
    await empty.redis.set(in_progress_key_prefix + dead, b"1")
    await silence_worker(empty, run_id)
    await sweep(empty.services)
    assert list(await jobs(empty)) == [job_id(run_id, 3)]
    assert await empty.redis.exists(in_progress_key_prefix + dead, job_key_prefix + dead) == 0


async def test_two_sweeps_at_once_recover_a_run_once(empty: Runtime) -> None:
    run_id = await begin(empty, echo())
    async with empty.services.db.transaction(EVERY) as conn:
        await runs.claim(conn, run_id, worker_id="w1", lease_s=30)
    await silence_worker(empty, run_id)
    found = await asyncio.gather(*(sweep(empty.services) for _ in range(5)))
    assert sum(each["recovered"] for each in found) == 1
    assert (await look(empty, run_id)).fencing_token == 3


async def test_a_paused_run_stays_paused_when_its_worker_vanishes(empty: Runtime, gated: Gated) -> None:
    run_id = await begin(empty, http_tool(gated.url))
    task = await in_call(empty, gated, run_id, worker(empty))
    await pause_run(empty.services, run_id, DEV)
    await vanish(task)
    await silence_worker(empty, run_id)
    assert (await sweep(empty.services))["recovered"] == 1
    run = await look(empty, run_id)
    assert (run.status, run.lease_until, run.due_at) == ("paused", None, None)
    await resume_run(empty.services, run_id, DEV)
    gated.opened.set()
    assert await worker(empty, "w2").advance(run_id) == "completed"


async def test_a_zombies_end_does_not_cost_its_successor_in_the_same_process_the_lease(
    empty: Runtime, gated: Gated
) -> None:
    run_id = await begin(empty, http_tool(gated.url))
    hand = worker(empty)
    zombie = await in_call(empty, gated, run_id, hand)
    await silence_worker(empty, run_id)
    await sweep(empty.services)
    successor = await in_call(empty, gated, run_id, hand)
    held = [(run_id, (await look(empty, run_id)).fencing_token)]
    assert hand.leases == held
    await vanish(zombie)
    assert hand.leases == held
    await Heartbeat(empty, hand, "w1").once()
    gated.opened.set()
    assert await successor == "completed"


async def test_a_heartbeat_drops_the_run_whose_lease_is_lost(empty: Runtime, gated: Gated) -> None:
    run_id = await begin(empty, http_tool(gated.url))
    hand = worker(empty)
    task = await in_call(empty, gated, run_id, hand)
    await silence_worker(empty, run_id)
    await sweep(empty.services)
    await Heartbeat(empty, hand, "w1").once()
    assert await task == "lease_lost"
    await within(gated.hung_up)
    assert (await look(empty, run_id)).status == "queued"


# ---- the provider call


async def test_an_intent_without_an_answer_is_repeated_under_the_same_key(empty: Runtime, gated: Gated) -> None:
    run_id = await begin(empty, http_tool(gated.url))
    await vanish(await in_call(empty, gated, run_id, worker(empty)))
    await silence_worker(empty, run_id)
    await sweep(empty.services)
    gated.opened.set()
    assert await worker(empty, "w2").advance(run_id) == "completed"
    assert gated.effects == {f"{run_id}-1": 2}
    assert gated.seen[0].body == gated.seen[1].body
    assert (await call_of(empty, run_id)).tries == 2


async def test_an_intent_whose_deadline_passed_asks_what_became_of_it(empty: Runtime, gated: Gated) -> None:
    run_id = await begin(empty, http_tool(gated.url))
    await vanish(await in_call(empty, gated, run_id, worker(empty)))
    await silence_worker(empty, run_id)
    await sql(empty, "update provider_calls set deadline_at = now() - interval '1 s' where run_id = $1", run_id)
    await sweep(empty.services)
    assert await worker(empty, "w2").advance(run_id) == "awaiting_human"
    asked = await open_approval(empty, run_id)
    assert (asked.checkpoint_type, asked.reasons) == ("outcome_unknown", ["provider.outcome_unknown"])
    assert len(gated.seen) == 1


class Once(HttpProvider):
    """An HTTP provider that does not honour an idempotency key."""

    name, tool, repeatable = "once", "once-agent-tool", False


async def test_an_unanswered_call_of_an_unrepeatable_provider_is_never_repeated(empty: Runtime, gated: Gated) -> None:
    client = guarded_client(frozenset({"loopback"}))
    services = replace(empty.services, registry=Registry([Once(client)]))
    tool = {"once-agent-tool": http_tool(gated.url)["http-agent-tool"]}
    run_id = await begin(empty, tool, services=services)
    await vanish(await in_call(empty, gated, run_id, worker(empty, services=services)))
    await silence_worker(empty, run_id)
    await sweep(services)
    assert await worker(empty, "w2", services=services).advance(run_id) == "awaiting_human"
    asked = await open_approval(empty, run_id)
    assert asked.checkpoint_type == "outcome_unknown"
    assert len(gated.seen) == 1

    await decide(services, asked.id, Order(action="retry"), DEV)
    gated.opened.set()
    assert await worker(empty, "w3", services=services).advance(run_id) == "completed"
    assert gated.effects == {f"{run_id}-1": 1, f"{run_id}-2": 1}  # a human's retry is a new call
    await client.aclose()


async def test_a_refused_try_comes_again_later_under_the_same_key(empty: Runtime, provider: Provider) -> None:
    provider.script = [(503, {})]
    run_id = await begin(empty, http_tool(provider.url))
    hand = worker(empty)
    assert await hand.advance(run_id) == "retry_later"
    waiting = await look(empty, run_id)
    assert waiting.due_at is not None
    assert (waiting.status, waiting.lease_until, hand.leases) == ("queued", None, [])
    score = (await jobs(empty))[job_id(run_id, waiting.fencing_token)]
    assert abs(score - waiting.due_at.timestamp() * 1000) <= 1
    assert await hand.advance(run_id) == "nothing_due"
    await sql(empty, "update runs set due_at = now() where id = $1", run_id)
    assert await hand.advance(run_id) == "completed"
    assert provider.effects == {f"{run_id}-1": 2}


async def test_a_try_long_after_the_first_has_time_to_be_answered(empty: Runtime, gated: Gated) -> None:
    """The provider said "not now"; what is sent an hour later is not cut off by the first try's deadline."""
    gated.script = [(503, {}), (200, {"late": True})]
    run_id = await begin(empty, http_tool(gated.url))
    gated.opened.set()
    assert await worker(empty).advance(run_id) == "retry_later"
    await sql(
        empty,
        "update provider_calls set deadline_at = now() - interval '1 h' where run_id = $1",
        run_id,
    )
    await sql(empty, "update runs set due_at = now() where id = $1", run_id)
    assert await worker(empty).advance(run_id) == "completed"
    assert len(gated.seen) == 2


async def test_five_refused_tries_fail_the_run_and_a_resume_goes_on(empty: Runtime, provider: Provider) -> None:
    provider.script = [(503, {})] * 5
    run_id = await begin(empty, http_tool(provider.url))
    for _ in range(4):
        assert await worker(empty).advance(run_id) == "retry_later"
        await sql(empty, "update runs set due_at = now() where id = $1", run_id)
    assert await worker(empty).advance(run_id) == "failed"
    failed = await look(empty, run_id)
    assert failed.error is not None
    assert (failed.error["code"], failed.error["recoverable"]) == ("provider_unavailable", True)
    await resume_run(empty.services, run_id, DEV)
    assert await worker(empty).advance(run_id) == "completed"
    assert provider.effects == {f"{run_id}-1": 6}


async def test_a_late_answer_to_a_cancelled_run_changes_nothing(empty: Runtime, gated: Gated) -> None:
    run_id = await begin(empty, http_tool(gated.url))
    task = await in_call(empty, gated, run_id, worker(empty))
    await cancel_run(empty.services, run_id, DEV, reason=None)
    ended = await look(empty, run_id)
    told = await story(empty, run_id)
    gated.opened.set()
    assert await task == "lease_lost"
    assert await look(empty, run_id) == ended
    assert await story(empty, run_id) == told
    assert (await docs_of(empty, run_id)).output is None


async def test_cancelling_hangs_up_on_the_provider(empty: Runtime, gated: Gated) -> None:
    notifier = Notifier(empty.redis)
    services: Services = replace(empty.services, notifier=notifier)
    hand = worker(empty, services=services)
    notifier.on_stop(hand.drop)
    run_id = await begin(empty, http_tool(gated.url), services=services)
    async with notifier.running():
        while (await empty.redis.pubsub_numsub("hitl:changed"))[0][1] == 0:
            await asyncio.sleep(0.01)
        task = await in_call(empty, gated, run_id, hand)
        await cancel_run(services, run_id, DEV, reason=None)
        assert await task == "lease_lost"
    await within(gated.hung_up)
    assert (await look(empty, run_id)).status == "cancelled"


async def test_pausing_during_the_call_keeps_its_answer(empty: Runtime, gated: Gated) -> None:
    gated.script = [(200, {"kept": 1})]
    run_id = await begin(empty, http_tool(gated.url))
    task = await in_call(empty, gated, run_id, worker(empty))
    await pause_run(empty.services, run_id, DEV)
    gated.opened.set()
    assert await task == "paused"
    run = await look(empty, run_id)
    assert (run.status, run.lease_until, run.due_at) == ("paused", None, None)
    assert (await call_of(empty, run_id)).status == "answered"
    await resume_run(empty.services, run_id, DEV)
    assert await worker(empty, "w2").advance(run_id) == "completed"
    assert len(gated.seen) == 1
    assert (await docs_of(empty, run_id)).output == {"kept": 1}


async def test_pause_and_resume_during_the_call_leave_it_to_its_worker(empty: Runtime, gated: Gated) -> None:
    run_id = await begin(empty, http_tool(gated.url))
    task = await in_call(empty, gated, run_id, worker(empty))
    await pause_run(empty.services, run_id, DEV)
    await resume_run(empty.services, run_id, DEV)
    assert await worker(empty, "w2").advance(run_id) == "nothing_due"
    gated.opened.set()
    assert await task == "completed"
    assert len(gated.seen) == 1


# ---- draining


async def test_a_draining_worker_hands_over_at_the_next_step(empty: Runtime, gated: Gated) -> None:
    asks = HitlConfig(policy="require_human", allowed_steps=["response_review"])
    run_id = await begin(empty, http_tool(gated.url), asks)
    hand = worker(empty)
    task = await in_call(empty, gated, run_id, hand)
    held = (await look(empty, run_id)).fencing_token
    hand.draining.set()
    gated.opened.set()
    assert await task == "handed_over"
    ready = await look(empty, run_id)
    assert (ready.status, ready.fencing_token, ready.lease_until) == ("queued", held + 1, None)
    assert job_id(run_id, held + 1) in await jobs(empty)
    assert await worker(empty, "w2").advance(run_id) == "awaiting_human"
    assert len(gated.seen) == 1


async def test_an_answer_that_nothing_stops_completes_its_run_also_while_the_worker_drains(
    empty: Runtime, gated: Gated
) -> None:
    run_id = await begin(empty, http_tool(gated.url))
    hand = worker(empty)
    task = await in_call(empty, gated, run_id, hand)
    hand.draining.set()
    gated.opened.set()
    assert await task == "completed"


async def test_a_worker_that_is_stopped_mid_call_hands_over(empty: Runtime, gated: Gated) -> None:
    run_id = await begin(empty, http_tool(gated.url))
    task = await in_call(empty, gated, run_id, worker(empty))
    held = (await look(empty, run_id)).fencing_token
    with empty.services.notifier.follow(run_id) as changed:
        task.cancel()  # what arq does when the drain's time is out
        assert await task == "handed_over"
    assert changed.is_set(), "who follows the run must hear that it is queued again"
    ready = await look(empty, run_id)
    assert (ready.status, ready.fencing_token) == ("queued", held + 1)
    gated.opened.set()
    assert await worker(empty, "w2").advance(run_id) == "completed"
    assert gated.effects == {f"{run_id}-1": 2}


# ---- faults of our own


class Broken(protocol.Provider):
    """A provider whose code raises."""

    name, tool, capabilities, repeatable = "broken", "broken-agent-tool", (), True

    def __init__(self, where: str) -> None:
        self.where = where
        self.calls = 0

    def check(self, config: Any) -> Any:
        return config

    def secret_fields(self) -> tuple[str, ...]:
        return ()

    def timeout_s(self, config: Any) -> float:
        return 60

    async def describe(self, config: Any) -> Description:
        self.calls += 1
        if self.where == "describe":
            raise ValueError("a bug")
        return Description(example={"prompt": "x"})

    async def call(self, request: Request) -> Outcome:
        self.calls += 1
        raise KeyError("another bug")


@pytest.mark.parametrize("where", ["describe", "call"])
async def test_an_internal_fault_fails_the_run_recoverably_instead_of_looping(empty: Runtime, where: str) -> None:
    broken = Broken(where)
    services = replace(empty.services, registry=Registry([broken]))
    run_id = await begin(empty, {"broken-agent-tool": {"data": {"x": 1}}}, services=services)
    hand = worker(empty, services=services)
    assert await hand.advance(run_id) == "internal_error"
    run = await look(empty, run_id)
    assert run.error is not None
    assert (run.status, run.error["code"], run.error["recoverable"]) == ("failed", "internal_error", True)
    assert "bug" not in orjson.dumps(run.error).decode()
    made = broken.calls
    await sweep(services)
    assert await hand.advance(run_id) == "nothing_due"
    assert broken.calls == made
    assert hand.leases == []


async def test_a_run_of_a_tool_that_is_gone_fails_recoverably(empty: Runtime) -> None:
    run_id = await begin(empty, echo())
    without = replace(empty.services, registry=Registry([]))
    assert await worker(empty, services=without).advance(run_id) == "internal_error"
    await resume_run(empty.services, run_id, DEV)
    assert await worker(empty).advance(run_id) == "completed"


async def test_a_payload_changed_behind_our_back_is_never_sent(empty: Runtime, provider: Provider) -> None:
    config = HitlConfig(policy="require_human", allowed_steps=["payload_review"])
    run_id = await begin(empty, http_tool(provider.url), config)
    assert await worker(empty).advance(run_id) == "awaiting_human"
    asked = await open_approval(empty, run_id)
    await decide(empty.services, asked.id, Order(action="approve", payload_sha256=asked.payload_sha256), DEV)
    changed = {"prompt": "a million foxes", "num_outputs": 1}
    await sql(empty, "update run_documents set payload = $2 where run_id = $1", run_id, changed)
    assert await worker(empty).advance(run_id) == "internal_error"
    assert (await look(empty, run_id)).status == "failed"
    assert provider.seen == []


async def test_a_payload_changed_between_two_tries_is_never_sent(empty: Runtime, provider: Provider) -> None:
    provider.script = [(503, {})]
    run_id = await begin(empty, http_tool(provider.url))
    assert await worker(empty).advance(run_id) == "retry_later"
    changed = {"prompt": "a million foxes", "num_outputs": 1}
    await sql(empty, "update run_documents set payload = $2 where run_id = $1", run_id, changed)
    await sql(empty, "update runs set due_at = now() where id = $1", run_id)
    assert await worker(empty).advance(run_id) == "internal_error"
    assert len(provider.seen) == 1


# ---- the sweep


async def test_wake_ups_lost_with_redis_are_sent_again(empty: Runtime) -> None:
    ids = [await begin(empty, echo()) for _ in range(3)]
    await empty.redis.flushdb()
    await sweep(empty.services)
    assert await jobs(empty) == {}  # they are young: their wake-up may be under way
    await sql(empty, "update runs set due_at = due_at - interval '4 s'")
    assert (await sweep(empty.services))["woken"] == 3
    assert set(await jobs(empty)) == {job_id(run_id, 1) for run_id in ids}
    assert (await sweep(empty.services))["woken"] == 0


async def test_a_wake_up_that_is_queued_is_not_sent_twice(empty: Runtime) -> None:
    run_id = await begin(empty, echo())
    await sql(empty, "update runs set due_at = due_at - interval '4 s'")
    assert (await sweep(empty.services))["woken"] == 0
    assert list(await jobs(empty)) == [job_id(run_id, 1)]
    assert (await look(empty, run_id)).fencing_token == 1


async def test_a_wake_up_in_limbo_gets_a_new_token(empty: Runtime) -> None:
    """arq marked the job as in progress, and its worker died before it claimed the run."""
    run_id = await begin(empty, echo())
    stuck = job_id(run_id, 1)
    await empty.redis.set(in_progress_key_prefix + stuck, b"1")
    await sql(empty, "update runs set due_at = due_at - interval '4 s'")
    assert (await sweep(empty.services))["woken"] == 1
    assert (await look(empty, run_id)).fencing_token == 2
    assert list(await jobs(empty)) == [job_id(run_id, 2)]
    assert await empty.redis.exists(in_progress_key_prefix + stuck, job_key_prefix + stuck) == 0
    assert await worker(empty).advance(run_id) == "completed"


async def test_a_runs_own_deadline_ends_it_and_its_approval(empty: Runtime) -> None:
    config = HitlConfig(policy="require_human", run_timeout_seconds=60)
    run_id = await begin(empty, echo(), config)
    await worker(empty).advance(run_id)
    asked = await open_approval(empty, run_id)
    assert (await sweep(empty.services))["timed_out"] == 0
    await sql(empty, "update runs set deadline_at = now() where id = $1", run_id)
    assert (await sweep(empty.services))["timed_out"] == 1
    run = await look(empty, run_id)
    assert run.error is not None
    assert (run.status, run.error["code"], run.error["recoverable"]) == ("failed", "run_timeout", False)
    assert await sql(empty, "select status from approvals where id = $1", asked.id) == "cancelled"


async def test_an_answer_after_the_runs_deadline_changes_nothing(empty: Runtime, gated: Gated) -> None:
    run_id = await begin(empty, http_tool(gated.url), HitlConfig(policy="auto", run_timeout_seconds=60))
    task = await in_call(empty, gated, run_id, worker(empty))
    await sql(empty, "update runs set deadline_at = now() where id = $1", run_id)
    await sweep(empty.services)
    gated.opened.set()
    assert await task == "lease_lost"
    assert (await look(empty, run_id)).status == "failed"


async def test_the_sweep_releases_a_session_line(empty: Runtime) -> None:
    first = await begin(empty, echo(), session_id="s", on_active_run="queue")
    second = await begin(empty, echo(), session_id="s", on_active_run="queue")
    third = await begin(empty, echo(), session_id="s", on_active_run="queue")
    assert (await look(empty, second)).due_at is None
    assert (await sweep(empty.services))["released"] == 0
    await sql(empty, "update runs set status = 'completed', finished_at = now(), due_at = null where id = $1", first)
    assert (await sweep(empty.services))["released"] == 1
    assert (await look(empty, second)).due_at is not None
    assert (await look(empty, third)).due_at is None
    assert await worker(empty).advance(second) == "completed"
    assert await worker(empty).advance(third) == "completed"  # its predecessor's end let it go


async def test_a_deadline_beyond_the_horizon_is_a_row_until_it_comes_inside(empty: Runtime) -> None:
    config = HitlConfig(policy="require_human", timeout_seconds=366 * 86_400)
    run_id = await begin(empty, echo(), config)
    await worker(empty).advance(run_id)
    asked = await open_approval(empty, run_id)
    await sweep(empty.services)
    assert not [name for name in await jobs(empty) if name.startswith("approval:")]
    await sql(empty, "update approvals set expires_at = now() + interval '10 min' where id = $1", asked.id)
    assert (await sweep(empty.services))["armed"] == 1
    expires_at = await sql(empty, "select expires_at from approvals where id = $1", asked.id)
    timers = {name: score for name, score in (await jobs(empty)).items() if name.startswith("approval:")}
    assert list(timers) == [f"approval:{asked.id}:expire:{asked.timer_no}"]
    assert abs(timers.popitem()[1] - expires_at.timestamp() * 1000) <= 1
    assert (await sweep(empty.services))["armed"] == 0


async def test_a_deadline_inside_the_horizon_has_its_job_at_once(empty: Runtime) -> None:
    run_id = await begin(empty, echo(), HitlConfig(policy="require_human", timeout_seconds=60))
    await worker(empty).advance(run_id)
    asked = await open_approval(empty, run_id)
    score = (await jobs(empty))[f"approval:{asked.id}:expire:1"]
    assert abs(score - (asked.created_at + timedelta(seconds=60)).timestamp() * 1000) <= 1


async def test_the_sweep_executes_deadlines_that_nobody_fired(empty: Runtime) -> None:
    run_id = await begin(empty, echo(), ASK_ALWAYS)
    await worker(empty).advance(run_id)
    asked = await open_approval(empty, run_id)
    await empty.redis.flushdb()
    await sql(empty, "update approvals set expires_at = now() where id = $1", asked.id)
    found = await asyncio.gather(*(sweep(empty.services) for _ in range(3)))
    assert sum(each["expired"] for each in found) == 1
    run = await look(empty, run_id)
    assert run.error is not None
    assert (run.status, run.error["code"]) == ("cancelled", "approval_expired")
    assert (await story(empty, run_id)).count("approval.expired") == 1


async def test_an_escalated_deadline_has_a_job_of_its_own(empty: Runtime) -> None:
    target = EscalateTo(users=["boss"])
    config = HitlConfig(policy="require_human", timeout_seconds=60, on_timeout="escalate", escalate_to=target)
    run_id = await begin(empty, echo(), config)
    await worker(empty).advance(run_id)
    asked = await open_approval(empty, run_id)
    await sql(empty, "update approvals set expires_at = now() where id = $1", asked.id)
    found = await sweep(empty.services) + await sweep(empty.services)
    assert (found["expired"], found["armed"]) == (1, 1)
    again = await open_approval(empty, run_id)
    assert again.timer_no > asked.timer_no
    assert f"approval:{asked.id}:expire:{again.timer_no}" in await jobs(empty)


async def test_a_row_that_cannot_be_dealt_with_does_not_keep_the_rest_from_being_found(empty: Runtime) -> None:
    """An approval left open beside a run that is over: nothing writes this, and nothing else must suffer from it."""
    odd = await begin(empty, echo(), ASK_ALWAYS)
    await worker(empty).advance(odd)
    await sql(empty, "update approvals set expires_at = now() - interval '1 s' where run_id = $1", odd)
    await sql(empty, "update runs set status = 'completed', finished_at = now() where id = $1", odd)
    asking = await begin(empty, echo(), ASK_ALWAYS)
    await worker(empty).advance(asking)
    await sql(empty, "update approvals set expires_at = now() where run_id = $1", asking)
    lost = await begin(empty, echo())
    await empty.redis.flushdb()
    await sql(empty, "update runs set due_at = due_at - interval '4 s' where id = $1", lost)
    found = await sweep(empty.services)
    assert (found["expired"], found["woken"]) == (1, 1)
    assert (await look(empty, asking)).status == "cancelled"
    assert job_id(lost, 1) in await jobs(empty)


async def test_with_redis_away_deadlines_are_still_executed_at_once(empty: Runtime) -> None:
    ids = [await begin(empty, echo(), ASK_ALWAYS) for _ in range(20)]
    await asyncio.gather(*(worker(empty).advance(run_id) for run_id in ids))
    await sql(empty, "update approvals set expires_at = now()")
    dead = connect(f"redis://127.0.0.1:{free_port()}")
    away = replace(empty.services, queue=RunQueue(dead, horizon_s=3600), notifier=Notifier(dead))
    started = time.monotonic()
    assert (await sweep(away))["expired"] == 20
    assert time.monotonic() - started < 20  # not a timeout for each of them
    assert {(await look(empty, run_id)).status for run_id in ids} == {"cancelled"}
    await dead.aclose(close_connection_pool=True)


async def test_a_paused_approval_does_not_expire(empty: Runtime) -> None:
    run_id = await begin(empty, echo(), ASK_ALWAYS)
    await worker(empty).advance(run_id)
    asked = await open_approval(empty, run_id)
    await pause_run(empty.services, run_id, DEV)
    await sql(empty, "update approvals set expires_at = now() where id = $1", asked.id)
    assert (await sweep(empty.services))["expired"] == 0
    assert (await look(empty, run_id)).status == "paused"


async def test_events_have_no_gaps_whatever_happened(empty: Runtime, gated: Gated) -> None:
    run_id = await begin(empty, http_tool(gated.url))
    await vanish(await in_call(empty, gated, run_id, worker(empty)))
    await silence_worker(empty, run_id)
    await sweep(empty.services)
    gated.opened.set()
    await worker(empty, "w2").advance(run_id)
    await becomes(empty, run_id, "completed")
    async with empty.services.db.connection(EVERY) as conn:
        told = await events.after(conn, DEV.tenant, run_id, 0, limit=1000)
    assert [event.seq for event in told] == list(range(1, len(told) + 1))
    assert [event.prev_hash for event in told[1:]] == [event.hash for event in told[:-1]]


async def test_a_sweep_finds_nothing_to_do_about_a_waiting_run(empty: Runtime) -> None:
    run_id = await begin(empty, echo(), ASK_ALWAYS)
    await worker(empty).advance(run_id)
    assert (await sweep(empty.services)).total() == 0


# ---- what the database refuses

SET_RUN = {
    "running without a lease": "status = 'running', lease_until = null",
    "running without a worker": "status = 'running', lease_until = now(), worker_id = null",
    "final with a lease": "status = 'completed', finished_at = now(), lease_until = now()",
    "final and due": "status = 'failed', finished_at = now(), due_at = now()",
    "final without an end": "status = 'cancelled', finished_at = null",
    "queued with a lease": "status = 'queued', lease_until = now(), worker_id = 'w'",
    "awaiting a human with a lease": "lease_until = now(), worker_id = 'w'",
    "paused without a moment": "status = 'paused'",
    "a moment without a pause": "paused_at = now()",
    "an unknown status": "status = 'resting'",
    "an unknown step": "step = 'dreaming'",
}
SET_APPROVAL = {
    "pending and decided": "decided_at = now()",
    "decided without a moment": "status = 'approved'",
    "an unknown answer": "status = 'perhaps', decided_at = now()",
}
FORBIDDEN = {
    **{name: f"update runs set {change} where id = $1" for name, change in SET_RUN.items()},
    **{name: f"update approvals set {change} where run_id = $1" for name, change in SET_APPROVAL.items()},
}


@pytest.mark.parametrize("statement", FORBIDDEN.values(), ids=FORBIDDEN)
async def test_the_database_refuses_what_the_table_of_moves_forbids(empty: Runtime, statement: str) -> None:
    run_id = await begin(empty, echo(), ASK_ALWAYS)
    await worker(empty).advance(run_id)
    with pytest.raises(asyncpg.CheckViolationError):
        await sql(empty, statement, run_id)


async def test_a_checkpoint_has_at_most_one_open_approval(empty: Runtime) -> None:
    run_id = await begin(empty, echo(), ASK_ALWAYS)
    await worker(empty).advance(run_id)
    asked = await open_approval(empty, run_id)
    with pytest.raises(asyncpg.UniqueViolationError):
        async with empty.services.db.transaction(EVERY) as conn:
            await approvals.insert(conn, replace(asked, id=UUID(int=1)))


async def test_an_auto_run_asks_nobody(empty: Runtime) -> None:
    run_id = await begin(empty, echo(), AUTO)
    assert await worker(empty).advance(run_id) == "completed"
    assert "approval.requested" not in await story(empty, run_id)
