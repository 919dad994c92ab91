"""Contract, section 4: starting a run, and what its hitl_config may say."""

import asyncio
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from tests.conftest import Provider, Stack, at, decide, echo, eventually, http_tool, run_body, settled, start

ASK = {"policy": "require_human", "allowed_steps": ["information_review"]}
ALL_STEPS = ["information_review", "payload_review", "response_review"]


def refused(answer: httpx2.Response, status: int = 422, code: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert code is None or answer.json()["code"] == code, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def run_of(client: httpx2.AsyncClient, run_id: str) -> dict[str, Any]:
    run: dict[str, Any] = (await client.get(f"/hitl/runs/{run_id}")).json()
    return run


async def test_the_answer_has_its_fields_and_the_location(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/hitl/run", json=run_body(echo()))

    assert answer.status_code == 202
    body = answer.json()
    assert {"run_id", "job_id", "status", "message", "websocket_url", "hitl_enabled"} <= set(body)
    assert body["status"] == "queued" and body["hitl_enabled"] is True
    assert body["websocket_url"].startswith("ws://") and "/hitl/ws" in body["websocket_url"]
    assert answer.headers["location"] == f"/hitl/runs/{body['run_id']}"
    assert (await client.get(answer.headers["location"])).json()["run_id"] == body["run_id"]
    assert (await client.get(f"/hitl/jobs/{body['job_id']}")).json()["meta"]["run_id"] == body["run_id"]


async def test_ids_at_the_top_level_win(client: httpx2.AsyncClient) -> None:
    body = run_body(echo())
    body["run_input"] |= {"user_id": "inner-u", "session_id": "inner-s"}

    inner = await run_of(client, await start(client, body))
    outer = await run_of(client, await start(client, {**body, "user_id": "u", "session_id": "s"}))
    mixed = await run_of(client, await start(client, {**body, "user_id": "u"}))

    assert (inner["user_id"], inner["session_id"]) == ("inner-u", "inner-s")
    assert (outer["user_id"], outer["session_id"]) == ("u", "s")
    assert (mixed["user_id"], mixed["session_id"]) == ("u", "inner-s")


async def test_every_field_of_a_run_input_is_taken(client: httpx2.AsyncClient) -> None:
    body = run_body(echo())
    body["run_input"] |= {
        "user_email": "a@example.com", "user_id": "u", "agent_email": "b@example.com", "session_id": "s",
        "message_type": "text", "tenant": "default", "log_id": "l1", "selected_llm": "some",
        "conversation": [{"role": "user", "content": "hello"}], "chat_history": [{"role": "user", "content": "hi"}],
        "document_context": "doc", "document_url": None,
        "attachments": [{"url": "https://example.com/a.png", "media_type": "image/png", "name": "a"}],
    }  # fmt: skip

    run = await settled(client, await start(client, body))

    assert run["status"] == "completed"
    assert run["run_input"]["user_email"] == "a@example.com"


@pytest.mark.parametrize(("length", "status"), [(0, 422), (1, 202), (100_000, 202), (100_001, 422)])
async def test_a_prompt_has_1_to_100000_characters(client: httpx2.AsyncClient, length: int, status: int) -> None:
    answer = await client.post("/hitl/run", json=run_body(echo(), prompt="é" * length))
    assert answer.status_code == status


@pytest.mark.parametrize(
    "tool",
    [
        {"echo-agent-tool": {"data": {"example_input": {"prompt": "x", "n": 7}}}},
        {"echo-agent-tool": {"example_input": {"prompt": "x", "n": 7}}},
        {"echo-agent-tool": {"example_input": {"prompt": "x", "n": 7}, "data": {}}},
        {
            "echo-agent-tool": {
                "example_input": {"prompt": "x", "n": 1},
                "data": {"example_input": {"prompt": "", "n": 7}},
            }
        },
        {"echo-agent-tool": {"id": "cat-1", "tags": ["a"], "data": {"example_input": {"prompt": "", "n": 7}, "x": {}}}},
    ],
    ids=["nested", "flat", "empty data", "data wins", "catalogue entry"],
)
async def test_a_tool_config_may_be_flat_or_nested(client: httpx2.AsyncClient, tool: dict[str, Any]) -> None:
    run = await settled(client, await start(client, run_body(tool)))

    assert run["provider"] == "echo"
    assert run["payload"] == {"prompt": "a red fox", "n": 7}


@pytest.mark.parametrize("tool", [None, {}, {"unknown-agent-tool": {"data": {}}}, {"echo": {}}])
async def test_without_a_known_tool_it_is_no_provider(client: httpx2.AsyncClient, tool: Any) -> None:
    refused(await client.post("/hitl/run", json=run_body(tool)), code="no_provider")
    refused(await client.post("/teams/run", json={"prompt": "x", "agent_tool_config": tool}), code="no_provider")


async def test_two_tools_are_refused(client: httpx2.AsyncClient) -> None:
    refused(await client.post("/hitl/run", json=run_body({**echo(), **http_tool("https://example.com/")})))


@pytest.mark.parametrize(
    "config",
    [
        {"http-agent-tool": {"data": {"example_input": {}}}},
        {"http-agent-tool": {"data": {"url": "ftp://example.com/"}}},
        {"http-agent-tool": {"data": {"url": "http://"}}},
        {"http-agent-tool": {"data": {"url": "http://[bad/"}}},
        {"http-agent-tool": {"data": {"url": "https://example.com", "timeout_seconds": 0}}},
        {"http-agent-tool": {"data": {"url": "https://example.com", "headers": {"X": 1}}}},
        {"http-agent-tool": {"data": {"url": "https://example.com", "headers": {"X": "a\r\nEvil: b"}}}},
        {"echo-agent-tool": {"data": {"example_input": "text"}}},
        {"echo-agent-tool": {"data": {"schema": {"type": "nonsense"}}}},
        {"echo-agent-tool": {"data": {"fail": [{"status": "500"}]}}},
        {"echo-agent-tool": "text"},
        {"echo-agent-tool": None},
    ],
)
async def test_a_tool_config_that_cannot_work_is_refused_at_the_door(client: httpx2.AsyncClient, config: Any) -> None:
    refused(await client.post("/hitl/run", json=run_body(config)))


@pytest.mark.parametrize(("priority", "status"), [(-10, 202), (10, 202), (0, 202), (11, 422), (-11, 422), (1.5, 422)])
async def test_a_priority_is_within_10_of_0(client: httpx2.AsyncClient, priority: float, status: int) -> None:
    assert (await client.post("/hitl/run", json={**run_body(echo()), "priority": priority})).status_code == status


@pytest.mark.parametrize(
    "bad", [{"priority": "1"}, {"on_active_run": "drop"}, {"callback_url": "ftp://x"}, {"user_id": 1}]
)
async def test_a_bad_option_is_refused(client: httpx2.AsyncClient, bad: dict[str, Any]) -> None:
    problem = refused(await client.post("/hitl/run", json={**run_body(echo()), **bad}))
    assert problem["errors"][0]["pointer"] == "/" + next(iter(bad))


async def test_another_tenant_is_403(client: httpx2.AsyncClient) -> None:
    body = run_body(echo())
    body["run_input"]["tenant"] = "somebody-else"
    refused(await client.post("/hitl/run", json=body), 403)
    refused(await client.post("/teams/run", json=body["run_input"]), 403)


# The seed's own starts


async def test_teams_run_takes_the_bare_input(client: httpx2.AsyncClient) -> None:
    run_input = run_body(echo())["run_input"]

    off = await client.post("/teams/run", json={**run_input, "user_id": "inner"}, params={"session_id": "s9"})
    on = await client.post("/teams/run", json=run_input, params={"enable_hitl": "true", "user_id": "u9"})

    assert (off.status_code, on.status_code) == (202, 202)
    assert (off.json()["hitl_enabled"], on.json()["hitl_enabled"]) == (False, True)
    assert off.headers["location"] == f"/hitl/runs/{off.json()['run_id']}"
    plain, watched = await run_of(client, off.json()["run_id"]), await run_of(client, on.json()["run_id"])
    assert (plain["user_id"], plain["session_id"], watched["user_id"]) == ("inner", "s9", "u9")
    assert plain["hitl_config"]["policy"] == "auto"
    assert watched["hitl_config"]["policy"] == "auto_with_thresholds"
    assert watched["hitl_config"]["allowed_steps"] == ALL_STEPS
    refused(await client.post("/teams/run", json=run_body(echo())))


async def test_teams_run_still_stops_for_what_is_missing(client: httpx2.AsyncClient) -> None:
    schema = {"type": "object", "properties": {"prompt": {"type": "string"}, "image": {"type": "string"}},
              "required": ["prompt", "image"]}  # fmt: skip
    tool = echo({"prompt": "x", "image": "https://example.com/sample.png"}, schema=schema)

    answer = await client.post("/teams/run", json=run_body(tool)["run_input"])

    assert "missing.image" in (await at(client, answer.json()["run_id"], "information_review"))["reasons"]


async def test_teams_run_hitl_asks_everywhere_unless_told(client: httpx2.AsyncClient) -> None:
    body = {"run_input": run_body(echo())["run_input"]}

    bare = await client.post("/teams/run-hitl", json=body, params={"user_id": "u", "session_id": "s"})
    told = await client.post("/teams/run-hitl", json={**body, "hitl_config": {"policy": "auto"}})

    assert (bare.status_code, told.status_code) == (202, 202)
    assert bare.json()["config"]["policy"] == "require_human"
    assert bare.json()["config"]["allowed_steps"] == ALL_STEPS
    assert told.json()["config"]["policy"] == "auto"
    assert bare.json()["hitl_enabled"] is True
    assert (await at(client, bare.json()["run_id"], "information_review"))["reasons"] == ["policy.require_human"]
    assert (await settled(client, told.json()["run_id"]))["status"] == "completed"


# Idempotency


async def test_the_same_key_and_body_get_the_first_answer_again(client: httpx2.AsyncClient) -> None:
    for path, body in (
        ("/hitl/run", run_body(echo())),
        ("/teams/run", run_body(echo())["run_input"]),
        ("/teams/run-hitl", {"run_input": run_body(echo())["run_input"]}),
    ):
        headers = {"Idempotency-Key": uuid4().hex}
        first = await client.post(path, json=body, headers=headers)
        await settled(client, first.json()["run_id"])
        again = await client.post(path, json=body, headers=headers)

        assert again.status_code == first.status_code == 202
        assert again.json() == first.json()
        assert again.headers["location"] == first.headers["location"]
        assert again.headers["idempotent-replayed"] == "true"
        assert "idempotent-replayed" not in first.headers


async def test_the_same_body_in_another_key_order_is_the_same_body(client: httpx2.AsyncClient) -> None:
    body = run_body(echo())
    headers = {"Idempotency-Key": uuid4().hex}
    first = await client.post("/hitl/run", json=body, headers=headers)
    again = await client.post("/hitl/run", json=dict(reversed(body.items())), headers=headers)
    assert again.json()["run_id"] == first.json()["run_id"]


async def test_a_key_with_another_body_is_refused(client: httpx2.AsyncClient) -> None:
    headers = {"Idempotency-Key": uuid4().hex}
    await start(client, run_body(echo()), **headers)

    other = await client.post("/hitl/run", json=run_body(echo(), prompt="another"), headers=headers)
    refused(other, code="idempotency_key_reused")


async def test_a_refused_start_does_not_use_up_its_key(client: httpx2.AsyncClient) -> None:
    headers = {"Idempotency-Key": uuid4().hex}
    refused(await client.post("/hitl/run", json=run_body({}), headers=headers))
    await start(client, run_body(echo()), **headers)


async def test_a_hundred_at_once_make_one_run(client: httpx2.AsyncClient) -> None:
    user = uuid4().hex
    body = {**run_body(echo()), "user_id": user}
    headers = {"Idempotency-Key": uuid4().hex}

    answers = await asyncio.gather(*(client.post("/hitl/run", json=body, headers=headers) for _ in range(100)))

    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["run_id"] for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert len((await client.get("/hitl/runs", params={"user_id": user})).json()["runs"]) == 1


# A session's runs


def in_session(session: str, mode: str) -> dict[str, Any]:
    return {**run_body(echo(), **ASK), "session_id": session, "on_active_run": mode}


async def release(client: httpx2.AsyncClient, run_id: str) -> None:
    approval = await at(client, run_id, "information_review")
    assert (await decide(client, approval["approval_id"], "approve")).status_code == 200
    assert (await settled(client, run_id))["status"] == "completed"


async def test_parallel_runs_do_not_wait_for_each_other(client: httpx2.AsyncClient) -> None:
    session = uuid4().hex
    for run_id in [await start(client, in_session(session, "parallel")) for _ in range(3)]:
        await at(client, run_id, "information_review")


async def test_queued_runs_of_a_session_go_one_after_the_other_in_order(client: httpx2.AsyncClient) -> None:
    session = uuid4().hex
    ids = [await start(client, in_session(session, "queue")) for _ in range(4)]

    for position, run_id in enumerate(ids):
        await at(client, run_id, "information_review")
        later = [(await run_of(client, other))["status"] for other in ids[position + 1 :]]
        assert later == ["queued"] * len(later)
        await release(client, run_id)


async def test_a_queued_run_goes_when_the_earlier_one_is_cancelled(client: httpx2.AsyncClient) -> None:
    session = uuid4().hex
    first, second, third = [await start(client, in_session(session, "queue")) for _ in range(3)]
    await at(client, first, "information_review")

    await client.delete(f"/hitl/run/{second}")
    assert (await run_of(client, third))["status"] == "queued"
    await client.delete(f"/hitl/run/{first}")

    await at(client, third, "information_review")


async def test_reject_refuses_while_the_session_is_busy(client: httpx2.AsyncClient) -> None:
    session = uuid4().hex
    first = await start(client, in_session(session, "reject"))
    refused(await client.post("/hitl/run", json=in_session(session, "reject")), 409, "session_busy")
    await start(client, in_session(uuid4().hex, "reject"))

    await release(client, first)

    await start(client, in_session(session, "reject"))


async def test_cancel_previous_ends_the_sessions_earlier_runs(client: httpx2.AsyncClient) -> None:
    session = uuid4().hex
    earlier = [await start(client, in_session(session, "parallel")) for _ in range(2)]
    approvals = [(await at(client, run_id, "information_review"))["approval_id"] for run_id in earlier]

    last = await start(client, in_session(session, "cancel_previous"))

    for run_id, approval_id in zip(earlier, approvals, strict=True):
        assert (await run_of(client, run_id))["status"] == "cancelled"
        assert (await client.get(f"/hitl/approvals/{approval_id}")).json()["status"] == "cancelled"
    await at(client, last, "information_review")


# hitl_config


@pytest.mark.parametrize(
    ("config", "pointer"),
    [
        ({"policy": "never"}, "/policy"),
        ({"policy": None}, "/policy"),
        ({"allowed_steps": ["api_call"]}, "/allowed_steps/0"),
        ({"allowed_steps": "payload_review"}, "/allowed_steps"),
        ({"timeout_seconds": 0}, "/timeout_seconds"),
        ({"timeout_seconds": 0.9}, "/timeout_seconds"),
        ({"timeout_seconds": 366 * 86400 + 1}, "/timeout_seconds"),
        ({"timeout_seconds": "60"}, "/timeout_seconds"),
        ({"on_timeout": "ignore"}, "/on_timeout"),
        ({"on_timeout": "escalate"}, ""),
        ({"escalate_to": {}}, "/escalate_to"),
        ({"remind_after_seconds": 0}, "/remind_after_seconds"),
        ({"auto_approve_confidence_threshold": 1.1}, "/auto_approve_confidence_threshold"),
        ({"auto_approve_confidence_threshold": -0.1}, "/auto_approve_confidence_threshold"),
        ({"review_thresholds": {"max_cost": 1}}, "/review_thresholds/max_cost"),
        ({"max_payload_changes": -1}, "/max_payload_changes"),
        ({"require_approval_safety_flags": "nsfw"}, "/require_approval_safety_flags"),
        ({"reviewers": {"quorum": 0}}, "/reviewers/quorum"),
        ({"reviewers": {"quorum": 11}}, "/reviewers/quorum"),
        ({"reviewers": {"users": ["a"], "quorum": 2}}, "/reviewers"),
        ({"reviewers": {"users": ["a", "a"], "quorum": 2}}, "/reviewers"),
        ({"reviewers": {"user": ["a"]}}, "/reviewers/user"),
        ({"checkpoints": {"payload_reveiw": {}}}, ""),
        ({"checkpoints": {"payload_review": {"policy": "auto"}}}, "/checkpoints/payload_review/policy"),
        ({"checkpoints": {"payload_review": {"timeout_seconds": 0}}}, "/checkpoints/payload_review/timeout_seconds"),
        ({"checkpoints": {"payload_review": {"on_timeout": "escalate"}}}, ""),
        ({"checkpoints": {"payload_review": {"reviewers": {"users": ["a"], "quorum": 2}}}}, "/checkpoints"),
        ({"run_timeout_seconds": 0}, "/run_timeout_seconds"),
        ({"unknown": 1}, "/unknown"),
    ],
)
async def test_a_config_that_cannot_be_meant_is_refused(
    client: httpx2.AsyncClient, config: dict[str, Any], pointer: str
) -> None:
    problem = refused(await client.post("/hitl/run", json={**run_body(echo()), "hitl_config": config}))
    assert any(error["pointer"].startswith(f"/hitl_config{pointer}") for error in problem["errors"]), problem
    body = {"run_input": run_body(echo())["run_input"], "hitl_config": config}
    refused(await client.post("/teams/run-hitl", json=body))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"allowed_steps": []},
        {"timeout_seconds": 1},
        {"timeout_seconds": 366 * 86400},
        {"on_timeout": "escalate", "escalate_to": {"groups": ["leads"]}},
        {"reviewers": {"users": ["a", "b"], "quorum": 2, "allow_self_approval": True}},
        {"reviewers": {"users": ["a"], "groups": ["g"], "quorum": 3}},
        {"reviewers": {"quorum": 10}},
        {"review_thresholds": {"max_cost_usd": 0, "response_quality_min": 1}},
        {"auto_approve_confidence_threshold": 1, "max_payload_changes": 0},
        {"checkpoints": {"outcome_unknown": {"timeout_seconds": 5, "reviewers": {"groups": ["ops"]}}}},
        {"checkpoints": {"payload_review": {"on_timeout": "escalate", "escalate_to": {"users": ["boss"]}}}},
    ],
)
async def test_a_config_within_the_table_is_taken_and_shown(client: httpx2.AsyncClient, config: dict[str, Any]) -> None:
    run = await run_of(client, await start(client, {**run_body(echo()), "hitl_config": config}))

    def within(given: Any, shown: Any) -> bool:
        if isinstance(given, dict):
            return all(within(value, shown[name]) for name, value in given.items())
        return bool(given == shown)

    assert within(config, run["hitl_config"])


async def test_the_defaults_are_those_of_the_table(client: httpx2.AsyncClient) -> None:
    body = {"run_input": run_body(echo())["run_input"]}
    config = (await run_of(client, await start(client, body)))["hitl_config"]

    assert config["policy"] == "auto_with_thresholds"
    assert config["allowed_steps"] == ALL_STEPS
    assert config["timeout_seconds"] == 86400
    assert config["on_timeout"] == "reject"
    assert config["auto_approve_confidence_threshold"] == 0.9
    assert config["max_payload_changes"] == 5
    assert config["require_approval_safety_flags"] == ["nsfw", "pii", "copyright", "content_filter", "refusal"]


async def test_a_checkpoints_own_settings_replace_the_runs(client: httpx2.AsyncClient) -> None:
    own = {"timeout_seconds": 60, "on_timeout": "approve", "reviewers": {"users": ["dev"]}}
    body = run_body(echo(), policy="require_human", checkpoints={"payload_review": own}, timeout_seconds=3600)
    run_id = await start(client, body)

    first = await at(client, run_id, "information_review")
    await decide(client, first["approval_id"], "approve")
    second = await at(client, run_id, "payload_review")

    assert (first["on_timeout"], second["on_timeout"]) == ("reject", "approve")
    assert second["reviewers"]["users"] == ["dev"] and first["reviewers"]["users"] == []
    assert second["expires_at"] < first["expires_at"]


# Secrets in headers


@pytest.mark.parametrize("shape", ["nested", "flat", "both"])
async def test_header_values_go_to_the_provider_and_nowhere_else(
    client: httpx2.AsyncClient, provider: Provider, stack: Stack, shape: str
) -> None:
    canary = f"canary-{uuid4().hex}"
    headers = {"X-Api-Key": canary, "Authorization": f"Bearer {canary}"}
    tool = http_tool(provider.url, headers=headers)
    if shape == "flat":
        tool = {"http-agent-tool": tool["http-agent-tool"]["data"]}
    if shape == "both":
        tool["http-agent-tool"]["headers"] = {"X-Other": canary}
    provider.script = [(422, {"errors": [{"field": "num_outputs", "message": "no"}]}), (200, {"ok": 1})]
    session = uuid4().hex
    answer = await client.post("/hitl/run", json={**run_body(tool, policy="require_human"), "session_id": session})
    run_id, texts = answer.json()["run_id"], [answer.text]

    for checkpoint in ("information_review", "payload_review", "error_recovery", "response_review"):
        approval = await at(client, run_id, checkpoint)
        paths = (
            f"/hitl/runs/{run_id}",
            f"/hitl/run/{run_id}/status",
            f"/hitl/approvals/{approval['approval_id']}",
            f"/hitl/approvals/pending?session_id={session}",
            f"/hitl/sessions/{session}/active",
            f"/hitl/runs?session_id={session}",
            f"/hitl/jobs/{answer.json()['job_id']}",
        )
        texts += [(await client.get(path)).text for path in paths]
        action = "retry" if checkpoint == "error_recovery" else "approve"
        texts.append((await decide(client, approval["approval_id"], action)).text)
    texts.append((await client.get(f"/hitl/runs/{run_id}?wait=10")).text)
    texts.append((await client.get(f"/hitl/runs/{run_id}/events?limit=200")).text)

    assert [seen.headers["x-api-key"] for seen in provider.seen] == [canary, canary]
    assert provider.seen[0].headers["authorization"] == f"Bearer {canary}"
    assert not [text for text in texts if canary in text]

    async def finished() -> bool:
        return any(run_id in line and "run.finished" in line for line in stack.log("worker").splitlines())

    await eventually(finished, "the run's last log line")
    assert canary not in stack.log("web") and canary not in stack.log("worker")


@pytest.mark.parametrize("spoiled", [{"X": "{}\n"}, {"X Y": "{}"}, "{}", {"X": ["{}"]}, {"X": {"Y": "{}"}}])
async def test_a_refusal_does_not_repeat_header_values(client: httpx2.AsyncClient, stack: Stack, spoiled: Any) -> None:
    canary = f"canary-{uuid4().hex}"

    def planted(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: planted(inner) for name, inner in value.items()}
        return [planted(inner) for inner in value] if isinstance(value, list) else value.replace("{}", canary)

    answer = await client.post("/hitl/run", json=run_body(http_tool("https://example.com/", headers=planted(spoiled))))

    refused(answer)
    assert canary not in answer.text and canary not in stack.log("web")


async def test_no_content_of_a_request_is_logged(client: httpx2.AsyncClient, stack: Stack) -> None:
    canary = f"canary{uuid4().hex}"
    body = run_body(echo({"prompt": "x", "style": canary}), prompt=f"a {canary}", policy="require_human")
    body["run_input"]["user_email"] = f"{canary}@example.com"
    run_id = await start(client, body)
    approval = await at(client, run_id, "information_review")
    await decide(client, approval["approval_id"], "reject", reason=canary)
    await client.get(f"/hitl/{canary}")
    await client.post(f"/hitl/run?secret={canary}", json={canary: 1})

    async def logged() -> bool:
        return "approval.decided" in stack.log("web")

    await eventually(logged, "the decision's log line")
    assert canary not in stack.log("web") and canary not in stack.log("worker")
