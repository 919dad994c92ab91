"""What a run's page says in place of codes."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from service.console import words
from service.domain.approval import ApprovalStatus
from service.domain.call import CallStatus
from service.domain.event import Event, EventType
from service.domain.run import RunStatus
from service.domain.timeline import Kind, Lane

_E = EventType

KINDS: Final = {
    Kind.QUEUE: "In line",
    Kind.WORK: "At work",
    Kind.HUMAN: "Waiting for people",
    Kind.PROVIDER: "Provider",
    Kind.PAUSE: "Paused",
}
EVENTS: Final[Mapping[str, str]] = {
    _E.RUN_CREATED: "Run started",
    _E.RUN_QUEUED: "Put in line",
    _E.STEP_STARTED: "Step begun",
    _E.STEP_COMPLETED: "Step done",
    _E.APPROVAL_REQUESTED: "People asked",
    _E.APPROVAL_REMINDED: "People reminded",
    _E.APPROVAL_ESCALATED: "Others asked",
    _E.APPROVAL_CLAIMED: "Claim changed",
    _E.APPROVAL_DELEGATED: "Handed on",
    _E.APPROVAL_DECIDED: "Answered",
    _E.APPROVAL_EXPIRED: "Nobody answered in time",
    _E.PROVIDER_SUBMITTED: "Sent to the provider",
    _E.PROVIDER_PROGRESS: "Answer so far",
    _E.PROVIDER_COMPLETED: "Provider answered",
    _E.PROVIDER_FAILED: "Provider call failed",
    _E.RUN_PAUSED: "Paused",
    _E.RUN_RESUMED: "Goes on",
    _E.RUN_RECOVERED: "Taken over from a lost worker",
    _E.RUN_COMPLETED: "Run completed",
    _E.RUN_FAILED: "Run failed",
    _E.RUN_CANCELLED: "Run cancelled",
}
CALLS: Final[Mapping[str, str]] = {
    CallStatus.INTENT: "sent, no answer yet",
    CallStatus.RETRY: "no effect so far, to be tried again",
    CallStatus.ACCEPTED: "the provider works on it",
    CallStatus.ANSWERED: "answered",
    CallStatus.INVALID: "the provider refused the payload",
    CallStatus.UNKNOWN: "sent and never answered",
    CallStatus.REJECTED: "the provider refused the call",
    CallStatus.EXHAUSTED: "all tries failed without effect",
    CallStatus.FAILED: "the provider took it and failed",
}
_TRIES: Final = {"retry": "no effect, tried again", "exhausted": "no effect, the last try", "unanswered": "no answer"}
_ENDS: Final = {
    "approval_expired": "Nobody answered in time. Start the run anew, with a longer timeout or an on_timeout that asks "
    "somebody else.",
    "rejected": "A reviewer rejected it. Start a new run with what the reason asks for.",
    "cancelled": "It was cancelled, and does not go on.",
    "provider_unavailable": "The provider could not be reached, or had no room. Requeue the run once it is back: it "
    "goes on from here, and what was sent is not sent twice.",
    "provider_rejected": "The provider refuses such a call for good: look at credentials, model and settings, then "
    "start a new run.",
    "provider_failed": "The provider took the call and failed at it. Look at the raw response below, then start a new "
    "run.",
    "information_incomplete": "Required input was still missing after all rounds. Start a new run with it.",
    "run_timeout": "Its run_timeout_seconds were over. Start a new run, with more time.",
    "internal_error": "A fault of the service itself. Requeue the run; if it comes again, give the run's id to who "
    "looks after the service.",
}
_QUEUED: Final = {
    "created": "to start",
    "decided": "after the answer",
    "answered": "after the provider's answer",
    "retry": "to try again",
    "recovered": "after its worker was lost",
    "handed_over": "handed over by a worker that stops",
    "turn": "its turn has come",
}
MAX_TITLE: Final = 120


def remedy(error: Mapping[str, Any]) -> str:
    """What an ending means and what one can do."""
    return _ENDS.get(str(error.get("code")), "Start a new run, or ask who looks after the service.")


def title(run_input: Mapping[str, Any]) -> str:
    """What the run is about, in a line."""
    text = " ".join(str(run_input.get("prompt", "")).split())
    return text if len(text) <= MAX_TITLE else text[:MAX_TITLE] + "…"


def lane(one: Lane) -> str:
    """What a row of the timeline is called."""
    match one.kind:
        case Kind.STEP:
            return words.STEPS.get(one.name, one.name)
        case Kind.HUMAN:
            return "People asked" if one.name in words.STEPS else f"People asked: {words.checkpoint(one.name).lower()}"
        case Kind.PROVIDER:
            return f"Call {one.call}, try {one.attempt}"
        case Kind.PAUSE:
            return "Paused"
        case Kind.QUEUE | Kind.WORK:
            return KINDS[one.kind]


def ended(one: Lane) -> str:
    """How it came out; empty where that goes without saying."""
    match one.kind:
        case Kind.HUMAN if one.ended in set(ApprovalStatus):
            state = words.STATES[ApprovalStatus(one.ended)].lower()
            return state if one.ended in ("expired", "cancelled") else f"{state} by {one.by}"
        case Kind.PROVIDER if one.ended is not None:
            return _TRIES.get(one.ended) or CALLS.get(one.ended, one.ended)
        case Kind.STEP if one.ended == "again":
            return "gone back from"
        case Kind.STEP if one.ended in ("failed", "cancelled"):
            return str(one.ended)
        case Kind.PAUSE if one.ended == "resumed":
            return f"until {one.by}"
        case _:
            return ""


def event(one: Event) -> str:
    """What is worth reading of an event without its data."""
    data = one.data
    match one.type:
        case _E.STEP_STARTED | _E.STEP_COMPLETED:
            step = str(data.get("step"))
            return words.STEPS.get(step, step)
        case _E.RUN_QUEUED:
            return _QUEUED.get(str(data.get("reason")), str(data.get("reason", "")))
        case _E.PROVIDER_SUBMITTED | _E.PROVIDER_COMPLETED | _E.PROVIDER_FAILED:
            return _call(data)
        case _E.APPROVAL_DECIDED | _E.APPROVAL_EXPIRED:
            return _answer(data)
        case _E.APPROVAL_REQUESTED:
            return words.checkpoint(str(data.get("checkpoint_type")))
        case _E.RUN_FAILED | _E.RUN_CANCELLED:
            return str(data.get("code", ""))
        case _E.RUN_RECOVERED:
            return str(data.get("cause", ""))
        case _:
            return ""


def _call(data: Mapping[str, Any]) -> str:
    parts = [f"call {data.get('call')}", f"try {data['try']}" if "try" in data else ""]
    parts += [f"{data['ms']} ms" if "ms" in data else "", str(data.get("code", ""))]
    return ", ".join(part for part in parts if part)


def _answer(data: Mapping[str, Any]) -> str:
    checkpoint = words.checkpoint(str(data.get("checkpoint_type")))
    action = words.DID.get(str(data.get("action")), str(data.get("status", "")))
    return f"{checkpoint}: {action}"


def late(action: str, status: str, by: tuple[str, datetime] | None = None) -> str:
    """Why an action came too late, and what the run is now."""
    did = {"pause": "paused", "resume": "resumed", "cancel": "cancelled", "requeue": "requeued"}[action]
    state = words.RUN_STATES[RunStatus(status)]
    whose = f", by {by[0]} at {by[1]:%Y-%m-%d %H:%M:%S} UTC" if by else ""
    return f"It cannot be {did}: the run has changed meanwhile. It is now: {state}{whose}."
