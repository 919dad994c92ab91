"""The frames of clients that ask for something, answered: the same over a WebSocket and over HTTP."""

from typing import Any
from uuid import UUID

from service.api.approvals import taken
from service.api.frames import (
    ApprovalResponse,
    CancelApproval,
    ClientMessage,
    ListPending,
    Ping,
    ServerMessage,
    read_data,
)
from service.api.operation import Call, Operation, Reply
from service.api.views import problem_extra
from service.commands.approvals import decide
from service.commands.context import Services
from service.commands.withdraw import withdraw
from service.domain.approval import Order
from service.domain.ids import parse_id
from service.domain.principal import Principal
from service.domain.view import approval_view
from service.errors import HitlError, Invalid, NotFound
from service.store import approvals

PENDING_LIMIT = 200
Asking = ApprovalResponse | ListPending | CancelApproval | Ping


def frame(kind: str, data: Any) -> dict[str, Any]:
    return {"type": kind, "data": data}


def refusal(error: HitlError, **about: Any) -> dict[str, Any]:
    """The `error` frame; `errors` has pointers into the client's frame."""
    data = {"code": error.code, "message": error.detail, **about}
    return frame("error", {**data, "errors": [dict(e) for e in error.errors]} if error.errors else data)


async def answer(services: Services, principal: Principal, asked: Asking) -> dict[str, Any]:
    """The frame that answers. What is refused is told in the ack, so that nobody waits for it in vain."""
    match asked:
        case Ping():
            return frame("pong", asked.model_extra or {})
        case ListPending():
            return frame("hitl_pending_approvals", await _pending(services, principal, asked))
        case ApprovalResponse():
            return frame("hitl_approval_response_ack", await _decide(services, principal, asked))
        case CancelApproval():
            return frame("hitl_cancel_approval_ack", await _cancel(services, principal, asked))


async def _pending(services: Services, principal: Principal, asked: ListPending) -> list[dict[str, Any]]:
    wanted = approvals.InboxFilter(user_id=asked.user_id)
    async with services.db.connection(principal.tenant) as conn:
        found = await approvals.inbox(conn, principal.tenant, wanted, limit=PENDING_LIMIT)
    return [approval_view(approval) for approval in found]


async def _decide(services: Services, principal: Principal, asked: ApprovalResponse) -> dict[str, Any]:
    assert asked.action is not None and asked.approval_id is not None
    order = Order(asked.action, asked.edits, asked.reason, asked.payload_sha256)
    named = asked.run_id or asked.runId
    try:
        run_id = _known(named) if named is not None else None
        decided = await decide(
            services, _known(asked.approval_id), order, principal, channel="websocket", run_id=run_id
        )
    except HitlError as error:
        return _refused(asked.approval_id, error)
    return taken(decided)


async def _cancel(services: Services, principal: Principal, asked: CancelApproval) -> dict[str, Any]:
    try:
        ended = await withdraw(services, _known(asked.approval_id), principal, reason=asked.reason)
    except HitlError as error:
        return _refused(asked.approval_id, error)
    run_id = str(ended.run_id) if ended.run_id else None
    return {"success": True, "approval_id": str(ended.id), "run_id": run_id, "status": ended.status.value}


def _refused(approval_id: str, error: HitlError) -> dict[str, Any]:
    told = {"success": False, "approval_id": approval_id, "code": error.code, "message": error.detail}
    errors = {"errors": [dict(entry) for entry in error.errors]} if error.errors else {}
    return {**told, **errors, **problem_extra(error.extra)}


def _known(text: str) -> UUID:
    value = parse_id(text)
    if value is None:
        raise NotFound("no such approval")
    return value


async def post_message(call: Call) -> Reply:
    """A client's frame over HTTP, answered with the frame that the WebSocket would answer."""
    body: ClientMessage = call.body
    match read_data(body):
        case ApprovalResponse() | ListPending() | CancelApproval() | Ping() as asked:
            return Reply(await answer(call.services, call.principal, asked))
        case _:
            message = "needs a connection: GET /hitl/ws, or GET /hitl/events"
            raise Invalid("the frame is not valid", errors=[{"pointer": "/type", "message": message}])


OPERATIONS = (
    Operation(
        "POST", "/hitl/websocket/message", post_message, ServerMessage, body=ClientMessage, problems=(413, 415, 422),
        tag="live",
    ),
)  # fmt: skip
