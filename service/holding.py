"""Floor 5: a run that a worker holds, and what its writes have in common. Each carries the fencing token."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from service.commands.context import After, Services, closed_of, next_turn, release_next
from service.domain.altered import altered
from service.domain.call import CallStatus, ProviderCall
from service.domain.event import EventType, Fact
from service.domain.plan import Abilities, Documents, Pass, looked_at
from service.domain.run import Run, RunStatus, advanced, move, ms_between, released
from service.errors import NoProvider
from service.logs import get_logger
from service.providers.protocol import Provider
from service.store import calls, changes, runs
from service.store.changes import Change
from service.store.database import EVERY, Conn

Made = Callable[[Run, Sequence[Fact]], Change]

log = get_logger("orchestrator")


class Paused(Exception):
    """The run was paused meanwhile, and has been put down."""


class Overtaken(Exception):
    """A callback or a notice has changed the call meanwhile: it was read anew, and the plan is to be made again."""


@dataclass(slots=True)
class Held:
    """A run that this worker holds, as it stood after the last commit, and what is not yet written of it. `actors`:
    who decided last, by checkpoint; `tries`: how often its provider was called, over all its calls."""

    run: Run
    docs: Documents
    call: ProviderCall | None
    provider: Provider
    token: int
    actors: Mapping[str, str] = field(default_factory=dict)
    tries: int = 0
    built: bool = False
    intending: bool = False  # a call's intent is being written: nothing of it was sent yet


def abilities(provider: Provider) -> Abilities:
    return Abilities(provider.repeatable, provider.poll_s is not None, provider.adopt_s)


async def put(services: Services, held: Held, made: Made, after: After, *, watched: bool = False) -> Change:
    """Write what `made` makes of the run: first without a lock and in company, and where the run has moved on since
    it was read, again under its lock. Raises `LeaseLost`, `Paused`, and, if its call is `watched`, `Overtaken`.

    `made` may be asked twice. It is given what has to be told first: open questions that end with the run.
    """
    change = made(held.run, ())
    follows = await services.together.write(change, EVERY)
    if follows is None:
        change = await _put_locked(services, held, made, after, watched=watched)
    elif follows:
        await next_turn(services, change.run, after)
    after.changed.append(change.run.id)
    held.run, held.built = change.run, False
    return change


async def _put_locked(services: Services, held: Held, made: Made, after: After, *, watched: bool) -> Change:
    async with services.db.transaction(held.run.tenant) as conn:
        run = await runs.lock_held(conn, held.run.id, held.token)
        paused = run.status is RunStatus.PAUSED
        if paused:
            await put_down(services, conn, run)
        elif not (watched and await overtaken(conn, held)):
            change = made(run, ())
            if change.run.final:
                change = made(run, await closed_of(conn, run, now=services.db.now(), actor="system", after=after))
            await write_locked(conn, change, after)
            return change
    raise Paused if paused else Overtaken


async def write_locked(conn: Conn, change: Change, after: After) -> None:
    """Of a run that this transaction has locked, and whose open questions it has closed if it ends."""
    (follows,) = await changes.write(conn, [change])
    assert follows is not None
    run = change.run
    if follows and run.session_id is not None:
        await release_next(conn, run.tenant, run.session_id, now=run.updated_at, after=after)


def walked(held: Held, run: Run, passed: Sequence[Pass], *, now: datetime) -> tuple[Run, list[Fact], dict[str, Any]]:
    """The run with what was built and passed; what there is to tell; and the parts of its `Change`."""
    facts: list[Fact] = []
    parts: dict[str, Any] = {}
    if held.built:
        run = altered(run, payload_sha256=held.run.payload_sha256, estimated_usd=held.run.estimated_usd)
        parts["built"] = {"description": held.docs.description, "payload": held.docs.payload}
        facts.append(Fact(EventType.STEP_STARTED, "system", {"step": run.step}))
    run, more, parts["steps"] = passed_by(held, run, passed, now=now)
    return run, [*facts, *more], parts


def passed_by(
    held: Held, run: Run, passed: Sequence[Pass], *, now: datetime
) -> tuple[Run, list[Fact], list[runs.StepRecord]]:
    """The run at its next step, and the steps that it has passed: as events and as its history."""
    facts: list[Fact] = []
    records: list[runs.StepRecord] = []
    for done in passed:
        if done.step != run.step:
            raise RuntimeError("the run is no longer where its steps were planned")
        actor, message = _who_passed(held, run, done)
        records.append(runs.StepRecord(done.step, "completed", now, actor, message))
        data = {"step": done.step, "payload_sha256": run.payload_sha256, "call": run.call_no}
        facts.append(Fact(EventType.STEP_COMPLETED, actor, data))
        run = advanced(run)
        if run.step != "completed":
            facts.append(Fact(EventType.STEP_STARTED, "system", {"step": run.step}))
    return run, facts, records


def _who_passed(held: Held, run: Run, done: Pass) -> tuple[str, str]:
    """The actor of a finished step, and how it is told."""
    if done.step == "api_call":
        return f"provider:{run.provider}", "answered"
    actor = held.actors.get(done.step) if done.step in run.asked else None
    return ("policy", "passed by policy") if actor is None else (actor, f"decided by {actor}")


def completed(run: Run, docs: Documents, *, now: datetime) -> tuple[Run, Fact, dict[str, Any]]:
    """The run completed, the event of it, and the parts of its `Change`."""
    ended = move(run, RunStatus.COMPLETED, now=now, fencing_token=run.fencing_token + 1, error=None)
    data = {"total_ms": ms_between(run.created_at, now), "payload_sha256": run.payload_sha256}
    parts = {} if docs.result is not None else {"result": {"response": docs.output}}
    return ended, Fact(EventType.RUN_COMPLETED, "system", data), parts


async def locked(services: Services, conn: Conn, held: Held, passed: Sequence[Pass]) -> tuple[Run, list[Fact]] | None:
    """The run under its token, with what was built and passed written to it; None when it was paused."""
    run = await runs.lock_held(conn, held.run.id, held.token)
    if run.status is RunStatus.PAUSED:
        await put_down(services, conn, run)
        return None
    run, facts, parts = walked(held, run, passed, now=services.db.now())
    if "built" in parts:
        await runs.set_built(conn, run.id, **parts["built"])
        held.built = False
    if parts["steps"]:
        await runs.record_steps(conn, run, parts["steps"])
    return run, facts


async def overtaken(conn: Conn, held: Held) -> bool:
    """Whether a callback or a notice has changed the call of a run that is locked since it was read; then it is read
    anew. Whoever changes a call locks its run first."""
    current = await calls.lock(conn, held.run.id, held.run.call_no)
    same = _standing(current) == _standing(held.call)
    held.call = current
    held.docs = answered(held.docs, current)
    return not same


def answered(docs: Documents, call: ProviderCall | None) -> Documents:
    """The documents with the answer that stands on the call: it may have come since they were read."""
    if call is None or call.status is not CallStatus.ANSWERED:
        return docs
    return replace(docs, output=call.output, raw_response=call.raw)


def _standing(call: ProviderCall | None) -> tuple[object, ...] | None:
    return None if call is None else (call.number, call.status, call.tries, call.provider_ref)


async def put_down(services: Services, conn: Conn, run: Run) -> None:
    """Let go of a paused run. What goes on at its provider is looked at again, so that the answer is kept."""
    now = services.db.now()
    due_at = now if await is_looked_at(services, conn, run) else None
    down = altered(run, lease_until=None, worker_id=None, released_at=now, due_at=due_at, armed=False)
    await runs.save(conn, down, [], now=now)


async def is_looked_at(services: Services, conn: Conn, run: Run) -> bool:
    try:
        provider = services.registry.by_tool(run.tool)
    except NoProvider:
        return False
    return looked_at(await calls.get(conn, run.id, run.call_no), abilities(provider))


def awaiting(services: Services, run: Run, until: datetime | None, *, now: datetime) -> Run:
    """The run put down until its provider speaks, or until this moment; paused, it stays so.

    A moment inside the horizon gets its deferred job at once (it is `armed`); the sweep would be seconds late.
    """
    near = until is not None and until <= now + timedelta(seconds=services.horizon_s)
    if run.status is RunStatus.PAUSED:
        return altered(run, lease_until=None, worker_id=None, released_at=now, due_at=until, armed=near)
    return released(run, RunStatus.AWAITING_PROVIDER, now=now, due_at=until, armed=near)


def log_steps(run: Run, passed: Sequence[Pass]) -> None:
    for done in passed:
        log.info("step.finished", run_id=str(run.id), tenant=run.tenant, step=done.step)
