"""An approval: the question put to reviewers, and the rules by which one answer wins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Literal
from uuid import UUID

from service.domain import schema as schemas
from service.domain.altered import altered
from service.domain.canonical import NotCanonical, payload_sha256, same
from service.domain.patch import merge_patch, pointer
from service.domain.payload import missing
from service.domain.policy import Checkpoint, EscalateTo, OnTimeout, Reviewers
from service.domain.principal import Permission, Principal, demand
from service.errors import (
    AlreadyDecided,
    ApprovalClaimed,
    ApprovalExpired,
    Conflict,
    Forbidden,
    Invalid,
    InvalidPayload,
    NotAReviewer,
    PayloadChanged,
    SelfApproval,
)


class ApprovalStatus(StrEnum):
    PENDING = "pending"
    APPROVED = "approved"
    EDITED = "edited"
    REJECTED = "rejected"
    RETRIED = "retried"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


Action = Literal["approve", "edit", "reject", "retry"]
Channel = Literal["http", "websocket", "link", "console", "cli", "timeout", "relay"]
TIMEOUT_ACTOR: Final = "system:timeout"
CLAIM_LASTS: Final = timedelta(minutes=10)

_RETRYABLE: Final = frozenset({Checkpoint.RESPONSE_REVIEW, Checkpoint.ERROR_RECOVERY, Checkpoint.OUTCOME_UNKNOWN})
_PAYLOAD_CHECKPOINTS: Final = frozenset(
    {Checkpoint.INFORMATION_REVIEW, Checkpoint.PAYLOAD_REVIEW, Checkpoint.ERROR_RECOVERY}
)


@dataclass(frozen=True, slots=True)
class Decision:
    """One reviewer's answer. `payload_sha256` is the hash of what this answer was given for."""

    actor: str
    action: Action
    reason: str | None
    edits: Any
    at: datetime
    channel: str
    payload_sha256: str | None = None
    nonce: str | None = field(default=None, repr=False)  # what the event's hashes of reason and edits are salted with


@dataclass(frozen=True)
class Approval:
    """The row of `approvals` with its decisions. `context` is what was shown, whole."""

    id: UUID
    tenant: str
    run_id: UUID | None
    checkpoint_type: str
    status: ApprovalStatus
    reasons: Sequence[str]
    message: str
    context: Mapping[str, Any]
    schema: Any
    payload_sha256: str | None
    user_id: str | None
    session_id: str | None
    submitter: str
    reviewers: Reviewers
    on_timeout: OnTimeout
    timeout_s: float
    escalate_to: EscalateTo | None
    escalated_at: datetime | None
    remind_after_s: float | None
    remind_at: datetime | None
    created_at: datetime
    expires_at: datetime
    clock_stopped_at: datetime | None
    timer_no: int
    armed: bool
    edited: bool
    claimed_by: str | None
    claimed_until: datetime | None
    decided_at: datetime | None
    callback_url: str | None
    version: int
    decisions: tuple[Decision, ...] = ()
    erased_at: datetime | None = None

    @property
    def is_open(self) -> bool:
        return self.status is ApprovalStatus.PENDING

    @property
    def winner(self) -> Decision | None:
        return self.decisions[-1] if self.decisions and not self.is_open else None


@dataclass(frozen=True, slots=True)
class Order:
    """What a reviewer sent: not yet a decision."""

    action: Action
    edits: Any = None
    reason: str | None = None
    payload_sha256: str | None = None
    partial: bool = False  # an edit at information_review that may leave required fields empty


@dataclass(frozen=True, slots=True)
class Verdict:
    """The approval after an answer, and what the answer brings into the run.

    `payload` is the payload that stands (changed or not), `response` the outcome that a human gave.
    """

    approval: Approval
    decision: Decision
    payload: Any = None
    response: Any = None
    has_response: bool = False


def may_decide(approval: Approval, principal: Principal) -> None:
    """Raises `Forbidden`, `NotAReviewer` or `SelfApproval`. A list that names people binds admins too.

    The one place that says who may answer: every door and every timer's use case comes through here.
    """
    demand(principal, Permission.DECIDE)
    rule = approval.reviewers
    named = principal.subject in rule.users or bool(set(principal.groups) & set(rule.groups))
    if (rule.users or rule.groups) and not named:
        raise NotAReviewer("you are not one of the reviewers of this approval")
    if not rule.self_approval and principal.subject in {approval.submitter, approval.user_id}:
        raise SelfApproval("the submitter, or whom the run is for, may not decide about it")


def may_be_decided_by(approval: Approval, principal: Principal) -> bool:
    try:
        may_decide(approval, principal)
    except Forbidden:
        return False
    return True


def may_retry(approval: Approval) -> bool:
    return approval.run_id is not None and approval.checkpoint_type in _RETRYABLE


def same_answer(approval: Approval, order: Order, principal: Principal) -> bool:
    """Whether this actor repeats the answer of theirs that stands; one to an earlier payload stands no more."""
    if approval.status in (ApprovalStatus.EXPIRED, ApprovalStatus.CANCELLED):
        return False
    answers = standing(approval) if approval.is_open else approval.decisions
    mine = [d for d in answers if d.actor == principal.subject]
    return bool(
        mine
        and mine[-1].action == order.action
        and mine[-1].reason == order.reason
        and same(mine[-1].edits, order.edits)
    )


def check_claim(approval: Approval, principal: Principal, *, now: datetime) -> None:
    """Raises `ApprovalClaimed` while somebody else's claim lasts."""
    if is_claimed(approval, now=now) and approval.claimed_by != principal.subject:
        raise ApprovalClaimed("somebody else has claimed the approval")


def is_claimed(approval: Approval, *, now: datetime) -> bool:
    return approval.claimed_until is not None and approval.claimed_until > now


def claimed(approval: Approval, principal: Principal, *, now: datetime) -> Approval:
    """The approval kept for one reviewer for `CLAIM_LASTS`; claiming again renews it."""
    may_decide(approval, principal)
    check_open(approval, now=now)
    check_claim(approval, principal, now=now)
    until = now + CLAIM_LASTS
    return altered(approval, claimed_by=principal.subject, claimed_until=until, version=approval.version + 1)


def let_go(approval: Approval, principal: Principal, *, now: datetime) -> Approval:
    """The approval free for all again. Raises `Forbidden` for a claim of somebody else."""
    may_decide(approval, principal)
    check_open(approval, now=now)
    if is_claimed(approval, now=now) and approval.claimed_by != principal.subject:
        raise Forbidden("the claim is somebody else's")
    return altered(approval, claimed_by=None, claimed_until=None, version=approval.version + 1)


def check_open(approval: Approval, *, now: datetime) -> None:
    """Raises `ApprovalExpired`, `ApprovalCancelled` or `AlreadyDecided`."""
    match approval.status:
        case ApprovalStatus.PENDING:
            if approval.expires_at <= now and approval.clock_stopped_at is None:
                raise ApprovalExpired("the approval's time has run out")
        case ApprovalStatus.EXPIRED:
            raise ApprovalExpired("the approval's time has run out")
        case ApprovalStatus.CANCELLED:
            raise AlreadyDecided("the approval was cancelled with its run")
        case _:
            raise AlreadyDecided("somebody else decided first")


def judge(approval: Approval, order: Order, principal: Principal, *, now: datetime, channel: str) -> Verdict:
    """What this answer does to an approval that is locked. Raises a refusal and changes nothing, or wins.

    Contract, section 6: an edit is validated before it is accepted; a hash that is given must match;
    a quorum counts each reviewer once for one payload, an edit starts it anew, one reject rejects.
    """
    may_decide(approval, principal)
    check_open(approval, now=now)
    check_claim(approval, principal, now=now)
    _check_shape(approval, order)
    if order.payload_sha256 is not None and order.payload_sha256 != approval.payload_sha256:
        raise PayloadChanged("payload_sha256 is not the hash of the payload under review")
    payload = _payload_after(approval, order)
    changed = order.action == "edit" and approval.checkpoint_type in _patchable(approval)
    sha = payload_sha256(payload) if changed else approval.payload_sha256
    decision = Decision(principal.subject, order.action, order.reason, order.edits, now, channel, sha)
    _check_not_repeated(approval, decision)
    status = _status_after(approval, decision)
    context = {**approval.context, "payload": payload, "payload_sha256": sha} if changed else approval.context
    if not changed and _has_response(order.edits):
        context = {**approval.context, "output": order.edits["response"]}
    after = altered(
        approval,
        status=status,
        context=context,
        payload_sha256=sha,
        edited=approval.edited or order.action == "edit",
        claimed_by=None,  # who has answered keeps nobody waiting
        claimed_until=None,
        decided_at=None if status is ApprovalStatus.PENDING else now,
        decisions=(*approval.decisions, decision),
        version=approval.version + 1,
    )
    return _verdict(after, decision, payload)


def silent_verdict(approval: Approval, *, now: datetime) -> Verdict:
    """What silence decides, once the time is out and nobody is left to escalate to."""
    if approval.on_timeout == "approve" and silence_may_approve(approval):
        decision = Decision(TIMEOUT_ACTOR, "approve", None, None, now, "timeout", approval.payload_sha256)
        status, decisions = ApprovalStatus.APPROVED, (*approval.decisions, decision)
    else:
        decision = Decision(TIMEOUT_ACTOR, "reject", None, None, now, "timeout", approval.payload_sha256)
        status, decisions = ApprovalStatus.EXPIRED, approval.decisions
    after = altered(approval, status=status, decided_at=now, decisions=decisions, version=approval.version + 1)
    return _verdict(after, decision, approval.context.get("payload"))


def escalates(approval: Approval) -> bool:
    """Once: the same time again, for somebody else."""
    return approval.on_timeout == "escalate" and approval.escalated_at is None and approval.escalate_to is not None


def escalated(approval: Approval, *, now: datetime) -> Approval:
    assert approval.escalate_to is not None
    return altered(
        approval,
        claimed_by=None,  # a claim of those who let the time pass binds nobody
        claimed_until=None,
        escalated_at=now,
        expires_at=now + timedelta(seconds=approval.timeout_s),
        reviewers=approval.reviewers.model_copy(
            update={"users": list(approval.escalate_to.users), "groups": list(approval.escalate_to.groups)}
        ),
        timer_no=approval.timer_no + 1,
        armed=False,
        version=approval.version + 1,
    )


def cancelled(approval: Approval, *, now: datetime) -> Approval:
    return altered(
        approval,
        status=ApprovalStatus.CANCELLED,
        decided_at=now,
        clock_stopped_at=None,
        version=approval.version + 1,
    )


def stopped(approval: Approval, *, now: datetime) -> Approval:
    """The clock stands while the run is paused."""
    return altered(approval, clock_stopped_at=now, version=approval.version + 1)


def restarted(approval: Approval, *, now: datetime) -> Approval:
    """The clock goes on: the deadline moves by as long as it stood, under a new timer id."""
    assert approval.clock_stopped_at is not None
    stood = now - approval.clock_stopped_at
    return altered(
        approval,
        clock_stopped_at=None,
        expires_at=approval.expires_at + stood,
        remind_at=approval.remind_at + stood if approval.remind_at else None,
        timer_no=approval.timer_no + 1,
        armed=False,
        version=approval.version + 1,
    )


def check_payload(payload: Any, schema: Any, *, partial: bool = False) -> None:
    """Raises `InvalidPayload` with a pointer for every violation and every required field that is empty.

    A `partial` one may still lack what is required.
    """
    if not isinstance(payload, dict):
        raise InvalidPayload(errors=[{"pointer": "", "message": "must be an object"}])
    errors = [{"pointer": v.pointer, "message": v.message} for v in schemas.violations(schema, payload)]
    seen = {error["pointer"] for error in errors}
    empty = [pointer([name]) for name in missing(payload, schema)]
    errors += [{"pointer": p, "message": "is required"} for p in empty if p not in seen]
    if partial:
        errors = [error for error in errors if not f"{error['pointer']}/".startswith(tuple(f"{p}/" for p in empty))]
    try:
        payload_sha256(payload)
    except NotCanonical as error:
        errors.append({"pointer": "", "message": str(error)})
    if errors:
        raise InvalidPayload("the payload does not fit its schema; the approval stays open", errors=errors)


def patched(payload: Any, edits: Any) -> Any:
    """The payload after a reviewer's edits. Raises `Invalid`."""
    return merge_patch(payload, _patch_of(edits, payload))


def shows_payload(approval: Approval) -> bool:
    """Whether it is a run's question about its payload, so that edits change that."""
    return approval.run_id is not None and approval.checkpoint_type in _PAYLOAD_CHECKPOINTS


def silence_may_approve(approval: Approval) -> bool:
    """Never where something is missing, was refused by the provider, or has an outcome that nobody knows."""
    own = approval.run_id is None
    if not own and approval.checkpoint_type in (Checkpoint.ERROR_RECOVERY, Checkpoint.OUTCOME_UNKNOWN):
        return False
    if any(reason.startswith("missing.") for reason in approval.reasons):
        return False
    try:
        if approval.checkpoint_type in _patchable(approval):
            _check_fits(approval, approval.context.get("payload"))
    except InvalidPayload:
        return False
    return True


def _patchable(approval: Approval) -> frozenset[str]:
    """A client's own approval patches `context.payload` whatever its name."""
    return frozenset({approval.checkpoint_type}) if approval.run_id is None else _PAYLOAD_CHECKPOINTS


def _check_shape(approval: Approval, order: Order) -> None:
    checkpoint = approval.checkpoint_type
    asks_outcome = checkpoint == Checkpoint.OUTCOME_UNKNOWN and approval.run_id is not None
    if order.action == "reject" and not (order.reason or "").strip():
        raise Invalid("a rejection needs a reason", errors=[{"pointer": "/reason", "message": "is required"}])
    if order.partial and (
        approval.run_id is None or checkpoint != Checkpoint.INFORMATION_REVIEW or order.action != "edit"
    ):
        message = "goes with an edit at information_review"
        raise Invalid("partial is not possible here", errors=[{"pointer": "/partial", "message": message}])
    if order.action == "retry" and not may_retry(approval):
        raise _bad_action(f"retry is not possible at {checkpoint}")
    if order.action == "edit":
        if order.edits is None:
            raise Invalid("an edit needs edits", errors=[{"pointer": "/edits", "message": "is required"}])
        if checkpoint not in _patchable(approval) and not _has_response(order.edits):
            message = "must be an object with the one member response"
            raise Invalid("edits do not fit the checkpoint", errors=[{"pointer": "/edits", "message": message}])
    elif order.edits not in (None, {}) and not (asks_outcome and order.action == "approve"):
        raise Invalid("edits go with the action edit", errors=[{"pointer": "/edits", "message": "not allowed here"}])
    if asks_outcome and order.action == "approve" and not _has_response(order.edits):
        message = "is required: what came of the call"
        raise Invalid("the outcome is needed", errors=[{"pointer": "/edits/response", "message": message}])


def _verdict(after: Approval, decision: Decision, payload: Any) -> Verdict:
    """With the outcome that was given last, by whichever reviewer, where the approval asks for one."""
    lets_through = decision.action in ("approve", "edit") and after.checkpoint_type not in _patchable(after)
    given = [d.edits["response"] for d in after.decisions if _has_response(d.edits)] if lets_through else []
    return Verdict(after, decision, payload, given[-1] if given else None, has_response=bool(given))


def _bad_action(message: str) -> Invalid:
    return Invalid(message, errors=[{"pointer": "/action", "message": message}])


def _has_response(edits: Any) -> bool:
    return isinstance(edits, Mapping) and set(edits) == {"response"}


def _payload_after(approval: Approval, order: Order) -> Any:
    """The payload that the answer lets through, checked against the schema unless it is refused."""
    payload = approval.context.get("payload")
    if approval.checkpoint_type not in _patchable(approval):
        return payload
    if order.action == "edit":
        payload = patched(payload, order.edits)
    if order.action in ("approve", "edit"):
        _check_fits(approval, payload, partial=order.partial)
    return payload


def _check_fits(approval: Approval, payload: Any, *, partial: bool = False) -> None:
    """Raises `InvalidPayload`. A client's own approval is held to its schema, where it has one, and to no more."""
    if approval.run_id is not None:
        check_payload(payload, approval.schema, partial=partial)
    elif approval.schema is not None:
        errors = [{"pointer": v.pointer, "message": v.message} for v in schemas.violations(approval.schema, payload)]
        if errors:
            raise InvalidPayload("the payload does not fit its schema; the approval stays open", errors=errors)


def _patch_of(edits: Any, payload: Any) -> Any:
    """A merge patch, plain or under `payload`; a payload with a field of that name takes it plainly."""
    if not isinstance(edits, Mapping):
        raise Invalid("edits must be an object", errors=[{"pointer": "/edits", "message": "must be an object"}])
    wrapped = set(edits) == {"payload"} and isinstance(edits["payload"], Mapping)
    own = isinstance(payload, Mapping) and "payload" in payload
    return edits["payload"] if wrapped and not own else edits


def _check_not_repeated(approval: Approval, decision: Decision) -> None:
    *earlier, _ = standing(approval, decision)
    if decision.action in ("approve", "retry") and any(d.actor == decision.actor for d in earlier):
        raise Conflict("you have already given your answer to this payload")


def standing(approval: Approval, *more: Decision) -> tuple[Decision, ...]:
    """The answers to what is under review now: an edit, another outcome than was given before, or the turn from
    letting through to trying again (which are one at `error_recovery`) starts anew."""
    decisions = (*approval.decisions, *more)
    one_way = approval.checkpoint_type == Checkpoint.ERROR_RECOVERY
    start = 0
    for n in range(1, len(decisions)):
        before, after = decisions[n - 1], decisions[n]
        other = bool(after.edits) and not same(after.edits, before.edits)
        turned = not one_way and (after.action == "retry") != (before.action == "retry")
        if after.action == "edit" or other or turned:
            start = n
    return decisions[start:]


def _status_after(approval: Approval, decision: Decision) -> ApprovalStatus:
    match decision.action:
        case "reject":
            return ApprovalStatus.REJECTED
        case "approve" | "edit" | "retry":
            votes = {d.actor for d in standing(approval, decision)}
            if len(votes) < approval.reviewers.quorum:
                return ApprovalStatus.PENDING
            if decision.action == "retry":
                return ApprovalStatus.RETRIED
            edited = approval.edited or decision.action == "edit"
            return ApprovalStatus.EDITED if edited else ApprovalStatus.APPROVED
