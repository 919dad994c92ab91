"""Calls that a provider works on: looks, notices, adoption, cancels, progress; the test is worker and webhook."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest

from service.calling import Caller
from service.commands.approvals import decide
from service.commands.callbacks import take_callback, take_notice
from service.commands.cancels import cancel_due
from service.commands.context import Services
from service.commands.runs import cancel_run, pause_run, resume_run
from service.commands.timers import sweep
from service.domain.approval import Approval, Order
from service.domain.call import (
    MAX_CANCEL_TRIES,
    MAX_TRIES,
    Accepted,
    Answered,
    Description,
    InvalidInput,
    OutcomeUnknown,
    ProviderFailed,
    Rejected,
    Unreachable,
)
from service.domain.event import Event, said
from service.domain.ids import job_id
from service.domain.plan import Ask, Call, Suspend
from service.domain.policy import Checkpoint, HitlConfig
from service.holding import Held, Overtaken
from service.orchestrator import LEASE_LOST, HITLOrchestrator
from service.providers.protocol import Request
from service.runtime import Runtime
from service.signals import QUEUE_NAME
from service.store import approvals, calls, events, runs
from service.store.database import EVERY
from service.worker import Process, cancel_calls
from tests.acting import AUTO, begin, docs_of, look, sql, story, within, worker
from tests.conftest import DEV, eventually, http_tool
from tests.conftest import Provider as HttpEndpoint
from tests.scripting import TOOL, Gate, Scripted, serving

DONE = Answered({"image": "fox"}, {"id": "p1", "output": "fox"}, provider_ref="p1", cost_usd=0.5)


async def call_of(runtime: Runtime, run_id: UUID, number: int = 1) -> Any:
    async with runtime.services.db.connection(EVERY) as conn:
        return await calls.get(conn, run_id, number)


async def open_approval(runtime: Runtime, run_id: UUID) -> Approval:
    async with runtime.services.db.connection(EVERY) as conn:
        found = await approvals.open_of_run(conn, run_id)
    assert len(found) == 1
    return found[0]


async def told(runtime: Runtime, run_id: UUID, kind: str) -> list[Event]:
    async with runtime.services.db.connection(EVERY) as conn:
        return [e for e in await events.after(conn, "default", run_id, 0, limit=1000) if e.type == kind]


async def make_due(runtime: Runtime, run_id: UUID) -> None:
    await sql(runtime, "update runs set due_at = now() where id = $1 and due_at is not null", run_id)


async def let_time_pass(runtime: Runtime, run_id: UUID) -> None:
    """The call's deadline, and the time in which it may be adopted, are over."""
    await sql(
        runtime,
        "update provider_calls set started_at = now() - interval '1 h', deadline_at = now() - interval '1 s' "
        "where run_id = $1",
        run_id,
    )
    await make_due(runtime, run_id)


async def going(runtime: Runtime, provider: Scripted, config: HitlConfig = AUTO, **order: Any) -> tuple[Any, Any, UUID]:
    """A run whose call the provider has accepted: services, worker, id."""
    services = serving(runtime, provider)
    run_id = await begin(runtime, TOOL, config, services=services, **order)
    hand = worker(runtime, services=services)
    assert await hand.advance(run_id) == "awaiting_provider"
    return services, hand, run_id


async def creating(
    runtime: Runtime, provider: Scripted, **order: Any
) -> tuple[Services, HITLOrchestrator, UUID, "asyncio.Task[str]", Gate]:
    """A run whose worker is inside the create."""
    gate = provider.creates[0]
    services = serving(runtime, provider)
    run_id = await begin(runtime, TOOL, services=services, **order)
    hand = worker(runtime, services=services)
    task = asyncio.create_task(hand.advance(run_id))
    await within(gate.arrived)
    return services, hand, run_id, task, gate


async def die(runtime: Runtime, services: Services, run_id: UUID, task: "asyncio.Task[str]", gate: Gate) -> None:
    """The worker is killed in the create: neither it nor what it began says another word."""
    gate.outcome = None
    gate.opened.set()
    task.cancel(LEASE_LOST)
    await task
    await sql(runtime, "update runs set lease_until = now() - interval '1 s' where id = $1", run_id)
    assert (await sweep(services))["recovered"] == 1


# ---- looking


async def test_an_accepted_call_is_looked_at_until_it_is_done(empty: Runtime) -> None:
    provider = Scripted(looks=[Accepted("p1"), Unreachable("a hiccup"), Accepted("p1"), DONE])
    _, hand, run_id = await going(empty, provider)
    for _ in range(3):
        await make_due(empty, run_id)
        assert await hand.advance(run_id) == "awaiting_provider"
        assert hand.leases == []
    await make_due(empty, run_id)
    assert await hand.advance(run_id) == "completed"
    run = await look(empty, run_id)
    assert (len(provider.requests), provider.looked, run.actual_usd) == (1, ["p1"] * 4, 0.5)
    assert (await docs_of(empty, run_id)).result == {"response": {"image": "fox"}}


async def test_looks_become_rarer_up_to_the_limit_and_never_pass_the_deadline(empty: Runtime) -> None:
    provider = Scripted()
    _, hand, run_id = await going(empty, provider)
    waits = []
    for _ in range(12):
        run = await look(empty, run_id)
        assert run.due_at is not None
        waits.append((run.due_at - run.updated_at).total_seconds())
        jobs = {n.decode(): s for n, s in await empty.redis.zrange(QUEUE_NAME, 0, -1, withscores=True)}
        assert abs(jobs[job_id(run_id, run.fencing_token)] - run.due_at.timestamp() * 1000) <= 1
        await make_due(empty, run_id)
        await hand.advance(run_id)
    assert 0.5 < waits[0] <= 1.01
    assert all(later > sooner * 0.89 for sooner, later in pairwise(waits))
    assert 26 < waits[-1] <= 30.01
    await sql(empty, "update provider_calls set deadline_at = now() + interval '7 s' where run_id = $1", run_id)
    await make_due(empty, run_id)
    await hand.advance(run_id)
    assert (await look(empty, run_id)).due_at == (await call_of(empty, run_id)).deadline_at


async def test_a_look_that_is_told_to_wait_waits(empty: Runtime) -> None:
    _, hand, run_id = await going(empty, Scripted(looks=[Unreachable("throttled", retry_after_s=120)]))
    await make_due(empty, run_id)
    await hand.advance(run_id)
    run = await look(empty, run_id)
    assert run.due_at is not None
    assert (run.due_at - run.updated_at).total_seconds() > 100


@pytest.mark.parametrize("last", [Accepted("p1"), Unreachable("away")])
async def test_past_its_deadline_a_call_is_looked_at_once_more_and_then_a_human_is_asked(
    empty: Runtime, last: Any
) -> None:
    provider = Scripted(looks=[last])
    _, hand, run_id = await going(empty, provider)
    await let_time_pass(empty, run_id)
    assert await hand.advance(run_id) == "awaiting_human"
    assert (await open_approval(empty, run_id)).checkpoint_type == "outcome_unknown"
    assert provider.looked == ["p1"]


async def test_an_answer_at_the_last_look_counts(empty: Runtime) -> None:
    _, hand, run_id = await going(empty, Scripted(looks=[DONE]))
    await let_time_pass(empty, run_id)
    assert await hand.advance(run_id) == "completed"


@pytest.mark.parametrize(
    ("outcome", "ends", "code"),
    [
        (ProviderFailed("it crashed"), "failed", "provider_failed"),
        (Rejected("gone"), "failed", "provider_rejected"),
        (InvalidInput([{"field": "prompt", "issue": "?"}]), "awaiting_human", None),
        (OutcomeUnknown("lost"), "awaiting_human", None),
    ],
)
async def test_what_a_look_finds_settles_the_call(empty: Runtime, outcome: Any, ends: str, code: str | None) -> None:
    _, hand, run_id = await going(empty, Scripted(looks=[outcome]))
    await make_due(empty, run_id)
    await hand.advance(run_id)
    run = await look(empty, run_id)
    assert (run.status, (run.error or {}).get("code")) == (ends, code)


async def test_a_look_knows_how_much_time_is_left(empty: Runtime) -> None:
    seen: list[Request] = []

    async def peek(request: Request) -> Any:
        seen.append(request)
        return DONE

    provider = Scripted(looks=[peek])
    _, hand, run_id = await going(empty, provider, HitlConfig(policy="auto", run_timeout_seconds=600))
    await make_due(empty, run_id)
    await hand.advance(run_id)
    for request in (provider.requests[0], seen[0]):
        assert request.run_left_s is not None
        assert 500 < request.run_left_s <= 600
    assert 1000 < provider.requests[0].timeout_s <= 1800
    assert 1 < seen[0].timeout_s <= 30


# ---- pause


async def test_pausing_during_a_look_keeps_the_answer(empty: Runtime) -> None:
    gate = Gate(DONE)
    services, hand, run_id = await going(empty, Scripted(looks=[gate]))
    await make_due(empty, run_id)
    task = asyncio.create_task(hand.advance(run_id))
    await within(gate.arrived)
    await pause_run(services, run_id, DEV)
    gate.opened.set()
    assert await task == "paused"
    assert (await call_of(empty, run_id)).status == "answered"
    await resume_run(services, run_id, DEV)
    assert await hand.advance(run_id) == "completed"


async def test_a_paused_runs_call_is_looked_at_and_its_answer_kept(empty: Runtime) -> None:
    provider = Scripted(looks=[Accepted("p1"), DONE])
    services, hand, run_id = await going(empty, provider)
    await pause_run(services, run_id, DEV)
    paused_at = (await look(empty, run_id)).paused_at
    for _ in range(2):
        await make_due(empty, run_id)
        assert await hand.advance(run_id) == "paused"
    run = await look(empty, run_id)
    assert (run.status, run.paused_at, run.due_at, run.lease_until) == ("paused", paused_at, None, None)
    assert (await call_of(empty, run_id)).status == "answered"
    assert "step.completed" not in (await story(empty, run_id))[-2:]
    await resume_run(services, run_id, DEV)
    assert await hand.advance(run_id) == "completed"
    assert len(provider.looked) == 2


async def test_a_run_that_is_resumed_during_a_look_goes_on_with_its_worker(empty: Runtime) -> None:
    gate = Gate(DONE)
    services, hand, run_id = await going(empty, Scripted(looks=[gate]))
    await pause_run(services, run_id, DEV)
    await make_due(empty, run_id)
    task = asyncio.create_task(hand.advance(run_id))
    await within(gate.arrived)
    await resume_run(services, run_id, DEV)
    assert await worker(empty, "w2", services=services).advance(run_id) == "nothing_due"
    gate.opened.set()
    assert await task == "completed"


async def test_a_worker_that_dies_looking_at_a_paused_run_does_not_end_the_looking(empty: Runtime) -> None:
    gate = Gate(DONE)
    provider = Scripted(looks=[gate])
    services, hand, run_id = await going(empty, provider)
    await pause_run(services, run_id, DEV)
    await make_due(empty, run_id)
    task = asyncio.create_task(hand.advance(run_id))
    await within(gate.arrived)
    task.cancel(LEASE_LOST)
    await task
    await sql(empty, "update runs set lease_until = now() - interval '1 s' where id = $1", run_id)
    await sweep(services)
    gate.opened.set()
    assert await hand.advance(run_id) == "paused"
    assert (await call_of(empty, run_id)).status == "answered"


# ---- notices


async def test_a_notice_makes_the_run_look_at_once(empty: Runtime) -> None:
    services, hand, run_id = await going(empty, Scripted(looks=[DONE]))
    await take_notice(services, run_id, 1, "p1")
    run = await look(empty, run_id)
    assert run.status == "queued"
    assert job_id(run_id, run.fencing_token).encode() in await empty.redis.zrange(QUEUE_NAME, 0, -1)
    assert await hand.advance(run_id) == "completed"


async def test_a_notice_after_the_look_that_found_the_answer_changes_nothing(empty: Runtime) -> None:
    services, hand, run_id = await going(empty, Scripted(looks=[DONE]))
    await make_due(empty, run_id)
    await hand.advance(run_id)
    before = await look(empty, run_id)
    await take_notice(services, run_id, 1, "p1")
    assert await look(empty, run_id) == before
    assert await cancel_due(services) == 0


async def test_a_notice_that_comes_during_a_look_brings_the_next_one_soon(empty: Runtime) -> None:
    gate = Gate(Accepted("p1"))
    services, hand, run_id = await going(empty, Scripted(looks=[gate]))
    await sql(empty, "update provider_calls set looks = 50")
    await make_due(empty, run_id)
    task = asyncio.create_task(hand.advance(run_id))
    await within(gate.arrived)
    await take_notice(services, run_id, 1, "p1")
    gate.opened.set()
    assert await task == "awaiting_provider"
    run = await look(empty, run_id)
    assert run.due_at is not None
    assert (run.due_at - run.updated_at).total_seconds() < 2


async def test_many_notices_at_once_are_one_look(empty: Runtime) -> None:
    provider = Scripted(looks=[DONE])
    services, hand, run_id = await going(empty, provider)
    await asyncio.gather(*(take_notice(services, run_id, 1, "p1") for _ in range(20)))
    assert (await story(empty, run_id)).count("run.queued") == 2
    assert await hand.advance(run_id) == "completed"
    assert provider.looked == ["p1"]


async def test_a_late_start_notice_after_the_completed_one_is_only_another_look(empty: Runtime) -> None:
    provider = Scripted(looks=[Accepted("p1"), DONE])
    services, hand, run_id = await going(empty, provider)
    for ends in ("awaiting_provider", "completed"):
        await take_notice(services, run_id, 1, "p1")
        assert await hand.advance(run_id) == ends
    await take_notice(services, run_id, 1, "p1")
    assert (await look(empty, run_id)).status == "completed"


async def test_a_notice_before_the_create_was_stored_is_the_same_prediction(empty: Runtime) -> None:
    provider = Scripted(creates=[Gate(Accepted("p1"))], looks=[DONE])
    services, hand, run_id, task, gate = await creating(empty, provider)
    await take_notice(services, run_id, 1, "p1")
    assert (await call_of(empty, run_id)).status == "accepted"
    gate.opened.set()
    assert await task == "awaiting_provider"
    assert (await call_of(empty, run_id)).provider_ref == "p1"
    await make_due(empty, run_id)
    assert await hand.advance(run_id) == "completed"
    assert (len(provider.requests), provider.cancelled) == (1, [])


async def test_a_create_that_answers_with_another_prediction_than_the_notice_named_ends_it(empty: Runtime) -> None:
    provider = Scripted(creates=[Gate(Accepted("p2"))], looks=[DONE])
    services, _, run_id, task, gate = await creating(empty, provider)
    await take_notice(services, run_id, 1, "p1")
    gate.opened.set()
    await task
    assert (await call_of(empty, run_id)).provider_ref == "p1"
    await cancel_due(services)
    assert provider.cancelled == ["p2"]


async def test_a_notice_of_a_second_prediction_ends_it_and_keeps_the_first(empty: Runtime) -> None:
    provider = Scripted(looks=[DONE])
    services, hand, run_id = await going(empty, provider)
    for _ in range(3):
        await take_notice(services, run_id, 1, "p2")
        await cancel_due(services)
    assert (provider.cancelled, (await call_of(empty, run_id)).provider_ref) == (["p2"], "p1")
    await make_due(empty, run_id)
    assert await hand.advance(run_id) == "completed"


async def test_a_notice_of_an_unknown_run_or_call_is_harmless(empty: Runtime) -> None:
    services, _, run_id = await going(empty, Scripted())
    before = await look(empty, run_id)
    await take_notice(services, uuid4(), 1, "p1")
    await take_notice(services, run_id, 7, "p1")
    assert await look(empty, run_id) == before


async def test_a_retry_that_turns_out_to_have_begun_is_not_sent_again(empty: Runtime) -> None:
    provider = Scripted(creates=[Unreachable("500", retry_after_s=600)], looks=[DONE])
    services = serving(empty, provider)
    run_id = await begin(empty, TOOL, services=services)
    hand = worker(empty, services=services)
    assert await hand.advance(run_id) == "retry_later"
    await take_notice(services, run_id, 1, "p1")
    assert await hand.advance(run_id) == "completed"
    assert len(provider.requests) == 1


# ---- adoption


async def test_a_worker_killed_in_the_create_leaves_a_prediction_that_its_notice_adopts(empty: Runtime) -> None:
    provider = Scripted(creates=[Gate(Accepted("p1"))], looks=[DONE])
    services, hand, run_id, task, gate = await creating(empty, provider)
    await die(empty, services, run_id, task, gate)
    assert await hand.advance(run_id) == "awaiting_provider"
    run, call = await look(empty, run_id), await call_of(empty, run_id)
    assert (call.status, call.provider_ref) == ("intent", None)
    assert run.due_at is not None
    assert (run.due_at - call.started_at).total_seconds() == provider.adopt_s
    await take_notice(services, run_id, 1, "p1")
    assert await hand.advance(run_id) == "completed"
    assert (len(provider.requests), provider.looked) == (1, ["p1"])


async def test_a_worker_killed_in_the_create_without_a_notice_asks_a_human(empty: Runtime) -> None:
    provider = Scripted(creates=[Gate(Accepted("p1"))])
    services, hand, run_id, task, gate = await creating(empty, provider)
    await die(empty, services, run_id, task, gate)
    await hand.advance(run_id)
    await let_time_pass(empty, run_id)
    assert await hand.advance(run_id) == "awaiting_human"
    assert (await open_approval(empty, run_id)).reasons == ["provider.outcome_unknown"]
    assert len(provider.requests) == 1


async def test_a_create_that_was_never_answered_waits_for_its_notice(empty: Runtime) -> None:
    provider = Scripted(creates=[OutcomeUnknown("no answer in time")], looks=[DONE])
    services, hand, run_id = await going(empty, provider)
    await take_notice(services, run_id, 1, "p1")
    assert await hand.advance(run_id) == "completed"
    assert len(provider.requests) == 1


async def test_a_notice_that_comes_while_a_human_is_asked_answers_the_question(empty: Runtime) -> None:
    provider = Scripted(creates=[OutcomeUnknown("no answer in time")], looks=[DONE])
    services, hand, run_id = await going(empty, provider)
    await let_time_pass(empty, run_id)
    assert await hand.advance(run_id) == "awaiting_human"
    asked = await open_approval(empty, run_id)
    await take_notice(services, run_id, 1, "p1")
    assert await sql(empty, "select status from approvals where id = $1", asked.id) == "cancelled"
    assert await hand.advance(run_id) == "completed"


async def test_without_adoption_a_create_that_was_never_answered_asks_at_once(empty: Runtime) -> None:
    provider = Scripted(creates=[OutcomeUnknown("no answer in time")])
    provider.adopt_s = 0
    services = serving(empty, provider)
    run_id = await begin(empty, TOOL, services=services)
    assert await worker(empty, services=services).advance(run_id) == "awaiting_human"


async def test_a_humans_retry_ends_the_call_that_may_still_go_on(empty: Runtime) -> None:
    provider = Scripted()
    services, hand, run_id = await going(empty, provider)
    await let_time_pass(empty, run_id)
    await hand.advance(run_id)
    asked = await open_approval(empty, run_id)
    await decide(services, asked.id, Order(action="retry"), DEV)
    await cancel_due(services)
    assert provider.cancelled == ["p1"]
    provider.creates = [Accepted("p2")]
    provider.looks = [Answered(1, 1, provider_ref="p2")]
    assert await hand.advance(run_id) == "awaiting_provider"
    await take_notice(services, run_id, 1, "p1")  # the word of the old one wakes nobody
    assert (await look(empty, run_id)).status == "awaiting_provider"
    await make_due(empty, run_id)
    assert await hand.advance(run_id) == "completed"
    assert provider.cancelled == ["p1"]


# ---- a create that is cut off


async def test_a_create_that_is_cut_off_by_a_cancel_is_ended_at_the_provider(empty: Runtime) -> None:
    provider = Scripted(creates=[Gate(Accepted("p1"))])
    services, hand, run_id, task, gate = await creating(empty, provider)
    await cancel_run(services, run_id, DEV, reason=None)
    hand.drop(run_id)
    assert await task == "lease_lost"
    gate.opened.set()
    await hand.close()
    await cancel_due(services)
    assert (provider.cancelled, (await look(empty, run_id)).status) == (["p1"], "cancelled")


async def test_a_create_whose_answer_finds_the_run_cancelled_is_ended_at_the_provider(empty: Runtime) -> None:
    provider = Scripted(creates=[Gate(Accepted("p1"))])
    services, hand, run_id, task, gate = await creating(empty, provider)
    await cancel_run(services, run_id, DEV, reason=None)
    gate.opened.set()
    assert await task == "lease_lost"
    await hand.close()
    await cancel_due(services)
    assert provider.cancelled == ["p1"]


async def test_a_notice_for_a_run_that_was_cancelled_in_the_create_ends_the_prediction(empty: Runtime) -> None:
    provider = Scripted(creates=[Gate(Accepted("p1"))])
    services, _, run_id, task, gate = await creating(empty, provider)
    await cancel_run(services, run_id, DEV, reason=None)
    gate.outcome = None
    gate.opened.set()
    task.cancel(LEASE_LOST)
    await task
    for _ in range(3):
        await take_notice(services, run_id, 1, "p1")
        await cancel_due(services)
    assert provider.cancelled == ["p1"]
    assert (await look(empty, run_id)).status == "cancelled"


async def test_a_create_that_is_cut_off_by_a_stop_is_taken_up_by_the_next_worker(empty: Runtime) -> None:
    provider = Scripted(creates=[Gate(Accepted("p1"))], looks=[DONE])
    services, _, run_id, task, gate = await creating(empty, provider)
    task.cancel()  # what arq does when the drain's time is out
    await asyncio.sleep(0)
    gate.opened.set()
    assert await task == "handed_over"
    assert (await call_of(empty, run_id)).provider_ref == "p1"
    assert await worker(empty, "w2", services=services).advance(run_id) == "completed"
    assert len(provider.requests) == 1


# ---- cancels


async def by_cancel(runtime: Runtime, services: Services, run_id: UUID) -> None:
    await cancel_run(services, run_id, DEV, reason=None)


async def by_timeout(runtime: Runtime, services: Services, run_id: UUID) -> None:
    await sql(runtime, "update runs set deadline_at = now() where id = $1", run_id)
    assert (await sweep(services))["timed_out"] == 1


@pytest.mark.parametrize("end", [by_cancel, by_timeout])
@pytest.mark.parametrize("state", ["waiting", "looking", "paused", "woken", "asking"])
async def test_ending_a_run_ends_its_call_at_the_provider(empty: Runtime, end: Callable[..., Any], state: str) -> None:
    gate = Gate(Accepted("p1"))
    provider = Scripted(looks=[gate] if state == "looking" else [Accepted("p1")])
    services, hand, run_id = await going(empty, provider)
    task: asyncio.Task[str] | None = None
    match state:
        case "looking":
            await make_due(empty, run_id)
            task = asyncio.create_task(hand.advance(run_id))
            await within(gate.arrived)
        case "paused":
            await pause_run(services, run_id, DEV)
        case "woken":
            await take_notice(services, run_id, 1, "p1")
        case "asking":
            await let_time_pass(empty, run_id)
            assert await hand.advance(run_id) == "awaiting_human"
    await end(empty, services, run_id)
    assert b"cancel:" + str(run_id).encode() in await empty.redis.zrange(QUEUE_NAME, 0, -1)
    assert await cancel_due(services, run_id=run_id) == 1
    assert await cancel_due(services) == 0
    if task is not None:
        gate.opened.set()
        assert await task == "lease_lost"
        await hand.close()
    await take_notice(services, run_id, 1, "p1")
    assert await cancel_due(services) == 0
    assert provider.cancelled == ["p1"]


async def test_a_reviewers_rejection_ends_the_call_at_the_provider(empty: Runtime) -> None:
    provider = Scripted()
    services, hand, run_id = await going(empty, provider)
    await let_time_pass(empty, run_id)
    await hand.advance(run_id)
    asked = await open_approval(empty, run_id)
    await decide(services, asked.id, Order(action="reject", reason="no"), DEV)
    await cancel_due(services)
    assert provider.cancelled == ["p1"]


async def test_a_run_that_is_done_or_may_be_resumed_ends_nothing(empty: Runtime) -> None:
    async def fault(_: Request) -> Any:
        raise ValueError("a bug")

    provider = Scripted(looks=[fault, DONE])
    services, hand, run_id = await going(empty, provider)
    await make_due(empty, run_id)
    assert await hand.advance(run_id) == "internal_error"
    assert await cancel_due(services) == 0
    await resume_run(services, run_id, DEV)
    assert await hand.advance(run_id) == "completed"
    assert (await cancel_due(services), len(provider.requests)) == (0, 1)


async def test_a_cancel_that_does_not_reach_the_provider_comes_again_and_ends(empty: Runtime) -> None:
    provider = Scripted(cancels=[False])
    services, _, run_id = await going(empty, provider)
    await cancel_run(services, run_id, DEV, reason=None)
    due = "select due_at > now() from provider_cancels"
    for n in range(1, MAX_CANCEL_TRIES + 1):
        assert await cancel_due(services) == 1
        assert await sql(empty, due) is (True if n < MAX_CANCEL_TRIES else None)
        await sql(empty, "update provider_cancels set due_at = now() where due_at is not null")
    assert await cancel_due(services) == 0
    assert len(provider.cancelled) == MAX_CANCEL_TRIES


async def test_many_workers_cancel_once(empty: Runtime) -> None:
    provider = Scripted()
    services, _, run_id = await going(empty, provider)
    await cancel_run(services, run_id, DEV, reason=None)
    tried = await asyncio.gather(*(cancel_due(services) for _ in range(8)))
    assert (sum(tried), provider.cancelled) == (1, ["p1"])


async def test_a_fault_of_a_provider_in_cancel_does_not_keep_others_from_being_ended(empty: Runtime) -> None:
    async def fault(_: Request) -> Any:
        raise ValueError("a bug")

    provider = Scripted(cancels=[fault, True])
    services = serving(empty, provider)
    hand = worker(empty, services=services)
    for _ in range(2):
        run_id = await begin(empty, TOOL, services=services)
        await hand.advance(run_id)
        await cancel_run(services, run_id, DEV, reason=None)
    assert await cancel_due(services) == 2
    assert await sql(empty, "select count(*) from provider_cancels where due_at is not null") == 1


# ---- describe


async def test_a_tool_that_cannot_be_described_is_asked_for_again_later(empty: Runtime) -> None:
    provider = Scripted(
        descriptions=[Unreachable("503", retry_after_s=90), Unreachable("503"), Description(example={"prompt": "x"})]
    )
    services = serving(empty, provider)
    run_id = await begin(empty, TOOL, services=services)
    hand = worker(empty, services=services)
    assert await hand.advance(run_id) == "retry_later"
    run = await look(empty, run_id)
    assert run.due_at is not None
    assert (run.status, run.lease_until, run.error) == ("queued", None, None)
    assert (run.due_at - run.updated_at).total_seconds() >= 90
    assert await hand.advance(run_id) == "nothing_due"
    await make_due(empty, run_id)
    assert await hand.advance(run_id) == "retry_later"
    await make_due(empty, run_id)
    assert await hand.advance(run_id) == "awaiting_provider"
    assert provider.described == 3


async def test_a_tool_that_is_never_described_fails_the_run_and_a_resume_begins_anew(empty: Runtime) -> None:
    provider = Scripted(descriptions=[Unreachable("the models are away")])
    services = serving(empty, provider)
    run_id = await begin(empty, TOOL, services=services)
    hand = worker(empty, services=services)
    for _ in range(2):
        for _ in range(MAX_TRIES - 1):
            assert await hand.advance(run_id) == "retry_later"
            await make_due(empty, run_id)
        assert await hand.advance(run_id) == "failed"
        run = await look(empty, run_id)
        assert run.error == {
            "code": "provider_unavailable",
            "message": "the models are away",
            "step": "information_review",
            "recoverable": True,
        }
        await resume_run(services, run_id, DEV)
    assert provider.requests == []


async def test_a_tool_that_the_provider_does_not_know_fails_the_run(empty: Runtime) -> None:
    services = serving(empty, Scripted(descriptions=[Rejected("no such model")]))
    run_id = await begin(empty, TOOL, services=services)
    hand = worker(empty, services=services)
    assert await hand.advance(run_id) == "failed"
    run = await look(empty, run_id)
    assert run.error is not None
    assert (run.error["code"], run.error["recoverable"]) == ("provider_rejected", False)


# ---- progress


async def test_the_last_state_is_told_before_the_answer(empty: Runtime) -> None:
    async def stream(request: Request) -> Any:
        for n in range(1, 200):
            request.progress({"text": "word " * n})
        return Answered("word " * 199, None)

    services = serving(empty, Scripted(creates=[stream]))
    run_id = await begin(empty, TOOL, services=services)
    assert await worker(empty, services=services).advance(run_id) == "completed"
    found = await told(empty, run_id, "provider.progress")
    assert said(found[-1].data) == {"text": "word " * 199}
    assert len(found) <= 2
    kinds = await story(empty, run_id)
    assert kinds.index("provider.completed") == len(kinds) - 1 - kinds[::-1].index("provider.progress") + 1


async def test_progress_is_thinned_by_growth_and_by_time(empty: Runtime) -> None:
    async def stream(request: Request) -> Any:
        loop = asyncio.get_running_loop()
        end = loop.time() + 1.5
        text = "x" * 5000
        while loop.time() < end:
            text += "x"
            request.progress({"text": text})
            await asyncio.sleep(0.001)
        return Answered(text, None)

    services = serving(empty, Scripted(creates=[stream]))
    run_id = await begin(empty, TOOL, services=services)
    await worker(empty, services=services).advance(run_id)
    found = await told(empty, run_id, "provider.progress")
    sizes = [len(orjson.dumps(e.data)) for e in found]
    assert all(later >= sooner * 1.05 for sooner, later in pairwise(sizes[:-1]))
    assert all((b.at - a.at).total_seconds() > 0.15 for a, b in pairwise(found[:-1]))


async def test_progress_of_a_run_that_was_cancelled_hangs_up_on_the_provider(empty: Runtime) -> None:
    hung_up, begun = asyncio.Event(), asyncio.Event()

    async def stream(request: Request) -> Any:
        try:
            for n in range(10_000):
                request.progress({"text": "word " * (n + 1) * 100})
                begun.set()
                await asyncio.sleep(0.01)
        finally:
            hung_up.set()

    provider = Scripted(creates=[stream])
    provider.poll_s, provider.adopt_s = None, 0
    services = serving(empty, provider)
    run_id = await begin(empty, TOOL, services=services)
    task = asyncio.create_task(worker(empty, services=services).advance(run_id))
    await within(begun)
    await cancel_run(services, run_id, DEV, reason=None)
    assert await task == "lease_lost"
    await within(hung_up)


async def test_a_slow_database_does_not_hold_up_the_stream(empty: Runtime) -> None:
    at_the_end = asyncio.Event()

    async def stream(request: Request) -> Any:
        request.progress({"text": "one"})
        await asyncio.sleep(0)
        for n in range(100):
            request.progress({"text": "word " * (n + 1)})
            await asyncio.sleep(0.002)
        at_the_end.set()
        return Answered("all", None)

    gate = Gate(None)

    async def first(request: Request) -> Any:
        await gate(request)
        return await stream(request)

    services = serving(empty, Scripted(creates=[first]))
    run_id = await begin(empty, TOOL, services=services)
    task = asyncio.create_task(worker(empty, services=services).advance(run_id))
    await within(gate.arrived)
    async with empty.services.db.transaction(EVERY) as conn:
        await conn.execute("select from runs where id = $1 for update", run_id)
        gate.opened.set()
        await within(at_the_end)
    assert await task == "completed"
    assert (await told(empty, run_id, "provider.progress"))[-1].data["text"] == "word " * 100


async def test_progress_that_an_event_cannot_carry_is_left_out(empty: Runtime) -> None:
    async def stream(request: Request) -> Any:
        for text in ("whole", "half of a \ud83d"):
            request.progress({"text": text})
            await asyncio.sleep(0)
        return Answered("all", None)

    services = serving(empty, Scripted(creates=[stream]))
    run_id = await begin(empty, TOOL, services=services)
    assert await worker(empty, services=services).advance(run_id) == "completed"
    assert {e.data["text"] for e in await told(empty, run_id, "provider.progress")} <= {"whole"}


async def test_looks_tell_what_is_new_only(empty: Runtime) -> None:
    def says(share: int, outcome: Any) -> Callable[[Request], Any]:
        async def peek(request: Request) -> Any:
            request.progress({"percent": share})
            return outcome

        return peek

    provider = Scripted(looks=[says(10, Accepted("p1")), says(10, Accepted("p1")), says(90, DONE)])
    _, hand, run_id = await going(empty, provider)
    for _ in range(3):
        await make_due(empty, run_id)
        await hand.advance(run_id)
    assert [said(e.data) for e in await told(empty, run_id, "provider.progress")] == [{"percent": 10}, {"percent": 90}]


# ---- the whole thing


async def test_twenty_workers_and_notices_at_once_make_one_call_and_one_answer(empty: Runtime) -> None:
    provider = Scripted(looks=[DONE])
    services = serving(empty, provider)
    run_id = await begin(empty, TOOL, services=services)
    hands = [worker(empty, f"w{n}", services=services) for n in range(20)]

    async def done() -> bool:
        await make_due(empty, run_id)
        await asyncio.gather(
            *(hand.advance(run_id) for hand in hands), *(take_notice(services, run_id, 1, "p1") for _ in range(5))
        )
        return (await look(empty, run_id)).status == "completed"

    await eventually(done)
    assert len(provider.requests) == 1
    assert (await story(empty, run_id)).count("provider.completed") == 1


async def test_a_repeatable_call_whose_worker_was_refused_is_repeated_and_not_adopted(empty: Runtime) -> None:
    gate = Gate(Answered(1, 1, provider_ref="e1"))
    provider = Scripted(creates=[gate])
    provider.repeatable, provider.poll_s, provider.adopt_s = True, None, 0
    services, hand, run_id, task, _ = await creating(empty, provider)
    await sql(empty, "update runs set lease_until = now() - interval '1 s' where id = $1", run_id)
    await sweep(services)
    gate.opened.set()
    assert await task == "lease_lost"
    await hand.close()
    assert (await call_of(empty, run_id)).status == "intent"
    assert await worker(empty, "w2", services=services).advance(run_id) == "completed"
    assert provider.cancelled == []


async def test_what_a_fault_of_ours_kept_from_being_written_is_not_forgotten(empty: Runtime) -> None:
    """The answer cannot be stored; the run fails, and whoever resumes it looks at the same prediction."""
    provider = Scripted(creates=[Answered({"half": "\ud83d"}, None, provider_ref="p1")], looks=[DONE])
    services = serving(empty, provider)
    run_id = await begin(empty, TOOL, services=services)
    hand = worker(empty, services=services)
    assert await hand.advance(run_id) == "internal_error"
    await hand.close()
    await resume_run(services, run_id, DEV)
    assert await hand.advance(run_id) == "completed"
    assert (len(provider.requests), provider.looked) == (1, ["p1"])


async def test_the_workers_job_ends_what_is_to_be_ended(empty: Runtime) -> None:
    provider = Scripted()
    services, hand, run_id = await going(empty, provider)
    await cancel_run(services, run_id, DEV, reason=None)
    idle = asyncio.create_task(asyncio.sleep(0))
    process = Process(replace(empty, services=services), hand, "w1", AsyncExitStack(), idle)
    now = datetime.now(UTC)
    context = {"process": process, "job_id": f"cancel:{run_id}", "enqueue_time": now, "score": now.timestamp() * 1000}
    await cancel_calls(context, str(run_id))
    assert provider.cancelled == ["p1"]
    await idle


# ---- overtaken between the plan and its first write


async def stale(runtime: Runtime, services: Services, run_id: UUID) -> Held:
    """The run as a worker has read it, before what comes next."""
    async with runtime.services.db.transaction(EVERY) as conn:
        run = await runs.claim(conn, run_id, worker_id="w1", lease_s=30)
        assert run is not None
        docs = await runs.documents(conn, run_id)
        call = await calls.get(conn, run_id, 1)
    return Held(run, docs, call, services.registry.by_tool(run.tool), run.fencing_token)


def caller(services: Services, hand: HITLOrchestrator) -> Caller:
    return Caller(services, lease_s=30, drop=hand.drop, through=hand._through)


async def test_a_retry_that_is_adopted_before_its_intent_is_written_is_not_sent(empty: Runtime) -> None:
    provider = Scripted(creates=[Unreachable("500")], looks=[DONE])
    services = serving(empty, provider)
    run_id = await begin(empty, TOOL, services=services)
    hand = worker(empty, services=services)
    assert await hand.advance(run_id) == "retry_later"
    await make_due(empty, run_id)
    held = await stale(empty, services, run_id)
    await take_notice(services, run_id, 1, "p1")
    assert held.call is not None
    with pytest.raises(Overtaken):
        await caller(services, hand).call(held, [], Call(again=held.call))
    assert (held.call.status, held.call.provider_ref, len(provider.requests)) == ("accepted", "p1", 1)


async def test_an_answer_that_comes_before_the_next_intent_is_the_runs_output(
    empty: Runtime, provider: HttpEndpoint
) -> None:
    provider.script = [(503, {})]
    run_id = await begin(empty, http_tool(provider.url))
    hand = worker(empty)
    assert await hand.advance(run_id) == "retry_later"
    await make_due(empty, run_id)
    held = await stale(empty, empty.services, run_id)
    signature = empty.services.keyring.sign("callback", f"{run_id}:1")
    await take_callback(empty.services, run_id, 1, signature, {"late": True})
    assert held.call is not None
    with pytest.raises(Overtaken):
        await caller(empty.services, hand).call(held, [], Call(again=held.call))
    assert await hand._step(held) == "completed"
    assert len(provider.seen) == 1
    assert (await docs_of(empty, run_id)).result == {"response": {"late": True}}


@pytest.mark.parametrize("action", [Suspend(None), Ask(Checkpoint.OUTCOME_UNKNOWN, ["provider.outcome_unknown"])])
async def test_a_call_that_is_adopted_before_the_run_is_put_down_is_looked_at(empty: Runtime, action: Any) -> None:
    provider = Scripted(creates=[OutcomeUnknown("?")], looks=[DONE])
    services, hand, run_id = await going(empty, provider)
    await make_due(empty, run_id)
    held = await stale(empty, services, run_id)
    await take_notice(services, run_id, 1, "p1")
    with pytest.raises(Overtaken):
        await (hand._suspend(held, action) if isinstance(action, Suspend) else hand._ask(held, [], action))
    assert await hand._step(held) == "completed", "the look brought its answer, and nothing stops the run any more"
    assert (held.call is not None and held.call.status, provider.looked) == ("answered", ["p1"])
