"""Each reason to ask a human, on both sides of its edge."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.domain.policy import (
    ALL_REVIEWS,
    HitlConfig,
    Reviewers,
    dump,
    information_reasons,
    load,
    payload_reasons,
    response_reasons,
    silence,
    stored,
    unasked,
)

AUTO = HitlConfig(policy="auto")
HUMAN = HitlConfig(policy="require_human")
THRESHOLDS = HitlConfig(policy="auto_with_thresholds")
NOWHERE: dict[str, Any] = {"allowed_steps": []}


@pytest.mark.parametrize(
    ("config", "missing", "confidence", "reasons"),
    [
        (AUTO, [], 0.0, []),
        (AUTO, ["image"], 1.0, ["missing.image"]),
        (HUMAN, [], 1.0, ["policy.require_human"]),
        (HUMAN, ["a", "b"], 0.0, ["missing.a", "missing.b", "policy.require_human"]),
        (THRESHOLDS, [], 0.9, []),
        (THRESHOLDS, [], 0.8999, ["confidence.below"]),
        (THRESHOLDS, ["a"], 0.1, ["missing.a", "confidence.below"]),
        (HitlConfig(auto_approve_confidence_threshold=0.5), [], 0.5, []),
        (HitlConfig(auto_approve_confidence_threshold=0.5), [], 0.49, ["confidence.below"]),
        (HitlConfig(auto_approve_confidence_threshold=0), [], 0.0, []),
        (HitlConfig(policy="require_human", **NOWHERE), ["a"], 0.0, ["missing.a"]),
        (HitlConfig(**NOWHERE), ["a"], 0.0, ["missing.a"]),
    ],
)
def test_information_asks_for_what_is_missing_or_unsure(
    config: HitlConfig, missing: list[str], confidence: float, reasons: list[str]
) -> None:
    assert information_reasons(config, missing=missing, confidence=confidence) == reasons


CAPPED = HitlConfig(review_thresholds={"max_cost_usd": 0.5}, max_payload_changes=2)


@pytest.mark.parametrize(
    ("config", "flags", "changes", "cost", "reasons"),
    [
        (AUTO, [], 99, 99.0, []),
        (AUTO, ["pii"], 0, None, ["safety.pii"]),
        (AUTO, ["unheard_of"], 0, None, []),
        (HUMAN, [], 0, None, ["policy.require_human"]),
        (HUMAN, ["nsfw", "copyright", "nsfw"], 0, None, ["safety.copyright", "safety.nsfw", "policy.require_human"]),
        (THRESHOLDS, [], 5, 99.0, []),
        (THRESHOLDS, [], 6, None, ["changes.above"]),
        (CAPPED, [], 2, 0.5, []),
        (CAPPED, [], 3, 0.5, ["changes.above"]),
        (CAPPED, [], 2, 0.5001, ["cost.above"]),
        (CAPPED, [], 2, None, []),
        (HitlConfig(review_thresholds={"max_cost_usd": 0}), [], 0, 0.0, []),
        (HitlConfig(review_thresholds={"max_cost_usd": 0}), [], 0, 0.01, ["cost.above"]),
        (HitlConfig(max_payload_changes=0), [], 0, None, []),
        (HitlConfig(max_payload_changes=0), [], 1, None, ["changes.above"]),
        (HitlConfig(policy="require_human", **NOWHERE), ["pii"], 99, 99.0, ["safety.pii"]),
        (HitlConfig(require_approval_safety_flags=["own"]), ["own", "pii"], 0, None, ["safety.own"]),
        (HitlConfig(require_approval_safety_flags=[]), ["pii"], 0, None, []),
    ],
)
def test_the_payload_asks_for_flags_changes_and_cost(
    config: HitlConfig, flags: list[str], changes: int, cost: float | None, reasons: list[str]
) -> None:
    assert payload_reasons(config, flags=flags, changes=changes, cost_usd=cost) == reasons


GOOD = HitlConfig(review_thresholds={"response_quality_min": 0.7})


@pytest.mark.parametrize(
    ("config", "flags", "quality", "reasons"),
    [
        (AUTO, [], 0.0, []),
        (AUTO, ["refusal"], None, ["safety.refusal"]),
        (HUMAN, [], None, ["policy.require_human"]),
        (THRESHOLDS, [], 0.0, []),
        (GOOD, [], 0.7, []),
        (GOOD, [], 0.69, ["quality.below"]),
        (GOOD, [], None, []),
        (GOOD, ["nsfw"], 0.1, ["safety.nsfw", "quality.below"]),
        (HitlConfig(policy="auto", review_thresholds={"response_quality_min": 0.7}), [], 0.1, []),
        (HitlConfig(**NOWHERE), ["content_filter"], 0.0, ["safety.content_filter"]),
    ],
)
def test_the_response_asks_for_flags_and_quality(
    config: HitlConfig, flags: list[str], quality: float | None, reasons: list[str]
) -> None:
    assert response_reasons(config, flags=flags, quality=quality) == reasons


@given(
    policy=st.sampled_from(["auto", "require_human", "auto_with_thresholds"]),
    steps=st.lists(st.sampled_from(ALL_REVIEWS), unique=True),
    flag=st.sampled_from(["nsfw", "pii", "copyright", "content_filter", "refusal"]),
    field=st.text(min_size=1),
)
def test_no_policy_and_no_list_of_steps_silences_what_is_missing_or_unsafe(
    policy: Any, steps: Any, flag: str, field: str
) -> None:
    config = HitlConfig(policy=policy, allowed_steps=steps)
    assert f"missing.{field}" in information_reasons(config, missing=[field], confidence=1.0)
    assert f"safety.{flag}" in payload_reasons(config, flags=[flag], changes=0, cost_usd=None)
    assert f"safety.{flag}" in response_reasons(config, flags=[flag], quality=None)


@given(steps=st.lists(st.sampled_from(ALL_REVIEWS), unique=True))
def test_require_human_asks_at_every_allowed_step_and_at_no_other(steps: Any) -> None:
    config = HitlConfig(policy="require_human", allowed_steps=steps)
    asks = {
        "information_review": information_reasons(config, missing=[], confidence=1.0),
        "payload_review": payload_reasons(config, flags=[], changes=0, cost_usd=None),
        "response_review": response_reasons(config, flags=[], quality=None),
    }
    assert {step for step, reasons in asks.items() if reasons} == set(steps)


def test_what_was_answered_is_not_asked_again_but_what_is_missing_is() -> None:
    reasons = ["missing.image", "policy.require_human", "safety.pii"]
    assert unasked(reasons, []) == reasons
    assert unasked(reasons, ["policy.require_human"]) == ["missing.image", "safety.pii"]
    assert unasked(reasons, reasons) == ["missing.image"]


def test_a_checkpoint_takes_its_own_rules_and_the_runs_where_it_has_none() -> None:
    config = HitlConfig.model_validate(
        {
            "timeout_seconds": 10,
            "on_timeout": "approve",
            "remind_after_seconds": 5,
            "escalate_to": {"users": ["boss"]},
            "reviewers": {"users": ["ann"]},
            "checkpoints": {"payload_review": {"timeout_seconds": 20, "on_timeout": "escalate"}},
        }
    )
    own, other = silence(config, "payload_review"), silence(config, "response_review")
    assert (own.timeout_s, own.on_timeout, own.remind_after_s) == (20, "escalate", 5)
    assert own.escalate_to is not None
    assert own.escalate_to.users == ["boss"]
    assert own.reviewers.users == ["ann"]
    assert (other.timeout_s, other.on_timeout) == (10, "approve")


@pytest.mark.parametrize(
    ("quorum", "allow", "self_approval"),
    [(1, None, True), (2, None, False), (1, False, False), (2, True, True), (10, None, False)],
)
def test_self_approval_is_allowed_alone_and_not_in_a_quorum(
    quorum: int, allow: bool | None, self_approval: bool
) -> None:
    assert Reviewers(quorum=quorum, allow_self_approval=allow).self_approval is self_approval


@pytest.mark.parametrize(
    "document",
    [
        {"polcy": "auto"},
        {"policy": "automatic"},
        {"policy": None},
        {"allowed_steps": ["api_call"]},
        {"timeout_seconds": 0},
        {"timeout_seconds": True},
        {"timeout_seconds": float("inf")},
        {"timeout_seconds": float("nan")},
        {"timeout_seconds": 366 * 86_400 + 1},
        {"auto_approve_confidence_threshold": 1.1},
        {"auto_approve_confidence_threshold": float("nan")},
        {"max_payload_changes": -1},
        {"max_payload_changes": 1.5},
        {"review_thresholds": {"max_cost": 1}},
        {"review_thresholds": {"max_cost_usd": float("nan")}},
        {"reviewers": {"users": ["a"], "quorum": 2}},
        {"reviewers": {"users": [""]}},
        {"on_timeout": "escalate"},
        {"escalate_to": {"users": [], "groups": []}},
        {"on_timeout": "escalate", "escalate_to": {"users": ["a", "a"]}, "reviewers": {"quorum": 2}},
        {
            "reviewers": {"quorum": 2},
            "checkpoints": {"payload_review": {"on_timeout": "escalate", "escalate_to": {"users": ["a"]}}},
        },
        {"checkpoints": {"api_call": {}}},
        {"checkpoints": {"payload_review": {"policy": "auto"}}},
    ],
)
def test_a_config_with_a_mistake_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HitlConfig.model_validate(document)


@pytest.mark.parametrize(
    "document",
    [
        {"allowed_steps": []},
        {"timeout_seconds": 1},
        {"timeout_seconds": 366 * 86_400},
        {"reviewers": {"users": ["a"], "groups": ["g"], "quorum": 5}},
        {"reviewers": {"quorum": 10}},
        {"on_timeout": "escalate", "escalate_to": {"groups": ["g"]}},
        {"on_timeout": "escalate", "escalate_to": {"users": ["a", "b"]}, "reviewers": {"quorum": 2}},
        {"on_timeout": "reject", "escalate_to": {"users": ["a"]}, "reviewers": {"quorum": 2}},
        {"checkpoints": {"outcome_unknown": {"on_timeout": "escalate", "escalate_to": {"users": ["b"]}}}},
    ],
)
def test_a_stored_config_is_the_config_whoever_stored_it(document: dict[str, Any]) -> None:
    config = HitlConfig.model_validate(document)
    assert set(dump(config)) == set(HitlConfig.model_fields)
    assert load(dump(config)) == load(stored(config)) == config


def test_defaults_that_were_changed_are_another_set() -> None:
    """Else a run that waits would be held to what its request did not mean."""
    assert stored(HitlConfig()) == {"defaults": 1}
    assert dump(load({"defaults": 1})) == dump(HitlConfig())
