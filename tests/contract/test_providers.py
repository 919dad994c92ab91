"""Contract, section 10: the http and echo providers."""

import asyncio
import itertools
import time
from hashlib import sha256
from typing import Any

import httpx2
import orjson
import pytest

from tests.conftest import Provider, Seen, at, decide, echo, free_port, http_tool, run_body, settled, start
from tests.contract.endpoint import endpoint

IMAGE = {
    "type": "object",
    "properties": {"prompt": {"type": "string"}, "image": {"type": "string", "format": "uri"}},
    "required": ["prompt", "image"],
}


def keys(provider: Provider) -> list[str]:
    return [seen.headers["idempotency-key"] for seen in provider.seen]


def callback(seen: Seen) -> str:
    """Path and query of the callback URL that came with a call; the test's web process has a port of its own."""
    return "/" + seen.headers["x-hitl-callback-url"].split("/", 3)[3]


async def run_once(client: httpx2.AsyncClient, provider: Provider, *script: Any, **config: Any) -> dict[str, Any]:
    provider.script = list(script)
    return await settled(client, await start(client, run_body(http_tool(provider.url, **config))))


# http: what is sent, and what each answer means


async def test_the_approved_payload_is_the_body_and_the_headers_say_whose(
    client: httpx2.AsyncClient, provider: Provider
) -> None:
    run = await run_once(client, provider, (200, {"url": "x"}), headers={"X-Api-Key": "k"})

    (sent,) = provider.seen
    assert sent.json == run["payload"] == {"prompt": "a red fox", "num_outputs": 1}
    assert sent.headers["content-type"] == "application/json"
    assert sent.headers["x-hitl-run-id"] == run["run_id"]
    assert sent.headers["x-hitl-payload-sha256"] == run["payload_sha256"] == sha256(sent.body).hexdigest()
    assert f"/hitl/webhooks/http/{run['run_id']}" in sent.headers["x-hitl-callback-url"]
    assert sent.headers["idempotency-key"] and sent.headers["x-api-key"] == "k"
    assert (run["status"], run["result"], run["raw_response"]) == ("completed", {"url": "x"}, {"url": "x"})


@pytest.mark.parametrize("status", [200, 201, 299])
async def test_any_2xx_is_the_output(client: httpx2.AsyncClient, provider: Provider, status: int) -> None:
    run = await run_once(client, provider, (status, [1, "two", None, 3.5]))
    assert (run["status"], run["result"]) == ("completed", [1, "two", None, 3.5])


@pytest.mark.parametrize(
    ("body", "output"),
    [
        (b"plain words", "plain words"),
        ("naïve".encode(), "naïve"),
        (b"", ""),
        (b"null", None),
        (b"0", 0),
        (b'"t"', "t"),
    ],
)
async def test_an_answer_is_json_or_text(
    client: httpx2.AsyncClient, provider: Provider, body: bytes, output: Any
) -> None:
    run = await run_once(client, provider, (200, body, {"content-type": "text/plain"}))
    assert run["status"] == "completed"
    assert run["result"] == run["raw_response"] == output


@pytest.mark.parametrize(
    "body", [b'{"t":"a\\u0000b"}', b"a\x00b", b"\xff\xfe\xfd", b'{"n":1e400}', b'{"n":123456789012345678901234567890}',
             b'{"s":"\\ud800"}', b'{"a":NaN}', b"[" * 900 + b"]" * 900, b'{"a":' * 250 + b"1" + b"}" * 250]
)  # fmt: skip
async def test_an_odd_answer_ends_the_run_orderly(client: httpx2.AsyncClient, provider: Provider, body: bytes) -> None:
    run = await run_once(client, provider, (200, body))
    assert run["status"] == "completed", run["error"]
    assert len(provider.seen) == 1


async def test_an_answer_that_cannot_be_decoded_is_one_that_was_cut(
    client: httpx2.AsyncClient, provider: Provider
) -> None:
    run = await run_once(client, provider, (200, b"no gzip", {"content-encoding": "gzip"}), (200, {"ok": True}))
    assert (run["status"], run["result"]) == ("completed", {"ok": True}), run["error"]
    assert len({seen.headers["idempotency-key"] for seen in provider.seen}) == 1


async def test_500_three_times_is_tried_again_under_one_key(client: httpx2.AsyncClient, provider: Provider) -> None:
    times: list[float] = []
    answers = [(500, {}), (503, {}), (502, {}), (200, {"at": "last"})]

    def answer(_: Seen) -> Any:
        times.append(time.monotonic())
        return answers[len(times) - 1]

    provider.answer = answer
    run = await run_once(client, provider)

    assert run["result"] == {"at": "last"}
    assert len(provider.seen) == 4 and len(set(keys(provider))) == 1
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert gaps[0] < gaps[1] < gaps[2]
    assert len({seen.body for seen in provider.seen}) == 1


async def test_429_waits_as_long_as_retry_after_says(client: httpx2.AsyncClient, provider: Provider) -> None:
    times: list[float] = []

    def answer(_: Seen) -> Any:
        times.append(time.monotonic())
        return (429, {}, {"retry-after": "2"}) if len(times) == 1 else (200, {"ok": 1})

    provider.answer = answer
    run = await run_once(client, provider)

    assert run["status"] == "completed" and len(set(keys(provider))) == 1
    assert 2 <= times[1] - times[0] < 4


async def test_a_refused_connection_fails_recoverably_and_resume_goes_on(client: httpx2.AsyncClient) -> None:
    port = free_port()
    run_id = await start(client, run_body(http_tool(f"http://127.0.0.1:{port}/predict")))
    run = await settled(client, run_id)
    assert run["status"] == "failed"
    assert (run["error"]["code"], run["error"]["recoverable"]) == ("provider_unavailable", True)
    events = (await client.get(f"/hitl/runs/{run_id}/events?limit=200")).json()["events"]
    assert [event["type"] for event in events].count("provider.submitted") == 5

    async def answer(_: Seen) -> tuple[int, Any]:
        return 200, {"back": True}

    async with endpoint(answer, port) as (_, seen):
        resumed = await client.post(f"/hitl/run/{run_id}/resume")
        assert resumed.status_code == 202
        run = await settled(client, run_id, "completed")

    assert run["result"] == {"back": True} and run["error"] is None and len(seen) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 418])
async def test_another_4xx_fails_the_run_after_one_try(
    client: httpx2.AsyncClient, provider: Provider, status: int
) -> None:
    run = await run_once(client, provider, (status, {"error": "no"}))

    assert run["status"] == "failed" and len(provider.seen) == 1
    assert (run["error"]["code"], run["error"]["recoverable"]) == ("provider_rejected", False)
    assert (await client.post(f"/hitl/run/{run['run_id']}/resume")).status_code == 409


async def test_a_redirect_is_not_followed(client: httpx2.AsyncClient, provider: Provider) -> None:
    run = await run_once(client, provider, (302, {}, {"location": provider.url}))
    assert run["status"] == "failed" and len(provider.seen) == 1


TWO_FAULTS = {
    "errors": [
        {"field": "num_outputs", "message": "too many", "allowed": [1, 2, 4]},
        {"field": "prompt", "message": "too short"},
    ]
}


async def test_422_asks_with_every_faulty_field_and_an_edit_is_a_new_call(
    client: httpx2.AsyncClient, provider: Provider
) -> None:
    provider.script = [(422, TWO_FAULTS), (200, {"ok": 1})]
    run_id = await start(client, run_body(http_tool(provider.url)))
    approval = await at(client, run_id, "error_recovery")

    assert approval["reasons"] == ["provider.error"]
    issues = {issue["field"]: issue for issue in approval["context"]["validation_issues"]}
    assert set(issues) == {"num_outputs", "prompt"}
    run = (await client.get(f"/hitl/runs/{run_id}")).json()
    assert run["validation_issues"] == approval["context"]["validation_issues"]
    assert issues["prompt"]["issue"] == "too short"
    assert all(value in issues["num_outputs"]["suggested_fix"] for value in ("1", "2", "4"))
    for issue in issues.values():
        assert {"field", "issue", "severity", "suggested_fix", "auto_fixable"} <= set(issue)
    edited = await decide(client, approval["approval_id"], "edit", edits={"num_outputs": 2})
    assert edited.status_code == 200
    run = await settled(client, run_id)

    assert run["status"] == "completed"
    assert [seen.json["num_outputs"] for seen in provider.seen] == [1, 2]
    assert len(set(keys(provider))) == 2
    assert run["payload"]["num_outputs"] == 2


async def test_422_and_retry_is_a_new_call_with_the_same_payload(
    client: httpx2.AsyncClient, provider: Provider
) -> None:
    provider.script = [(422, {"detail": "busy"}), (422, {"detail": [{"loc": ["body", "prompt"], "msg": "no"}]})]
    run_id = await start(client, run_body(http_tool(provider.url)))
    first = await at(client, run_id, "error_recovery")
    await decide(client, first["approval_id"], "retry")
    second = await at(client, run_id, "error_recovery")
    assert second["approval_id"] != first["approval_id"]
    assert [issue["field"] for issue in second["context"]["validation_issues"]] == ["prompt"]
    await decide(client, second["approval_id"], "retry")

    assert (await settled(client, run_id))["status"] == "completed"
    assert len(set(keys(provider))) == 3 and len({seen.body for seen in provider.seen}) == 1


async def test_422_and_reject_ends_the_run(client: httpx2.AsyncClient, provider: Provider) -> None:
    provider.script = [(422, TWO_FAULTS)]
    run_id = await start(client, run_body(http_tool(provider.url)))
    approval = await at(client, run_id, "error_recovery")
    await decide(client, approval["approval_id"], "reject", reason="give up")
    run = await settled(client, run_id)
    assert (run["status"], run["error"]["code"], len(provider.seen)) == ("cancelled", "rejected", 1)


async def unanswered(client: httpx2.AsyncClient, provider: Provider) -> tuple[str, str]:
    provider.script = ["hang", (200, {"second": True})]
    run_id = await start(client, run_body(http_tool(provider.url, timeout_seconds=0.3)))
    approval = await at(client, run_id, "outcome_unknown")
    assert approval["reasons"] == ["provider.outcome_unknown"]
    return run_id, approval["approval_id"]


async def test_a_timeout_asks_and_approve_takes_the_outcome_from_the_human(
    client: httpx2.AsyncClient, provider: Provider
) -> None:
    run_id, approval_id = await unanswered(client, provider)

    assert (await decide(client, approval_id, "approve")).status_code == 422
    assert (await decide(client, approval_id, "approve", edits={"num_outputs": 1})).status_code == 422
    approved = await decide(client, approval_id, "approve", edits={"response": {"seen": "by hand"}})
    assert approved.status_code == 200, approved.text
    run = await settled(client, run_id)

    assert (run["status"], run["result"]) == ("completed", {"seen": "by hand"})
    assert len(provider.seen) == 1


async def test_a_timeout_and_retry_sends_again_with_a_new_key(client: httpx2.AsyncClient, provider: Provider) -> None:
    run_id, approval_id = await unanswered(client, provider)

    assert (await decide(client, approval_id, "retry")).status_code == 200
    run = await settled(client, run_id)

    assert (run["status"], run["result"]) == ("completed", {"second": True})
    assert len(provider.seen) == 2 and len(set(keys(provider))) == 2


async def test_a_timeout_and_reject_ends_the_run(client: httpx2.AsyncClient, provider: Provider) -> None:
    run_id, approval_id = await unanswered(client, provider)
    await decide(client, approval_id, "reject", reason="leave it")
    run = await settled(client, run_id)
    assert (run["status"], run["error"]["code"], len(provider.seen)) == ("cancelled", "rejected", 1)


async def test_a_cut_connection_is_repeated_under_the_same_key(client: httpx2.AsyncClient, provider: Provider) -> None:
    run = await run_once(client, provider, "cut", (200, {"ok": 1}))
    assert run["status"] == "completed"
    assert len(provider.seen) == 2 and len(set(keys(provider))) == 1


async def test_a_response_is_reviewed_and_retry_there_is_a_new_call(
    client: httpx2.AsyncClient, provider: Provider
) -> None:
    provider.script = [(200, {"take": 1}), (200, {"take": 2})]
    body = run_body(http_tool(provider.url), policy="require_human", allowed_steps=["response_review"])
    run_id = await start(client, body)
    first = await at(client, run_id, "response_review")
    assert (await decide(client, first["approval_id"], "retry")).json()["status"] == "retried"
    second = await at(client, run_id, "response_review")
    assert second["context"]["output"] == {"take": 2}
    await decide(client, second["approval_id"], "approve")

    assert (await settled(client, run_id))["result"] == {"take": 2}
    assert len(set(keys(provider))) == 2


# http: an answer that comes later


async def awaiting(client: httpx2.AsyncClient, provider: Provider, **config: Any) -> tuple[str, str]:
    provider.script = [(202, {"accepted": True})]
    run_id = await start(client, run_body(http_tool(provider.url, **config)))
    await settled(client, run_id, "awaiting_provider")
    return run_id, callback(provider.seen[0])


@pytest.mark.parametrize("output", [{"image": "u"}, ["a"], "text", None, 0])
async def test_a_callback_is_the_output_after_a_202(
    client: httpx2.AsyncClient, provider: Provider, output: Any
) -> None:
    run_id, path = await awaiting(client, provider)

    answer = await client.post(path, content=orjson.dumps(output), headers={"content-type": "application/json"})
    assert answer.status_code == 200
    run = await settled(client, run_id)

    assert (run["status"], run["result"], run["raw_response"]) == ("completed", output, output)
    assert len(provider.seen) == 1


async def test_a_callback_may_be_text(client: httpx2.AsyncClient, provider: Provider) -> None:
    """The body is the output as a 2xx body would be: JSON or text."""
    run_id, path = await awaiting(client, provider)

    answer = await client.post(path, content=b"plain words", headers={"content-type": "text/plain"})

    assert answer.status_code == 200, answer.text
    assert (await settled(client, run_id))["result"] == "plain words"


async def test_a_callback_that_says_json_and_is_none_is_refused(client: httpx2.AsyncClient, provider: Provider) -> None:
    run_id, path = await awaiting(client, provider)

    for raw in (b"{", b'{"a":1,"a":2}', b'{"a":"\\u0000"}'):
        answer = await client.post(path, content=raw, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_json")
    assert (await client.get(f"/hitl/runs/{run_id}")).json()["status"] == "awaiting_provider"
    assert (await client.post(path, json={"n": 1})).status_code == 200


async def test_a_repeated_callback_changes_nothing(client: httpx2.AsyncClient, provider: Provider) -> None:
    run_id, path = await awaiting(client, provider)
    answers = await asyncio.gather(*(client.post(path, json={"n": 1}) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {200}
    before = await settled(client, run_id)
    assert (await client.post(path, json={"n": 2})).status_code == 200

    after = await settled(client, run_id)
    assert before["result"] == after["result"] == {"n": 1} and before["version"] == after["version"]
    events = (await client.get(f"/hitl/runs/{run_id}/events?limit=200")).json()["events"]
    assert [event["type"] for event in events].count("provider.completed") == 1


async def test_a_forged_callback_is_401_and_nothing_happens(client: httpx2.AsyncClient, provider: Provider) -> None:
    run_id, path = await awaiting(client, provider)
    other, other_path = await awaiting(client, provider)
    base, _, query = path.partition("?")

    for forged in (
        path[:-1] + ("0" if path[-1] != "0" else "1"),
        path.replace(run_id, other),
        path.replace("call=1", "call=2"),
        f"{base}?call=1&signature=",
        f"{base}?call=1&signature=x",
        f"{base}?{query.replace('signature=', 'signature=%C3%A9')}",
    ):
        answer = await client.post(forged, json={"forged": True})
        assert answer.status_code == 401, (forged, answer.text)
    assert (await client.post(base, json={"forged": True})).status_code in (401, 422)
    for waiting in (run_id, other):
        run = (await client.get(f"/hitl/runs/{waiting}")).json()
        assert (run["status"], run["raw_response"]) == ("awaiting_provider", None)
    await client.post(path, json={"true": 1})
    assert (await settled(client, run_id))["result"] == {"true": 1}
    await client.post(other_path, json={})


async def test_a_callback_may_tell_of_a_failure(client: httpx2.AsyncClient, provider: Provider) -> None:
    run_id, path = await awaiting(client, provider)
    assert (await client.post(path, json={"error": {"message": "out of memory"}})).status_code == 200
    run = await settled(client, run_id)
    assert (run["status"], run["error"]["code"]) == ("failed", "provider_failed")
    assert "out of memory" in run["error"]["message"]
    assert run["raw_response"] == {"error": {"message": "out of memory"}}


async def test_a_callback_may_come_before_the_202_is_stored(client: httpx2.AsyncClient) -> None:
    async def early(seen: Seen) -> tuple[int, Any]:
        assert (await client.post(callback(seen), json={"early": True})).status_code == 200
        return 202, {}

    async with endpoint(early) as (url, seen):
        run = await settled(client, await start(client, run_body(http_tool(url))))

    assert (run["status"], run["result"]) == ("completed", {"early": True}) and len(seen) == 1


async def test_a_callback_that_never_comes_asks(client: httpx2.AsyncClient, provider: Provider) -> None:
    run_id, path = await awaiting(client, provider, timeout_seconds=1)

    approval = await at(client, run_id, "outcome_unknown")
    await client.post(path, json={"late": True})  # too late to matter, and harmless
    assert (await decide(client, approval["approval_id"], "retry")).status_code == 200
    run = await settled(client, run_id)

    assert (run["status"], run["result"]) == ("completed", {"ok": True})
    assert len(set(keys(provider))) == 2


async def test_a_late_callback_of_an_earlier_call_does_not_answer_the_next(
    client: httpx2.AsyncClient, provider: Provider
) -> None:
    run_id, path = await awaiting(client, provider, timeout_seconds=1)
    approval = await at(client, run_id, "outcome_unknown")
    provider.script = [(202, {})]
    await decide(client, approval["approval_id"], "retry")
    await settled(client, run_id, "awaiting_provider")

    assert (await client.post(path, json={"of": "the first"})).status_code == 200
    assert (await client.get(f"/hitl/runs/{run_id}")).json()["raw_response"] is None
    await client.post(callback(provider.seen[1]), json={"of": "the second"})

    assert (await settled(client, run_id))["result"] == {"of": "the second"}


# echo, and the policy that its knobs drive


async def asked(client: httpx2.AsyncClient, policy: str = "auto_with_thresholds", **more: Any) -> list[str]:
    """The reasons of every approval until the run is final, each approved."""
    hitl = more.pop("hitl", {})
    example = more.pop("example", None)
    run_id = await start(client, run_body(echo(example, **more), policy=policy, **hitl))
    found: list[str] = []
    while (run := await settled(client, run_id))["status"] == "awaiting_human":
        approval = run["pending_actions"][0]
        found += [f"{approval['checkpoint_type']}:{reason}" for reason in approval["reasons"]]
        assert (await decide(client, approval["approval_id"], "approve")).status_code == 200
    assert run["status"] == "completed", run["error"]
    return found


async def test_the_fail_list_is_consumed_one_a_call(client: httpx2.AsyncClient) -> None:
    fail = [{"status": 500}, {"status": 422, "message": "mend it"}, {"status": 400}]
    run_id = await start(client, run_body(echo(fail=fail)))
    approval = await at(client, run_id, "error_recovery")
    assert approval["context"]["validation_issues"][0]["issue"] == "mend it"
    await decide(client, approval["approval_id"], "retry")
    assert (await settled(client, run_id))["error"]["code"] == "provider_rejected"

    shorter = await start(client, run_body(echo(fail=fail[:2])))
    await decide(client, (await at(client, shorter, "error_recovery"))["approval_id"], "retry")
    assert (await settled(client, shorter))["status"] == "completed"


async def test_confidence_asks_below_the_threshold_only(client: httpx2.AsyncClient) -> None:
    assert await asked(client, confidence=0.9) == []
    assert await asked(client, confidence=0.89) == ["information_review:confidence.below"]
    assert await asked(client, confidence=0.5, hitl={"auto_approve_confidence_threshold": 0.5}) == []
    assert await asked(client, "auto", confidence=0) == []
    assert await asked(client, confidence=0, hitl={"allowed_steps": ["payload_review"]}) == []


async def test_cost_asks_above_the_limit_only(client: httpx2.AsyncClient) -> None:
    limit = {"review_thresholds": {"max_cost_usd": 0.5}}
    assert await asked(client, cost_usd=0.5, hitl=limit) == []
    assert await asked(client, cost_usd=0.51, hitl=limit) == ["payload_review:cost.above"]
    assert await asked(client, cost_usd=9, hitl={}) == []
    assert await asked(client, "auto", cost_usd=9, hitl=limit) == []


async def test_quality_asks_below_the_limit_only(client: httpx2.AsyncClient) -> None:
    limit = {"review_thresholds": {"response_quality_min": 0.8}}
    assert await asked(client, quality=0.8, hitl=limit) == []
    assert await asked(client, quality=0.79, hitl=limit) == ["response_review:quality.below"]
    assert await asked(client, hitl=limit) == []
    assert await asked(client, "auto", quality=0, hitl=limit) == []


async def test_changes_ask_above_the_limit_the_prompt_included(client: httpx2.AsyncClient) -> None:
    assert await asked(client, hitl={"max_payload_changes": 1}) == []
    assert await asked(client, hitl={"max_payload_changes": 0}) == ["payload_review:changes.above"]
    assert await asked(client, "auto", hitl={"max_payload_changes": 0}) == []


@pytest.mark.parametrize("policy", ["auto", "auto_with_thresholds"])
@pytest.mark.parametrize("steps", [[], ["information_review"]])
async def test_a_flag_asks_whatever_the_policy_and_the_steps(
    client: httpx2.AsyncClient, policy: str, steps: list[str]
) -> None:
    hitl = {"allowed_steps": steps}
    assert await asked(client, policy, flag_words={"fox": "nsfw"}, hitl=hitl) == ["payload_review:safety.nsfw"]
    assert await asked(client, policy, safety_flags=["refusal"], hitl=hitl) == ["response_review:safety.refusal"]
    assert await asked(client, policy, flag_words={"fox": "odd", "hen": "nsfw"}, safety_flags=["x"], hitl=hitl) == []
    own = {**hitl, "require_approval_safety_flags": ["odd"]}
    assert await asked(client, policy, flag_words={"fox": "odd"}, hitl=own) == ["payload_review:safety.odd"]


@pytest.mark.parametrize(
    "text", ["write to jane.doe@example.com", "card 4111 1111 1111 1111", "iban DE89 3704 0044 0532 0130 00"]
)
async def test_personal_data_in_a_payload_asks(client: httpx2.AsyncClient, text: str) -> None:
    run_id = await start(client, run_body(echo(), prompt=text, allowed_steps=[]))
    assert (await at(client, run_id, "payload_review"))["reasons"] == ["safety.pii"]


async def test_a_card_number_with_a_bad_check_digit_does_not_ask(client: httpx2.AsyncClient) -> None:
    run_id = await start(client, run_body(echo(), prompt="order 4111 1111 1111 1112"))
    assert (await settled(client, run_id))["status"] == "completed"


async def test_require_human_asks_everywhere_and_only_where_allowed(client: httpx2.AsyncClient) -> None:
    everywhere = [
        f"{step}:policy.require_human" for step in ("information_review", "payload_review", "response_review")
    ]
    assert await asked(client, "require_human") == everywhere
    assert await asked(client, "require_human", hitl={"allowed_steps": ["payload_review"]}) == everywhere[1:2]
    assert await asked(client, "require_human", hitl={"allowed_steps": []}) == []


async def test_an_edit_that_raises_a_flag_asks_anew(client: httpx2.AsyncClient, provider: Provider) -> None:
    body = run_body(http_tool(provider.url), policy="require_human", allowed_steps=["payload_review"])
    run_id = await start(client, body)
    first = await at(client, run_id, "payload_review")
    await decide(client, first["approval_id"], "edit", edits={"prompt": "mail jane.doe@example.com"})

    second = await at(client, run_id, "payload_review")
    assert second["approval_id"] != first["approval_id"] and "safety.pii" in second["reasons"]
    assert provider.seen == []
    await decide(client, second["approval_id"], "approve")

    assert (await settled(client, run_id))["status"] == "completed"
    assert provider.seen[0].json["prompt"] == "mail jane.doe@example.com"


@pytest.mark.parametrize("policy", ["auto", "auto_with_thresholds", "require_human"])
async def test_an_empty_required_field_always_asks_and_cannot_be_waved_through(
    client: httpx2.AsyncClient, provider: Provider, policy: str
) -> None:
    example = {"prompt": "sample", "image": "https://example.com/sample.png"}
    tool = http_tool(provider.url, example, schema=IMAGE)
    run_id = await start(client, run_body(tool, policy=policy, allowed_steps=[]))
    approval = await at(client, run_id, "information_review")
    assert "missing.image" in approval["reasons"]

    for action, more in (("approve", {}), ("edit", {"edits": {"image": ""}}), ("edit", {"edits": {"image": None}}),
                         ("edit", {"edits": {"image": 5}}), ("edit", {"edits": {}})):  # fmt: skip
        answer = await decide(client, approval["approval_id"], action, **more)
        assert answer.status_code == 422, (action, more, answer.text)
    assert provider.seen == []
    filled = await decide(client, approval["approval_id"], "edit", edits={"image": "https://example.com/mine.png"})
    assert filled.status_code == 200, filled.text
    assert (await settled(client, run_id))["status"] == "completed"

    assert provider.seen[0].json == {"prompt": "a red fox", "image": "https://example.com/mine.png"}


async def test_silence_never_fills_in_what_is_missing(client: httpx2.AsyncClient, provider: Provider) -> None:
    tool = http_tool(provider.url, {"prompt": "s", "image": "https://example.com/s.png"}, schema=IMAGE)
    run_id = await start(client, run_body(tool, on_timeout="approve", timeout_seconds=1))
    run = await settled(client, run_id, "cancelled", "completed", "failed")

    assert (run["status"], run["error"]["code"], provider.seen) == ("cancelled", "approval_expired", [])


async def test_a_prompt_that_is_only_an_attachment_block_is_missing(
    client: httpx2.AsyncClient, provider: Provider
) -> None:
    block = "---BEGIN_ATTACHMENTS---\nhttps://example.com/a.png\n---END_ATTACHMENTS---"
    run_id = await start(client, run_body(http_tool(provider.url), prompt=block, allowed_steps=[]))
    assert "missing.prompt" in (await at(client, run_id, "information_review"))["reasons"]


async def test_types_survive_from_the_example_and_the_edits_to_the_provider(
    client: httpx2.AsyncClient, provider: Provider
) -> None:
    example = {
        "prompt": "x",
        "i": 1,
        "f": 0.5,
        "b": True,
        "n": None,
        "s": "1",
        "o": {"k": [1, "2"]},
        "z": 0,
        "e": False,
    }
    body = run_body(http_tool(provider.url, example), policy="require_human", allowed_steps=["payload_review"])
    run_id = await start(client, body)
    approval = await at(client, run_id, "payload_review")
    edits = {"i": 2, "f": 2.5, "b": False, "s": "007"}
    assert (await decide(client, approval["approval_id"], "edit", edits=edits)).status_code == 200
    run = await settled(client, run_id)
    assert run["status"] == "completed"

    sent = provider.seen[0].json
    assert sent == run["payload"]
    for name, value in {**example, **edits, "prompt": "a red fox", "o": None, "n": None}.items():
        if value is not None:
            assert sent[name] == value and type(sent[name]) is type(value), name


async def test_the_conversation_sets_known_fields_in_the_type_of_their_example(
    client: httpx2.AsyncClient, provider: Provider
) -> None:
    example = {"prompt": "x", "num_outputs": 1, "guidance": 1.5, "fast": False, "style": "flat"}
    body = run_body(http_tool(provider.url, example))
    body["run_input"]["conversation"] = [
        {"role": "user", "content": "num_outputs: 2, fast=true"},
        {"role": "assistant", "content": "num_outputs: 9"},
        {"role": "user", "content": "num_outputs: 4\nguidance=7.5\nprompt: stolen\nunknown: 1"},
    ]
    assert (await settled(client, await start(client, body)))["status"] == "completed"

    sent = provider.seen[0].json
    assert sent == {"prompt": "a red fox", "num_outputs": 4, "guidance": 7.5, "fast": True, "style": "flat"}
    assert type(sent["num_outputs"]) is int and sent["fast"] is True


async def test_sample_content_never_reaches_the_provider(client: httpx2.AsyncClient, provider: Provider) -> None:
    example = {"prompt": "SAMPLE", "image": "https://example.com/SAMPLE.png", "negative_prompt": "SAMPLE",
               "text": "SAMPLE", "images": ["https://example.com/SAMPLE.png"], "steps": 4}  # fmt: skip
    await settled(client, await start(client, run_body(http_tool(provider.url, example))), "completed")

    assert b"SAMPLE" not in provider.seen[0].body
    assert provider.seen[0].json["steps"] == 4 and provider.seen[0].json["prompt"] == "a red fox"
