"""What a run stops for and shows there, over real HTTP: rounds of missing input, origins, revisions, policies."""

from itertools import chain, combinations
from typing import Any

import httpx2
import pytest

from service.domain.detectors import DETECTORS, Detector
from service.domain.policy import ALL_REVIEWS, HitlConfig
from service.runtime import Runtime, open_runtime
from tests.acting import begin, sql, worker
from tests.conftest import Provider, at, decide, echo, http_tool, run_body, settled, start

EXAMPLE = {"prompt": "sample", "image": "https://s.example/s.png", "seed": 7}
SCHEMA = {
    "type": "object",
    "required": ["prompt", "image", "voice", "speed"],
    "properties": {
        "prompt": {"type": "string"},
        "image": {"type": "string", "format": "uri"},
        "voice": {"type": "string"},
        "speed": {"type": "number", "maximum": 2},
        "seed": {"type": "integer"},
        "style": {"enum": ["pop", "noir"]},
    },
}
WHOLE = {"image": "https://x.example/a.png", "voice": "low", "speed": 1.5}


async def incomplete(client: httpx2.AsyncClient, **hitl: Any) -> tuple[str, dict[str, Any]]:
    """A run that asks for what is missing, and its question."""
    run_id = await start(client, run_body(echo(EXAMPLE, schema=SCHEMA), **hitl))
    return run_id, await at(client, run_id, "information_review")


async def tell(client: httpx2.AsyncClient, run_id: str, **edits: Any) -> httpx2.Response:
    """Answer in part what the run's open question asks."""
    body = {"action": "edit", "edits": edits, "partial": True}
    return await client.post(f"/hitl/run/{run_id}/approve", json=body)


def rows(approval: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in approval["context"]["form"]["fields"]}


# -- rounds --------------------------------------------------------------------------------------------


async def test_an_answer_in_part_is_kept_and_only_the_rest_is_asked_for_again(client: httpx2.AsyncClient) -> None:
    run_id, first = await incomplete(client)
    assert first["reasons"] == ["missing.image", "missing.voice", "missing.speed"]
    assert first["context"]["round"] == {"asked": 1, "most": 3}

    assert (await tell(client, run_id, voice="low")).json()["status"] == "edited"
    second = await at(client, run_id, "information_review")

    assert second["reasons"] == ["missing.image", "missing.speed"]
    assert second["approval_id"] != first["approval_id"]
    assert second["context"]["payload"]["voice"] == "low"
    assert second["context"]["round"] == {"asked": 2, "most": 3}
    assert (rows(second)["voice"]["origin"], rows(second)["voice"]["edited_by"]) == ("edited", "dev")
    assert second["context"]["revision_diff"] == [{"op": "add", "path": "/voice", "value": "low"}]

    rest = {"image": WHOLE["image"], "speed": 1.5}
    await decide(client, second["approval_id"], "edit", edits=rest)
    done = await settled(client, run_id)
    assert (done["status"], done["result"]) == ("completed", {"prompt": "a red fox", "seed": 7, **WHOLE})


async def test_after_the_last_round_the_run_fails_and_says_why(client: httpx2.AsyncClient) -> None:
    run_id, _ = await incomplete(client, max_information_rounds=2)

    await tell(client, run_id, voice="low")
    await at(client, run_id, "information_review")
    await tell(client, run_id, speed=1.0)

    failed = await settled(client, run_id)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "information_incomplete")
    assert failed["error"]["recoverable"] is False
    assert failed["error"]["step"] == "information_review"


async def test_an_answer_in_part_may_lack_values_and_not_hold_wrong_ones(client: httpx2.AsyncClient) -> None:
    run_id, approval = await incomplete(client)

    refused = await tell(client, run_id, speed=9)
    assert refused.status_code == 422
    assert [error["pointer"] for error in refused.json()["errors"]] == ["/speed"]
    whole = await decide(client, approval["approval_id"], "edit", edits={"speed": 1.0})
    assert {error["pointer"] for error in whole.json()["errors"]} == {"/image", "/voice"}
    assert (await at(client, run_id, "information_review"))["approval_id"] == approval["approval_id"]


@pytest.mark.parametrize("action", ["approve", "reject"])
async def test_partial_goes_with_an_edit_of_missing_information_only(client: httpx2.AsyncClient, action: str) -> None:
    _, approval = await incomplete(client)
    refused = await decide(client, approval["approval_id"], action, partial=True, reason="x")
    assert [error["pointer"] for error in refused.json()["errors"]] == ["/partial"]

    body = run_body(echo(), policy="require_human", allowed_steps=["payload_review"])
    review = await at(client, await start(client, body), "payload_review")
    refused = await decide(client, review["approval_id"], "edit", edits={"num_outputs": 2}, partial=True)
    assert [error["pointer"] for error in refused.json()["errors"]] == ["/partial"]


# -- what is shown -------------------------------------------------------------------------------------


async def test_values_are_followed_through_every_later_question(client: httpx2.AsyncClient) -> None:
    config = {"policy": "require_human", "allowed_steps": ["payload_review", "response_review"]}
    run_id = await start(client, run_body(echo(EXAMPLE, schema=SCHEMA), **config))
    first = await at(client, run_id, "information_review")
    as_ann = {"X-HITL-Actor": "ann"}
    url = f"/hitl/run/{run_id}/approve"

    await client.post(url, json={"action": "edit", "edits": WHOLE}, headers=as_ann)
    review = await at(client, run_id, "payload_review")
    assert {name: rows(review)[name]["origin"] for name in ("prompt", "seed", "image", "style")} == {
        "prompt": "prompt",
        "seed": "example",
        "image": "edited",
        "style": None,
    }
    assert rows(review)["image"]["edited_by"] == "ann"
    assert {entry["path"] for entry in review["context"]["revision_diff"]} == {"/image", "/voice", "/speed"}
    assert first["context"]["revision_diff"] is None

    await client.post(url, json={"action": "edit", "edits": {"seed": 8}}, headers={"X-HITL-Actor": "bob"})
    response = await at(client, run_id, "response_review")
    assert (rows(response)["seed"]["edited_by"], rows(response)["image"]["edited_by"]) == ("bob", "ann")
    assert response["context"]["revision_diff"] == [{"op": "replace", "path": "/seed", "from": 7, "value": 8}]
    assert response["context"]["output"]["seed"] == 8


async def test_a_quorum_sees_the_form_of_the_edit_that_is_under_review(client: httpx2.AsyncClient) -> None:
    body = run_body(echo(EXAMPLE), policy="require_human", allowed_steps=["payload_review"], reviewers={"quorum": 2})
    approval = await at(client, await start(client, body), "payload_review")
    url = f"/hitl/approvals/{approval['approval_id']}"

    edit = {"action": "edit", "edits": {"seed": 9}}
    taken = await client.post(f"{url}/decision", json=edit, headers={"X-HITL-Actor": "ann"})
    assert taken.json()["status"] == "pending"

    under_review = (await client.get(url)).json()
    assert rows(under_review)["seed"]["current_value"] == 9
    assert rows(under_review)["seed"]["edited_by"] == "ann"
    assert {"op": "replace", "path": "/seed", "from": 7, "value": 9} in under_review["context"]["diff"]
    assert under_review["context"]["payload"]["seed"] == 9


async def test_error_recovery_names_the_faulty_fields_first(client: httpx2.AsyncClient, provider: Provider) -> None:
    faults = {"errors": [{"field": "style", "message": "is unknown"}, {"field": "speed", "message": "too fast"}]}
    provider.script = [(422, faults)]
    tool = http_tool(provider.url, {**EXAMPLE, "style": "pop", "speed": 1.0}, schema={**SCHEMA, "required": ["prompt"]})
    run_id = await start(client, run_body(tool))

    approval = await at(client, run_id, "error_recovery")

    assert [row["name"] for row in approval["context"]["form"]["fields"]][:2] == ["style", "speed"]
    style, speed = approval["context"]["validation_issues"]
    assert (style["current_value"], style["allowed_values"]) == ("pop", ["pop", "noir"])
    assert "pop, noir" in style["suggested_fix"]
    assert (speed["current_value"], speed["suggested_fix"]) == (1.0, "Allowed: at most 2.")


async def test_each_approval_says_what_silence_will_mean(client: httpx2.AsyncClient) -> None:
    body = run_body(echo(), policy="require_human", allowed_steps=["payload_review"], on_timeout="approve")
    approval = await at(client, await start(client, body), "payload_review")
    assert approval["silence"] == f"approved at {approval['expires_at']}"

    _, incomplete_one = await incomplete(client, on_timeout="approve")
    assert incomplete_one["silence"] == f"rejected at {incomplete_one['expires_at']}"


# -- policies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", list(chain.from_iterable(combinations(ALL_REVIEWS, n) for n in range(4))), ids=str)
async def test_require_human_asks_at_each_allowed_step_always(client: httpx2.AsyncClient, steps: Any) -> None:
    run_id = await start(client, run_body(echo(), policy="require_human", allowed_steps=list(steps)))

    for step in steps:
        approval = await at(client, run_id, step)
        assert "policy.require_human" in approval["reasons"]
        assert (await decide(client, approval["approval_id"], "approve")).status_code == 200
    assert (await settled(client, run_id))["status"] == "completed"


@pytest.mark.parametrize("tool", [{"confidence": 0.0}, {"quality": 0.0}, {"cost_usd": 1000.0}], ids=str)
async def test_auto_with_complete_input_never_asks(client: httpx2.AsyncClient, tool: dict[str, Any]) -> None:
    limits = {"max_cost_usd": 0.0, "response_quality_min": 1.0}
    body = run_body(echo(**tool), policy="auto", review_thresholds=limits, max_payload_changes=0)

    assert (await settled(client, await start(client, body)))["status"] == "completed"


@pytest.mark.parametrize(
    ("tool", "hitl", "asks"),
    [
        ({"confidence": 0.9}, {}, None),
        ({"confidence": 0.89}, {}, "confidence.below"),
        ({"cost_usd": 0.5}, {"review_thresholds": {"max_cost_usd": 0.5}}, None),
        ({"cost_usd": 0.51}, {"review_thresholds": {"max_cost_usd": 0.5}}, "cost.above"),
        ({"quality": 0.7}, {"review_thresholds": {"response_quality_min": 0.7}}, None),
        ({"quality": 0.69}, {"review_thresholds": {"response_quality_min": 0.7}}, "quality.below"),
        ({}, {"max_payload_changes": 1}, None),
        ({}, {"max_payload_changes": 0}, "changes.above"),
    ],
    ids=str,
)
async def test_a_threshold_asks_on_one_side_of_its_edge_only(
    client: httpx2.AsyncClient, tool: dict[str, Any], hitl: dict[str, Any], asks: str | None
) -> None:
    run_id = await start(client, run_body(echo(**tool), policy="auto_with_thresholds", **hitl))

    run = await settled(client, run_id)

    assert [reason for waiting in run["pending_actions"] for reason in waiting["reasons"]] == ([asks] if asks else [])
    assert run["status"] == ("awaiting_human" if asks else "completed")


# -- detectors of other packages -----------------------------------------------------------------------


class Installed:
    """What the metadata of an installed package names in the group `hitl.detectors`."""

    def load(self) -> Detector:
        return Detector("codename", "secret", lambda text: "bluebird" in text)


async def test_a_package_beside_the_service_adds_its_detector(empty: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.domain.detectors.DETECTORS", dict(DETECTORS))
    monkeypatch.setattr("service.runtime.entry_points", lambda group: [Installed()] if "detectors" in group else [])
    config = HitlConfig(policy="auto", require_approval_safety_flags=["secret"])

    async with open_runtime(empty.settings, process="test"):
        run_id = await begin(empty, echo({"prompt": "x", "project": "bluebird"}), config)
        assert await worker(empty).advance(run_id) == "awaiting_human"

    assert await sql(empty, "select reasons from approvals where run_id = $1", run_id) == ["safety.secret"]
