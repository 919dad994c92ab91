"""Every frame of the WebSocket as a pydantic model: what clients send is read by these, the AsyncAPI document
is generated from them."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.api.models import REQUEST, Answer, ApprovalView, DecisionRequest, Id
from service.api.operation import pointers
from service.domain.event import EventType
from service.errors import Invalid

SUBPROTOCOL: Final = "hitl.v1"
Seq = Annotated[int, Field(ge=0, le=2**53 - 1)]
ClientType = Literal[
    "subscribe", "unsubscribe", "hitl_approval_response", "hitl_list_pending", "hitl_cancel_approval", "ping"
]


# What clients send


class ClientMessage(BaseModel):
    """Any frame of a client; `data` is read by the model of its type."""

    model_config = REQUEST
    type: ClientType
    data: Any = None


class Subscribe(BaseModel):
    """What to follow: one of them. With `after`, what came beyond each run's seq is replayed first."""

    model_config = REQUEST
    run_id: str | None = None
    session_id: Id | None = None
    user_id: Id | None = None
    inbox: Literal[True] | None = None
    after: Annotated[dict[Annotated[UUID, Field(strict=False)], Seq], Field(max_length=10_000)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in ("run_id", "session_id", "user_id", "inbox") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("name one of run_id, session_id, user_id, inbox")
        return self

    def echo(self) -> dict[str, Any]:
        """What was named, for the answer."""
        return self.model_dump(exclude_none=True, exclude={"after"})


class Unsubscribe(Subscribe):
    """The same data as in `subscribe`."""


class ApprovalResponse(DecisionRequest):
    """One reviewer's answer, as in `POST /hitl/approvals/{approval_id}/decision`."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.approval_id is None:
            raise ValueError("approval_id is required")
        return self


class ListPending(BaseModel):
    """Ask for the open approvals, soonest deadline first, at most 200."""

    model_config = REQUEST
    user_id: Id | None = None


class CancelApproval(BaseModel):
    """Cancel the run that waits for this approval."""

    model_config = REQUEST
    approval_id: str
    reason: Annotated[str, Field(max_length=10_000)] | None = None


class Ping(BaseModel):
    """Answered by `pong`, which holds the same data."""

    model_config = ConfigDict(extra="allow")


ClientData = Subscribe | Unsubscribe | ApprovalResponse | ListPending | CancelApproval | Ping
CLIENT: Final[dict[str, type[ClientData]]] = {
    "subscribe": Subscribe,
    "unsubscribe": Unsubscribe,
    "hitl_approval_response": ApprovalResponse,
    "hitl_list_pending": ListPending,
    "hitl_cancel_approval": CancelApproval,
    "ping": Ping,
}


def read_frame(value: Any) -> ClientData:
    """The data of a client's frame. Raises `Invalid` with pointers into the frame."""
    try:
        frame = ClientMessage.model_validate(value)
    except ValidationError as error:
        raise Invalid("the frame is not valid", errors=pointers(error)) from None
    return read_data(frame)


def read_data(frame: ClientMessage) -> ClientData:
    """As `read_frame`, once the outside was read."""
    try:
        return CLIENT[frame.type].model_validate({} if frame.data is None else frame.data)
    except ValidationError as error:
        raise Invalid("the frame is not valid", errors=pointers(error, "data")) from None


# What the server sends


class Subscribed(Answer):
    """What is followed now, as it was named."""

    run_id: str | None = None
    session_id: str | None = None
    user_id: str | None = None
    inbox: bool | None = None


class Unsubscribed(Subscribed):
    """What is not followed any more."""


class StatusUpdate(Answer):
    """Something happened to the run: `event` beside this says what."""

    run_id: UUID
    status: str
    current_step: str
    message: str
    timestamp: datetime


class StepCompletion(Answer):
    """A step is done. `result`: the provider's output, the result, or the hash of the payload."""

    run_id: UUID
    step: str
    result: Any
    timestamp: datetime


class ErrorFrame(Answer):
    """The provider did not do it; what comes of that is told by later frames."""

    run_id: UUID
    error: str
    step: str
    timestamp: datetime


class Completion(Answer):
    """The run ended. `result` is null unless it completed; `error` has a code where it did not."""

    run_id: UUID
    status: Literal["completed", "failed", "cancelled"]
    result: Any
    error: dict[str, Any] | None


class ApprovalResponseAck(Answer):
    """Whether the answer was taken; `code` and `message` say why not."""

    success: bool
    approval_id: str
    status: str | None = None
    code: str | None = None
    message: str | None = None


class CancelApprovalAck(ApprovalResponseAck):
    """Whether the run was cancelled."""


class Refusal(Answer):
    """A frame that could not be taken. The connection lives on."""

    code: str
    message: str


class Pong(Answer):
    """The answer to `ping`, with its data."""


EVENT_FRAMES: Final[dict[str, type[BaseModel]]] = {
    "hitl_approval_request": ApprovalView,
    "hitl_status_update": StatusUpdate,
    "hitl_step_completion": StepCompletion,
    "hitl_error": ErrorFrame,
    "hitl_completion": Completion,
}
ANSWERS: Final[dict[str, Any]] = {
    "subscribed": Subscribed,
    "unsubscribed": Unsubscribed,
    "hitl_approval_response_ack": ApprovalResponseAck,
    "hitl_pending_approvals": list[ApprovalView],
    "hitl_cancel_approval_ack": CancelApprovalAck,
    "error": Refusal,
    "pong": Pong,
}


class ServerMessage(Answer):
    """Any frame of the server. Those that tell an event name its run, its seq and its type."""

    type: str
    data: Any
    run_id: UUID | None = None
    seq: int | None = None
    event: EventType | None = None
