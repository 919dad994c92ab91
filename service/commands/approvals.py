"""Use cases of an approval: decide, ask. One decision wins; decision, timeout and cancel race for one row."""

import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from service import tracing
from service.commands.context import After, Services, carry_out, finish, queued, with_asked
from service.commands.runs import Idempotency, taken
from service.domain import approval as rules
from service.domain.altered import altered
from service.domain.approval import Approval, ApprovalStatus, Order, Verdict
from service.domain.call import CallStatus
from service.domain.canonical import NotCanonical, payload_sha256
from service.domain.delivery import RELAY, WEBHOOK, Kind, Told
from service.domain.event import EventType, Fact, rfc3339
from service.domain.ids import uuid7
from service.domain.plan import Documents
from service.domain.policy import ANYONE, Checkpoint, EscalateTo, OnTimeout, Reviewers
from service.domain.principal import Permission, Principal, demand
from service.domain.question import counted, redrawn, revised
from service.domain.record import Recorded, recorded
from service.domain.run import Run, Step, cancel, check_live, ms_between, woken
from service.errors import (
    AmbiguousApproval,
    Conflict,
    HitlError,
    NoOpenApproval,
    NotFound,
)
from service.logs import get_logger
from service.store import approvals, calls, cancels, changes, deliveries, events, idempotency, runs, seen, timers
from service.store.approvals import ToDecide
from service.store.changes import Change
from service.store.database import EVERY, Conn, outbox

_REVIEWS: Final = frozenset({Checkpoint.INFORMATION_REVIEW, Checkpoint.PAYLOAD_REVIEW, Checkpoint.RESPONSE_REVIEW})

log = get_logger("commands.approvals")


@dataclass(frozen=True, slots=True)
class Decided:
    approval: Approval
    run: Run | None
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """What a program asks a human."""

    checkpoint_type: str
    message: str
    context: Mapping[str, Any]
    schema: Any = None
    timeout_s: float = 86_400
    on_timeout: OnTimeout = "reject"
    escalate_to: EscalateTo | None = None
    remind_after_s: float | None = None
    reviewers: Reviewers = ANYONE
    user_id: str | None = None
    session_id: str | None = None
    callback_url: str | None = None
    idempotency: Idempotency | None = None


async def only_open(services: Services, run_id: UUID, principal: Principal) -> UUID:
    """The run's one open approval. Raises `NotFound`, or a 409 that says why there is none to decide."""
    demand(principal, Permission.DECIDE)
    async with services.db.connection(principal.tenant) as conn:
        run = await runs.get(conn, principal.tenant, run_id)
        if run is None:
            raise NotFound("no such run")
        found = await approvals.open_of_run(conn, run_id)
    if len(found) == 1:
        return found[0].id
    if found:
        raise AmbiguousApproval("more than one approval is open", extra={"run_status": run.status})
    check_live(run)
    raise NoOpenApproval("the run has no open approval", extra={"run_status": run.status})


@tracing.traced("decide")
async def decide(
    services: Services,
    approval_id: UUID,
    order: Order,
    principal: Principal,
    *,
    channel: str = "http",
    run_id: UUID | None = None,
    within: Callable[[Conn], Awaitable[None]] | None = None,
) -> Decided:
    """Take one reviewer's answer. Exactly one wins; refusals change nothing and say who was first.

    Raises `NotFound`, `NotAReviewer`, `SelfApproval`, `AlreadyDecided`, `ApprovalExpired`, `RunPaused`,
    `PayloadChanged`, `InvalidPayload`, `Invalid`. `run_id`, where given, must be the approval's run.
    `within` is done first, in the same transaction: what lets one decide is used up with the decision, or not at all.
    """
    demand(principal, Permission.DECIDE)
    if within is None and order.action == "approve":
        at_once = await _let_through(services, approval_id, order, principal, channel=channel, run_id=run_id)
        if at_once is not None:
            return at_once
    after = After.nothing()
    async with services.db.transaction(principal.tenant) as conn:
        if within is not None:
            await within(conn)
        current, run = await locked_for(conn, principal, approval_id)
        if run_id is not None and current.run_id != run_id:
            raise NotFound("no such approval")
        if rules.same_answer(current, order, principal):
            return Decided(current, run, replayed=True)
        try:
            if run is not None and current.is_open:
                check_live(run)
            verdict = rules.judge(current, order, principal, now=services.db.now(), channel=channel)
        except Conflict as refusal:
            raise naming(refusal, current, run) from None
        run = await _take(conn, services, verdict, run, after, before=current, by=principal)
    _log(verdict.approval, principal.subject, order.action, channel)
    await carry_out(services, after)
    return Decided(verdict.approval, run)


async def _let_through(
    services: Services, approval_id: UUID, order: Order, principal: Principal, *, channel: str, run_id: UUID | None
) -> Decided | None:
    """The common case, without a lock and in company: a first answer that lets a run go on as it is. None: it is
    another case, or was overtaken; then nothing has happened, and what is to be said is said under the lock."""
    found = await services.together.to_decide(approval_id, principal.tenant, principal.subject)
    if found is None or run_id not in (None, found.run.id):
        return None
    try:
        check_live(found.run)
        verdict = rules.judge(found.approval, order, principal, now=services.db.now(), channel=channel)
    except HitlError:
        return None
    change = _passing(found, verdict, principal, now=services.db.now())
    if change is None or await services.together.write(change, principal.tenant) is None:
        return None
    after = After.nothing()
    after.changed += [approval_id, change.run.id]
    if not verdict.approval.is_open:
        after.wake.append(change.run)
    _log(verdict.approval, principal.subject, order.action, channel)
    await carry_out(services, after)
    return Decided(verdict.approval, change.run)


def _passing(found: ToDecide, verdict: Verdict, by: Principal, *, now: datetime) -> Change | None:
    """What a first approval makes of its run: one vote of several, or its way to the next step."""
    approval, before = verdict.approval, found.run
    if approval.checkpoint_type not in _REVIEWS:  # an outcome that is given changes what the next one is shown
        return None
    nonce = secrets.token_hex(16)
    record = recorded(found.approval, approval, verdict.decision, by, found.seen, nonce=nonce, payload=verdict.payload)
    run, facts = before, [_fact(approval, verdict, record)]
    if not approval.is_open:
        run = woken(with_asked(before, approval.checkpoint_type, approval.reasons), now=now)
        facts.append(queued(run, "decided"))
    return Change.of(before, run, facts, now=now, more=changes.Decided(approval, verdict.decision, record))


async def claim(services: Services, approval_id: UUID, principal: Principal, *, release: bool = False) -> Approval:
    """Keep an approval for oneself for ten minutes, or let it go. Raises as `decide`, and `ApprovalClaimed`."""
    demand(principal, Permission.DECIDE)
    after = After.nothing()
    async with services.db.transaction(principal.tenant) as conn:
        current, run = await locked_for(conn, principal, approval_id)
        now = services.db.now()
        change = rules.let_go if release else rules.claimed
        try:
            changed = change(current, principal, now=now)
        except Conflict as refusal:
            raise naming(refusal, current, run) from None
        await approvals.save(conn, changed)
        after.changed.append(changed.id)
        if run is not None:
            until = rfc3339(changed.claimed_until) if changed.claimed_until else None
            fact = Fact(
                EventType.APPROVAL_CLAIMED,
                principal.subject,
                {"approval_id": str(changed.id), "claimed_by": changed.claimed_by, "claimed_until": until},
            )
            await runs.save(conn, run, [fact], now=now)
            after.changed.append(run.id)
    await carry_out(services, after)
    return changed


async def ask(services: Services, question: Question, principal: Principal) -> tuple[Approval, bool]:
    """Open an approval that belongs to no run. Returns it, and whether it was there before."""
    demand(principal, Permission.ASK)
    now = services.db.now()
    payload = question.context.get("payload")
    opened = Approval(
        id=uuid7(), tenant=principal.tenant, run_id=None, checkpoint_type=question.checkpoint_type,
        status=ApprovalStatus.PENDING, reasons=["requested"], message=question.message, context=question.context,
        schema=question.schema, payload_sha256=_hash(payload), user_id=question.user_id,
        session_id=question.session_id, submitter=principal.subject, reviewers=question.reviewers,
        on_timeout=question.on_timeout, timeout_s=question.timeout_s, escalate_to=question.escalate_to,
        escalated_at=None, remind_after_s=question.remind_after_s,
        remind_at=now + timedelta(seconds=question.remind_after_s) if question.remind_after_s else None,
        created_at=now, expires_at=now + timedelta(seconds=question.timeout_s), clock_stopped_at=None, timer_no=1,
        armed=False, edited=False, claimed_by=None, claimed_until=None, decided_at=None,
        callback_url=question.callback_url, version=1,
    )  # fmt: skip
    async with services.db.transaction(principal.tenant) as conn:
        earlier = await taken(conn, principal.tenant, question.idempotency)
        if earlier is not None:
            found = await approvals.get(conn, principal.tenant, UUID(earlier["approval_id"]))
            assert found is not None
            return found, True
        await approvals.insert(conn, opened)
        await events.asked(conn, opened.tenant, opened.id)
        await tell(conn, opened, EventType.APPROVAL_REQUESTED, now)
        if question.idempotency is not None:
            answer = {"approval_id": str(opened.id)}
            await idempotency.answer(conn, principal.tenant, question.idempotency.key, answer)
    log.info(
        "approval.requested", approval_id=str(opened.id), tenant=opened.tenant, actor=principal.subject,
        reasons=list(opened.reasons),
    )  # fmt: skip
    after = After.nothing()
    after.changed.append(opened.id)
    await carry_out(services, after)
    return opened, False


async def expire(services: Services, approval_id: UUID) -> bool:
    """Do what silence means, if the approval's time is out by Postgres's clock. Returns whether it was."""
    after = After.nothing()
    async with services.db.transaction(EVERY) as conn:
        current, run = await locked(conn, approval_id)
        left = await timers.left_s(conn, approval_id)
        if current is None or left is None or left[0] is None or left[0] > 0:
            return False
        changed = await silence(conn, services, current, run, after)
    log_silence(changed)
    await carry_out(services, after)
    return True


async def remind(services: Services, approval_id: UUID) -> bool:
    """Say once more that a human is waited for, if it is time to. Returns whether it was."""
    after = After.nothing()
    async with services.db.transaction(EVERY) as conn:
        current, run = await locked(conn, approval_id)
        left = await timers.left_s(conn, approval_id)
        if current is None or left is None or left[1] is None or left[1] > 0:
            return False
        await say_again(conn, services, current, run, after)
    await carry_out(services, after)
    return True


async def silence(conn: Conn, services: Services, current: Approval, run: Run | None, after: After) -> Approval:
    """Do what silence means about an approval that is locked and past its deadline by Postgres's clock."""
    services.db.heard(current.expires_at)  # nothing that comes of it was before
    now = services.db.now()
    if rules.escalates(current):
        await _escalate(conn, current, run, now, after)
        return current
    verdict = rules.silent_verdict(current, now=now)
    await _take(conn, services, verdict, run, after, before=current, by=None)
    return verdict.approval


async def say_again(conn: Conn, services: Services, current: Approval, run: Run | None, after: After) -> None:
    """Say once more that a human is waited for, about an approval that is locked and due for it."""
    now = services.db.now()
    again = timedelta(seconds=current.remind_after_s) if current.remind_after_s else None
    await approvals.save(conn, altered(current, remind_at=now + again if again else None))
    if run is not None:
        fact = Fact(EventType.APPROVAL_REMINDED, "system", {"approval_id": str(current.id)})
        await runs.save(conn, run, [fact], now=now)
        after.changed.append(run.id)
    after.changed.append(current.id)


async def _take(
    conn: Conn,
    services: Services,
    verdict: Verdict,
    run: Run | None,
    after: After,
    *,
    before: Approval,
    by: Principal | None,
) -> Run | None:
    """Write the answer and what it does to the run: the whole decision is this one transaction."""
    docs = None
    opened = await seen.first(conn, before.id, verdict.decision.actor)
    record = recorded(
        before, verdict.approval, verdict.decision, by, opened, nonce=secrets.token_hex(16), payload=verdict.payload
    )
    if run is not None and verdict.approval.edited and rules.shows_payload(verdict.approval):
        docs = revised(await runs.documents(conn, run.id), verdict.approval.decisions)
        verdict = replace(verdict, approval=redrawn(verdict.approval, docs))
    approval = verdict.approval
    if approval.status is not ApprovalStatus.EXPIRED:
        await approvals.add_decision(conn, approval, verdict.decision, record)
    await approvals.save(conn, approval)
    after.changed.append(approval.id)
    now = services.db.now()
    fact = _fact(approval, verdict, record)
    if run is None:
        await tell(conn, approval, fact.type, now)
        return None
    match approval.status:
        case ApprovalStatus.PENDING:
            run, _ = await runs.save(conn, run, [fact], now=now)
            after.changed.append(run.id)
            return run
        case ApprovalStatus.REJECTED | ApprovalStatus.EXPIRED:
            return await _end(conn, run, approval, verdict, fact, now, after)
        case _:
            return await _go_on(conn, run, verdict, docs, fact, now, after)


async def tell(conn: Conn, approval: Approval, event_type: EventType, now: datetime) -> None:
    """Tell the outside of a question that belongs to no run: it has no events of which that would come."""
    box = outbox(conn)
    kinds: list[Kind] = [WEBHOOK] if approval.callback_url is not None else []
    if box.relays and event_type is EventType.APPROVAL_REQUESTED:  # no frame tells of the others
        kinds.append(RELAY)
    if kinds:
        messages = [Told(kind, None, event_type, approval.id, now) for kind in kinds]
        await deliveries.add_of_question(conn, approval.tenant, approval.id, messages)
        box.filled = True


async def _end(
    conn: Conn, run: Run, approval: Approval, verdict: Verdict, fact: Fact, now: datetime, after: After
) -> Run:
    expired = approval.status is ApprovalStatus.EXPIRED
    code = "approval_expired" if expired else "rejected"
    message = "nobody answered in time" if expired else verdict.decision.reason or "rejected"
    ended = cancel(run, code=code, message=message, now=now)
    actor = verdict.decision.actor
    facts = [fact, Fact(EventType.RUN_CANCELLED, actor, {"code": code, "step": run.step})]
    ended = await finish(conn, ended, facts, now=now, after=after, actor=actor)
    await runs.record_steps(conn, ended, [runs.StepRecord(run.step, "cancelled", now, actor, code)])
    return ended


async def _go_on(
    conn: Conn, run: Run, verdict: Verdict, docs: Documents | None, fact: Fact, now: datetime, after: After
) -> Run:
    """`docs`: the run's documents with the edits of this approval in them, where there are any."""
    approval = verdict.approval
    checkpoint = approval.checkpoint_type
    run = with_asked(run, checkpoint, approval.reasons)
    if docs is not None:
        about = counted(docs) if checkpoint == Checkpoint.INFORMATION_REVIEW else docs.description
        await runs.set_built(conn, run.id, description=about, payload=verdict.payload)
        run = altered(run, payload_sha256=approval.payload_sha256)
    if verdict.has_response and checkpoint == Checkpoint.RESPONSE_REVIEW:
        await runs.set_result(conn, run.id, {"response": verdict.response})
    if verdict.has_response and checkpoint == Checkpoint.OUTCOME_UNKNOWN:
        run = await _take_outcome(conn, run, verdict, now)
    elif approval.status is ApprovalStatus.RETRIED or checkpoint in (
        Checkpoint.ERROR_RECOVERY,
        Checkpoint.OUTCOME_UNKNOWN,
    ):
        if checkpoint == Checkpoint.OUTCOME_UNKNOWN and await cancels.add_of_run(conn, run.id):
            after.cancelling.append(run.id)  # never two predictions: what may still go on is ended first
        run = _call_anew(run)
    ready = woken(run, now=now)
    ready, _ = await runs.save(conn, ready, [fact, queued(ready, "decided")], now=now)
    after.wake.append(ready)
    after.changed.append(ready.id)
    return ready


def _call_anew(run: Run) -> Run:
    """A human's retry, or an edited payload, is a new call with a new key; what an edit raised asks first."""
    asked = {name: reasons for name, reasons in run.asked.items() if name != Checkpoint.RESPONSE_REVIEW}
    return altered(run, step=Step.PAYLOAD_REVIEW, call_no=run.call_no + 1, asked=asked)


async def _take_outcome(conn: Conn, run: Run, verdict: Verdict, now: datetime) -> Run:
    """A human says what came of a call that was never answered."""
    call = await calls.lock(conn, run.id, run.call_no)
    assert call is not None
    answered = altered(call, status=CallStatus.ANSWERED, output=verdict.response, raw=verdict.response, finished_at=now)
    await calls.save(conn, answered)
    await runs.set_answer(conn, run.id, output=verdict.response, raw=verdict.response)
    return run


async def _escalate(conn: Conn, current: Approval, run: Run | None, now: datetime, after: After) -> None:
    await approvals.save(conn, rules.escalated(current, now=now))
    after.changed.append(current.id)
    if run is not None:
        target = current.escalate_to.model_dump() if current.escalate_to else {}
        fact = Fact(EventType.APPROVAL_ESCALATED, rules.TIMEOUT_ACTOR, {"approval_id": str(current.id), "to": target})
        await runs.save(conn, run, [fact], now=now)
        after.changed.append(run.id)


async def locked(conn: Conn, approval_id: UUID) -> tuple[Approval | None, Run | None]:
    """The approval and its run, locked in the one order that all use: the run first."""
    known = await approvals.run_of(conn, approval_id)
    if known is None:
        return None, None
    run = await runs.lock_any(conn, known[0]) if known[0] else None
    return await approvals.lock(conn, approval_id), run


async def locked_for(conn: Conn, principal: Principal, approval_id: UUID) -> tuple[Approval, Run | None]:
    """As `locked`, of the principal's tenant. Raises `NotFound`."""
    run = await runs.lock_of_approval(conn, principal.tenant, approval_id)
    current = await approvals.lock(conn, approval_id, tenant=principal.tenant)
    if current is None:
        raise NotFound("no such approval")
    return current, run


def _fact(approval: Approval, verdict: Verdict, record: Recorded) -> Fact:
    data = {
        "approval_id": str(approval.id),
        "checkpoint_type": approval.checkpoint_type,
        "status": approval.status,
        "payload_sha256": approval.payload_sha256,
        **record.data(),
    }
    if approval.status is ApprovalStatus.EXPIRED:
        return Fact(EventType.APPROVAL_EXPIRED, verdict.decision.actor, data)
    decision = verdict.decision
    return Fact(
        EventType.APPROVAL_DECIDED,
        decision.actor,
        {**data, "action": decision.action, "channel": decision.channel},
    )


def naming(refusal: HitlError, current: Approval, run: Run | None) -> HitlError:
    """The refusal with what a caller needs to see: the approval as it stands, and its run's status."""
    refusal.extra |= {"approval": current, "run_status": run.status if run else None}
    return refusal


def _hash(payload: Any) -> str | None:
    if payload is None:
        return None
    try:
        return payload_sha256(payload)
    except NotCanonical:
        return None


def _log(approval: Approval, actor: str, action: str, channel: str, **more: int | None) -> None:
    waited_ms = ms_between(approval.created_at, approval.decided_at) if approval.decided_at else None
    log.info(
        "approval.decided",
        approval_id=str(approval.id),
        run_id=str(approval.run_id) if approval.run_id else None,
        tenant=approval.tenant,
        actor=actor,
        action=action,
        status=approval.status,
        checkpoint=approval.checkpoint_type if approval.run_id else None,  # else a client's own words
        channel=channel,
        reasons=list(approval.reasons),
        waited_ms=waited_ms,
        **more,
    )


def log_silence(changed: Approval) -> None:
    """`changed` as `silence` left it: ended, or, where it is still open, as it was when others were asked."""
    about = {
        "approval_id": str(changed.id),
        "run_id": str(changed.run_id) if changed.run_id else None,
        "tenant": changed.tenant,
        "checkpoint": changed.checkpoint_type,
        "on_timeout": changed.on_timeout,
    }
    if changed.is_open:
        log.info("approval.escalated", **about)
        return
    late_ms = ms_between(changed.expires_at, changed.decided_at) if changed.decided_at else None
    if changed.status is ApprovalStatus.EXPIRED:
        log.info("approval.expired", **about, late_ms=late_ms)
    else:
        _log(changed, rules.TIMEOUT_ACTOR, "approve", "timeout", late_ms=late_ms)
