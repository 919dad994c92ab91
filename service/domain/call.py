"""A provider call: its intent before, its answer after, and what each outcome means for the next try."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from service.domain.altered import altered
from service.domain.canonical import JSON

MAX_TRIES: Final = 5
MAX_CANCEL_TRIES: Final = 10


class CallStatus(StrEnum):
    INTENT = "intent"  # written before the first byte; found again, it means nobody knows
    RETRY = "retry"  # no effect at the provider so far, another try is due
    ACCEPTED = "accepted"  # the provider works on it and will call back
    ANSWERED = "answered"
    INVALID = "invalid"  # the provider refuses the payload: a human may mend it
    UNKNOWN = "unknown"  # sent and never answered: a human must say
    REJECTED = "rejected"  # the provider refuses the call for good
    EXHAUSTED = "exhausted"  # all tries failed without effect
    FAILED = "failed"  # the provider took it and failed


@dataclass(frozen=True)
class ProviderCall:
    """The row of `provider_calls`: number `number` of its run, under one idempotency key for all its tries."""

    run_id: UUID
    number: int
    tenant: str
    idempotency_key: str
    payload_sha256: str
    status: CallStatus
    tries: int
    provider_ref: str | None
    started_at: datetime
    finished_at: datetime | None
    deadline_at: datetime | None
    output: JSON
    raw: JSON
    issues: Sequence[Mapping[str, Any]] | None
    problem: str | None
    quality: float | None
    safety_flags: Sequence[str]
    cost_usd: float | None
    looks: int = 0
    copy_tries: int = 0


@dataclass(frozen=True, slots=True)
class Description:
    """What a provider knows of a tool before it is called.

    `confidence` overrides the computed one; `flag_words` maps words of the payload to safety flags.
    """

    schema: JSON = None
    example: Mapping[str, JSON] | None = None
    estimated_cost_usd: float | None = None
    confidence: float | None = None
    flag_words: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """`files`: URLs inside `output` that the provider will delete, and `data:` URIs in it, to be copied before
    the run completes."""

    output: JSON
    raw: JSON
    provider_ref: str | None = None
    quality: float | None = None
    safety_flags: Sequence[str] = ()
    cost_usd: float | None = None
    files: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Accepted:
    provider_ref: str | None = None


@dataclass(frozen=True, slots=True)
class InvalidInput:
    """Every faulty field as `{field, issue, severity, suggested_fix, auto_fixable}`."""

    issues: Sequence[Mapping[str, Any]]
    raw: JSON = None


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No effect at the provider, or one that its idempotency key makes harmless: try again later.

    `held_back`: we kept from asking, for a limit's sake; it was no try.
    """

    problem: str
    retry_after_s: float | None = None
    held_back: bool = False


@dataclass(frozen=True, slots=True)
class OutcomeUnknown:
    """Sent, and the time is out."""

    problem: str


@dataclass(frozen=True, slots=True)
class Rejected:
    problem: str
    raw: JSON = None


@dataclass(frozen=True, slots=True)
class ProviderFailed:
    problem: str
    raw: JSON = None


Outcome = Answered | Accepted | InvalidInput | Unreachable | OutcomeUnknown | Rejected | ProviderFailed


class Notice(StrEnum):
    """What a provider's word about one of its predictions means for the call that it names."""

    NOTHING = "nothing"
    ADOPT = "adopt"  # this is what became of the call that nobody knew of
    LOOK = "look"  # something happened to the one we wait for
    STRAY = "stray"  # nobody waits for it: end it


_MAY_ADOPT: Final = frozenset({CallStatus.INTENT, CallStatus.RETRY, CallStatus.UNKNOWN, CallStatus.EXHAUSTED})


def noticed(call: ProviderCall, provider_ref: str, *, wanted: bool) -> Notice:
    """`wanted`: the run is not over for good, and this is its newest call.

    The first prediction that is known of stands; another one of the same call is a second effect that slipped
    through, and is ended. What a human was asked about is taken up again when its provider speaks after all.
    """
    if call.provider_ref is None:
        may_adopt = call.status in _MAY_ADOPT or call.status is CallStatus.ACCEPTED
        return Notice.ADOPT if wanted and may_adopt else Notice.STRAY
    if call.provider_ref != provider_ref:
        return Notice.STRAY
    waits = call.status in (CallStatus.ACCEPTED, CallStatus.UNKNOWN)
    return Notice.LOOK if wanted and waits else Notice.NOTHING


def settled(call: ProviderCall, outcome: Outcome, *, now: datetime, adopts: bool = False) -> ProviderCall:
    """The call after one try. `adopts`: the provider's webhook may still tell what became of one that was sent."""
    done = altered(call, finished_at=now)
    match outcome:
        case Answered():
            return altered(
                done,
                status=CallStatus.ANSWERED,
                output=outcome.output,
                raw=outcome.raw,
                provider_ref=outcome.provider_ref or call.provider_ref,
                quality=outcome.quality,
                safety_flags=tuple(outcome.safety_flags),
                cost_usd=outcome.cost_usd,
            )
        case Accepted():
            return altered(call, status=CallStatus.ACCEPTED, provider_ref=outcome.provider_ref or call.provider_ref)
        case InvalidInput():
            return altered(done, status=CallStatus.INVALID, issues=list(outcome.issues), raw=outcome.raw)
        case Unreachable(held_back=True):
            return altered(done, status=CallStatus.RETRY, problem=outcome.problem, tries=call.tries - 1)
        case Unreachable():
            status = CallStatus.RETRY if call.tries < MAX_TRIES else CallStatus.EXHAUSTED
            return altered(done, status=status, problem=outcome.problem)
        case OutcomeUnknown():
            if adopts:
                return altered(call, problem=outcome.problem)
            return altered(done, status=CallStatus.UNKNOWN, problem=outcome.problem)
        case Rejected():
            return altered(done, status=CallStatus.REJECTED, problem=outcome.problem, raw=outcome.raw)
        case ProviderFailed():
            return altered(done, status=CallStatus.FAILED, problem=outcome.problem, raw=outcome.raw)


def tried(call: ProviderCall, outcome: Outcome, *, now: datetime, adopts: bool = False) -> ProviderCall:
    """The call after one try, whatever a callback or a notice has made of it while the try was under way."""
    match call.status:
        case CallStatus.INTENT:
            return settled(call, outcome, now=now, adopts=adopts)
        case CallStatus.ACCEPTED if isinstance(outcome, Answered | Accepted):
            # adopted meanwhile: the first reference stands, but an answer that is here is taken
            taken = outcome if isinstance(outcome, Answered) else replace(outcome, provider_ref=call.provider_ref)
            return settled(call, taken, now=now)
        case _:
            return call


def looked(call: ProviderCall, outcome: Outcome, *, now: datetime) -> ProviderCall:
    """The call after one look at it: while it goes on, or cannot be seen, it is looked at again until its
    time is out."""
    if call.status is not CallStatus.ACCEPTED:  # a callback was here first
        return call
    call = altered(call, looks=call.looks + 1)
    if not isinstance(outcome, Accepted | Unreachable):
        return settled(call, outcome, now=now)
    if call.deadline_at is not None and call.deadline_at <= now:
        return settled(call, OutcomeUnknown("no answer in time"), now=now)
    return call


def reference(outcome: Outcome) -> str | None:
    """The provider's own id of what a try began there, where it is known."""
    return outcome.provider_ref if isinstance(outcome, Accepted | Answered) else None


def strays(before: ProviderCall, after: ProviderCall, outcome: Outcome) -> list[str]:
    """References that a try has left at the provider beside the one that the call stands by."""
    known = {ref for ref in (before.provider_ref, reference(outcome)) if ref is not None}
    return sorted(known - {after.provider_ref}) if after.provider_ref is not None else []


def look_after(looks: int, *, poll_s: float, retry_after_s: float | None, jitter: float) -> timedelta:
    """How long until the next look: about 1 s, then half as long again each time up to `poll_s`, a little less by
    `jitter` (0 to 1); never before what `Retry-After` asked for (an hour at most)."""
    grown = min(poll_s, 1.5 ** min(looks, 40)) * (1 - jitter / 10)
    return timedelta(seconds=max(grown, min(retry_after_s or 0, 3600)))


def cancel_again(tries: int) -> timedelta | None:
    """How long until a cancel that did not reach the provider is tried again: 1, 2, 4 … 60 s; None: no more."""
    return timedelta(seconds=min(60.0, 2.0 ** (tries - 1))) if tries < MAX_CANCEL_TRIES else None


def unsent(call: ProviderCall | None, *, before: ProviderCall | None) -> ProviderCall | None:
    """The call without a try whose intent was written and which its writer knows was never sent."""
    if call is None or call.status is not CallStatus.INTENT:
        return call
    if before is not None and (before.number, before.tries) == (call.number, call.tries):
        return call  # the intent is an earlier one, of which nobody knows
    return altered(call, status=CallStatus.RETRY, tries=call.tries - 1)


def backoff(tries: int, *, retry_after_s: float | None, jitter: float) -> timedelta:
    """How long until the next try: 0.5, 1, 2, 4 s, up to half as much again by `jitter` (0 to 1),
    never before what `Retry-After` asked for (an hour at most)."""
    grown = 0.5 * 2.0 ** (tries - 1) * (1 + jitter / 2)
    return timedelta(seconds=max(grown, min(retry_after_s or 0, 3600)))
