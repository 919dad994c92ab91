"""Floor 5: a run that a worker holds, and what its writes have in common. Each carries the fencing token."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from service.commands.context import After, Services
from service.domain.call import CallStatus, ProviderCall
from service.domain.event import EventType, Fact
from service.domain.plan import Abilities, Documents, Pass, looked_at
from service.domain.run import Run, RunStatus, advanced, released
from service.errors import NoProvider
from service.logs import get_logger
from service.providers.protocol import Provider
from service.store import approvals, calls, runs
from service.store.database import Conn

log = get_logger("orchestrator")


@dataclass(slots=True)
class Held:
    """A run that this worker holds, as it stood after the last commit, and what is not yet written of it."""

    run: Run
    docs: Documents
    call: ProviderCall | None
    provider: Provider
    token: int
    built: bool = False
    intending: bool = False  # a call's intent is being written: nothing of it was sent yet


def abilities(provider: Provider) -> Abilities:
    return Abilities(provider.repeatable, provider.poll_s is not None, provider.adopt_s)


async def locked(services: Services, conn: Conn, held: Held, passed: Sequence[Pass]) -> tuple[Run, list[Fact]] | None:
    """The run under its token, with what was built and passed written to it; None when it was paused."""
    fresh = await runs.lock_held(conn, held.run.id, held.token)
    if fresh.status is RunStatus.PAUSED:
        await put_down(services, conn, fresh)
        return None
    facts: list[Fact] = []
    if held.built:
        await runs.set_built(conn, fresh.id, description=held.docs.description, payload=held.docs.payload)
        fresh = replace(fresh, payload_sha256=held.run.payload_sha256, estimated_usd=held.run.estimated_usd)
        facts.append(Fact(EventType.STEP_STARTED, "system", {"step": fresh.step}))
        held.built = False
    run, more = await passed_by(services, conn, fresh, passed)
    return run, [*facts, *more]


async def passed_by(services: Services, conn: Conn, run: Run, passed: Sequence[Pass]) -> tuple[Run, list[Fact]]:
    """Record the finished steps of a locked run; the run at its next step, and what there is to tell."""
    facts: list[Fact] = []
    records: list[runs.StepRecord] = []
    now = services.db.now()
    for done in passed:
        actor, message = await _who_passed(conn, run, done)
        records.append(runs.StepRecord(done.step, "completed", now, actor, message))
        data = {"step": done.step, "payload_sha256": run.payload_sha256, "call": run.call_no}
        facts.append(Fact(EventType.STEP_COMPLETED, actor, data))
        run = advanced(run)
        if run.step != "completed":
            facts.append(Fact(EventType.STEP_STARTED, "system", {"step": run.step}))
    if records:
        await runs.record_steps(conn, run, records)
    return run, facts


async def _who_passed(conn: Conn, run: Run, done: Pass) -> tuple[str, str]:
    """The actor of a finished step, and how it is told. Who decided is looked up only where a human was asked."""
    if done.step == "api_call":
        return f"provider:{run.provider}", "answered"
    actor = await approvals.last_actor(conn, run.id, done.step) if done.step in run.asked else None
    return ("policy", "passed by policy") if actor is None else (actor, f"decided by {actor}")


async def overtaken(conn: Conn, held: Held) -> bool:
    """Whether a callback or a notice has changed the call since it was read; then it is read anew, and the plan is
    to be made again. Locks the run first, under its token: nobody changes the call after this. Raises `LeaseLost`."""
    await runs.lock_held(conn, held.run.id, held.token)
    current = await calls.lock(conn, held.run.id, held.run.call_no)
    same = _standing(current) == _standing(held.call)
    held.call = current
    if current is not None and current.status is CallStatus.ANSWERED:
        held.docs = replace(held.docs, output=current.output, raw_response=current.raw)
    return not same


def _standing(call: ProviderCall | None) -> tuple[object, ...] | None:
    return None if call is None else (call.number, call.status, call.tries, call.provider_ref)


async def put_down(services: Services, conn: Conn, run: Run) -> None:
    """Let go of a paused run. What goes on at its provider is looked at again, so that the answer is kept."""
    now = services.db.now()
    due_at = now if await is_looked_at(services, conn, run) else None
    down = replace(run, lease_until=None, worker_id=None, released_at=now, due_at=due_at, armed=False)
    await runs.save(conn, down, [], now=now)


async def is_looked_at(services: Services, conn: Conn, run: Run) -> bool:
    try:
        provider = services.registry.by_tool(run.tool)
    except NoProvider:
        return False
    return looked_at(await calls.get(conn, run.id, run.call_no), abilities(provider))


def awaiting(services: Services, run: Run, until: datetime | None, after: After, *, now: datetime) -> Run:
    """The run put down until its provider speaks, or until this moment; paused, it stays so.

    A moment inside the horizon gets its deferred job at once; the sweep would be seconds late.
    """
    near = until is not None and until <= now + timedelta(seconds=services.horizon_s)
    if run.status is RunStatus.PAUSED:
        waiting = replace(run, lease_until=None, worker_id=None, released_at=now, due_at=until, armed=near)
    else:
        waiting = released(run, RunStatus.AWAITING_PROVIDER, now=now, due_at=until, armed=near)
    if near:
        after.wake.append(waiting)
    return waiting


def log_steps(run: Run, passed: Sequence[Pass]) -> None:
    for done in passed:
        log.info("step.finished", run_id=str(run.id), tenant=run.tenant, step=done.step)
