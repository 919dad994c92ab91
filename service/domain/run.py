"""A run: one execution for one request. Its statuses, its steps, and the one table of allowed moves."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from service.domain.altered import altered
from service.errors import RunPaused, RunState


class RunStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    AWAITING_HUMAN = "awaiting_human"
    AWAITING_PROVIDER = "awaiting_provider"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Step(StrEnum):
    INFORMATION_REVIEW = "information_review"
    PAYLOAD_REVIEW = "payload_review"
    API_CALL = "api_call"
    RESPONSE_REVIEW = "response_review"
    COMPLETED = "completed"


STATE_VERSION: Final = 3  # raised by a release whose runs an earlier one could not take on
STEPS: Final = tuple(Step)
TOTAL_STEPS: Final = 4

_S = RunStatus
_ENDS: Final = frozenset({_S.COMPLETED, _S.FAILED, _S.CANCELLED})
TRANSITIONS: Final[Mapping[RunStatus, frozenset[RunStatus]]] = {
    _S.QUEUED: frozenset({_S.RUNNING, _S.PAUSED, _S.FAILED, _S.CANCELLED}),
    _S.RUNNING: frozenset({_S.QUEUED, _S.AWAITING_HUMAN, _S.AWAITING_PROVIDER, _S.PAUSED}) | _ENDS,
    _S.AWAITING_HUMAN: frozenset({_S.QUEUED, _S.PAUSED, _S.FAILED, _S.CANCELLED}),
    _S.AWAITING_PROVIDER: frozenset({_S.QUEUED, _S.RUNNING, _S.PAUSED, _S.FAILED, _S.CANCELLED}),
    _S.PAUSED: frozenset({_S.QUEUED, _S.RUNNING, _S.AWAITING_HUMAN, _S.AWAITING_PROVIDER, _S.FAILED, _S.CANCELLED}),
    # only a failure that says it is recoverable is taken up again, from its last durable step
    _S.FAILED: frozenset({_S.QUEUED}),
    _S.COMPLETED: frozenset(),
    _S.CANCELLED: frozenset(),
}
FINAL: Final = _ENDS
LIVE: Final = frozenset(RunStatus) - FINAL


@dataclass(frozen=True)
class Run:
    """The hot row of `runs`. Times are aware UTC datetimes, `_ms` whole milliseconds."""

    id: UUID
    tenant: str
    status: RunStatus
    step: Step
    version: int
    fencing_token: int
    lease_until: datetime | None
    worker_id: str | None
    due_at: datetime | None
    armed: bool
    paused_at: datetime | None
    status_since: datetime
    woken_at: datetime
    claimed_at: datetime | None
    released_at: datetime | None
    event_seq: int
    event_hash: str
    call_no: int
    completed_steps: int
    asked: Mapping[str, list[str]]
    payload_sha256: str | None
    provider: str
    tool: str
    submitter: str
    user_id: str | None
    session_id: str | None
    priority: int
    queues: bool
    created_at: datetime
    updated_at: datetime
    deadline_at: datetime | None
    finished_at: datetime | None
    queue_ms: int
    human_ms: int
    provider_ms: int
    estimated_usd: float | None
    actual_usd: float | None
    error: Mapping[str, Any] | None
    request_id: str | None
    traceparent: str | None
    state_version: int = STATE_VERSION
    build_tries: int = 0
    calls_back: bool | None = None  # None: not known

    @property
    def final(self) -> bool:
        return self.status in FINAL

    @property
    def leased(self) -> bool:
        return self.lease_until is not None


def ms_between(start: datetime, end: datetime) -> int:
    """Whole milliseconds, never negative: clocks of two machines may differ a little."""
    return max(0, round((end - start).total_seconds() * 1000))


def move(run: Run, to: RunStatus, *, now: datetime, **changes: Any) -> Run:
    """The run in its next status, with the time it spent in the last one added up.

    Raises `RunState` for a move that is not in `TRANSITIONS`.
    """
    if to not in TRANSITIONS[run.status]:
        raise RunState(f"a {run.status} run cannot become {to}", extra={"run_status": run.status})
    spent = ms_between(run.status_since, now)
    match run.status:
        case RunStatus.QUEUED:
            changes.setdefault("queue_ms", run.queue_ms + spent)
        case RunStatus.AWAITING_HUMAN:
            changes.setdefault("human_ms", run.human_ms + spent)
        case RunStatus.AWAITING_PROVIDER:
            changes.setdefault("provider_ms", run.provider_ms + spent)
        case _:
            pass
    if to in FINAL:
        changes |= {"finished_at": now, "lease_until": None, "worker_id": None, "due_at": None}
    if run.status is RunStatus.PAUSED:
        changes["paused_at"] = None
    return altered(run, status=to, status_since=now, **changes)


def released(run: Run, to: RunStatus, *, now: datetime, **changes: Any) -> Run:
    """The run put down by its worker: no lease, no slot; only a row is left."""
    return move(run, to, now=now, lease_until=None, worker_id=None, released_at=now, **changes)


def woken(run: Run, *, now: datetime, due_at: datetime | None = None, **changes: Any) -> Run:
    """The run made due, under a new token, so that its wake-up has an id that was never used."""
    due = due_at or now
    fresh: dict[str, Any] = {
        "fencing_token": run.fencing_token + 1,
        "due_at": due,
        "woken_at": now,
        "lease_until": None,
        "worker_id": None,
        "armed": False,
    }
    if run.status is RunStatus.QUEUED:
        return altered(run, **fresh, **changes)
    return move(run, RunStatus.QUEUED, now=now, **fresh, **changes)


def fail(run: Run, *, code: str, message: str, recoverable: bool, now: datetime) -> Run:
    """The failed run. `message` is for people and holds nothing of the payload."""
    error = {"code": code, "message": message, "step": run.step.value, "recoverable": recoverable}
    return move(run, RunStatus.FAILED, now=now, error=error, fencing_token=run.fencing_token + 1)


def cancel(run: Run, *, code: str, message: str, now: datetime) -> Run:
    error = {"code": code, "message": message, "step": run.step.value, "recoverable": False}
    return move(run, RunStatus.CANCELLED, now=now, error=error, fencing_token=run.fencing_token + 1)


def check_live(run: Run) -> None:
    """Raises `RunPaused` or `RunState` when nothing may be decided about the run now."""
    if run.status is RunStatus.PAUSED:
        raise RunPaused("the run is paused: resume it first", extra={"run_status": run.status})
    if run.final:
        raise RunState(f"the run is {run.status}", extra={"run_status": run.status})


def advanced(run: Run) -> Run:
    """The run at its next step."""
    after = STEPS[STEPS.index(run.step) + 1]
    return altered(run, step=after, completed_steps=max(run.completed_steps, STEPS.index(after)))
