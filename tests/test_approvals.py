"""Approvals over real HTTP: what is shown, who may answer, which answer wins, and what silence does."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import httpx2
import pytest
import pytest_asyncio

from service.commands import approvals as commands
from service.commands.approvals import Decided, Question
from service.commands.runs import StartRun, cancel_run, pause_run, resume_run, start_run
from service.domain.approval import Approval, ApprovalStatus, Order
from service.domain.canonical import payload_sha256
from service.domain.ids import parse_id
from service.domain.policy import HitlConfig
from service.domain.principal import Principal
from service.domain.run import Run, RunStatus
from service.embedded import Servers
from service.errors import AlreadyDecided, AmbiguousApproval, ApprovalExpired, HitlError, NotAReviewer, RunPaused
from service.orchestrator import HITLOrchestrator
from service.runtime import Runtime
from service.store import approvals, runs
from service.store.database import EVERY, Database
from tests.conftest import DEV, Stack, at, echo, eventually, run_body, settled, start

SCHEMA = {
    "type": "object",
    "properties": {
        "prompt": {"type": "string", "minLength": 1},
        "num_outputs": {"type": "integer", "minimum": 1, "maximum": 4},
        "guidance": {"type": "number"},
        "tiled": {"type": "boolean"},
        "size": {"enum": ["small", "large"]},
    },
    "required": ["prompt"],
    "additionalProperties": False,
}
NEEDS_IMAGE = {
    "type": "object",
    "properties": {"prompt": {"type": "string"}, "image": {"type": "string", "format": "uri"}},
    "required": ["prompt", "image"],
}
EXAMPLE = {"prompt": "sample", "num_outputs": 1}
APPROVAL_FIELDS = {
    "approval_id", "run_id", "checkpoint_type", "status", "reasons", "message", "user_id", "session_id", "context",
    "created_at", "expires_at", "on_timeout", "reviewers", "claimed_by", "claimed_until", "decisions", "decided_at",
}  # fmt: skip
CONTEXT_FIELDS = {
    "payload", "payload_sha256", "schema", "form", "diff", "validation_issues", "estimated_cost_usd", "response",
    "output",
}  # fmt: skip
FORM_FIELDS = {
    "name", "label", "type", "category", "required", "current_value", "default", "prompt", "collection", "hint",
}  # fmt: skip


# Helpers


async def at_review(
    client: httpx2.AsyncClient, step: str = "payload_review", *, tool: Any = None, top: Any = None, **hitl: Any
) -> dict[str, Any]:
    """The open approval of a fresh run that stops at this one step."""
    body = run_body(tool or echo(EXAMPLE, schema=SCHEMA), policy="require_human", allowed_steps=[step], **hitl)
    return await at(client, await start(client, {**body, **(top or {})}), step)


async def answer(
    client: httpx2.AsyncClient, approval: dict[str, Any], action: str, actor: str | None = None, **more: Any
) -> httpx2.Response:
    headers = {"X-HITL-Actor": actor} if actor else {}
    url = f"/hitl/approvals/{approval['approval_id']}/decision"
    return await client.post(url, json={"action": action, **more}, headers=headers)


async def shown(client: httpx2.AsyncClient, approval: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get(f"/hitl/approvals/{approval['approval_id']}")).json()
    return found


async def asked(client: httpx2.AsyncClient, headers: dict[str, str] | None = None, **more: Any) -> httpx2.Response:
    body = {"checkpoint_type": "deploy", "message": "May I?", "context": {"payload": {"env": "prod"}}, **more}
    return await client.post("/hitl/approvals", json=body, headers=headers or {})


async def events(client: httpx2.AsyncClient, run_id: str, kind: str) -> list[dict[str, Any]]:
    found = (await client.get(f"/hitl/runs/{run_id}/events", params={"limit": 200})).json()["events"]
    return [event for event in found if event["type"] == kind]


def pointers(response: httpx2.Response) -> list[str]:
    assert response.status_code == 422, response.text
    return [error["pointer"] for error in response.json()["errors"]]


def code(response: httpx2.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def sql(stack: Stack) -> AsyncIterator[asyncpg.Connection]:
    """The service's own database, to move deadlines instead of waiting for them."""
    conn = await asyncpg.connect(stack.env["DATABASE_URL"])
    yield conn
    await conn.close()


async def run_out(sql: asyncpg.Connection, approval: dict[str, Any]) -> None:
    """The approval's time is out from now on; the next sweep of the worker finds it."""
    await sql.execute("update approvals set expires_at = now() where id = $1", UUID(approval["approval_id"]))


# What is shown


@pytest.mark.parametrize("step", ["information_review", "payload_review", "response_review"])
async def test_an_approval_shows_every_field_of_the_contract(client: httpx2.AsyncClient, step: str) -> None:
    tool = echo({**EXAMPLE, "guidance": 2.5}, schema=SCHEMA, cost_usd=0.25)
    approval = await at_review(client, step, tool=tool, top={"user_id": "u-fields", "session_id": "s-fields"})

    context = approval["context"]
    payload = {"prompt": "a red fox", "num_outputs": 1, "guidance": 2.5}
    assert set(approval) >= APPROVAL_FIELDS
    assert set(context) >= CONTEXT_FIELDS
    assert set(context["form"]) >= {"title", "fields"}
    assert all(set(field) >= FORM_FIELDS for field in context["form"]["fields"])
    assert context["payload"] == payload
    assert context["payload_sha256"] == payload_sha256(payload)
    assert context["schema"] == SCHEMA
    assert context["estimated_cost_usd"] == 0.25
    assert [entry["path"] for entry in context["diff"]] == ["/prompt"]
    assert context["validation_issues"] == []
    answered = step == "response_review"
    assert context["response"] == (payload if answered else None)
    assert context["output"] == (payload if answered else None)
    assert approval["reasons"] == ["policy.require_human"]
    assert approval["reviewers"] == {"users": [], "groups": [], "quorum": 1}
    assert (approval["user_id"], approval["session_id"]) == ("u-fields", "s-fields")
    assert (approval["status"], approval["decisions"], approval["decided_at"]) == ("pending", [], None)
    assert approval["on_timeout"] == "reject"
    waits = datetime.fromisoformat(approval["expires_at"]) - datetime.fromisoformat(approval["created_at"])
    assert waits.total_seconds() == 86_400
    assert await shown(client, approval) == approval


async def test_an_unknown_approval_is_not_found_whatever_is_asked_of_it(client: httpx2.AsyncClient) -> None:
    for name in (str(uuid4()), "no-uuid", "%00"):
        assert (await client.get(f"/hitl/approvals/{name}")).status_code == 404
        answered = await client.post(f"/hitl/approvals/{name}/decision", json={"action": "approve"})
        assert code(answered) == (404, "not_found")


# What is an answer


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", None),
        (b"", "application/json"),
        (b"{}", "application/json"),
        (b"null", "application/json"),
        (b"[]", "application/json"),
        (b'"approve"', "application/json"),
        (b"true", "application/json"),
        (b'{"action": null}', "application/json"),
        (b'{"action": "aprove"}', "application/json"),
        (b'{"action": "APPROVE"}', "application/json"),
        (b'{"action": ["approve"]}', "application/json"),
        (b'{"approved": "true"}', "application/json"),
        (b'{"approved": 1}', "application/json"),
        (b'{"action": "approve", "acton": "reject"}', "application/json"),
        (b'{"action": "reject", "action": "approve"}', "application/json"),
        (b'{"action": "approve", "approved": false}', "application/json"),
        (b'{"action": "approve", "payload_sha256": "abc"}', "application/json"),
        (b'{"action": "approve"', "application/json"),
    ],
)
async def test_what_is_no_answer_is_422_and_approves_nothing(
    client: httpx2.AsyncClient, content: bytes, kind: str | None
) -> None:
    approval = await at_review(client)
    headers = {"content-type": kind} if kind else {}

    for url in (f"/hitl/approvals/{approval['approval_id']}/decision", f"/hitl/run/{approval['run_id']}/approve"):
        refused = await client.post(url, content=content, headers=headers)
        assert refused.status_code == 422, refused.text

    assert (await shown(client, approval))["status"] == "pending"


async def test_an_answer_that_does_not_say_it_is_json_approves_nothing(client: httpx2.AsyncClient) -> None:
    approval = await at_review(client)
    url = f"/hitl/approvals/{approval['approval_id']}/decision"

    refused = await client.post(url, content=b'{"action": "approve"}', headers={"content-type": "text/plain"})

    assert refused.status_code == 415
    assert (await shown(client, approval))["status"] == "pending"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"approved": True}, "approved"),
        ({"approved": False, "reason": "no"}, "rejected"),
        ({"action": "edit", "approved": True, "edits": {"num_outputs": 2}}, "edited"),
        ({"action": "approve", "approved_by": "somebody", "sessionId": "s", "reason": "fine"}, "approved"),
    ],
)
async def test_old_clients_names_are_understood(client: httpx2.AsyncClient, body: dict[str, Any], status: str) -> None:
    approval = await at_review(client)
    named = {**body, "approval_token": approval["approval_id"], "runId": approval["run_id"]}

    taken = await client.post(f"/hitl/run/{approval['run_id']}/approve", json=named)

    assert taken.status_code == 200, taken.text
    told = taken.json()
    assert set(told) >= {"success", "run_id", "approval_id", "status", "job_id", "message"}
    assert (told["success"], told["status"]) == (True, status)
    assert (told["run_id"], told["approval_id"]) == (approval["run_id"], approval["approval_id"])
    assert (await shown(client, approval))["decisions"][0]["actor"] == "dev"


async def test_on_the_runs_own_url_the_approval_may_be_left_out(client: httpx2.AsyncClient) -> None:
    approval = await at_review(client)
    url = f"/hitl/run/{approval['run_id']}/approve"

    assert (await client.post(url, json={"action": "approve"})).json()["approval_id"] == approval["approval_id"]
    await settled(client, approval["run_id"], "completed")

    late = await client.post(url, json={"action": "approve"})
    assert late.status_code == 409
    assert late.json()["run_status"] == "completed"


async def test_an_approval_is_not_found_under_another_run(client: httpx2.AsyncClient) -> None:
    mine, other = await at_review(client), await at_review(client)
    wrong = [
        (f"/hitl/run/{other['run_id']}/approve", {"approval_id": mine["approval_id"]}),
        (f"/hitl/run/{uuid4()}/approve", {"approval_id": mine["approval_id"]}),
        (f"/hitl/run/{uuid4()}/approve", {}),
        (f"/hitl/run/{mine['run_id']}/approve", {"runId": other["run_id"]}),
        (f"/hitl/approvals/{mine['approval_id']}/decision", {"runId": other["run_id"]}),
        (f"/hitl/approvals/{mine['approval_id']}/decision", {"run_id": mine["run_id"], "runId": other["run_id"]}),
    ]
    for url, body in wrong:
        assert code(await client.post(url, json={"action": "approve", **body})) == (404, "not_found"), (url, body)
    contradiction = await answer(client, mine, "approve", approval_id=other["approval_id"])
    assert contradiction.status_code == 422

    assert [(await shown(client, a))["status"] for a in (mine, other)] == ["pending", "pending"]


# Reject


@pytest.mark.parametrize("reason", [None, "", "  \n"])
async def test_a_rejection_without_a_reason_rejects_nothing(client: httpx2.AsyncClient, reason: str | None) -> None:
    approval = await at_review(client)

    assert pointers(await answer(client, approval, "reject", reason=reason)) == ["/reason"]
    assert (await shown(client, approval))["status"] == "pending"


async def test_a_rejected_run_is_cancelled_and_nothing_revives_it(client: httpx2.AsyncClient) -> None:
    approval = await at_review(client, tool=echo(EXAMPLE, schema=SCHEMA))
    run_id = approval["run_id"]

    assert (await answer(client, approval, "reject", reason="not ours")).json()["status"] == "rejected"
    run = await settled(client, run_id)
    assert (run["status"], run["error"]["code"], run["error"]["recoverable"]) == ("cancelled", "rejected", False)
    assert run["error"]["message"] == "not ours"

    later = [
        await client.post(f"/hitl/run/{run_id}/resume"),
        await client.post(f"/hitl/run/{run_id}/pause"),
        await answer(client, approval, "approve"),
        await answer(client, approval, "edit", edits={"num_outputs": 2}),
        await answer(client, approval, "reject", actor="bob", reason="nor mine"),
        await client.post(f"/hitl/run/{run_id}/approve", json={"action": "approve"}),
    ]
    assert [response.status_code for response in later] == [409] * 6
    assert (await client.delete(f"/hitl/run/{run_id}")).status_code == 200
    after = await settled(client, run_id)
    assert (after["status"], after["error"]["code"], after["result"]) == ("cancelled", "rejected", None)
    assert await events(client, run_id, "provider.submitted") == []


# Edit


@pytest.mark.parametrize("wrapped", [False, True])
async def test_edits_are_a_merge_patch_plain_or_under_payload(client: httpx2.AsyncClient, wrapped: bool) -> None:
    schema = {"type": "object", "properties": {"prompt": {"type": "string"}}, "required": ["prompt"]}
    example = {"prompt": "x", "deep": {"keep": 1, "drop": 2}, "gone": 3}
    approval = await at_review(client, tool=echo(example, schema=schema))
    patch = {"deep": {"drop": None, "new": [1, None]}, "gone": None, "prompt": "two foxes"}
    before = approval["context"]["payload"]
    assert before == {"prompt": "a red fox", "deep": {"keep": 1, "drop": 2}, "gone": 3}

    assert (await answer(client, approval, "edit", edits={"payload": patch} if wrapped else patch)).status_code == 200

    run = await settled(client, approval["run_id"], "completed")
    after = {"prompt": "two foxes", "deep": {"keep": 1, "new": [1, None]}}
    assert run["result"] == run["payload"] == after
    assert run["payload_sha256"] == payload_sha256(after)


@pytest.mark.parametrize(
    ("edits", "pointer"),
    [
        ({"num_outputs": 5}, "/num_outputs"),
        ({"num_outputs": "2"}, "/num_outputs"),
        ({"num_outputs": 1.5}, "/num_outputs"),
        ({"num_outputs": True}, "/num_outputs"),
        ({"tiled": 1}, "/tiled"),
        ({"size": "huge"}, "/size"),
        ({"prompt": None}, "/prompt"),
        ({"prompt": ""}, "/prompt"),
        ({"prompt": "   "}, "/prompt"),
        ({"payload": {"num_outputs": 5}}, "/num_outputs"),
        ([], "/edits"),
        ("x", "/edits"),
        (None, "/edits"),
    ],
)
async def test_an_edit_that_breaks_the_schema_points_there_and_the_approval_stays_open(
    client: httpx2.AsyncClient, edits: Any, pointer: str
) -> None:
    approval = await at_review(client)

    assert pointer in pointers(await answer(client, approval, "edit", edits=edits))

    still = await shown(client, approval)
    assert (still["status"], still["decisions"], still["context"]) == ("pending", [], approval["context"])


async def test_an_unknown_field_is_no_edit(client: httpx2.AsyncClient) -> None:
    approval = await at_review(client)

    assert (await answer(client, approval, "edit", edits={"nonsense": 1})).status_code == 422
    assert (await shown(client, approval))["status"] == "pending"


async def test_edits_are_not_dropped_in_silence_with_another_action(client: httpx2.AsyncClient) -> None:
    approval = await at_review(client)

    for action in ("approve", "reject"):
        assert pointers(await answer(client, approval, action, reason="r", edits={"num_outputs": 2})) == ["/edits"]
    assert pointers(await answer(client, approval, "retry")) == ["/action"]
    assert (await shown(client, approval))["status"] == "pending"


async def test_what_is_missing_can_be_given_but_not_waved_through(client: httpx2.AsyncClient) -> None:
    tool = echo({"prompt": "x", "image": "https://example.com/x.png"}, schema=NEEDS_IMAGE)
    approval = await at(client, await start(client, run_body(tool, allowed_steps=[])), "information_review")
    assert "missing.image" in approval["reasons"]
    assert [issue["field"] for issue in approval["context"]["validation_issues"]] == ["image"]

    assert pointers(await answer(client, approval, "approve")) == ["/image"]
    assert pointers(await answer(client, approval, "edit", edits={"prompt": "another"})) == ["/image"]
    given = await answer(client, approval, "edit", edits={"image": "https://example.com/fox.png"})
    assert given.status_code == 200
    run = await settled(client, approval["run_id"], "completed")
    assert run["result"]["image"] == "https://example.com/fox.png"


@pytest.mark.parametrize(
    ("edits", "reason"),
    [({"prompt": "a dragon"}, "safety.copyright"), ({"prompt": "for ann@example.com"}, "safety.pii")],
)
async def test_an_edit_that_raises_a_flag_asks_again_for_that_alone(
    client: httpx2.AsyncClient, edits: dict[str, Any], reason: str
) -> None:
    tool = echo(EXAMPLE, schema=SCHEMA, flag_words={"dragon": "copyright"})
    first = await at_review(client, tool=tool)
    assert (await answer(client, first, "edit", edits=edits)).json()["status"] == "edited"

    second = await at(client, first["run_id"], "payload_review")
    assert second["approval_id"] != first["approval_id"]
    assert second["reasons"] == [reason]
    assert second["context"]["payload"]["prompt"] == edits["prompt"]
    assert await events(client, first["run_id"], "provider.submitted") == []

    assert (await answer(client, second, "edit", edits={"num_outputs": 2})).status_code == 200
    assert (await settled(client, first["run_id"], "completed"))["result"] == {**edits, "num_outputs": 2}


async def test_an_edit_that_raises_nothing_goes_on(client: httpx2.AsyncClient) -> None:
    first = await at_review(client)

    assert (await answer(client, first, "edit", edits={"num_outputs": 2})).status_code == 200
    run = await settled(client, first["run_id"])
    assert (run["status"], run["result"]["num_outputs"]) == ("completed", 2)
    assert len(await events(client, first["run_id"], "approval.requested")) == 1


async def test_an_edit_that_crosses_a_threshold_at_an_earlier_step_is_asked_about(client: httpx2.AsyncClient) -> None:
    tool = echo(EXAMPLE, schema=SCHEMA, confidence=0.1)
    body = run_body(tool, policy="auto_with_thresholds", max_payload_changes=1)
    first = await at(client, await start(client, body), "information_review")
    assert first["reasons"] == ["confidence.below"]

    await answer(client, first, "edit", edits={"num_outputs": 2})
    assert (await at(client, first["run_id"], "payload_review"))["reasons"] == ["changes.above"]


async def test_a_hash_that_is_not_the_payloads_is_refused(client: httpx2.AsyncClient) -> None:
    approval = await at_review(client)
    other = payload_sha256({"prompt": "something else"})

    refused = await answer(client, approval, "approve", payload_sha256=other)
    assert code(refused) == (409, "payload_changed")
    assert refused.json()["approval"]["context"]["payload_sha256"] == approval["context"]["payload_sha256"]
    assert (await shown(client, approval))["status"] == "pending"
    right = approval["context"]["payload_sha256"]
    assert (await answer(client, approval, "approve", payload_sha256=right)).status_code == 200


async def test_a_value_keeps_its_json_type(client: httpx2.AsyncClient) -> None:
    values = {
        "int": 3, "zero": 0, "float": 0.1, "tiny": 1e-9, "large": 1e17, "true": True, "one": 1, "text": "3",
        "flag": "true", "list": [1, "1", True, None, 1.5], "empty": {}, "none": [], "blank": "", "unicode": "żółć 🦊\n",
        "max": 2**53 - 1,
    }  # fmt: skip
    approval = await at_review(client, tool=echo({"prompt": "x"}))

    assert (await answer(client, approval, "edit", edits={"values": values})).status_code == 200

    run = await settled(client, approval["run_id"])
    assert run["status"] == "completed", run["error"]
    found = run["result"]["values"]
    assert found == values
    assert {name: type(value) for name, value in found.items() if name != "large"} == {
        name: type(value) for name, value in values.items() if name != "large"
    }
    assert [type(item) for item in found["list"]] == [int, str, bool, type(None), float]


@pytest.mark.parametrize("response", [{"kept": 1}, "text", 0, None, [], False])
async def test_the_response_that_a_human_gives_is_the_result(client: httpx2.AsyncClient, response: Any) -> None:
    approval = await at_review(client, "response_review")

    assert pointers(await answer(client, approval, "edit", edits={"num_outputs": 2})) == ["/edits"]
    assert pointers(await answer(client, approval, "edit", edits={"response": 1, "more": 2})) == ["/edits"]
    assert (await answer(client, approval, "edit", edits={"response": response})).status_code == 200

    run = await settled(client, approval["run_id"], "completed")
    assert run["result"] == response
    assert type(run["result"]) is type(response)
    assert run["raw_response"] == approval["context"]["payload"]


async def test_a_retry_of_a_response_is_a_new_call(client: httpx2.AsyncClient) -> None:
    first = await at_review(client, "response_review")

    assert (await answer(client, first, "retry")).json()["status"] == "retried"
    second = await at(client, first["run_id"], "response_review")
    assert second["approval_id"] != first["approval_id"]
    assert [e["data"]["call"] for e in await events(client, first["run_id"], "provider.submitted")] == [1, 2]


async def test_an_output_with_a_flag_asks_whatever_the_policy(client: httpx2.AsyncClient) -> None:
    body = run_body(echo(EXAMPLE, safety_flags=["nsfw", "unheard_of"]), policy="auto", allowed_steps=[])
    approval = await at(client, await start(client, body), "response_review")
    assert approval["reasons"] == ["safety.nsfw"]


async def test_a_payload_the_provider_refused_can_be_mended(client: httpx2.AsyncClient) -> None:
    tool = echo(EXAMPLE, schema=SCHEMA, fail=[{"status": 422, "message": "too long"}], flag_words={"dragon": "nsfw"})
    first = await at(client, await start(client, run_body(tool)), "error_recovery")
    assert first["reasons"] == ["provider.error"]
    issue = first["context"]["validation_issues"][0]
    assert set(issue) >= {"field", "issue", "severity", "suggested_fix", "auto_fixable"}
    assert (issue["field"], issue["issue"]) == ("prompt", "too long")

    assert "/num_outputs" in pointers(await answer(client, first, "edit", edits={"num_outputs": 9}))
    assert (await answer(client, first, "edit", edits={"prompt": "a dragon"})).status_code == 200
    second = await at(client, first["run_id"], "payload_review")
    assert second["reasons"] == ["safety.nsfw"]
    await answer(client, second, "approve")
    run = await settled(client, first["run_id"], "completed")
    assert run["result"]["prompt"] == "a dragon"


async def test_an_unknown_outcome_is_approved_only_with_what_came_of_it(client: httpx2.AsyncClient) -> None:
    body = run_body(echo(EXAMPLE, fail=[{"status": 408}]))
    approval = await at(client, await start(client, body), "outcome_unknown")
    assert approval["reasons"] == ["provider.outcome_unknown"]

    assert pointers(await answer(client, approval, "approve")) == ["/edits/response"]
    assert (await answer(client, approval, "approve", edits={"response": {"seen": 1}})).status_code == 200

    run = await settled(client, approval["run_id"], "completed")
    assert run["result"] == {"seen": 1}
    assert len(await events(client, approval["run_id"], "provider.submitted")) == 1


async def test_the_outcome_that_the_first_of_two_gives_is_shown_to_the_second(client: httpx2.AsyncClient) -> None:
    body = run_body(echo(EXAMPLE, fail=[{"status": 408}]), reviewers={"quorum": 2})
    approval = await at(client, await start(client, body), "outcome_unknown")
    first = await answer(client, approval, "approve", actor="ann", edits={"response": {"seen": 1}})
    assert first.json()["status"] == "pending"
    assert (await shown(client, approval))["context"]["output"] == {"seen": 1}


async def test_an_unknown_outcome_can_be_sent_again(client: httpx2.AsyncClient) -> None:
    body = run_body(echo(EXAMPLE, fail=[{"status": 408}]))
    approval = await at(client, await start(client, body), "outcome_unknown")

    assert (await answer(client, approval, "retry")).status_code == 200
    assert (await settled(client, approval["run_id"], "completed"))["result"]["prompt"] == "a red fox"
    assert [e["data"]["call"] for e in await events(client, approval["run_id"], "provider.submitted")] == [1, 2]


# One answer wins


async def test_of_a_hundred_answers_one_wins_and_all_others_see_it(client: httpx2.AsyncClient) -> None:
    approval = await at_review(client)
    orders: list[tuple[str, dict[str, Any]]] = [
        ("approve", {}), ("edit", {"edits": {"num_outputs": 2}}), ("reject", {"reason": "no"}),
    ]  # fmt: skip

    answers = await asyncio.gather(
        *(answer(client, approval, orders[n % 3][0], actor=f"r{n}", **orders[n % 3][1]) for n in range(100))
    )

    assert Counter(response.status_code for response in answers) == {200: 1, 409: 99}
    winner = next(n for n, response in enumerate(answers) if response.status_code == 200)
    final = await shown(client, approval)
    for response in answers:
        if response.status_code == 409:
            problem = response.json()
            assert problem["code"] == "approval_already_decided"
            assert [d["actor"] for d in problem["approval"]["decisions"]] == [f"r{winner}"]
    assert final["status"] == answers[winner].json()["status"]
    assert [(d["actor"], d["action"], d["channel"]) for d in final["decisions"]] == [
        (f"r{winner}", orders[winner % 3][0], "http")
    ]
    assert len(await events(client, approval["run_id"], "approval.decided")) == 1
    await settled(client, approval["run_id"], "completed", "cancelled")


@pytest.mark.parametrize("action", ["approve", "reject"])
async def test_of_decision_and_cancel_one_wins_and_both_tell_the_same(client: httpx2.AsyncClient, action: str) -> None:
    waiting = await asyncio.gather(*(at_review(client) for _ in range(12)))

    async def race(n: int, approval: dict[str, Any]) -> None:
        pair = [
            answer(client, approval, action, actor="ann", reason="r"),
            client.delete(f"/hitl/run/{approval['run_id']}"),
        ]
        done = await asyncio.gather(*(pair if n % 2 else pair[::-1]))
        decided = done[0] if n % 2 else done[1]
        final = await shown(client, approval)
        told = await events(client, approval["run_id"], "approval.decided")
        assert len(told) == 1
        assert told[0]["data"]["status"] == final["status"]
        run = await settled(client, approval["run_id"])
        if decided.status_code == 200:
            assert final["status"] == ("approved" if action == "approve" else "rejected")
            assert action == "approve" or run["error"]["code"] == "rejected"
        else:
            assert code(decided) == (409, "approval_already_decided")
            assert decided.json()["run_status"] == "cancelled"
            assert (final["status"], final["decisions"]) == ("cancelled", [])
            assert (run["status"], run["error"]["code"]) == ("cancelled", "cancelled")

    await asyncio.gather(*(race(n, approval) for n, approval in enumerate(waiting)))


async def test_the_same_answer_again_is_taken_as_a_repeat(client: httpx2.AsyncClient) -> None:
    approval = await at_review(client)
    edit = {"edits": {"num_outputs": 2, "tiled": True}, "reason": "better"}

    first = await answer(client, approval, "edit", actor="ann", **edit)
    again = await answer(client, approval, "edit", actor="ann", **edit)

    assert first.status_code == again.status_code == 200
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json()["status"] == first.json()["status"] == "edited"
    assert len((await shown(client, approval))["decisions"]) == 1
    different = [
        await answer(client, approval, "edit", actor="bob", **edit),
        await answer(client, approval, "approve", actor="ann"),
        await answer(client, approval, "edit", actor="ann", edits={"num_outputs": 3, "tiled": True}, reason="better"),
        await answer(client, approval, "edit", actor="ann", edits={"num_outputs": 2, "tiled": 1}, reason="better"),
    ]
    assert [code(response) for response in different] == [(409, "approval_already_decided")] * 4


async def test_a_hundred_repeats_of_one_answer_are_one_decision(client: httpx2.AsyncClient) -> None:
    approval = await at_review(client)

    answers = await asyncio.gather(*(answer(client, approval, "approve", actor="ann") for _ in range(100)))

    assert {response.status_code for response in answers} == {200}
    assert sum("idempotent-replayed" not in response.headers for response in answers) == 1
    assert len((await shown(client, approval))["decisions"]) == 1


async def test_a_paused_run_cannot_be_decided_about(client: httpx2.AsyncClient) -> None:
    approval = await at_review(client)
    await client.post(f"/hitl/run/{approval['run_id']}/pause")

    assert code(await answer(client, approval, "approve")) == (409, "run_paused")
    assert (await client.post(f"/hitl/run/{approval['run_id']}/resume")).status_code == 202
    assert (await answer(client, approval, "approve")).status_code == 200


# Many at once


async def test_each_of_many_answers_stands_alone_in_the_order_of_the_request(client: httpx2.AsyncClient) -> None:
    first, second, third = [await at_review(client) for _ in range(3)]
    items = [
        {"approval_id": first["approval_id"], "action": "approve"},
        "nonsense",
        None,
        {},
        {"action": "approve"},
        {"approval_id": second["approval_id"], "action": "reject"},
        {"approval_id": second["approval_id"], "action": "approve", "surplus": 1},
        {"approval_id": 7, "action": "approve"},
        {"approval_id": str(uuid4()), "action": "approve"},
        {"approval_id": "no-uuid", "action": "approve"},
        {"approval_token": third["approval_id"], "approved": True},
        {"approval_id": second["approval_id"], "action": "edit", "edits": {"num_outputs": 99}},
        {"approval_id": first["approval_id"], "action": "reject", "reason": "late"},
    ]

    answered = await client.post("/hitl/approvals/decisions", json={"decisions": items})

    assert answered.status_code == 200
    results = answered.json()["results"]
    statuses = [200, 422, 422, 422, 422, 422, 422, 422, 404, 404, 200, 422, 409]
    assert [result["status_code"] for result in results] == statuses
    assert [result["approval_id"] for result in results] == [
        first["approval_id"], None, None, None, None, second["approval_id"], second["approval_id"], None,
        items[8]["approval_id"], "no-uuid", third["approval_id"], second["approval_id"], first["approval_id"],
    ]  # fmt: skip
    assert results[11]["errors"][0]["pointer"] == "/num_outputs"
    assert results[12]["approval"]["decisions"][0]["action"] == "approve"
    assert (await shown(client, second))["status"] == "pending"


@pytest.mark.parametrize("body", [{}, {"decisions": None}, {"decisions": {}}, {"decisions": [{}] * 501}, []])
async def test_more_than_500_answers_or_no_list_is_422(client: httpx2.AsyncClient, body: Any) -> None:
    assert (await client.post("/hitl/approvals/decisions", json=body)).status_code == 422


async def test_500_answers_are_taken(client: httpx2.AsyncClient) -> None:
    body = {"decisions": [{"approval_id": "x", "action": "approve"}] * 500}
    answered = await client.post("/hitl/approvals/decisions", json=body)
    assert [result["status_code"] for result in answered.json()["results"]] == [404] * 500


# Silence


async def test_silence_rejects_on_time_and_nothing_is_decided_afterwards(client: httpx2.AsyncClient) -> None:
    approval = await at_review(client, timeout_seconds=1)

    run = await settled(client, approval["run_id"], "cancelled")
    assert (run["error"]["code"], run["error"]["recoverable"]) == ("approval_expired", False)
    final = await shown(client, approval)
    assert (final["status"], final["decisions"]) == ("expired", [])
    late = datetime.fromisoformat(final["decided_at"]) - datetime.fromisoformat(final["expires_at"])
    assert 0 <= late.total_seconds() < 1
    expired = await events(client, approval["run_id"], "approval.expired")
    assert [event["data"]["approval_id"] for event in expired] == [approval["approval_id"]]
    for action in ("approve", "edit", "reject"):
        refused = await answer(client, approval, action, reason="r", edits={} if action == "edit" else None)
        assert code(refused) == (409, "approval_expired")
        assert refused.json()["approval"]["status"] == "expired"
        assert refused.json()["run_status"] == "cancelled"
    assert (await client.post(f"/hitl/run/{approval['run_id']}/resume")).status_code == 409


async def test_silence_approves_where_it_was_told_to(client: httpx2.AsyncClient, sql: asyncpg.Connection) -> None:
    approval = await at_review(client, on_timeout="approve")
    await run_out(sql, approval)

    run = await settled(client, approval["run_id"], "completed")
    assert run["result"] == approval["context"]["payload"]
    final = await shown(client, approval)
    decisions = [(d["actor"], d["action"], d["channel"]) for d in final["decisions"]]
    assert (final["status"], decisions) == ("approved", [("system:timeout", "approve", "timeout")])
    assert code(await answer(client, approval, "approve")) == (409, "approval_already_decided")


async def test_silence_never_approves_what_is_missing(client: httpx2.AsyncClient, sql: asyncpg.Connection) -> None:
    tool = echo({"prompt": "x", "image": "https://example.com/x.png"}, schema=NEEDS_IMAGE)
    body = run_body(tool, policy="auto", on_timeout="approve")
    approval = await at(client, await start(client, body), "information_review")
    await run_out(sql, approval)

    run = await settled(client, approval["run_id"], "cancelled")
    assert run["error"]["code"] == "approval_expired"
    assert (await shown(client, approval))["status"] == "expired"
    assert await events(client, approval["run_id"], "provider.submitted") == []


@pytest.mark.parametrize("status", [408, 422])
async def test_silence_approves_no_failure_of_the_provider(
    client: httpx2.AsyncClient, sql: asyncpg.Connection, status: int
) -> None:
    run_id = await start(client, run_body(echo(EXAMPLE, fail=[{"status": status}]), on_timeout="approve"))
    approval = await at(client, run_id, "outcome_unknown" if status == 408 else "error_recovery")
    await run_out(sql, approval)

    assert (await settled(client, run_id, "cancelled"))["error"]["code"] == "approval_expired"


async def test_silence_escalates_once_and_then_rejects(client: httpx2.AsyncClient, sql: asyncpg.Connection) -> None:
    hitl = {"on_timeout": "escalate", "escalate_to": {"users": ["boss"]}, "reviewers": {"users": ["ann"]}}
    approval = await at_review(client, timeout_seconds=500, **hitl)
    await run_out(sql, approval)

    async def escalated() -> Any:
        found = await shown(client, approval)
        return found if found["reviewers"]["users"] == ["boss"] else None

    found = await eventually(escalated, "the escalation")
    assert (found["status"], found["approval_id"]) == ("pending", approval["approval_id"])
    again = datetime.fromisoformat(found["expires_at"]) - datetime.fromisoformat(approval["created_at"])
    assert 500 <= again.total_seconds() < 520
    assert code(await answer(client, approval, "approve", actor="ann")) == (403, "not_a_reviewer")

    await run_out(sql, approval)
    run = await settled(client, approval["run_id"], "cancelled")
    assert run["error"]["code"] == "approval_expired"
    assert (await shown(client, approval))["status"] == "expired"
    told = await events(client, approval["run_id"], "approval.escalated")
    assert [event["data"]["approval_id"] for event in told] == [approval["approval_id"]]


async def test_whom_it_was_escalated_to_may_decide(client: httpx2.AsyncClient, sql: asyncpg.Connection) -> None:
    hitl = {"on_timeout": "escalate", "escalate_to": {"users": ["boss"]}, "reviewers": {"users": ["ann"]}}
    approval = await at_review(client, **hitl)
    assert code(await answer(client, approval, "approve", actor="boss")) == (403, "not_a_reviewer")
    await run_out(sql, approval)

    async def taken() -> bool:
        return (await answer(client, approval, "approve", actor="boss")).status_code == 200

    await eventually(taken, "the boss's turn")
    await settled(client, approval["run_id"], "completed")


async def test_reminders_come_until_it_is_decided(client: httpx2.AsyncClient) -> None:
    approval = await at_review(client, remind_after_seconds=1)

    async def twice() -> Any:
        found = await events(client, approval["run_id"], "approval.reminded")
        return found if len(found) == 2 else None

    told = await eventually(twice, "two reminders")
    assert {event["data"]["approval_id"] for event in told} == {approval["approval_id"]}
    first, second = (datetime.fromisoformat(event["at"]) for event in told)
    assert (first - datetime.fromisoformat(approval["created_at"])).total_seconds() >= 1
    assert (second - first).total_seconds() >= 1
    assert (await answer(client, approval, "approve")).status_code == 200


async def test_a_checkpoint_has_its_own_rules(client: httpx2.AsyncClient) -> None:
    own = {
        "timeout_seconds": 60,
        "on_timeout": "approve",
        "reviewers": {"users": ["ann"]},
    }
    body = run_body(echo(EXAMPLE), policy="require_human", timeout_seconds=600, checkpoints={"payload_review": own})
    first = await at(client, await start(client, body), "information_review")
    assert (first["on_timeout"], first["reviewers"]["users"]) == ("reject", [])
    await answer(client, first, "approve")

    second = await at(client, first["run_id"], "payload_review")
    assert (second["on_timeout"], second["reviewers"]["users"]) == ("approve", ["ann"])
    waits = datetime.fromisoformat(second["expires_at"]) - datetime.fromisoformat(second["created_at"])
    assert waits.total_seconds() == 60
    assert code(await answer(client, second, "approve")) == (403, "not_a_reviewer")
    assert (await answer(client, second, "approve", actor="ann")).status_code == 200
    third = await at(client, first["run_id"], "response_review")
    assert (third["on_timeout"], third["reviewers"]["users"]) == ("reject", [])


@pytest.mark.parametrize(
    "hitl",
    [
        {"on_timeout": "escalate"},
        {"checkpoints": {"payload_review": {"on_timeout": "escalate"}}},
        {"checkpoints": {"no_such_checkpoint": {}}},
        {"reviewers": {"users": ["ann"], "quorum": 2}},
        {"reviewers": {"users": ["ann", "ann"], "quorum": 2}},
        {"on_timeout": "escalate", "escalate_to": {"users": ["boss"]}, "reviewers": {"quorum": 2}},
        {"reviewers": {"quorum": 0}},
        {"reviewers": {"quorum": 11}},
        {"timeout_seconds": 0.5},
        {"timeout_seconds": 366 * 86_400 + 1},
        {"timeout_seconds": "60"},
        {"on_timeout": "aprove"},
        {"escalate_to": {}},
    ],
)
async def test_a_config_that_can_not_be_meant_is_refused(client: httpx2.AsyncClient, hitl: dict[str, Any]) -> None:
    refused = await client.post("/hitl/run", json=run_body(echo(EXAMPLE), **hitl))
    assert refused.status_code == 422
    assert all(error["pointer"].startswith("/hitl_config") for error in refused.json()["errors"])


# Reviewers


async def test_only_a_named_reviewer_may_decide(client: httpx2.AsyncClient) -> None:
    approval = await at_review(client, reviewers={"users": ["ann"]})

    for actor in (None, "bob", "Ann", "ann2"):
        assert code(await answer(client, approval, "approve", actor=actor)) == (403, "not_a_reviewer")
    assert (await answer(client, approval, "approve", actor="ann")).status_code == 200
    assert (await shown(client, approval))["decisions"][0]["actor"] == "ann"


async def test_the_submitter_and_whom_it_is_for_may_be_kept_from_deciding(client: httpx2.AsyncClient) -> None:
    approval = await at_review(client, top={"user_id": "carol"}, reviewers={"allow_self_approval": False})

    for actor in (None, "dev", "carol"):
        assert code(await answer(client, approval, "reject", actor=actor, reason="r")) == (403, "self_approval")
    assert (await answer(client, approval, "approve", actor="bob")).status_code == 200


async def test_two_reviewers_are_two_people(client: httpx2.AsyncClient) -> None:
    approval = await at_review(client, reviewers={"quorum": 2})
    assert code(await answer(client, approval, "approve")) == (403, "self_approval")

    first = await answer(client, approval, "approve", actor="ann")
    assert (first.status_code, first.json()["status"]) == (200, "pending")
    again = await answer(client, approval, "approve", actor="ann")
    assert (again.status_code, again.headers["idempotent-replayed"]) == (200, "true")
    assert (await answer(client, approval, "approve", actor="ann", reason="really")).status_code == 409
    half = await shown(client, approval)
    assert (half["status"], [d["actor"] for d in half["decisions"]]) == ("pending", ["ann"])

    second = await answer(client, approval, "approve", actor="bob")
    assert second.json()["status"] == "approved"
    assert [d["actor"] for d in (await shown(client, approval))["decisions"]] == ["ann", "bob"]
    await settled(client, approval["run_id"], "completed")


async def test_a_quorum_of_one_reviewer_many_times_is_never_reached(client: httpx2.AsyncClient) -> None:
    approval = await at_review(client, reviewers={"quorum": 2})

    await asyncio.gather(*(answer(client, approval, "approve", actor="ann", reason=f"r{n}") for n in range(20)))

    assert (await shown(client, approval))["status"] == "pending"


async def test_of_many_reviewers_at_once_no_more_than_the_quorum_count(client: httpx2.AsyncClient) -> None:
    approval = await at_review(client, reviewers={"quorum": 3})

    answers = await asyncio.gather(*(answer(client, approval, "approve", actor=f"r{n}") for n in range(20)))

    assert Counter(response.status_code for response in answers) == {200: 3, 409: 17}
    final = await shown(client, approval)
    assert final["status"] == "approved"
    assert len({d["actor"] for d in final["decisions"]}) == len(final["decisions"]) == 3
    await settled(client, approval["run_id"], "completed")


async def test_an_edit_starts_the_count_anew(client: httpx2.AsyncClient) -> None:
    approval = await at_review(client, reviewers={"quorum": 2})
    old = approval["context"]["payload_sha256"]

    await answer(client, approval, "approve", actor="ann")
    edited = await answer(client, approval, "edit", actor="bob", edits={"num_outputs": 2})
    assert edited.json()["status"] == "pending"
    now = await shown(client, approval)
    assert now["context"]["payload"]["num_outputs"] == 2
    assert now["context"]["payload_sha256"] == payload_sha256(now["context"]["payload"]) != old
    assert code(await answer(client, approval, "approve", actor="cem", payload_sha256=old)) == (409, "payload_changed")
    assert (await answer(client, approval, "approve", actor="bob")).status_code == 409

    last = await answer(client, approval, "approve", actor="ann")
    assert (last.status_code, last.json()["status"]) == (200, "edited")
    assert "idempotent-replayed" not in last.headers
    run = await settled(client, approval["run_id"], "completed")
    assert run["result"]["num_outputs"] == 2


async def test_an_edit_back_does_not_revive_the_votes_before_it(client: httpx2.AsyncClient) -> None:
    approval = await at_review(client, reviewers={"quorum": 2})

    await answer(client, approval, "approve", actor="ann")
    await answer(client, approval, "edit", actor="bob", edits={"num_outputs": 2})
    back = await answer(client, approval, "edit", actor="cem", edits={"num_outputs": 1})

    assert back.json()["status"] == "pending"


async def test_a_response_that_one_reviewer_gave_is_what_the_next_one_lets_through(client: httpx2.AsyncClient) -> None:
    approval = await at_review(client, "response_review", reviewers={"quorum": 2})

    await answer(client, approval, "approve", actor="ann")
    edited = await answer(client, approval, "edit", actor="bob", edits={"response": {"mended": True}})
    assert edited.json()["status"] == "pending"
    assert (await shown(client, approval))["context"]["output"] == {"mended": True}
    assert (await answer(client, approval, "approve", actor="ann")).json()["status"] == "edited"

    assert (await settled(client, approval["run_id"], "completed"))["result"] == {"mended": True}


async def test_one_reject_rejects_and_may_come_from_who_approved(client: httpx2.AsyncClient) -> None:
    approval = await at_review(client, reviewers={"quorum": 2})

    await answer(client, approval, "approve", actor="ann")
    assert (await answer(client, approval, "reject", actor="ann", reason="I was wrong")).json()["status"] == "rejected"

    assert (await settled(client, approval["run_id"], "cancelled"))["error"]["code"] == "rejected"
    assert code(await answer(client, approval, "approve", actor="bob")) == (409, "approval_already_decided")


# What a program asks


async def test_a_program_gets_back_what_it_asked(client: httpx2.AsyncClient) -> None:
    context = {"payload": {"env": "prod", "n": 1.5}, "why": ["a", None, {"b": True}]}

    made = await asked(client, context=context, user_id="u-ask", session_id="s-ask", timeout_seconds=60)

    assert made.status_code == 201
    approval = made.json()
    assert made.headers["location"] == f"/hitl/approvals/{approval['approval_id']}"
    assert approval["context"] == context
    assert set(approval) >= APPROVAL_FIELDS
    assert (approval["run_id"], approval["status"], approval["reasons"]) == (None, "pending", ["requested"])
    assert (approval["checkpoint_type"], approval["message"]) == ("deploy", "May I?")
    taken = await answer(client, approval, "approve")
    assert (taken.status_code, taken.json()["run_id"], taken.json()["job_id"]) == (200, None, None)
    assert (await shown(client, approval))["context"] == context


async def test_who_waits_is_answered_when_it_is_decided(client: httpx2.AsyncClient) -> None:
    approval = (await asked(client)).json()
    url = f"/hitl/approvals/{approval['approval_id']}"
    assert (await client.get(url, params={"wait": 0.1})).json()["status"] == "pending"

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        waiting = group.create_task(client.get(url, params={"wait": 60}))
        await answer(client, approval, "reject", reason="no")

    assert waiting.result().json()["status"] == "rejected"


async def test_edits_of_a_programs_approval_patch_its_payload_under_its_schema(client: httpx2.AsyncClient) -> None:
    schema = {"type": "object", "properties": {"env": {"enum": ["prod", "test"]}}, "required": ["env"]}
    approval = (await asked(client, schema=schema, context={"payload": {"env": "prod"}, "note": "n"})).json()

    assert pointers(await answer(client, approval, "edit", edits={"env": "moon"})) == ["/env"]
    assert (await shown(client, approval))["status"] == "pending"
    assert (await answer(client, approval, "edit", edits={"env": "test"})).json()["status"] == "edited"
    final = await shown(client, approval)
    assert (final["context"]["payload"], final["context"]["note"]) == ({"env": "test"}, "n")


@pytest.mark.parametrize("checkpoint", ["response_review", "error_recovery", "outcome_unknown", "payload_review"])
async def test_a_programs_approval_follows_the_same_rules_whatever_its_name(
    client: httpx2.AsyncClient, checkpoint: str
) -> None:
    approve, edit = [(await asked(client, checkpoint_type=checkpoint)).json() for _ in range(2)]

    assert pointers(await answer(client, approve, "retry")) == ["/action"]
    assert (await answer(client, approve, "approve")).json()["status"] == "approved"
    assert (await answer(client, edit, "edit", edits={"env": "test"})).json()["status"] == "edited"
    assert (await shown(client, edit))["context"]["payload"] == {"env": "test"}


@pytest.mark.parametrize(
    ("more", "pointer"),
    [
        ({"schema": {"type": "nonsense"}}, "/schema"),
        ({"context": []}, "/context"),
        ({"message": ""}, "/message"),
        ({"timeout_seconds": 0}, "/timeout_seconds"),
        ({"on_timeout": "escalate"}, ""),
        ({"reviewers": {"users": ["a"], "quorum": 2}}, "/reviewers"),
        ({"callback_url": "ftp://x"}, "/callback_url"),
        ({"surplus": 1}, "/surplus"),
    ],
)
async def test_a_question_that_is_not_valid_points_there(
    client: httpx2.AsyncClient, more: dict[str, Any], pointer: str
) -> None:
    assert pointers(await asked(client, **more)) == [pointer]


async def test_a_hundred_questions_under_one_key_are_one_approval(client: httpx2.AsyncClient) -> None:
    key = {"Idempotency-Key": str(uuid4())}

    answers = await asyncio.gather(*(asked(client, key) for _ in range(100)))

    assert {response.status_code for response in answers} == {201}
    assert len({response.json()["approval_id"] for response in answers}) == 1
    assert sum("idempotent-replayed" not in response.headers for response in answers) == 1
    assert code(await asked(client, key, message="another")) == (422, "idempotency_key_reused")


async def test_silence_about_a_programs_question(client: httpx2.AsyncClient, sql: asyncpg.Connection) -> None:
    schema = {"type": "object", "required": ["env", "who"]}
    wait = [
        ((await asked(client)).json(), "expired"),
        ((await asked(client, on_timeout="approve")).json(), "approved"),
        ((await asked(client, on_timeout="approve", schema=schema)).json(), "expired"),
    ]
    for approval, _ in wait:
        await run_out(sql, approval)

    for approval, status in wait:
        url = f"/hitl/approvals/{approval['approval_id']}"
        assert (await client.get(url, params={"wait": 20})).json()["status"] == status


# The inbox


async def test_the_inbox_has_the_soonest_deadline_first_page_by_page(client: httpx2.AsyncClient) -> None:
    session = f"s-{uuid4()}"
    made = {s: (await asked(client, session_id=session, timeout_seconds=s)).json() for s in (300, 100, 500, 200, 400)}
    wanted = [made[s]["approval_id"] for s in sorted(made)]

    whole = (await client.get("/hitl/approvals/pending", params={"session_id": session})).json()
    assert [a["approval_id"] for a in whole["approvals"]] == wanted
    assert whole["items"] == whole["approvals"]
    assert whole["next_cursor"] is None

    found, cursor = [], None
    while len(found) < 10:
        query = {"session_id": session, "limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await client.get("/hitl/approvals/pending", params=query)).json()
        found += [a["approval_id"] for a in page["approvals"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert found == wanted


async def test_the_inbox_is_filtered_and_forgets_what_is_decided(client: httpx2.AsyncClient) -> None:
    user, session = f"u-{uuid4()}", f"s-{uuid4()}"
    own = (await asked(client, user_id=user, session_id=session, checkpoint_type="deploy")).json()
    run = await at_review(client, top={"user_id": user, "session_id": session})

    async def pending(**query: str) -> set[str]:
        found = (await client.get("/hitl/approvals/pending", params=query)).json()
        return {a["approval_id"] for a in found["approvals"]}

    both = {own["approval_id"], run["approval_id"]}
    assert await pending(user_id=user) == await pending(session_id=session) == both
    assert await pending(user_id=user, checkpoint_type="deploy") == {own["approval_id"]}
    assert await pending(run_id=run["run_id"]) == {run["approval_id"]}
    assert await pending(user_id=user, session_id="other") == set()
    assert await pending(run_id="no-uuid") == set()
    await answer(client, own, "approve")
    assert await pending(user_id=user) == {run["approval_id"]}


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 201}, {"limit": "x"}, {"cursor": "nonsense"}])
async def test_a_page_that_can_not_be_is_422(client: httpx2.AsyncClient, query: dict[str, Any]) -> None:
    assert (await client.get("/hitl/approvals/pending", params=query)).status_code == 422


# Inside: with nobody else at work, time moved in Postgres


async def waiting_inside(runtime: Runtime, **config: Any) -> Approval:
    """An approval of a run that this test itself advanced to its payload review."""
    order = StartRun(
        {"prompt": "a red fox", "agent_tool_config": echo(EXAMPLE)},
        HitlConfig(policy="require_human", allowed_steps=["payload_review"], **config),
    )
    started = await start_run(runtime.services, order, DEV)
    worker = HITLOrchestrator(runtime.services, worker_id="w1", lease_s=10)

    async def waits() -> list[Approval]:
        await worker.advance(started.run_id)
        async with runtime.services.db.connection(EVERY) as conn:
            return await approvals.open_of_run(conn, started.run_id)

    found: list[Approval] = await eventually(waits, "the approval")
    return found[0]


async def expire_in(runtime: Runtime, approval_id: UUID, ms: int) -> None:
    async with runtime.services.db.transaction(EVERY) as conn:
        await conn.execute(
            "update approvals set expires_at = clock_timestamp() + $2 * interval '1 ms' where id = $1", approval_id, ms
        )


async def both(runtime: Runtime, approval: Approval) -> tuple[Approval, Run]:
    assert approval.run_id is not None
    async with runtime.services.db.connection(EVERY) as conn:
        found, run = await approvals.get(conn, "default", approval.id), await runs.get(conn, "default", approval.run_id)
    assert found is not None
    assert run is not None
    return found, run


async def test_the_services_clock_never_runs_ahead_of_postgres(servers: Servers) -> None:
    """Else a run that is due "now" is not yet due when its wake-up comes, and waits for the sweep."""
    db = Database(servers.database_url)
    ahead = []

    async def compare() -> None:
        async with db.connection(EVERY) as conn:
            await conn.fetchval("select pg_sleep(0.05)")  # so that each has a connection of its own
            ours = db.now()
            ahead.append((ours - await conn.fetchval("select clock_timestamp()")).total_seconds())

    await asyncio.gather(*(compare() for _ in range(10)))
    await db.close()
    assert max(ahead) <= 0


async def test_the_services_clock_is_never_behind_what_postgres_has_told_of(servers: Servers) -> None:
    """Else a run that is over in milliseconds ends before it began; a clock that was set is believed."""
    db = Database(servers.database_url)
    told = datetime.now(UTC) + timedelta(hours=1)
    db.heard(told)
    assert db.now() >= told
    async with db.connection(EVERY) as conn:
        assert db.now() <= await conn.fetchval("select clock_timestamp()")
        told = await conn.fetchval("select clock_timestamp()")
    db.heard(told)
    assert db.now() >= told
    await db.close()


async def test_out_of_time_is_out_of_time_before_any_timer_fired(empty: Runtime) -> None:
    approval = await waiting_inside(empty)
    await expire_in(empty, approval.id, -1_000)  # more than our clock may be behind Postgres's: a round trip

    with pytest.raises(ApprovalExpired) as refusal:
        await commands.decide(empty.services, approval.id, Order("approve"), DEV)

    found, run = await both(empty, approval)
    assert (found.status, run.status) == (ApprovalStatus.PENDING, RunStatus.AWAITING_HUMAN)
    assert refusal.value.extra["approval"].id == approval.id
    assert refusal.value.extra["run_status"] == "awaiting_human"
    assert await commands.expire(empty.services, approval.id)
    found, run = await both(empty, approval)
    assert (found.status, run.status) == (ApprovalStatus.EXPIRED, RunStatus.CANCELLED)
    assert not await commands.expire(empty.services, approval.id)


async def test_with_two_approvals_open_the_answer_must_name_its_own(empty: Runtime) -> None:
    approval = await waiting_inside(empty)
    assert approval.run_id is not None
    assert await commands.only_open(empty.services, approval.run_id, DEV) == approval.id
    async with empty.services.db.transaction(EVERY) as conn:
        await approvals.insert(conn, replace(approval, id=uuid4(), checkpoint_type="information_review"))

    with pytest.raises(AmbiguousApproval):
        await commands.only_open(empty.services, approval.run_id, DEV)


async def test_a_timer_that_fires_early_does_nothing(empty: Runtime) -> None:
    approval = await waiting_inside(empty)

    assert not await commands.expire(empty.services, approval.id)
    assert not await commands.remind(empty.services, approval.id)
    assert not await commands.expire(empty.services, uuid4())
    assert (await both(empty, approval))[0] == approval


async def test_a_paused_approval_does_not_run_out(empty: Runtime) -> None:
    approval = await waiting_inside(empty, timeout_seconds=3600)
    assert approval.run_id is not None
    await pause_run(empty.services, approval.run_id, DEV)
    await expire_in(empty, approval.id, -60_000)

    assert not await commands.expire(empty.services, approval.id)
    with pytest.raises(RunPaused):
        await commands.decide(empty.services, approval.id, Order("approve"), DEV)


async def test_the_clock_of_a_paused_approval_goes_on_where_it_stood(empty: Runtime) -> None:
    approval = await waiting_inside(empty, timeout_seconds=3600, remind_after_seconds=60)
    assert approval.run_id is not None
    await pause_run(empty.services, approval.run_id, DEV)
    async with empty.services.db.transaction(EVERY) as conn:
        sql = "update approvals set clock_stopped_at = clock_stopped_at - interval '100 seconds' where id = $1"
        await conn.execute(sql, approval.id)
    await resume_run(empty.services, approval.run_id, DEV)

    found, _ = await both(empty, approval)
    assert 100 <= (found.expires_at - approval.expires_at).total_seconds() < 110
    assert approval.remind_at is not None
    assert found.remind_at is not None
    assert 100 <= (found.remind_at - approval.remind_at).total_seconds() < 110
    decided = await commands.decide(empty.services, approval.id, Order("approve"), DEV)
    assert decided.approval.status is ApprovalStatus.APPROVED


async def test_of_decision_timeout_and_cancel_exactly_one_wins(empty: Runtime) -> None:
    services = empty.services

    async def race(approval: Approval) -> str:
        assert approval.run_id is not None
        run_id = approval.run_id

        async def decide() -> bool:
            try:
                await commands.decide(services, approval.id, Order("reject", reason="r"), DEV)
            except (AlreadyDecided, ApprovalExpired):
                return False
            return True

        async def time_out() -> bool:
            while (await both(empty, approval))[0].is_open:
                if await commands.expire(services, approval.id):
                    return True
            return False

        async def cancel() -> bool:
            return (await cancel_run(services, run_id, DEV, reason=None)).status is RunStatus.CANCELLED

        await expire_in(empty, approval.id, 8)
        decided, timed_out, _ = await asyncio.gather(decide(), time_out(), cancel())
        found, run = await both(empty, approval)
        assert run.status is RunStatus.CANCELLED
        assert run.error is not None
        winners = {
            ApprovalStatus.REJECTED: ("rejected", True, False),
            ApprovalStatus.EXPIRED: ("approval_expired", False, True),
            ApprovalStatus.CANCELLED: ("cancelled", False, False),
        }
        assert (run.error["code"], decided, timed_out) == winners[found.status]
        return found.status

    waiting = [await waiting_inside(empty) for _ in range(12)]
    ends = await asyncio.gather(*(race(approval) for approval in waiting))
    assert len(ends) == 12


async def test_a_group_may_decide_and_a_list_of_names_binds_admins(empty: Runtime) -> None:
    approval = await waiting_inside(empty, reviewers={"groups": ["legal"], "users": ["ann"]})
    nobody = [
        Principal("root", "default", "admin"),
        Principal("bob", "default", "reviewer", ("sales",)),
        Principal("legal", "default", "reviewer"),
    ]
    for principal in nobody:
        with pytest.raises(NotAReviewer):
            await commands.decide(empty.services, approval.id, Order("approve"), principal)

    taken = await commands.decide(
        empty.services, approval.id, Order("approve"), Principal("eve", "default", "reviewer", ("x", "legal"))
    )
    assert taken.approval.decisions[0].actor == "eve"


async def test_another_tenant_does_not_see_the_approval(empty: Runtime) -> None:
    approval = await waiting_inside(empty)

    with pytest.raises(HitlError) as refusal:
        await commands.decide(empty.services, approval.id, Order("approve"), Principal("ann", "other", "admin"))

    assert refusal.value.status == 404


async def test_an_expired_vote_is_not_repeated_as_if_it_had_won(empty: Runtime) -> None:
    approval = await waiting_inside(empty, reviewers={"quorum": 2})
    ann = Principal("ann", "default", "reviewer")
    await commands.decide(empty.services, approval.id, Order("approve"), ann)
    await expire_in(empty, approval.id, -1)
    await commands.expire(empty.services, approval.id)

    with pytest.raises(ApprovalExpired):
        await commands.decide(empty.services, approval.id, Order("approve"), ann)


async def test_a_programs_question_may_wait_for_a_group(empty: Runtime) -> None:
    question = Question("deploy", "May I?", {"note": 1}, reviewers=HitlConfig(reviewers={"groups": ["ops"]}).reviewers)
    approval, replayed = await commands.ask(empty.services, question, DEV)
    assert not replayed
    assert approval.payload_sha256 is None

    with pytest.raises(NotAReviewer):
        await commands.decide(empty.services, approval.id, Order("approve"), DEV)
    decided = await commands.decide(
        empty.services, approval.id, Order("approve"), Principal("o", "default", "reviewer", ("ops",))
    )
    assert isinstance(decided, Decided)
    assert (decided.run, parse_id(str(decided.approval.id))) == (None, approval.id)


async def test_a_claim_keeps_others_from_deciding_until_it_is_let_go(client: httpx2.AsyncClient) -> None:
    run_id = await start(client, run_body(echo(), policy="require_human"))
    approval_id = (await at(client, run_id, "information_review"))["approval_id"]
    ann, bob = {"X-HITL-Actor": "ann"}, {"X-HITL-Actor": "bob"}
    url = f"/hitl/approvals/{approval_id}"

    claimed = (await client.post(f"{url}/claim", headers=ann)).json()
    again = await client.post(f"{url}/claim", headers=ann)
    others = await client.post(f"{url}/claim", headers=bob)
    decided = await client.post(f"{url}/decision", json={"action": "approve"}, headers=bob)
    let_go_by_other = await client.post(f"{url}/release", headers=bob)

    assert (claimed["claimed_by"], again.status_code) == ("ann", 200)
    assert again.json()["claimed_until"] > claimed["claimed_until"]
    assert (others.status_code, others.json()["code"]) == (409, "approval_claimed")
    assert (decided.status_code, decided.json()["code"]) == (409, "approval_claimed")
    assert decided.json()["approval"]["claimed_by"] == "ann"
    assert let_go_by_other.status_code == 403

    assert (await client.post(f"{url}/release", headers=ann)).json()["claimed_by"] is None
    assert (await client.post(f"{url}/decision", json={"action": "approve"}, headers=bob)).status_code == 200
    assert (await client.post(f"{url}/claim", headers=ann)).json()["code"] == "approval_already_decided"


async def test_a_reviewer_may_hand_it_on_and_is_then_no_reviewer_any_more(client: httpx2.AsyncClient) -> None:
    approval = await at_review(client, reviewers={"users": ["ann", "bob"]}, top={"user_id": "u-handed"})
    url = f"/hitl/approvals/{approval['approval_id']}"
    ann, bob, zoe = ({"X-HITL-Actor": name} for name in ("ann", "bob", "zoe"))

    for body in ({}, {"user": "zoe", "group": "legal"}, {"user": ""}, {"users": ["zoe"]}, None):
        assert (await client.post(f"{url}/delegate", json=body, headers=ann)).status_code == 422
    stranger = await client.post(f"{url}/delegate", json={"user": "zoe"}, headers=zoe)
    await client.post(f"{url}/claim", headers=bob)
    claimed_by_other = await client.post(f"{url}/delegate", json={"user": "zoe"}, headers=ann)
    handed_on = await client.post(f"{url}/delegate", json={"user": "zoe", "reason": "knows foxes"}, headers=bob)

    assert code(stranger) == (403, "not_a_reviewer")
    assert code(claimed_by_other) == (409, "approval_claimed")
    assert claimed_by_other.json()["approval"]["claimed_by"] == "bob"
    assert handed_on.status_code == 200, handed_on.text
    told = handed_on.json()
    assert (told["approval_id"], told["status"]) == (approval["approval_id"], "pending")
    assert told["reviewers"] == {"users": ["zoe"], "groups": [], "quorum": 1}
    assert (told["claimed_by"], told["expires_at"]) == (None, approval["expires_at"])
    assert code(await answer(client, approval, "approve", "bob")) == (403, "not_a_reviewer")
    kept = (await shown(client, approval))["delegations"]
    assert [(k["actor"], k["to"], k["reason"]) for k in kept] == [
        ("bob", {"users": ["zoe"], "groups": []}, "knows foxes")
    ]
    assert (await answer(client, approval, "approve", "zoe")).status_code == 200
    event = (await events(client, approval["run_id"], "approval.delegated"))[0]
    assert event["actor"] == "bob"
    to = {"users": ["zoe"], "groups": []}
    assert (event["data"]["approval_id"], event["data"]["to"]) == (approval["approval_id"], to)
    late = await client.post(f"{url}/delegate", json={"user": "ann"}, headers=zoe)
    assert (*code(late), late.json()["approval"]["status"]) == (409, "approval_already_decided", "approved")


async def test_of_many_who_hand_it_on_at_once_the_first_decides_to_whom(client: httpx2.AsyncClient) -> None:
    names = [f"n{n}" for n in range(8)]
    approval = await at_review(client, reviewers={"users": names})
    url = f"/hitl/approvals/{approval['approval_id']}/delegate"

    answers = await asyncio.gather(
        *(client.post(url, json={"user": f"to-{name}"}, headers={"X-HITL-Actor": name}) for name in names)
    )

    assert Counter(a.status_code for a in answers) == {200: 1, 403: 7}
    won = next(a for a in answers if a.status_code == 200).json()
    assert (await shown(client, approval))["reviewers"] == won["reviewers"]
    assert len(await events(client, approval["run_id"], "approval.delegated")) == 1


async def test_a_retry_waits_for_its_quorum(client: httpx2.AsyncClient) -> None:
    approval = await at_review(client, "response_review", reviewers={"quorum": 2})

    assert (await answer(client, approval, "retry", "ann")).json()["status"] == "pending"
    assert (await answer(client, approval, "retry", "bob")).json()["status"] == "retried"
    assert len(await events(client, approval["run_id"], "provider.submitted")) >= 1
