"""When a run must stop for a human, and who may answer: `hitl_config`, and the reasons it leads to."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_STRICT: Final = ConfigDict(extra="forbid", frozen=True, strict=True)

Name = Annotated[str, Field(min_length=1, max_length=200)]
Timeout = Annotated[float, Field(ge=1, le=366 * 86_400)]
OnTimeout = Literal["reject", "approve", "escalate"]


class Checkpoint(StrEnum):
    """The checkpoints of a run; an approval that a client asked for may bear any other name."""

    INFORMATION_REVIEW = "information_review"
    PAYLOAD_REVIEW = "payload_review"
    RESPONSE_REVIEW = "response_review"
    ERROR_RECOVERY = "error_recovery"
    OUTCOME_UNKNOWN = "outcome_unknown"


ReviewStep = Literal["information_review", "payload_review", "response_review"]
ALL_REVIEWS: Final[tuple[ReviewStep, ...]] = ("information_review", "payload_review", "response_review")


class EscalateTo(BaseModel):
    """Who is asked next when nobody answered in time."""

    model_config = _STRICT
    users: list[Name] = Field(default=[], max_length=100)
    groups: list[Name] = Field(default=[], max_length=100)

    @model_validator(mode="after")
    def _somebody(self) -> Self:
        if not self.users and not self.groups:
            raise ValueError("name at least one user or group")
        return self


class Reviewers(BaseModel):
    """Who may decide; empty lists mean anyone who may."""

    model_config = _STRICT
    users: list[Name] = Field(default=[], max_length=100)
    groups: list[Name] = Field(default=[], max_length=100)
    quorum: int = Field(default=1, ge=1, le=10)
    allow_self_approval: bool | None = Field(default=None, description="true at quorum 1, false above")

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.users and not self.groups and self.quorum > len(set(self.users)):
            raise ValueError("quorum is above the number of named users")
        return self

    @property
    def self_approval(self) -> bool:
        return self.quorum == 1 if self.allow_self_approval is None else self.allow_self_approval


ANYONE: Final = Reviewers()


class CheckpointConfig(BaseModel):
    """What one checkpoint does otherwise than the rest."""

    model_config = _STRICT
    timeout_seconds: Timeout | None = None
    on_timeout: OnTimeout | None = None
    escalate_to: EscalateTo | None = None
    remind_after_seconds: Timeout | None = None
    reviewers: Reviewers | None = None


class ReviewThresholds(BaseModel):
    model_config = _STRICT
    max_cost_usd: float | None = Field(default=None, ge=0)
    response_quality_min: float | None = None


class HitlConfig(BaseModel):
    """When the run stops, for whom, and what silence means. Times in seconds."""

    model_config = _STRICT
    policy: Literal["auto", "require_human", "auto_with_thresholds"] = "auto_with_thresholds"
    allowed_steps: list[ReviewStep] = Field(default=list(ALL_REVIEWS), max_length=10)
    timeout_seconds: Timeout = 86_400
    on_timeout: OnTimeout = "reject"
    escalate_to: EscalateTo | None = None
    remind_after_seconds: Timeout | None = None
    auto_approve_confidence_threshold: float = Field(default=0.9, ge=0, le=1)
    review_thresholds: ReviewThresholds = ReviewThresholds()
    max_payload_changes: int = Field(default=5, ge=0)
    max_information_rounds: int = Field(
        default=3, ge=1, le=100, description="how often what is still missing is asked for before the run fails"
    )
    require_approval_safety_flags: list[Name] = Field(
        default=["nsfw", "pii", "copyright", "content_filter", "refusal"], max_length=100
    )
    reviewers: Reviewers = Reviewers()
    checkpoints: dict[Checkpoint | str, CheckpointConfig] = Field(default={}, max_length=20)
    run_timeout_seconds: Timeout | None = None

    @model_validator(mode="after")
    def _escalation_has_a_target(self) -> Self:
        ways = [(self.on_timeout, self.escalate_to)]
        ways += [(own.on_timeout or "reject", own.escalate_to) for own in self.checkpoints.values()]
        for on_timeout, target in ways:
            if on_timeout == "escalate" and not (target or self.escalate_to):
                raise ValueError("on_timeout escalate needs escalate_to")
        unknown = set(self.checkpoints) - {checkpoint.value for checkpoint in Checkpoint}
        if unknown:
            raise ValueError("checkpoints may only name the five checkpoints of a run")
        return self

    @model_validator(mode="after")
    def _escalation_can_be_answered(self) -> Self:
        for waits in (silence(self, ""), *(silence(self, checkpoint) for checkpoint in self.checkpoints)):
            target = waits.escalate_to if waits.on_timeout == "escalate" else None
            if target and not target.groups and waits.reviewers.quorum > len(set(target.users)):
                raise ValueError("quorum is above the number of users that escalate_to names")
        return self


class Silence(BaseModel):
    """How one approval waits: the run's config with the checkpoint's own on top."""

    model_config = ConfigDict(frozen=True)
    timeout_s: float
    on_timeout: OnTimeout
    escalate_to: EscalateTo | None
    remind_after_s: float | None
    reviewers: Reviewers


def silence(config: HitlConfig, checkpoint: str) -> Silence:
    own = config.checkpoints.get(checkpoint, CheckpointConfig())
    return Silence(
        timeout_s=own.timeout_seconds or config.timeout_seconds,
        on_timeout=own.on_timeout or config.on_timeout,
        escalate_to=own.escalate_to or config.escalate_to,
        remind_after_s=own.remind_after_seconds or config.remind_after_seconds,
        reviewers=own.reviewers or config.reviewers,
    )


def information_reasons(config: HitlConfig, *, missing: Iterable[str], confidence: float) -> list[str]:
    """`missing.<field>` asks whatever the policy: nothing may call a provider with a guess."""
    reasons = [f"missing.{field}" for field in missing]
    if "information_review" in config.allowed_steps:
        if config.policy == "require_human":
            reasons.append("policy.require_human")
        below = confidence < config.auto_approve_confidence_threshold
        if config.policy == "auto_with_thresholds" and below:
            reasons.append("confidence.below")
    return reasons


def payload_reasons(config: HitlConfig, *, flags: Iterable[str], changes: int, cost_usd: float | None) -> list[str]:
    reasons = _flagged(config, flags)
    if "payload_review" in config.allowed_steps:
        if config.policy == "require_human":
            reasons.append("policy.require_human")
        if config.policy == "auto_with_thresholds":
            limit = config.review_thresholds.max_cost_usd
            if changes > config.max_payload_changes:
                reasons.append("changes.above")
            if limit is not None and cost_usd is not None and cost_usd > limit:
                reasons.append("cost.above")
    return reasons


def response_reasons(config: HitlConfig, *, flags: Iterable[str], quality: float | None) -> list[str]:
    reasons = _flagged(config, flags)
    if "response_review" in config.allowed_steps:
        if config.policy == "require_human":
            reasons.append("policy.require_human")
        floor = config.review_thresholds.response_quality_min
        below = floor is not None and quality is not None and quality < floor
        if config.policy == "auto_with_thresholds" and below:
            reasons.append("quality.below")
    return reasons


def unasked(reasons: Iterable[str], asked: Iterable[str]) -> list[str]:
    """The reasons that no human has answered yet; what is missing stays missing until it is there."""
    done = set(asked)
    return [reason for reason in reasons if reason not in done or reason.startswith("missing.")]


def _flagged(config: HitlConfig, flags: Iterable[str]) -> list[str]:
    named = set(config.require_approval_safety_flags)
    return [f"safety.{flag}" for flag in sorted(set(flags) & named)]


def dump(config: HitlConfig) -> dict[str, Any]:
    """The config as JSON, every default written out."""
    return config.model_dump(mode="json")


# What a config that says nothing means, by the name under which stored ones refer to it: a later default changes no
# run. Whoever changes or adds one adds another set.
_SAID_NOTHING: Final[Mapping[int, Mapping[str, Any]]] = {
    1: {
        "policy": "auto_with_thresholds",
        "allowed_steps": ["information_review", "payload_review", "response_review"],
        "timeout_seconds": 86_400,
        "on_timeout": "reject",
        "escalate_to": None,
        "remind_after_seconds": None,
        "auto_approve_confidence_threshold": 0.9,
        "review_thresholds": {"max_cost_usd": None, "response_quality_min": None},
        "max_payload_changes": 5,
        "max_information_rounds": 3,
        "require_approval_safety_flags": ["nsfw", "pii", "copyright", "content_filter", "refusal"],
        "reviewers": {"users": [], "groups": [], "quorum": 1, "allow_self_approval": None},
        "checkpoints": {},
        "run_timeout_seconds": None,
    },
}
_LATEST: Final = max(_SAID_NOTHING)


def stored(config: HitlConfig) -> dict[str, Any]:
    """The config as it is kept: what it says beside a set of defaults, which is named."""
    usual = _SAID_NOTHING[_LATEST]
    return {"defaults": _LATEST, **{name: value for name, value in dump(config).items() if value != usual[name]}}


def load(document: Mapping[str, Any]) -> HitlConfig:
    """A stored config, in short or, by a release of before, written out; validated leniently, as it was checked when
    it came in."""
    said = dict(document)
    if "defaults" in said:
        said = {**_SAID_NOTHING[said.pop("defaults")], **said}
    return HitlConfig.model_validate(said, strict=False)
