"""Use cases of a run: start, pause, resume, cancel."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

from service.commands import tenants
from service.commands.context import After, Services, carry_out, finish, queued, release_next
from service.domain import approval as approvals_
from service.domain.altered import altered
from service.domain.call import CallStatus
from service.domain.event import EventType, Fact
from service.domain.ids import uuid7
from service.domain.plan import Documents
from service.domain.policy import HitlConfig
from service.domain.principal import Permission, Principal, demand
from service.domain.run import Run, RunStatus, Step, cancel, move, woken
from service.errors import IdempotencyKeyReused, NotFound, RunState, SessionBusy, TenantMismatch
from service.logs import get_logger
from service.store import approvals, calls, idempotency, runs
from service.store.database import Conn

SEALED: Final = "[sealed]"
OnActiveRun = Literal["parallel", "queue", "reject", "cancel_previous"]

log = get_logger("commands.runs")


@dataclass(frozen=True, slots=True)
class Idempotency:
    """The caller's key, and the hash of what it was used for."""

    key: str = field(repr=False)
    body_hash: str


@dataclass(frozen=True, slots=True)
class StartRun:
    run_input: Mapping[str, Any]
    config: HitlConfig
    user_id: str | None = None
    session_id: str | None = None
    callback_url: str | None = None
    priority: int = 0
    on_active_run: OnActiveRun = "parallel"
    idempotency: Idempotency | None = None
    request_id: str | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Started:
    run_id: UUID
    replayed: bool


async def start_run(services: Services, order: StartRun, principal: Principal) -> Started:
    """Accept a run. Raises `NoProvider`, `Invalid`, `TenantMismatch`, `SessionBusy`, `IdempotencyKeyReused`,
    `TenantLimit`."""
    demand(principal, Permission.SUBMIT)
    if order.run_input.get("tenant") not in (None, principal.tenant):
        raise TenantMismatch("run_input.tenant is not the tenant of the key")
    run, docs = _accepted(services, order, principal)
    limit = await services.limits.of(services.db, principal.tenant)
    after = After.nothing()
    if limit is None and order.idempotency is None and not _has_turn(order):
        run = await services.together.start((run, docs, _first(run)), principal.tenant)
    else:
        async with services.db.transaction(principal.tenant) as conn:
            earlier = await taken(conn, principal.tenant, order.idempotency)
            if earlier is not None:
                return Started(UUID(earlier["run_id"]), replayed=True)
            run = await _take_turn(conn, services, run, order, principal, after)
            if limit is not None:
                await tenants.check(conn, limit)
            run = await runs.insert(conn, run, docs, _first(run))
            if order.idempotency is not None:
                await idempotency.answer(conn, run.tenant, order.idempotency.key, {"run_id": str(run.id)})
    after.wake.append(run)
    after.changed.append(run.id)
    log.info("run.created", run_id=str(run.id), tenant=run.tenant, provider=run.provider, actor=run.submitter)
    await carry_out(services, after)
    return Started(run.id, replayed=False)


async def taken(conn: Conn, tenant: str, wanted: Idempotency | None) -> Mapping[str, Any] | None:
    """The first answer to this idempotency key, or None when the key is ours to answer now."""
    if wanted is None:
        return None
    stored = await idempotency.take(conn, tenant, wanted.key, wanted.body_hash)
    if stored is None:
        return None
    if stored.body_hash != wanted.body_hash:
        raise IdempotencyKeyReused("this Idempotency-Key was used with another request")
    answer: Mapping[str, Any] = stored.answer
    return answer


async def pause_run(services: Services, run_id: UUID, principal: Principal) -> Run:
    """Let no further step start. A provider call under way goes on: its worker keeps the lease and the token."""
    demand(principal, Permission.SUBMIT)
    after = After.nothing()
    async with services.db.transaction(principal.tenant) as conn:
        run = await _locked(conn, principal.tenant, run_id)
        if run.status is RunStatus.PAUSED:
            return run
        now = services.db.now()
        # what goes on at a provider is still looked at when it is due, so that its answer is kept
        due_at = run.due_at if run.status is RunStatus.AWAITING_PROVIDER else None
        paused = move(run, RunStatus.PAUSED, now=now, paused_at=now, due_at=due_at)
        for waiting in await approvals.open_of_run(conn, run.id):
            await approvals.save(conn, approvals_.stopped(waiting, now=now))
            after.changed.append(waiting.id)
        paused, _ = await runs.save(conn, paused, [Fact(EventType.RUN_PAUSED, principal.subject)], now=now)
        after.changed.append(run.id)
    log.info("run.paused", run_id=str(run.id), tenant=run.tenant, step=run.step, actor=principal.subject)
    await carry_out(services, after)
    return paused


async def resume_run(services: Services, run_id: UUID, principal: Principal, *, only: RunStatus | None = None) -> Run:
    """Go on from the last durable step: a paused run, or a failed one whose error is recoverable; or `only` such."""
    demand(principal, Permission.SUBMIT)
    after = After.nothing()
    async with services.db.transaction(principal.tenant) as conn:
        run = await _locked(conn, principal.tenant, run_id)
        recoverable = run.status is RunStatus.FAILED and bool((run.error or {}).get("recoverable"))
        if (run.status is not RunStatus.PAUSED and not recoverable) or only not in (None, run.status):
            raise RunState(f"a {run.status} run cannot be resumed", extra={"run_status": run.status})
        now = services.db.now()
        resumed = await _requeued(conn, run, now=now) if recoverable else await _unpaused(conn, run, now, after)
        fact = Fact(EventType.RUN_RESUMED, principal.subject, {"from": run.status, "status": resumed.status})
        resumed, _ = await runs.save(conn, resumed, [fact], now=now)
        after.wake.append(resumed)
        after.changed.append(resumed.id)
        if resumed.queues and resumed.due_at is None and resumed.session_id is not None:
            await release_next(conn, resumed.tenant, resumed.session_id, now=now, after=after)
    log.info("run.resumed", run_id=str(run.id), tenant=run.tenant, step=run.step, actor=principal.subject)
    await carry_out(services, after)
    return resumed


async def cancel_run(services: Services, run_id: UUID, principal: Principal, *, reason: str | None) -> Run:
    """End a live run; its worker is refused at its next write. Cancelling a cancelled run changes nothing."""
    demand(principal, Permission.SUBMIT)
    after = After.nothing()
    async with services.db.transaction(principal.tenant) as conn:
        run = await _locked(conn, principal.tenant, run_id)
        if run.status is RunStatus.CANCELLED:
            return run
        run = await cancel_in(conn, run, actor=principal.subject, reason=reason, after=after, now=services.db.now())
    await carry_out(services, after)
    return run


async def cancel_in(conn: Conn, run: Run, *, actor: str, reason: str | None, after: After, now: datetime) -> Run:
    ended = cancel(run, code="cancelled", message=reason or "cancelled by its owner", now=now)
    after.stopped.append(run.id)
    fact = Fact(EventType.RUN_CANCELLED, actor, {"code": "cancelled", "step": run.step})
    return await finish(conn, ended, [fact], now=now, after=after, actor=actor)


def _accepted(services: Services, order: StartRun, principal: Principal) -> tuple[Run, Documents]:
    provider, config = services.registry.choose(order.run_input.get("agent_tool_config"))
    secret = {name: config[name] for name in provider.secret_fields() if config.get(name)}
    now = services.db.now()
    limit = order.config.run_timeout_seconds
    run = Run(
        id=uuid7(), tenant=principal.tenant, status=RunStatus.QUEUED, step=Step.INFORMATION_REVIEW, version=1,
        fencing_token=1, lease_until=None, worker_id=None, due_at=now, armed=True, paused_at=None,
        status_since=now, woken_at=now, claimed_at=None, released_at=None, event_seq=0, event_hash="", call_no=1,
        completed_steps=0, asked={}, payload_sha256=None, provider=provider.name, tool=provider.tool,
        submitter=principal.subject, user_id=order.user_id, session_id=order.session_id, priority=order.priority,
        queues=False, created_at=now, updated_at=now,
        deadline_at=now + timedelta(seconds=limit) if limit else None, finished_at=None, queue_ms=0, human_ms=0,
        provider_ms=0, estimated_usd=None, actual_usd=None, error=None, request_id=order.request_id,
        traceparent=order.traceparent,
    )  # fmt: skip
    docs = Documents(
        run_input={**order.run_input, "agent_tool_config": _redacted(order.run_input["agent_tool_config"])},
        config=order.config,
        tool_config={name: value for name, value in config.items() if name not in secret},
        sealed=services.keyring.seal(secret) if secret else None,
        description=None,
        payload=None,
        output=None,
        raw_response=None,
        result=None,
        callback_url=order.callback_url,
    )
    return run, docs


def _redacted(agent_tool_config: Mapping[str, Any]) -> dict[str, Any]:
    """The request's tools with every header value gone, nested or not, whatever the tool."""

    def without(entry: Any) -> Any:
        if not isinstance(entry, Mapping):
            return entry
        return {
            name: dict.fromkeys(value, SEALED) if name == "headers" and isinstance(value, Mapping) else value
            for name, value in entry.items()
        }

    redacted = {tool: without(entry) for tool, entry in agent_tool_config.items()}
    for entry in redacted.values():
        if isinstance(entry, dict) and "data" in entry:
            entry["data"] = without(entry["data"])
    return redacted


def _first(run: Run) -> list[Fact]:
    return [Fact(EventType.RUN_CREATED, run.submitter, _about(run)), queued(run, "created")]


def _has_turn(order: StartRun) -> bool:
    """Whether the session's other runs matter to it."""
    return order.session_id is not None and order.on_active_run != "parallel"


async def _take_turn(
    conn: Conn, services: Services, run: Run, order: StartRun, principal: Principal, after: After
) -> Run:
    """What the request said to do about the session's other live runs."""
    if order.session_id is None or order.on_active_run == "parallel":
        return run
    others = await runs.lock_live_in_session(conn, principal.tenant, order.session_id)
    now = services.db.now()
    match order.on_active_run:
        case "queue":
            # its place in line is the one it got the session's lock in, whatever another machine's clock says
            last = max((other.created_at for other in others), default=now - timedelta(microseconds=1))
            created_at = max(run.created_at, last + timedelta(microseconds=1))
            return altered(run, queues=True, created_at=created_at, due_at=None if others else run.due_at)
        case "reject":
            if others:
                raise SessionBusy("the session has an active run", extra={"run_id": str(others[0].id)})
        case "cancel_previous":
            for other in reversed(others):  # the line from its end: nobody in it gets his turn by another's end
                fresh = await runs.lock_any(conn, other.id)
                if fresh is not None and not fresh.final:
                    reason = "replaced by a later run"
                    await cancel_in(conn, fresh, actor=principal.subject, reason=reason, after=after, now=now)
    return run


async def _unpaused(conn: Conn, run: Run, now: datetime, after: After) -> Run:
    """Back to what the run was waiting for, its clocks going again."""
    waiting = await approvals.open_of_run(conn, run.id)
    for stopped in waiting:
        await approvals.save(conn, approvals_.restarted(stopped, now=now))
        after.changed.append(stopped.id)
    if run.leased:  # its worker never let go: it goes on by itself
        return move(run, RunStatus.RUNNING, now=now)
    if waiting:
        return move(run, RunStatus.AWAITING_HUMAN, now=now)
    if run.queues and run.claimed_at is None:  # back into its session's line
        return move(run, RunStatus.QUEUED, now=now, due_at=None)
    return woken(run, now=now)


async def _requeued(conn: Conn, run: Run, *, now: datetime) -> Run:
    """A failed run again, from its last durable step; what is left of an exhausted call is a new try."""
    call = await calls.lock(conn, run.id, run.call_no)
    if call is not None and call.status is CallStatus.EXHAUSTED:
        await calls.save(conn, altered(call, status=CallStatus.RETRY))
    return altered(woken(run, now=now), error=None, finished_at=None)


async def _locked(conn: Conn, tenant: str, run_id: UUID) -> Run:
    run = await runs.lock(conn, tenant, run_id)
    if run is None:
        raise NotFound("no such run")
    return run


def _about(run: Run) -> dict[str, Any]:
    return {
        "provider": run.provider,
        "user_id": run.user_id,
        "session_id": run.session_id,
        "priority": run.priority,
    }
