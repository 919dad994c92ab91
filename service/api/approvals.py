"""Routes of approvals: inbox, one approval, decide, decide many, ask."""

from typing import Any
from uuid import UUID

from pydantic import ValidationError

from service.api.models import (
    ApprovalList,
    ApprovalView,
    AskRequest,
    DecisionRequest,
    DecisionResults,
    DecisionsRequest,
    DecisionTaken,
    EmptyRequest,
    InboxQuery,
    WaitQuery,
)
from service.api.operation import Call, Operation, Reply, pointers
from service.api.problems import problem
from service.api.reviewing import delegation_view
from service.api.runs import idempotency
from service.border import paging
from service.commands import approvals as commands
from service.commands.approvals import Decided, Question
from service.commands.seen import note_seen
from service.domain.approval import Approval, Order
from service.domain.ids import job_id, parse_id
from service.domain.principal import Permission
from service.domain.view import approval_view
from service.errors import HitlError, Invalid, NotFound
from service.store import approvals, delegations


async def list_pending(call: Call) -> Reply:
    """Open approvals, soonest deadline first."""
    query: InboxQuery = call.query
    run_id = parse_id(query.run_id) if query.run_id else None
    if query.run_id and run_id is None:
        return Reply({"approvals": [], "items": [], "next_cursor": None})
    wanted = approvals.InboxFilter(
        query.user_id, query.session_id, query.checkpoint_type, run_id, paging.decode(query.cursor)
    )
    async with call.services.db.connection(call.principal.tenant) as conn:
        found = await approvals.inbox(conn, call.principal.tenant, wanted, limit=query.limit + 1)
    shown = found[: query.limit]
    items = [approval_view(approval) for approval in shown]
    cursor = paging.encode(shown[-1].expires_at, shown[-1].id) if len(found) > len(shown) else None
    return Reply({"approvals": items, "items": items, "next_cursor": cursor})


async def get_approval(call: Call) -> Reply:
    """The approval. With `wait` it answers once the approval is decided."""
    query: WaitQuery = call.query
    approval_id: UUID = call.id("approval_id")

    async def look() -> Approval | None:
        async with call.services.db.connection(call.principal.tenant) as conn:
            return await approvals.get(conn, call.principal.tenant, approval_id)

    def done(seen: Approval | None) -> bool:
        return seen is None or not seen.is_open

    found = await call.services.notifier.wait_until(approval_id, look, done, timeout_s=query.wait)
    if found is None:
        raise NotFound("no such approval")
    async with call.services.db.connection(call.principal.tenant) as conn:
        handed_on = await delegations.of_approval(conn, approval_id)
    more = {"delegations": [delegation_view(d) for d in handed_on]} if handed_on else {}
    view = approval_view(found)
    await note_seen(call.services, call.principal, [view], "http")
    return Reply({**view, **more})


async def decide_in_run(call: Call) -> Reply:
    """Decide an approval of this run; its id may be left out while exactly one is open."""
    body: DecisionRequest = call.body
    run_id: UUID = call.id("run_id")
    if body.approval_id is not None:
        return await _decide(call, body, _known(body.approval_id), run_id=run_id)
    return await _decide(call, body, await commands.only_open(call.services, run_id, call.principal), run_id=run_id)


async def decide(call: Call) -> Reply:
    """Decide an approval: exactly one answer wins."""
    body: DecisionRequest = call.body
    approval_id: UUID = call.id("approval_id")
    if body.approval_id not in (None, str(approval_id)):
        message = "is not the approval of the URL"
        raise Invalid("the body is not valid", errors=[{"pointer": "/approval_id", "message": message}])
    return await _decide(call, body, approval_id)


async def decide_many(call: Call) -> Reply:
    """Decide up to 500 approvals, each on its own; the results stand in the order of the request."""
    body: DecisionsRequest = call.body
    return Reply({"results": [await _one_of_many(call, item) for item in body.decisions]})


async def ask(call: Call) -> Reply:
    """Ask a human, and wait with `GET /hitl/approvals/{id}?wait=60`."""
    body: AskRequest = call.body
    question = Question(
        checkpoint_type=body.checkpoint_type, message=body.message, context=body.context, schema=body.schema_,
        timeout_s=body.timeout_seconds, on_timeout=body.on_timeout, escalate_to=body.escalate_to,
        remind_after_s=body.remind_after_seconds, reviewers=body.reviewers, user_id=body.user_id,
        session_id=body.session_id, callback_url=body.callback_url, idempotency=idempotency(call),
    )  # fmt: skip
    asked, replayed = await commands.ask(call.services, question, call.principal)
    headers = {"Location": f"/hitl/approvals/{asked.id}"} | ({"Idempotent-Replayed": "true"} if replayed else {})
    return Reply(approval_view(asked), 201, headers)


async def claim(call: Call) -> Reply:
    """Keep others from deciding for ten minutes; repeating renews."""
    return Reply(approval_view(await commands.claim(call.services, call.id("approval_id"), call.principal)))


async def release(call: Call) -> Reply:
    """Let a claim go."""
    kept = await commands.claim(call.services, call.id("approval_id"), call.principal, release=True)
    return Reply(approval_view(kept))


async def _one_of_many(call: Call, item: Any) -> dict[str, Any]:
    named = item.get("approval_id") or item.get("approval_token") if isinstance(item, dict) else None
    about = {"approval_id": named if isinstance(named, str) else None}
    try:
        try:
            body = DecisionRequest.model_validate(item)
        except ValidationError as error:
            raise Invalid("the decision is not valid", errors=pointers(error)) from None
        if body.approval_id is None:
            raise Invalid("the decision is not valid", errors=[{"pointer": "/approval_id", "message": "is required"}])
        reply = await _decide(call, body, _known(body.approval_id))
    except HitlError as refusal:
        return {**about, **problem(refusal, call.request), "status_code": refusal.status}
    return {**reply.body, "status_code": 200}


async def _decide(call: Call, body: DecisionRequest, approval_id: UUID, *, run_id: UUID | None = None) -> Reply:
    assert body.action is not None
    for given in (body.run_id, body.runId):
        if given is not None and run_id not in (None, _known(given)):
            raise NotFound("no such approval of this run")
        run_id = run_id or (_known(given) if given is not None else None)
    order = Order(body.action, body.edits, body.reason, body.payload_sha256, body.partial)
    decided = await commands.decide(call.services, approval_id, order, call.principal, run_id=run_id)
    headers = {"Idempotent-Replayed": "true"} if decided.replayed else {}
    return Reply(taken(decided), 200, headers)


def taken(decided: Decided) -> dict[str, Any]:
    approval, run = decided.approval, decided.run
    return {
        "success": True,
        "run_id": str(run.id) if run else None,
        "approval_id": str(approval.id),
        "status": approval.status.value,
        "run_status": run.status.value if run else None,
        "job_id": job_id(run.id, run.fencing_token) if run else None,
        "message": f"the approval is {approval.status.value}",
    }


def _known(text: str) -> UUID:
    value = parse_id(text)
    if value is None:
        raise NotFound("no such approval")
    return value


_DECIDE = Permission.DECIDE
_PROBLEMS = (401, 403, 404, 409, 413, 415, 422)
OPERATIONS = (
    Operation("GET", "/hitl/approvals/pending", list_pending, ApprovalList, query=InboxQuery, tag="approvals"),
    Operation(
        "POST", "/hitl/approvals/decisions", decide_many, DecisionResults, _DECIDE, body=DecisionsRequest,
        problems=_PROBLEMS, tag="approvals",
    ),
    Operation(
        "POST", "/hitl/approvals", ask, ApprovalView, Permission.ASK, 201, body=AskRequest, problems=_PROBLEMS,
        tag="approvals",
    ),
    Operation(
        "GET", "/hitl/approvals/{approval_id}", get_approval, ApprovalView, query=WaitQuery, problems=(404,),
        tag="approvals",
    ),
    Operation(
        "POST", "/hitl/approvals/{approval_id}/decision", decide, DecisionTaken, _DECIDE, body=DecisionRequest,
        problems=_PROBLEMS, tag="approvals",
    ),
    *(
        Operation(
            "POST", f"/hitl/approvals/{{approval_id}}/{handler.__name__}", handler, ApprovalView, _DECIDE,
            body=EmptyRequest, body_required=False, problems=(404, 409), tag="approvals",
        )
        for handler in (claim, release)
    ),
    Operation(
        "POST", "/hitl/run/{run_id}/approve", decide_in_run, DecisionTaken, _DECIDE, body=DecisionRequest,
        problems=_PROBLEMS, tag="approvals",
    ),
)  # fmt: skip
