"""What the relay sends back: `hitl_approval_response` frames, decided by the use case that everybody uses."""

from typing import Annotated, Any, Final, Literal
from uuid import UUID

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from service.commands.approvals import decide
from service.commands.context import Services
from service.domain.approval import Order
from service.domain.ids import parse_id
from service.domain.principal import Principal, Proof, reserved
from service.errors import HitlError, NotFound
from service.logs import get_logger
from service.store import approvals
from service.store.database import EVERY

SUBJECT: Final = "relay"
RESPONSE: Final = "hitl_approval_response"

log = get_logger("deliveries.answers")


def _not_ours(actor: str) -> str:
    if not actor.strip() or reserved(actor):
        raise ValueError("names that begin with system: or provider: are the service's own")
    return actor


class Response(BaseModel):
    """One reviewer's answer. `actor` is who gave it, as a `service` key names them with `X-HITL-Actor`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    approval_id: str
    action: Literal["approve", "edit", "reject", "retry"]
    edits: Any = None
    reason: Annotated[str, Field(max_length=10_000)] | None = None
    payload_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    actor: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_not_ours)] | None = None


async def answer(services: Services, text: str | bytes) -> dict[str, Any] | None:
    """The ack of a response; nothing for what is none: a relay may well echo what others sent."""
    frame = _parsed(text)
    if not isinstance(frame, dict) or frame.get("type") != RESPONSE:
        return None
    given = frame.get("data")
    named = given.get("approval_id") if isinstance(given, dict) else None
    about = {"approval_id": named if isinstance(named, str) else None}
    try:
        response = Response.model_validate(given)
        told = {"success": True, **about, "status": await _decide(services, response)}
    except ValidationError as error:
        fields = sorted({str(fault["loc"][0]) if fault["loc"] else "data" for fault in error.errors()})
        told = {"success": False, **about, "code": "validation_failed", "message": f"not valid: {', '.join(fields)}"}
    except HitlError as refusal:
        told = {"success": False, **about, "code": refusal.code, "message": refusal.detail}
    except Exception as error:  # the door
        log.error("http.error", error=type(error).__name__)
        told = {"success": False, **about, "code": HitlError.code, "message": HitlError.title}
    known = parse_id(named) if isinstance(named, str) else None  # or it would be any text at all
    log.info("relay.answered", approval_id=str(known) if known else None, code=told.get("code"))
    return {"type": f"{RESPONSE}_ack", "data": told}


def _parsed(text: str | bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


async def _decide(services: Services, response: Response) -> str:
    """As a service in the approval's tenant: the operator has given the relay what all tenants are asked."""
    approval_id: UUID | None = parse_id(response.approval_id)
    if approval_id is None:
        raise NotFound("no such approval")
    async with services.db.connection(EVERY) as conn:
        found = await approvals.find(conn, approval_id)
    if found is None:
        raise NotFound("no such approval")
    principal = Principal(response.actor or SUBJECT, found.tenant, "service", shown=Proof("relay"))
    order = Order(response.action, response.edits, response.reason, response.payload_sha256)
    decided = await decide(services, approval_id, order, principal, channel="relay")
    return decided.approval.status.value
