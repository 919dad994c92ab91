"""What the service says in codes, said to a person."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import orjson

from service.domain.approval import Approval, ApprovalStatus, escalates, silence_may_approve, standing
from service.domain.fields import PROMPTS
from service.domain.run import RunStatus, Step

MAX_GIST: Final = 220

_CHECKPOINTS: Final = {
    "information_review": "Information review",
    "payload_review": "Payload review",
    "response_review": "Response review",
    "error_recovery": "Error recovery",
    "outcome_unknown": "Outcome unknown",
}
_REASONS: Final = {
    "policy.require_human": "the run asks for a human at every step",
    "confidence.below": "the service is less sure of the input than the run demands",
    "changes.above": "more fields differ from the example than the run allows",
    "cost.above": "the estimated cost is above the run's limit",
    "quality.below": "the quality of the output is below the run's limit",
    "provider.error": "the provider refused the payload",
    "provider.outcome_unknown": "the call was sent and never answered",
    "requested": "a program asks",
}
_FLAGS: Final = {
    "nsfw": "not safe for work",
    "pii": "personal data",
    "copyright": "copyright",
    "content_filter": "stopped by a content filter",
    "refusal": "the model refused",
}
REASON_CODES: Final = (*_REASONS, "missing.", *(f"safety.{flag}" for flag in _FLAGS))
STATES: Final = {
    ApprovalStatus.PENDING: "Open",
    ApprovalStatus.APPROVED: "Approved",
    ApprovalStatus.EDITED: "Approved with changes",
    ApprovalStatus.REJECTED: "Rejected",
    ApprovalStatus.RETRIED: "Tried again",
    ApprovalStatus.EXPIRED: "Expired",
    ApprovalStatus.CANCELLED: "Cancelled",
}
LOOKS: Final = {
    ApprovalStatus.PENDING: "on",
    ApprovalStatus.APPROVED: "good",
    ApprovalStatus.EDITED: "good",
    ApprovalStatus.REJECTED: "bad",
    ApprovalStatus.RETRIED: "good",
    ApprovalStatus.EXPIRED: "bad",
    ApprovalStatus.CANCELLED: "bad",
}
RUN_STATES: Final[Mapping[str, str]] = {
    RunStatus.QUEUED: "In line",
    RunStatus.RUNNING: "Running",
    RunStatus.AWAITING_HUMAN: "Waits for people",
    RunStatus.AWAITING_PROVIDER: "Waits for the provider",
    RunStatus.PAUSED: "Paused",
    RunStatus.COMPLETED: "Completed",
    RunStatus.FAILED: "Failed",
    RunStatus.CANCELLED: "Cancelled",
}
RUN_LOOKS: Final[Mapping[str, str]] = {
    RunStatus.COMPLETED: "good",
    RunStatus.FAILED: "bad",
    RunStatus.CANCELLED: "bad",
    RunStatus.PAUSED: "warn",
    RunStatus.AWAITING_HUMAN: "warn",
}
STEPS: Final[Mapping[str, str]] = {
    Step.INFORMATION_REVIEW: "Information review",
    Step.PAYLOAD_REVIEW: "Payload review",
    Step.API_CALL: "Provider call",
    Step.RESPONSE_REVIEW: "Response review",
    Step.COMPLETED: "Done",
}
AGES: Final = ("under 1 min", "1 to 10 min", "10 min to 1 h", "1 to 8 h", "8 h to 1 day", "1 to 7 days", "over 7 days")
"""Of `operations.AGES`, and what is older than the last."""
DID: Final = {"approve": "approved", "edit": "changed", "reject": "rejected", "retry": "retried"}
ORIGINS: Final = {
    "prompt": "from the prompt",
    "attachment": "from an attachment",
    "conversation": "from the conversation",
    "example": "from the example",
    "schema_default": "the default",
    "edited": "edited",
    "program": "from the program",
}


def checkpoint(name: str) -> str:
    """The name of a checkpoint, ours or a program's own."""
    return _CHECKPOINTS.get(name, name)


def reason(code: str) -> str:
    """Why it stopped, in words; a code that is not known here stands for itself."""
    if code in _REASONS:
        return _REASONS[code]
    kind, _, what = code.partition(".")
    match kind:
        case "missing":
            return f"{what} is missing"
        case "safety":
            return f"flagged: {_FLAGS.get(what, what)}"
        case _:
            return code


def silence(approval: Approval) -> str:
    """What becomes of it when nobody answers."""
    if approval.clock_stopped_at is not None:
        return "paused: the clock stands still"
    if escalates(approval):
        assert approval.escalate_to is not None
        return f"then {', '.join((*approval.escalate_to.users, *approval.escalate_to.groups))} will be asked"
    if approval.on_timeout == "approve" and silence_may_approve(approval):
        return "then it is approved"
    return "then it is rejected"


def paused_left(approval: Approval) -> str:
    """How long is left once the run goes on."""
    assert approval.clock_stopped_at is not None
    return left(approval.expires_at, approval.clock_stopped_at)


def left(until: datetime, now: datetime) -> str:
    """How long until then, for those without script."""
    return length(now, until) if until > now else "time is out"


def length(since: datetime, until: datetime) -> str:
    """A stretch of time in two words at most."""
    return span((until - since).total_seconds())


def span(length_s: float) -> str:
    """Likewise, of seconds. `console.js` says the same of a countdown."""
    seconds = max(0, int(length_s))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86_400
    if days >= 2:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes >= 5 else f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


def count(n: int, at_most: int) -> str:
    """A number that was counted so far and no further."""
    return f"{at_most:,}+" if n > at_most else f"{n:,}"


def last_sign(at: datetime, now: datetime) -> str:
    """When a worker gave its last sign, as coarse as the page is renewed."""
    tens = max(0, int((now - at).total_seconds())) // 10 * 10
    return f"silent for {tens} s" if tens else "a moment ago"


def gist(approval: Approval) -> str:
    """What it is about in a line or two: the output under review, else the prompt, else the payload as it is."""
    context = approval.context
    subject = context.get("output") if context.get("output") is not None else context.get("payload")
    if isinstance(subject, Mapping):
        subject = next((subject[name] for name in PROMPTS if isinstance(subject.get(name), str)), subject)
    if subject is None:
        rest = {name: value for name, value in context.items() if name != "payload"}
        subject = rest if approval.run_id is None and rest else ""
    text = " ".join((subject if isinstance(subject, str) else _flat(subject)).split())
    return text if len(text) <= MAX_GIST else text[:MAX_GIST] + "…"


def votes(approval: Approval) -> int:
    """How many reviewers let through what is under review now."""
    return len({decision.actor for decision in standing(approval)}) if approval.decisions else 0


def _flat(value: Any) -> str:
    return orjson.dumps(value).decode()
