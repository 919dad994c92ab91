"""What stands still that should not: why, in words, and what to do about it. Pure."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal
from uuid import UUID

from service.domain.run import STATE_VERSION, Run, RunStatus

_LOG: Final = "Look at the log of the workers, and at the jobs below that none of them could run."
_STARTS: Final = "Start a worker (hitl worker)."


@dataclass(frozen=True, slots=True)
class HeldUp:
    """A run that should have gone on; `ahead` is what its session's line waits for."""

    run: Run
    ahead_id: UUID | None
    ahead_status: str | None


@dataclass(frozen=True, slots=True)
class Overdue:
    """An approval that should have been closed."""

    id: UUID
    run_id: UUID | None
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Waiting:
    """An approval or a run that waits; `what` is its checkpoint or its provider, `whom` whose it is."""

    id: UUID
    run_id: UUID | None
    what: str
    whom: str | None
    since: datetime


@dataclass(frozen=True, slots=True)
class Failures:
    """Runs that were ended by the same thing; `ids` of some that can be taken up again."""

    code: str
    n: int
    last: datetime
    recoverable: int
    ids: tuple[UUID, ...]


@dataclass(frozen=True, slots=True)
class Crew:
    """Who could have taken it on."""

    workers: int
    jobs: int
    max_jobs: int
    redis: bool


@dataclass(frozen=True, slots=True)
class Stuck:
    """`ahead`: the run to look at instead. `act`: what helps at once."""

    run_id: UUID | None
    approval_id: UUID | None
    since: datetime
    reason: str
    advice: str
    ahead: UUID | None = None
    act: Literal["resume"] | None = None


def of_run(held: HeldUp, crew: Crew, now: datetime) -> Stuck:
    """Why the run stands still; the cause that others follow from comes first."""
    run = held.run

    def told(since: datetime, reason: str, advice: str, ahead: UUID | None = None) -> Stuck:
        return Stuck(run.id, None, since, reason, advice, ahead)

    if run.state_version > STATE_VERSION:
        return told(run.status_since, "A newer release wrote it.", "Run workers of that release.")
    if run.paused_at is not None:
        return Stuck(run.id, None, run.paused_at, "It is paused.", "Resume it, or cancel it.", act="resume")
    if run.deadline_at is not None and run.deadline_at < now:
        return told(run.deadline_at, "Its deadline passed and nobody ended it.", _nobody(crew))
    if run.lease_until is not None and run.lease_until < now:
        advice = "Another takes it over within seconds." if crew.workers else _STARTS
        return told(run.lease_until, f"The worker {run.worker_id} fell silent while it held the run.", advice)
    if run.lease_until is not None:
        reason = f"The worker {run.worker_id} has been at one step for long."
        return told(run.status_since, reason, "Look at its provider call; cancel the run if nobody waits for it.")
    if run.due_at is not None:
        return told(run.due_at, _untaken(crew), _nobody(crew))
    if held.ahead_id is not None:
        reason = f"It stands in its session's line; before it is one that is {_said(held.ahead_status)}."
        return told(run.created_at, reason, "See that one through, or cancel it.", ahead=held.ahead_id)
    return told(run.created_at, "It stands first in its session's line and was not let go.", _nobody(crew))


def of_approval(overdue: Overdue, crew: Crew) -> Stuck:
    """Why an approval is open past its deadline."""
    reason = "Its deadline passed, and what silence means was not done."
    return Stuck(overdue.run_id, overdue.id, overdue.expires_at, reason, _nobody(crew))


def _untaken(crew: Crew) -> str:
    if not crew.workers:
        return "It is due, and no worker is there."
    if crew.jobs >= crew.max_jobs:
        return "It is due, and every worker is full."
    return "It is due, and no worker took it."


def _nobody(crew: Crew) -> str:
    """What to do where a worker should have done it."""
    if not crew.workers:
        return _STARTS
    if not crew.redis:
        return "Redis does not answer: bring it back. Until then the workers find work by their sweep, which is slower."
    if crew.jobs >= crew.max_jobs:
        return "Start another worker, or raise HITL_MAX_JOBS."
    return _LOG


def _said(status: str | None) -> str:
    return RunStatus(status).value.replace("_", " ") if status else "not over"
