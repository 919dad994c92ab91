"""A policy on runs that are over: where it would have stopped them, by the same functions that stop a live one."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from service.domain import payload, policy
from service.domain.plan import payload_reasons
from service.domain.policy import ALL_REVIEWS, HitlConfig


@dataclass(frozen=True, slots=True)
class Past:
    """What is left of a run, as far as a policy looks at it.

    `description` and `payload` are those of `Documents`; `answers` has the flags and the quality of each answer
    of the provider; `asked` the reasons of each approval by checkpoint.
    """

    run_id: UUID
    estimated_usd: float | None
    description: Mapping[str, Any] | None
    payload: Any
    answers: Sequence[tuple[Sequence[str], float | None]]
    asked: Sequence[tuple[str, Sequence[str]]]


@dataclass(slots=True)
class Stops:
    """How many runs stopped at one checkpoint, and how many of them for each reason."""

    runs: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, reasons: Sequence[str]) -> None:
        self.runs += bool(reasons)
        self.reasons.update(dict.fromkeys(reasons, 1))


@dataclass(slots=True)
class Trial:
    """What a policy would have done to `runs` runs beside what was done, by checkpoint."""

    runs: int = 0
    stopped_would: int = 0
    stopped_did: int = 0
    would: dict[str, Stops] = field(default_factory=lambda: {step: Stops() for step in ALL_REVIEWS})
    did: dict[str, Stops] = field(default_factory=lambda: {step: Stops() for step in ALL_REVIEWS})

    def add(self, config: HitlConfig, past: Past) -> None:
        would, did = would_stop(config, past), did_stop(past)
        self.runs += 1
        self.stopped_would += any(would.values())
        self.stopped_did += any(did.values())
        for step in ALL_REVIEWS:
            self.would[step].add(would[step])
            self.did[step].add(did[step])


def would_stop(config: HitlConfig, past: Past) -> dict[str, list[str]]:
    """The reasons at each checkpoint that the run came to. An edited payload is looked at as built and as sent:
    both were put to the policy. None for a run that ended before its payload was built."""
    about = past.description
    if about is None:
        return {step: [] for step in ALL_REVIEWS}
    schema, built = about.get("schema"), about.get("built", past.payload)
    missing = about.get("missing", payload.missing(built, schema))
    complete = [one for one in (built, past.payload) if not payload.missing(one, schema)]
    return {
        "information_review": policy.information_reasons(
            config, missing=missing, confidence=about.get("confidence", 1.0)
        ),
        "payload_review": _union(payload_reasons(config, about, one, cost_usd=past.estimated_usd) for one in complete),
        "response_review": _union(
            policy.response_reasons(config, flags=flags, quality=quality) for flags, quality in past.answers
        ),
    }


def did_stop(past: Past) -> dict[str, list[str]]:
    """The reasons for which the run was really put to a human."""
    return {step: _union(reasons for at, reasons in past.asked if at == step) for step in ALL_REVIEWS}


def _union(several: Iterable[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(reason for reasons in several for reason in reasons))
