"""An event as the one frame that tells it (contract, section 8): on WebSockets, and to the relay.

A frame is a pure function of the event and of what `needs` names, all of which stays as it was: a replay tells
the same as the live frame did. Only an approval is shown as it stands, so that nobody is asked what is decided.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from service.domain.event import Event, EventType, rfc3339, said
from service.domain.run import RunStatus, Step

_E = EventType
TERMINAL: Final = frozenset({_E.RUN_COMPLETED, _E.RUN_FAILED, _E.RUN_CANCELLED})
_RUNS: Final = frozenset({_E.STEP_STARTED, _E.PROVIDER_SUBMITTED})

_MESSAGES: Final[Mapping[str, str]] = {
    _E.RUN_CREATED: "the run was accepted",
    _E.RUN_QUEUED: "the run waits for a worker",
    _E.STEP_STARTED: "the step began",
    _E.APPROVAL_REMINDED: "a human is still waited for",
    _E.APPROVAL_ESCALATED: "others are asked now",
    _E.APPROVAL_CLAIMED: "a reviewer took the approval, or let it go",
    _E.APPROVAL_DELEGATED: "the approval was handed to others",
    _E.APPROVAL_DECIDED: "the approval was answered",
    _E.APPROVAL_EXPIRED: "nobody answered in time",
    _E.PROVIDER_SUBMITTED: "the provider is called",
    _E.PROVIDER_PROGRESS: "the provider is at work",
    _E.PROVIDER_COMPLETED: "the provider answered",
    _E.RUN_PAUSED: "the run is paused",
    _E.RUN_RESUMED: "the run goes on",
    _E.RUN_RECOVERED: "another worker took the run over",
}


@dataclass(frozen=True, slots=True)
class NeedsApproval:
    approval_id: UUID


@dataclass(frozen=True, slots=True)
class NeedsOutput:
    """What the provider answered to this call of the run."""

    call: int


@dataclass(frozen=True, slots=True)
class NeedsResult:
    """The run's result."""


Needs = NeedsApproval | NeedsOutput | NeedsResult


def needs(event: Event) -> Needs | None:
    """What `frame` is to be given beside the event."""
    match event.type:
        case EventType.APPROVAL_REQUESTED:
            return NeedsApproval(UUID(event.data["approval_id"]))
        case EventType.STEP_COMPLETED if event.data["step"] == Step.API_CALL and "call" in event.data:
            return NeedsOutput(event.data["call"])
        case EventType.STEP_COMPLETED if event.data["step"] == Step.RESPONSE_REVIEW:
            return NeedsResult()
        case EventType.RUN_COMPLETED:
            return NeedsResult()
        case _:
            return None


def frame(event: Event, found: Any = None) -> dict[str, Any]:
    """`{type, data, run_id, seq, event}`. `found` is what `needs` asked for: the approval in the contract's form,
    the output, the result."""
    kind, data = _told(event, found)
    return {"type": kind, "data": data, "run_id": str(event.run_id), "seq": event.seq, "event": event.type}


def question_frame(approval: Mapping[str, Any]) -> dict[str, Any]:
    """The frame of a question that belongs to no run: it has no event, so no seq."""
    return {
        "type": "hitl_approval_request",
        "data": approval,
        "run_id": None,
        "seq": None,
        "event": EventType.APPROVAL_REQUESTED.value,
    }


def _told(event: Event, found: Any) -> tuple[str, Any]:
    about = {"run_id": str(event.run_id), "timestamp": rfc3339(event.at)}
    match event.type:
        case EventType.APPROVAL_REQUESTED:
            return "hitl_approval_request", found
        case EventType.STEP_COMPLETED:
            step = event.data["step"]
            result = found if needs(event) else {"payload_sha256": event.data.get("payload_sha256")}
            return "hitl_step_completion", {**about, "step": step, "result": result}
        case EventType.PROVIDER_FAILED:
            code = event.data.get("code", "failed")
            error = f"the provider did not do it: {code}"
            return "hitl_error", {**about, "error": error, "code": code, "step": Step.API_CALL.value}
        case EventType.RUN_COMPLETED | EventType.RUN_FAILED | EventType.RUN_CANCELLED:
            status = event.type.removeprefix("run.")
            reason = {name: event.data[name] for name in ("code", "step") if name in event.data} or None
            return "hitl_completion", {**about, "status": status, "result": found, "error": reason}
        case _:
            return "hitl_status_update", {**about, **_status(event), "message": _message(event)}


def _status(event: Event) -> dict[str, Any]:
    """How the run stood. Events of one transaction share its outcome; where the type itself says more, it counts."""
    status = RunStatus.RUNNING.value if event.type in _RUNS else event.data.get("run_status", RunStatus.RUNNING.value)
    step = event.data.get("step") if event.type == EventType.STEP_STARTED else None
    found = {"status": status, "current_step": step or event.data.get("current_step", Step.INFORMATION_REVIEW.value)}
    if "approval_id" in event.data:
        found["approval_id"] = event.data["approval_id"]
    if event.type == EventType.PROVIDER_PROGRESS:
        found["progress"] = said(event.data)
    return found


def _message(event: Event) -> str:
    return _MESSAGES.get(event.type, event.type)
