"""Events: facts about a run, numbered without gaps and chained by hash."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from service.domain.altered import altered
from service.domain.canonical import canonical, sha256_hex
from service.domain.run import Run


class EventType(StrEnum):
    RUN_CREATED = "run.created"
    RUN_QUEUED = "run.queued"
    STEP_STARTED = "step.started"
    STEP_COMPLETED = "step.completed"
    APPROVAL_REQUESTED = "approval.requested"
    APPROVAL_REMINDED = "approval.reminded"
    APPROVAL_ESCALATED = "approval.escalated"
    APPROVAL_CLAIMED = "approval.claimed"
    APPROVAL_DELEGATED = "approval.delegated"
    APPROVAL_DECIDED = "approval.decided"
    APPROVAL_EXPIRED = "approval.expired"
    PROVIDER_SUBMITTED = "provider.submitted"
    PROVIDER_PROGRESS = "provider.progress"
    PROVIDER_COMPLETED = "provider.completed"
    PROVIDER_FAILED = "provider.failed"
    RUN_PAUSED = "run.paused"
    RUN_RESUMED = "run.resumed"
    RUN_RECOVERED = "run.recovered"
    RUN_COMPLETED = "run.completed"
    RUN_FAILED = "run.failed"
    RUN_CANCELLED = "run.cancelled"


STANDS: Final = ("run_status", "current_step")  # what `chain` adds to the data of each event
# How these two are kept: a number, 16 times the place of the one and the place of the other. Places are never changed.
_STATUSES: Final = (
    "queued", "running", "awaiting_human", "awaiting_provider", "paused", "completed", "failed", "cancelled",
)  # fmt: skip
_STEPS: Final = ("information_review", "payload_review", "api_call", "response_review", "completed")
_NUMBERS: Final = {(status, step): 16 * n + m for n, status in enumerate(_STATUSES) for m, step in enumerate(_STEPS)}
_STANDING: Final = {number: dict(zip(STANDS, words, strict=True)) for words, number in _NUMBERS.items()}


@dataclass(frozen=True, slots=True)
class Fact:
    """What happened, before it has its number. `data` holds hashes and codes, never content."""

    type: EventType
    actor: str = "system"
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    run_id: UUID
    seq: int
    tenant: str
    type: str
    at: datetime
    actor: str
    data: Mapping[str, Any]
    prev_hash: str
    hash: str


def rfc3339(at: datetime) -> str:
    """UTC with six digits of fraction and `Z`: one spelling, since it is hashed."""
    there = at if at.tzinfo is UTC else at.astimezone(UTC)
    return there.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def wire(event: Event) -> dict[str, Any]:
    """The event as it is answered, streamed, exported and hashed."""
    return {
        "run_id": str(event.run_id),
        "seq": event.seq,
        "type": event.type,
        "at": rfc3339(event.at),
        "actor": event.actor,
        "data": dict(event.data),
        "prev_hash": event.prev_hash,
        "hash": event.hash,
    }


def event_hash(event: Event) -> str:
    """SHA-256 of `prev_hash` followed by the RFC 8785 JSON of the event without `hash` (contract, section 7)."""
    body = wire(event)
    del body["hash"]
    return _hash(body)


def _hash(body: Mapping[str, Any]) -> str:
    return sha256_hex(body["prev_hash"].encode() + canonical(body))


def said(data: Mapping[str, Any]) -> dict[str, Any]:
    """The data of an event as its fact had it, without what `chain` added."""
    return {name: value for name, value in data.items() if name not in STANDS}


def shortened(data: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """The data of an event of `chain` as it is kept: what its fact said, and a number for how it left the run."""
    return said(data), _NUMBERS[data[STANDS[0]], data[STANDS[1]]]


def lengthened(data: Any, number: int | None) -> Any:
    """The data of an event, of what is kept of it; as it is where no such number, or no object, is kept."""
    return {**data, **_STANDING[number]} if number in _STANDING and isinstance(data, dict) else data


def chain(run: Run, facts: Sequence[Fact], *, at: datetime) -> tuple[Run, list[Event]]:
    """The facts as the run's next events, and the run with its counter and last hash moved on.

    Each event says how its transaction left the run, so that whoever reads it later can tell the same again.
    """
    events: list[Event] = []
    seq, last = run.event_seq, run.event_hash
    at = max(at, run.updated_at)  # two processes, two ideas of Postgres's clock: a record does not run backwards
    run_id, spelt = str(run.id), rfc3339(at)
    stands = dict(zip(STANDS, (run.status.value, run.step.value), strict=True))
    for fact in facts:
        seq += 1
        kind, data = fact.type.value, {**fact.data, **stands}
        body = {"run_id": run_id, "seq": seq, "type": kind, "at": spelt, "actor": fact.actor, "data": data}
        before, last = last, _hash({**body, "prev_hash": last})
        events.append(Event(run.id, seq, run.tenant, kind, at, fact.actor, data, before, last))
    return altered(run, event_seq=seq, event_hash=last), events
