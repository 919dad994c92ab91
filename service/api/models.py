"""Requests and responses as pydantic models: the OpenAPI document is generated from these."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, RootModel, model_validator

from service.domain import schema as schemas
from service.domain.policy import EscalateTo, HitlConfig, OnTimeout, Reviewers, Timeout

REQUEST: Final = ConfigDict(extra="forbid", strict=True)


def _no_number(value: Any) -> Any:
    """Numbers would be read as seconds since 1970, or as milliseconds, by their size."""
    if isinstance(value, str) and value.lstrip("+-").replace(".", "", 1).isdigit():
        raise ValueError("must be a time by RFC 3339")
    return value


Moment = Annotated[datetime, BeforeValidator(_no_number)]
Id = Annotated[str, Field(min_length=1, max_length=200)]


def _http_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        host = parts.hostname
    except ValueError:
        raise ValueError("must be an http or https URL") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("must be an http or https URL")
    return value


def _schema(value: dict[str, Any]) -> dict[str, Any]:
    schemas.check(value)
    return value


HttpUrl = Annotated[str, Field(max_length=2000), AfterValidator(_http_url)]
JsonSchema = Annotated[dict[str, Any], AfterValidator(_schema)]


class Attachment(BaseModel):
    model_config = REQUEST
    url: Annotated[str, Field(min_length=1, max_length=2000)]
    media_type: Annotated[str, Field(max_length=200)] | None = None
    name: Annotated[str, Field(max_length=500)] | None = None


class FileContent(RootModel[bytes]):
    """The bytes of a file, under its own media type."""


class RunInput(BaseModel):
    """What a run is asked to do. Exactly one known tool must be configured."""

    model_config = REQUEST
    prompt: Annotated[str, Field(min_length=1, max_length=100_000)]
    user_email: Annotated[str, Field(max_length=500)] | None = None
    user_id: Id | None = None
    agent_email: Annotated[str, Field(max_length=500)] | None = None
    session_id: Id | None = None
    message_type: Annotated[str, Field(max_length=200)] | None = None
    tenant: Id | None = None
    log_id: str | int | None = None
    agent_tool_config: dict[str, Any] | None = None
    selected_llm: Any = None
    conversation: list[dict[str, Any]] | None = None
    chat_history: list[dict[str, Any]] | None = None
    document_context: Any = None
    document_url: Annotated[str, Field(max_length=2000)] | None = None
    attachments: Annotated[list[Attachment], Field(max_length=100)] | None = None


class StartRunRequest(BaseModel):
    model_config = REQUEST
    run_input: RunInput
    hitl_config: HitlConfig = HitlConfig()
    user_id: Id | None = None
    session_id: Id | None = None
    callback_url: HttpUrl | None = None
    priority: int = Field(default=0, ge=-10, le=10)
    on_active_run: Literal["parallel", "queue", "reject", "cancel_previous"] = "parallel"


class StartHitlRequest(BaseModel):
    model_config = REQUEST
    run_input: RunInput
    hitl_config: HitlConfig = HitlConfig(policy="require_human")


class DecisionRequest(BaseModel):
    """One reviewer's answer, with the names that old clients use."""

    model_config = REQUEST
    approval_id: str | None = None
    action: Literal["approve", "edit", "reject", "retry"] | None = None
    edits: Any = None
    reason: Annotated[str, Field(max_length=10_000)] | None = None
    payload_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    partial: bool = Field(
        default=False, description="with an edit at information_review: take it in, and ask again for what it lacks"
    )
    approval_token: str | None = Field(default=None, deprecated=True, description="alias of approval_id")
    approved: bool | None = Field(default=None, deprecated=True, description="true: approve, false: reject")
    run_id: str | None = None
    runId: str | None = Field(default=None, deprecated=True)  # noqa: N815  an old client's name
    session_id: str | None = None
    sessionId: str | None = Field(default=None, deprecated=True)  # noqa: N815
    approved_by: str | None = Field(default=None, deprecated=True, description="ignored: the key says who")

    @model_validator(mode="after")
    def _one_answer(self) -> Self:
        if self.approved is not None:
            action = "approve" if self.approved else "reject"
            if self.action not in (None, action) and not (self.approved and self.action in ("edit", "retry")):
                raise ValueError("approved contradicts action")
            self.action = self.action or ("approve" if self.approved else "reject")
        if self.action is None:
            raise ValueError("action is required: approve, edit, reject or retry")
        if self.approval_token is not None:
            if self.approval_id not in (None, self.approval_token):
                raise ValueError("approval_token contradicts approval_id")
            self.approval_id = self.approval_token
        return self


class DecisionsRequest(BaseModel):
    model_config = REQUEST
    decisions: Annotated[list[Any], Field(min_length=1, max_length=500)]


class AskRequest(BaseModel):
    """A question that a program puts to a human."""

    model_config = REQUEST
    checkpoint_type: Annotated[str, Field(min_length=1, max_length=100)]
    message: Annotated[str, Field(min_length=1, max_length=10_000)]
    context: dict[str, Any]
    schema_: JsonSchema | None = Field(default=None, alias="schema")
    timeout_seconds: Timeout = 86_400
    on_timeout: OnTimeout = "reject"
    escalate_to: EscalateTo | None = None
    remind_after_seconds: Timeout | None = None
    reviewers: Reviewers = Reviewers()
    user_id: Id | None = None
    session_id: Id | None = None
    callback_url: HttpUrl | None = None

    @model_validator(mode="after")
    def _target(self) -> Self:
        if self.on_timeout == "escalate" and self.escalate_to is None:
            raise ValueError("on_timeout escalate needs escalate_to")
        target = self.escalate_to if self.on_timeout == "escalate" else None
        if target and not target.groups and self.reviewers.quorum > len(set(target.users)):
            raise ValueError("quorum is above the number of users that escalate_to names")
        return self


class EmptyRequest(BaseModel):
    model_config = REQUEST


# Queries: unknown parameters are ignored, values come as text.


class NoQuery(BaseModel):
    pass


class PageQuery(BaseModel):
    limit: int = Field(default=50, ge=1, le=200)
    cursor: Annotated[str, Field(max_length=200)] | None = None


class RunsQuery(PageQuery):
    status: (
        Literal[
            "queued", "running", "awaiting_human", "awaiting_provider", "paused", "completed", "failed", "cancelled"
        ]
        | None
    ) = None
    user_id: str | None = None
    session_id: str | None = None
    provider: str | None = None
    created_after: Moment | None = None
    created_before: Moment | None = None


class InboxQuery(PageQuery):
    user_id: str | None = None
    session_id: str | None = None
    checkpoint_type: str | None = None
    run_id: str | None = None


class WaitQuery(BaseModel):
    wait: float = Field(default=0, ge=0, le=60)


class CancelQuery(BaseModel):
    reason: Annotated[str, Field(max_length=10_000)] | None = None


class EventsQuery(BaseModel):
    after: int = Field(default=0, ge=0, le=2**53 - 1)
    limit: int = Field(default=50, ge=1, le=200)


class TeamsQuery(BaseModel):
    enable_hitl: bool = False
    user_id: Id | None = None
    session_id: Id | None = None


class CallbackQuery(BaseModel):
    call: int = Field(ge=1, le=10_000)
    signature: Annotated[str, Field(max_length=200, repr=False)]


class WebhookQuery(BaseModel):
    """What our own URL carries; a provider that signs its webhooks may leave it out."""

    call: Annotated[str, Field(max_length=10)] = ""
    signature: Annotated[str, Field(max_length=200, repr=False)] = ""


# Responses


class Answer(BaseModel):
    """Responses may gain fields; clients must ignore what they do not know."""

    model_config = ConfigDict(extra="allow")


class RunAccepted(Answer):
    run_id: UUID
    job_id: str
    status: str
    message: str
    websocket_url: str
    hitl_enabled: bool


class FieldIssue(Answer):
    field: str
    issue: str
    severity: str
    suggested_fix: str | None
    auto_fixable: bool


class HistoryEntry(Answer):
    step: str
    status: str
    timestamp: datetime
    actor: str
    message: str


class Progress(Answer):
    total_steps: int
    completed_steps: int
    percentage: float
    current_step: str
    step_history: list[HistoryEntry]


class RunError(Answer):
    code: str
    message: str | None
    step: str
    recoverable: bool


class Timings(Answer):
    queue_ms: int
    human_ms: int
    provider_ms: int
    total_ms: int


class Cost(Answer):
    estimated_usd: float | None
    actual_usd: float | None


class DecisionView(Answer):
    actor: str
    action: str
    reason: str | None
    edits: Any
    at: datetime
    channel: str


class ReviewersView(Answer):
    users: list[str]
    groups: list[str]
    quorum: int


class ApprovalView(Answer):
    approval_id: UUID
    run_id: UUID | None
    checkpoint_type: str
    status: Literal["pending", "approved", "edited", "rejected", "retried", "expired", "cancelled"]
    reasons: list[str]
    message: str | None
    user_id: str | None
    session_id: str | None
    context: dict[str, Any] | None
    created_at: datetime
    expires_at: datetime
    on_timeout: OnTimeout
    silence: str | None
    reviewers: ReviewersView
    claimed_by: str | None
    claimed_until: datetime | None
    decisions: list[DecisionView]
    decided_at: datetime | None
    content_erased_at: datetime | None


class RunView(Answer):
    run_id: UUID
    job_id: str
    tenant: str
    status: str
    current_step: str
    provider: str
    user_id: str | None
    session_id: str | None
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None
    run_input: dict[str, Any] | None
    hitl_config: dict[str, Any]
    payload: dict[str, Any] | None
    payload_sha256: str | None
    validation_issues: list[FieldIssue]
    progress: Progress
    pending_actions: list[ApprovalView]
    result: Any
    raw_response: Any
    error: RunError | None
    timings: Timings
    cost: Cost
    version: int
    content_erased_at: datetime | None


class Changed(RunView):
    success: bool
    message: str


class RunList(Answer):
    runs: list[RunView]
    items: list[RunView]
    next_cursor: str | None


class SessionRunList(RunList):
    has_pending_approvals: bool


class Resumed(Answer):
    success: bool
    message: str
    run_id: UUID
    job_id: str


class ApprovalList(Answer):
    approvals: list[ApprovalView]
    items: list[ApprovalView]
    next_cursor: str | None


class DecisionTaken(Answer):
    success: bool
    run_id: UUID | None
    approval_id: UUID
    status: str
    job_id: str | None
    message: str


class DecisionResult(Answer):
    approval_id: str | None
    status_code: int


class DecisionResults(Answer):
    results: list[DecisionResult]


class EventView(Answer):
    run_id: UUID
    seq: int
    type: str
    at: datetime
    actor: str
    data: dict[str, Any]
    prev_hash: str
    hash: str


class TicketView(Answer):
    ticket: str
    expires_in_seconds: int


class EventList(Answer):
    events: list[EventView]
    next_after: int


class JobMeta(Answer):
    run_id: UUID
    run_status: str
    current_step: str


class JobView(Answer):
    job_id: str
    status: Literal["deferred", "queued", "in_progress", "complete", "failed"]
    result: Any
    error: RunError | None
    enqueued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    meta: JobMeta


class WorkerView(Answer):
    id: str
    jobs: int
    max_jobs: int
    seen_at: datetime


class QueueView(Answer):
    queued: int
    deferred: int
    in_progress: int
    failed: int
    oldest_queued_seconds: float
    awaiting_human: int
    awaiting_provider: int
    deliveries_waiting: int
    deliveries_dead: int
    workers: list[WorkerView]


class ProviderView(Answer):
    name: str
    tools: list[str]
    capabilities: list[str]


class ProviderList(Answer):
    providers: list[ProviderView]
    total: int


class Health(Answer):
    status: str


class Readiness(Answer):
    status: Literal["ready", "not_ready"]
    dependencies: dict[str, str]


class WebhookSecret(Answer):
    key: str = Field(repr=False, description="signs the tenant's webhooks by Standard Webhooks: `whsec_` and base64")


class Received(Answer):
    received: bool


class ErrorPointer(Answer):
    pointer: str
    message: str


class Problem(Answer):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    instance: str
    errors: list[ErrorPointer] | None = None
    run_status: str | None = None
    approval: ApprovalView | None = None


class Exposition(RootModel[str]):
    """Prometheus's text format."""
