"""Floor 2: every error that reaches a client, with its stable code and HTTP status.

Raised where it is known, mapped to `application/problem+json` once, in `service.api.problems`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class HitlError(Exception):
    """A refusal with a stable `code`; `detail` is one line that is safe to show to any caller."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str = "",
        *,
        errors: Sequence[Mapping[str, str]] = (),
        retry_after_s: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail or self.title
        self.errors = tuple(errors)
        self.retry_after_s = retry_after_s
        self.extra = dict(extra or {})


class Unauthenticated(HitlError):
    code, status, title = "unauthenticated", 401, "Credentials are missing or not valid"


class Forbidden(HitlError):
    code, status, title = "forbidden", 403, "Not allowed"


class NotAReviewer(Forbidden):
    code, title = "not_a_reviewer", "Not one of the reviewers of this approval"


class SelfApproval(Forbidden):
    code, title = "self_approval", "The submitter may not decide about their own run"


class TenantMismatch(Forbidden):
    code, title = "tenant_mismatch", "The tenant is not the one of the key"


class BadSignature(Unauthenticated):
    code, title = "bad_signature", "The signature is missing or not valid"


class ForeignOrigin(Forbidden):
    code, title = "foreign_origin", "The page is not one of this service"


class BadNonce(Forbidden):
    code, title = "bad_nonce", "The form is not one that this page gave out"


class NotFound(HitlError):
    code, status, title = "not_found", 404, "Not found"


class Conflict(HitlError):
    code, status, title = "conflict", 409, "The state does not allow it"


class RunState(Conflict):
    code, title = "run_state", "The run's state does not allow it"


class RunPaused(Conflict):
    code, title = "run_paused", "The run is paused"


class SessionBusy(Conflict):
    code, title = "session_busy", "The session has an active run"


class AlreadyDecided(Conflict):
    code, title = "approval_already_decided", "The approval was decided already"


class ApprovalExpired(Conflict):
    code, title = "approval_expired", "The approval expired"


class ApprovalCancelled(Conflict):
    code, title = "approval_cancelled", "The approval was cancelled"


class ApprovalClaimed(Conflict):
    code, title = "approval_claimed", "Somebody else has claimed the approval"


class PayloadChanged(Conflict):
    code, title = "payload_changed", "The payload is not the one that was reviewed"


class ContentErased(Conflict):
    code, title = "content_erased", "The content was erased"


class ContentUnreadable(HitlError):
    """Sealed by a master secret that is not set any more, or changed behind the service's back."""

    code, status, title = "content_unreadable", 500, "The content cannot be read"


class LinkUsed(Conflict):
    code, title = "link_used", "The link was used"


class LinkExpired(HitlError):
    code, status, title = "link_expired", 410, "The link is over"


class NoOpenApproval(Conflict):
    code, title = "no_open_approval", "The run has no open approval"


class AmbiguousApproval(Conflict):
    code, title = "approval_ambiguous", "More than one approval is open: name it by approval_id"


class TooManySubscriptions(Conflict):
    code, title = "too_many_subscriptions", "The connection follows too much"


class Invalid(HitlError):
    code, status, title = "validation_failed", 422, "The request is not valid"


class InvalidJson(Invalid):
    code, title = "invalid_json", "The body is not JSON that can be carried"


class InvalidPayload(Invalid):
    code, title = "invalid_payload", "The payload does not fit its schema"


class NoProvider(Invalid):
    code, title = "no_provider", "agent_tool_config names no known tool"


class IdempotencyKeyReused(Invalid):
    code, title = "idempotency_key_reused", "The Idempotency-Key was used with another request"


class TooLarge(HitlError):
    code, status, title = "body_too_large", 413, "The body is larger than 1 MiB"


class BadRequest(HitlError):
    """What was sent is no HTTP: there is no request that it could be an answer to."""

    code, status, title = "bad_request", 400, "The request is not one"


class RequestTimeout(HitlError):
    code, status, title = "request_timeout", 408, "The request did not come in time"


class HeadersTooLarge(HitlError):
    code, status, title = "headers_too_large", 431, "The headers are too large, or too many"


class RangeNotSatisfiable(HitlError):
    code, status, title = "range_not_satisfiable", 416, "The range lies outside of the file"

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size


class UnsupportedMediaType(HitlError):
    code, status, title = "unsupported_media_type", 415, "The body must be application/json"


class TenantLimit(HitlError):
    code, status, title = "tenant_limit", 429, "The tenant's limit is reached, try again later"


class FilesUnavailable(HitlError):
    code, status, title = "file_store_unavailable", 503, "The file store is away, try again"

    def __init__(self) -> None:
        super().__init__(retry_after_s=5)


class Unavailable(HitlError):
    """Postgres is away; nothing of the request was kept."""

    code, status, title = "unavailable", 503, "The database is away, try again"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail, retry_after_s=2)


class IssuerUnavailable(HitlError):
    """Without its keys nobody can say whose a token is."""

    code, status, title = "issuer_unavailable", 503, "The provider of bearer tokens is away, try again"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail, retry_after_s=5)


class LeaseLost(Exception):
    """The run was taken over, cancelled or finished by somebody else: touch nothing more of it."""
