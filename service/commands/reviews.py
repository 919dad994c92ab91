"""Use cases of a reviewer's look at one approval: all that is there to judge by, and what an edit would do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

import orjson

from service.commands.context import Services
from service.commands.excerpts import excerpts
from service.domain import approval as rules
from service.domain.approval import Approval, Order
from service.domain.delegation import Delegation
from service.domain.file import StoredFile
from service.domain.patch import diff
from service.domain.principal import Permission, Principal, demand
from service.domain.run import Run
from service.errors import ApprovalClaimed, Conflict, Forbidden, NotFound, RunPaused
from service.store import approvals, delegations, files, runs
from service.store.delegations import Known

EARLIER: Final = 20
KNOWN: Final = 200


@dataclass(frozen=True, slots=True)
class Review:
    """`closed` says why this person cannot answer; None: they can. `claimed` is whose claim is in the way.

    `earlier` are the run's other approvals, newest first; `files` the copies of its outputs, `texts` how those of text
    begin; `others` who looks at it too; `known` to whom it could be handed on. `mark` changes when the page would.
    """

    approval: Approval
    run: Run | None
    closed: str | None
    claimed: str | None
    mark: str
    run_input: Mapping[str, Any] = field(default_factory=dict)
    earlier: Sequence[Approval] = ()
    delegations: Sequence[Delegation] = ()
    files: Sequence[StoredFile] = ()
    texts: Mapping[UUID, str] = field(default_factory=dict)
    others: Sequence[str] = ()
    known: Known = field(default_factory=Known)


@dataclass(frozen=True, slots=True)
class Proposal:
    """What an edit would make of what is under review: `[{op, path, from, value}]`, and the order that says so."""

    order: Order
    changes: Sequence[Mapping[str, Any]]


async def review(services: Services, approval_id: UUID, who: Principal) -> Review:
    """Everything about the approval. Raises `NotFound`."""
    demand(who, Permission.READ)
    others = await services.presence.others(approval_id, who.subject)
    async with services.db.connection(who.tenant) as conn:
        approval = await approvals.get(conn, who.tenant, approval_id)
        if approval is None:
            raise NotFound("there is no such approval")
        handed_on = await delegations.of_approval(conn, approval_id)
        known = await delegations.known(conn, who.tenant, at_most=KNOWN) if approval.is_open else Known()
        if approval.run_id is None:
            return _review(services, approval, None, who, delegations=handed_on, others=others, known=known)
        run = await runs.get(conn, who.tenant, approval.run_id)
        docs = await runs.documents(conn, approval.run_id)
        whole = await approvals.recent(conn, who.tenant, status=None, run_id=approval.run_id, limit=EARLIER)
        copies = await files.of_run(conn, who.tenant, approval.run_id)
    earlier = [other for other in whole if other.id != approval_id and other.created_at <= approval.created_at]
    return _review(
        services, approval, run, who, run_input=docs.run_input, earlier=earlier, delegations=handed_on, files=copies,
        texts=await excerpts(services, copies), others=others, known=known,
    )  # fmt: skip


async def watch(services: Services, approval_id: UUID, who: Principal) -> str:
    """`Review.mark` alone, for those who wait for it to change; they are seen by others. Raises `NotFound`."""
    demand(who, Permission.READ)
    async with services.db.connection(who.tenant) as conn:
        approval = await approvals.get(conn, who.tenant, approval_id)
        if approval is None:
            raise NotFound("there is no such approval")
        run = await runs.get(conn, who.tenant, approval.run_id) if approval.run_id else None
    if approval.is_open:
        await services.presence.look(approval_id, who.subject)
    return _mark(services, approval, run, await services.presence.others(approval_id, who.subject))


def propose(services: Services, approval: Approval, order: Order, who: Principal) -> Proposal:
    """What the order would do, under all the rules that will hold when it is given; nothing changes.

    Raises as `commands.approvals.decide`.
    """
    if approval.clock_stopped_at is not None:
        raise RunPaused("the run is paused")
    verdict = rules.judge(approval, order, who, now=services.db.now(), channel="console")
    if rules.shows_payload(approval) or approval.run_id is None:
        return Proposal(order, diff(approval.context.get("payload"), verdict.payload))
    before, after = approval.context.get("output"), order.edits["response"]
    return Proposal(order, diff(before, after))


def _review(services: Services, approval: Approval, run: Run | None, who: Principal, **more: Any) -> Review:
    closed, claimed = _closed(services, approval, who)
    return Review(approval, run, closed, claimed, _mark(services, approval, run, more["others"]), **more)


def _mark(services: Services, approval: Approval, run: Run | None, others: Sequence[str]) -> str:
    """A claim that ends changes no row, and the page all the same."""
    held = rules.is_claimed(approval, now=services.db.now())
    told = f"{approval.version} {run.version if run else 0} {held} {orjson.dumps(list(others)).decode()}"
    return sha256(told.encode()).hexdigest()[:16]


def _closed(services: Services, approval: Approval, who: Principal) -> tuple[str | None, str | None]:
    now = services.db.now()
    try:
        rules.check_open(approval, now=now)
        if approval.clock_stopped_at is not None:
            return "The run is paused: it can be answered once it goes on.", None
        rules.may_decide(approval, who)
        rules.check_claim(approval, who, now=now)
    except ApprovalClaimed:
        return f"{approval.claimed_by} has claimed it and is looking at it.", approval.claimed_by
    except (Conflict, Forbidden) as refusal:
        return f"{refusal.detail[:1].upper()}{refusal.detail[1:]}.", None
    return None, None
