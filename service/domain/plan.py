"""What a run does next. Pure: the orchestrator does it, and asks again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from service.domain import detectors, payload, policy
from service.domain.call import CallStatus, ProviderCall
from service.domain.policy import Checkpoint, HitlConfig
from service.domain.run import Run, Step

CLOCKS_APART: Final = timedelta(seconds=0.25)  # a wake-up may be this early by Postgres's clock


@dataclass(frozen=True, slots=True)
class Documents:
    """What is large about a run, beside its hot row.

    `description` holds what the payload was built with: `{schema, baseline, origins, confidence, flag_words,
    missing}`; and, once a human edited it: `editors` (field → who), `built` (the payload as it was built),
    `previous` (before the last edit), `rounds` (how many times what is missing was answered only in part).
    """

    run_input: Mapping[str, Any]
    config: HitlConfig
    tool_config: Mapping[str, Any]
    sealed: bytes | None
    description: Mapping[str, Any] | None
    payload: Any
    output: Any
    raw_response: Any
    result: Any
    callback_url: str | None
    erased_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Build:
    """Make the payload from the run's input and what the provider knows of the tool."""


@dataclass(frozen=True, slots=True)
class Pass:
    """The step is done without a human, or after one."""

    step: Step


@dataclass(frozen=True, slots=True)
class Ask:
    checkpoint: Checkpoint
    reasons: Sequence[str]


@dataclass(frozen=True, slots=True)
class Call:
    """Send the frozen payload. `again` is the call whose next try this is."""

    again: ProviderCall | None


@dataclass(frozen=True, slots=True)
class Poll:
    """Look at the call that the provider has accepted."""


@dataclass(frozen=True, slots=True)
class Suspend:
    """Wait for the provider until the moment given, without a slot."""

    until: datetime | None


@dataclass(frozen=True, slots=True)
class Finish:
    pass


@dataclass(frozen=True, slots=True)
class Fail:
    code: str
    message: str
    recoverable: bool


Action = Build | Pass | Ask | Call | Poll | Suspend | Finish | Fail


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the plan needs to know of a provider: whether it honours its idempotency key, whether an accepted call
    can be looked at, and how long after a try its webhook may still claim it."""

    repeatable: bool
    polls: bool = False
    adopt_s: float = 0


def next_action(run: Run, docs: Documents, call: ProviderCall | None, *, provider: Abilities, now: datetime) -> Action:
    """The one thing to do now. `call` is the run's current provider call, if its intent was written."""
    match run.step:
        case Step.INFORMATION_REVIEW:
            return Build() if docs.payload is None else information(run, docs)
        case Step.PAYLOAD_REVIEW:
            return _review(run, Checkpoint.PAYLOAD_REVIEW, _payload(run, docs))
        case Step.API_CALL:
            return _call(call, provider, now)
        case Step.RESPONSE_REVIEW:
            assert call is not None
            reasons = policy.response_reasons(docs.config, flags=call.safety_flags, quality=call.quality)
            return _review(run, Checkpoint.RESPONSE_REVIEW, reasons)
        case Step.COMPLETED:
            return Finish()


def _review(run: Run, checkpoint: Checkpoint, reasons: Sequence[str]) -> Action:
    fresh = policy.unasked(reasons, run.asked.get(checkpoint, ()))
    return Ask(checkpoint, fresh) if fresh else Pass(Step(checkpoint.value))


def information(run: Run, docs: Documents) -> Action:
    """Ask for what is missing or unsure, as often as configured."""
    about = docs.description or {}
    missing = payload.missing(docs.payload, about.get("schema"))
    if missing and about.get("rounds", 0) >= docs.config.max_information_rounds:
        message = f"required input was still missing after {docs.config.max_information_rounds} rounds"
        return Fail("information_incomplete", message, recoverable=False)
    reasons = policy.information_reasons(docs.config, missing=missing, confidence=about.get("confidence", 1.0))
    return _review(run, Checkpoint.INFORMATION_REVIEW, reasons)


def _payload(run: Run, docs: Documents) -> list[str]:
    return payload_reasons(docs.config, docs.description or {}, docs.payload, cost_usd=run.estimated_usd)


def payload_reasons(
    config: HitlConfig, about: Mapping[str, Any], built: Mapping[str, Any], *, cost_usd: float | None
) -> list[str]:
    """Why this payload, described so, would be put to a human."""
    flags = {found.flag for found in detectors.findings(built, about.get("flag_words") or {})}
    changes = payload.changes(about.get("baseline") or {}, built)
    return policy.payload_reasons(config, flags=flags, changes=changes, cost_usd=cost_usd)


def adoptable_until(call: ProviderCall, provider: Abilities) -> datetime | None:
    """Until when a try that was sent and never answered may be claimed by its webhook; None: it cannot be."""
    if provider.repeatable or not provider.adopt_s:
        return None
    return call.started_at + timedelta(seconds=provider.adopt_s)


def looked_at(call: ProviderCall | None, provider: Abilities) -> bool:
    """Whether the call goes on at the provider and can be looked at there."""
    return provider.polls and call is not None and call.status is CallStatus.ACCEPTED and call.provider_ref is not None


def _call(call: ProviderCall | None, provider: Abilities, now: datetime) -> Action:
    if call is None:
        return Call(again=None)
    match call.status:
        case CallStatus.ANSWERED:
            return Pass(Step.API_CALL)
        case CallStatus.RETRY:
            return Call(again=call)
        case CallStatus.INTENT:
            # its worker died or was cut off between the intent and the answer
            if provider.repeatable and (call.deadline_at is None or call.deadline_at > now):
                return Call(again=call)
            until = adoptable_until(call, provider)
            if until is not None and until > now + CLOCKS_APART:
                return Suspend(until)
            return Ask(Checkpoint.OUTCOME_UNKNOWN, ["provider.outcome_unknown"])
        case CallStatus.ACCEPTED:
            if looked_at(call, provider):  # past its deadline too: one last look
                return Poll()
            if call.deadline_at is None or call.deadline_at > now + CLOCKS_APART:
                return Suspend(call.deadline_at)
            return Ask(Checkpoint.OUTCOME_UNKNOWN, ["provider.outcome_unknown"])
        case CallStatus.INVALID:
            return Ask(Checkpoint.ERROR_RECOVERY, ["provider.error"])
        case CallStatus.UNKNOWN:
            return Ask(Checkpoint.OUTCOME_UNKNOWN, ["provider.outcome_unknown"])
        case CallStatus.REJECTED:
            return Fail("provider_rejected", call.problem or "the provider refused the call", recoverable=False)
        case CallStatus.EXHAUSTED:
            return Fail("provider_unavailable", call.problem or "the provider was not reachable", recoverable=True)
        case CallStatus.FAILED:
            return Fail("provider_failed", call.problem or "the provider failed", recoverable=False)
