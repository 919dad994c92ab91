"""Contract, section 8: the WebSocket, frame by frame."""

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.conftest import Provider, Stack, at, decide, echo, http_tool, run_body, settled, start
from tests.contract.test_streams import all_events
from tests.following import Socket, socket

ASK = {"policy": "require_human", "allowed_steps": ["payload_review"]}
FRAMES = {
    "approval.requested": "hitl_approval_request",
    "step.completed": "hitl_step_completion",
    "provider.failed": "hitl_error",
    "run.completed": "hitl_completion",
    "run.failed": "hitl_completion",
    "run.cancelled": "hitl_completion",
}
FIELDS = {
    "hitl_status_update": {"run_id", "status", "current_step", "message", "timestamp"},
    "hitl_step_completion": {"run_id", "step", "result", "timestamp"},
    "hitl_error": {"run_id", "error", "step", "timestamp"},
    "hitl_completion": {"run_id", "status", "result"},
}


def places(frames: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(frame["run_id"], frame["seq"]) for frame in frames if "event" in frame]


async def after_all(client: httpx2.AsyncClient, run_id: str) -> list[tuple[str, int]]:
    return [(run_id, event["seq"]) for event in await all_events(client, run_id)]


# the handshake


@pytest.mark.parametrize("offered", [("hitl.v1",), ("other", "hitl.v1")])
async def test_only_our_subprotocol_is_answered(stack: Stack, offered: tuple[str, ...]) -> None:
    async with socket(stack.base_url, *offered) as live:
        assert live.connection.subprotocol == "hitl.v1"
        assert (await live.ask("ping"))["type"] == "pong"


async def test_no_memory_is_spent_on_compression(stack: Stack) -> None:
    """Pins how the app tells uvicorn, whoever started it: 1,000 idle sockets are to stay below 60 MB."""
    async with socket(stack.base_url) as live:
        assert live.connection.response is not None
        assert "Sec-WebSocket-Extensions" not in live.connection.response.headers


async def test_a_ticket_opens_one_socket_and_no_second_one(stack: Stack, client: httpx2.AsyncClient) -> None:
    answer = await client.post("/hitl/ws/ticket")
    assert answer.status_code == 201
    assert answer.json()["expires_in_seconds"] == 60
    ticket = f"hitl.ticket.{answer.json()['ticket']}"

    async with socket(stack.base_url, "hitl.v1", ticket) as live:
        assert live.connection.subprotocol == "hitl.v1"
        assert (await live.ask("ping"))["type"] == "pong"
    with pytest.raises(InvalidStatus) as refused:
        async with socket(stack.base_url, "hitl.v1", ticket):
            pass
    assert refused.value.response.status_code == 401
    assert orjson.loads(refused.value.response.body)["code"] == "unauthenticated"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://["])
async def test_a_page_of_another_origin_is_refused(stack: Stack, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with socket(stack.base_url, origin=origin):
            pass
    assert refused.value.response.status_code == 403


async def test_a_page_of_our_own_origin_is_taken(stack: Stack) -> None:
    async with socket(stack.base_url, origin=stack.base_url) as live:
        assert (await live.ask("ping", {"n": 1})) == {"type": "pong", "data": {"n": 1}}


async def test_a_start_names_the_socket(stack: Stack, client: httpx2.AsyncClient) -> None:
    started = (await client.post("/hitl/run", json=run_body(echo()))).json()

    assert started["websocket_url"] == "ws" + stack.base_url.removeprefix("http") + "/hitl/ws"


# following


async def test_each_event_is_one_frame_of_its_kind(
    stack: Stack, client: httpx2.AsyncClient, provider: Provider
) -> None:
    provider.script = [(500, {}), (200, {"picture": 1})]
    run_id = await start(client, run_body(http_tool(provider.url), **ASK))
    async with socket(stack.base_url) as live:
        named = {"run_id": run_id}
        assert await live.ask("subscribe", {**named, "after": {}}) == {"type": "subscribed", "data": named}
        asked = await live.hear("hitl_approval_request")
        assert asked["data"] == (await client.get(f"/hitl/approvals/{asked['data']['approval_id']}")).json()
        await decide(client, asked["data"]["approval_id"], "approve")
        await live.hear("hitl_completion")
    frames = live.seen[1:]
    events = await all_events(client, run_id)

    assert [frame["event"] for frame in frames] == [event["type"] for event in events]
    assert [frame["seq"] for frame in frames] == [event["seq"] for event in events]
    for frame in frames:
        assert frame["type"] == FRAMES.get(frame["event"], "hitl_status_update")
        assert frame["run_id"] == run_id
        assert FIELDS.get(frame["type"], set()) <= frame["data"].keys()
    done = [frame["data"] for frame in frames if frame["type"] == "hitl_step_completion"]
    results = {data["step"]: data["result"] for data in done}
    assert results["api_call"] == {"picture": 1}
    assert results["response_review"] == {"picture": 1}
    assert "hitl_error" in {frame["type"] for frame in frames}
    assert frames[-1]["data"] | {"timestamp": ""} == {
        "run_id": run_id, "status": "completed", "result": {"picture": 1}, "error": None, "timestamp": "",
    }  # fmt: skip


async def test_a_replay_tells_what_was_told_live(stack: Stack, client: httpx2.AsyncClient) -> None:
    async with socket(stack.base_url) as live:
        session = str(uuid4())
        await live.ask("subscribe", {"session_id": session})
        run_id = await start(client, {**run_body(echo()), "session_id": session})
        first = await live.until_over()
        await live.ask("subscribe", {"run_id": run_id, "after": {run_id: 0}}, "subscribed")
        again = await live.until_over()
        await live.ask("subscribe", {"run_id": run_id, "after": {run_id: 4}}, "subscribed")
        rest = await live.until_over()

    assert first == again
    assert rest == again[4:]
    assert places(first) == await after_all(client, run_id)


async def test_without_after_a_subscription_begins_now(stack: Stack, client: httpx2.AsyncClient) -> None:
    run_id = await start(client, run_body(echo(), **ASK))
    approval = await at(client, run_id, "payload_review")
    before = await after_all(client, run_id)
    async with socket(stack.base_url) as live:
        await live.ask("subscribe", {"run_id": run_id})
        await decide(client, approval["approval_id"], "approve")
        await live.until_over()

    assert places(live.seen) == (await after_all(client, run_id))[len(before) :]


@pytest.mark.parametrize("line", ["session_id", "user_id"])
async def test_a_run_that_after_does_not_name_comes_from_its_first_event(
    stack: Stack, client: httpx2.AsyncClient, line: str
) -> None:
    name = str(uuid4())
    known, unknown = [await start(client, {**run_body(echo()), line: name}) for _ in range(2)]
    for run_id in (known, unknown):
        await settled(client, run_id)
    wanted = (await after_all(client, known))[3:] + await after_all(client, unknown)
    async with socket(stack.base_url) as live:
        await live.ask("subscribe", {line: name, "after": {known: 3}})
        await live.until_over()
        await live.until_over()
        assert places(live.seen) == wanted
        later = await start(client, {**run_body(echo()), line: name})
        await live.until_over()

    assert places(live.seen) == wanted + await after_all(client, later)


async def test_subscriptions_that_overlap_tell_each_event_once(stack: Stack, client: httpx2.AsyncClient) -> None:
    session = str(uuid4())
    async with socket(stack.base_url) as live:
        await live.ask("subscribe", {"session_id": session, "after": {}})
        await live.ask("subscribe", {"user_id": session})
        run_id = await start(client, {**run_body(echo(), **ASK), "session_id": session, "user_id": session})
        await live.ask("subscribe", {"run_id": run_id}, "subscribed")
        asked = await live.hear("hitl_approval_request")
        await decide(client, asked["data"]["approval_id"], "approve")
        await live.until_over()

    assert places(live.seen) == await after_all(client, run_id)


async def test_what_is_unsubscribed_is_not_told_any_more(stack: Stack, client: httpx2.AsyncClient) -> None:
    session, other = str(uuid4()), str(uuid4())
    async with socket(stack.base_url) as live:
        for name in (session, other):
            await live.ask("subscribe", {"session_id": name})
        named = {"session_id": session}
        assert await live.ask("unsubscribe", named) == {"type": "unsubscribed", "data": named}
        await settled(client, await start(client, {**run_body(echo()), "session_id": session}))
        run_id = await start(client, {**run_body(echo()), "session_id": other})
        await live.until_over()

    assert {frame["run_id"] for frame in live.seen if "event" in frame} == {run_id}


async def test_hundreds_of_subscriptions_at_once_are_all_answered(stack: Stack) -> None:
    """More than a connection's answers may wait, each with a replay that is empty."""
    async with socket(stack.base_url) as live:
        for n in range(300):
            await live.say("subscribe", {"session_id": f"none-{n}", "after": {}})
        heard = [(await live.hear("subscribed"))["data"]["session_id"] for _ in range(300)]
        assert heard == [f"none-{n}" for n in range(300)]
        await live.ask("ping", None, "pong")


async def test_a_connection_follows_a_bounded_number_of_things(stack: Stack) -> None:
    async with socket(stack.base_url) as live:
        for n in range(1001):
            await live.say("subscribe", {"session_id": f"none-{n}"})
        refused = await live.hear("error")
        assert refused["data"]["code"] == "too_many_subscriptions"
        assert len(live.seen) == 1001
        await live.ask("unsubscribe", {"session_id": "none-1"}, "unsubscribed")
        assert (await live.ask("subscribe", {"session_id": "none-1000"}))["type"] == "subscribed"


async def test_an_inbox_hears_requests_only_and_of_programs_too(stack: Stack, client: httpx2.AsyncClient) -> None:
    async with socket(stack.base_url) as live:
        assert (await live.ask("subscribe", {"inbox": True}))["data"] == {"inbox": True}
        run_id = await start(client, run_body(echo(), **ASK))
        question = {"checkpoint_type": "deploy", "message": "?", "context": {"a": 1}}
        asked = (await client.post("/hitl/approvals", json=question)).json()

        async def both() -> bool:
            ids = {frame["data"].get("approval_id") for frame in live.seen}
            return asked["approval_id"] in ids and run_id in {frame.get("run_id") for frame in live.seen}

        while not await both():
            await live.hear()
    requests = [frame for frame in live.seen if "event" in frame]

    assert {frame["type"] for frame in requests} == {"hitl_approval_request"}
    shown = next(frame for frame in requests if frame["data"]["approval_id"] == asked["approval_id"])
    assert shown["data"] == asked
    assert (shown["run_id"], shown["seq"]) == (None, None)
    await client.delete(f"/hitl/run/{run_id}")


# asking


@pytest.fixture(params=["socket", "http"])
async def ask(request: pytest.FixtureRequest, stack: Stack, client: httpx2.AsyncClient) -> Any:
    """A client's frame and its answer, over both doors."""

    async def by_http(kind: str, data: Any, *_: str) -> dict[str, Any]:
        answer = await client.post("/hitl/websocket/message", json={"type": kind, "data": data})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    if request.param == "http":
        yield by_http
        return
    async with socket(stack.base_url) as live:
        yield live.ask


async def test_a_decision_is_taken_once_and_acknowledged(client: httpx2.AsyncClient, ask: Any) -> None:
    run_id = await start(client, run_body(echo({"prompt": "x", "n": 1}), **ASK))
    approval_id = (await at(client, run_id, "payload_review"))["approval_id"]
    answer = {"approval_id": approval_id, "action": "edit", "edits": {"n": 2}, "reason": "two"}
    taken = await ask("hitl_approval_response", answer)
    late = await ask("hitl_approval_response", {"approval_id": approval_id, "action": "reject", "reason": "late"})
    run = await settled(client, run_id)

    assert taken["type"] == late["type"] == "hitl_approval_response_ack"
    assert taken["data"]["success"] is True
    assert (taken["data"]["approval_id"], taken["data"]["status"]) == (approval_id, "edited")
    assert late["data"]["success"] is False
    assert (late["data"]["code"], late["data"]["approval_id"]) == ("approval_already_decided", approval_id)
    assert late["data"]["message"]
    assert late["data"]["approval"]["decisions"][0]["channel"] == "websocket"
    assert run["payload"]["n"] == 2


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ({"action": "reject"}, "validation_failed"),
        ({"action": "edit", "edits": {"n": "two"}}, "invalid_payload"),
        ({"action": "approve", "payload_sha256": "0" * 64}, "payload_changed"),
        ({"action": "approve", "approval_id": str(uuid4())}, "not_found"),
        ({"action": "approve", "approval_id": "x"}, "not_found"),
    ],
)
async def test_a_refused_decision_says_why_and_changes_nothing(
    client: httpx2.AsyncClient, ask: Any, answer: dict[str, Any], code: str
) -> None:
    run_id = await start(client, run_body(echo({"prompt": "x", "n": 1}), **ASK))
    approval_id = (await at(client, run_id, "payload_review"))["approval_id"]
    ack = await ask("hitl_approval_response", {"approval_id": approval_id, **answer})

    assert ack["type"] == "hitl_approval_response_ack"
    assert (ack["data"]["success"], ack["data"]["code"]) == (False, code)
    assert (await client.get(f"/hitl/approvals/{approval_id}")).json()["status"] == "pending"


async def test_pending_approvals_are_listed(client: httpx2.AsyncClient, ask: Any) -> None:
    user = str(uuid4())
    run_id = await start(client, {**run_body(echo(), **ASK), "user_id": user})
    approval = await at(client, run_id, "payload_review")
    mine = await ask("hitl_list_pending", {"user_id": user})
    everybody = await ask("hitl_list_pending", None)

    assert mine == {"type": "hitl_pending_approvals", "data": [approval]}
    assert approval["approval_id"] in {found["approval_id"] for found in everybody["data"]}


async def test_an_approval_is_cancelled_with_its_run(client: httpx2.AsyncClient, ask: Any) -> None:
    run_id = await start(client, run_body(echo(), **ASK))
    approval_id = (await at(client, run_id, "payload_review"))["approval_id"]
    for _ in range(2):
        ack = await ask("hitl_cancel_approval", {"approval_id": approval_id, "reason": "no more"})
        assert ack["type"] == "hitl_cancel_approval_ack"
        assert (ack["data"]["success"], ack["data"]["approval_id"]) == (True, approval_id)
        assert (await client.get(f"/hitl/runs/{run_id}")).json()["status"] == "cancelled"

    ack = await ask("hitl_cancel_approval", {"approval_id": str(uuid4())})
    assert (ack["data"]["success"], ack["data"]["code"]) == (False, "not_found")


async def test_a_question_of_a_program_is_cancelled_itself(client: httpx2.AsyncClient, ask: Any) -> None:
    question = {"checkpoint_type": "deploy", "message": "?", "context": {"a": 1}}
    one, two = [(await client.post("/hitl/approvals", json=question)).json()["approval_id"] for _ in range(2)]
    await decide(client, two, "approve")

    assert (await ask("hitl_cancel_approval", {"approval_id": one}))["data"]["status"] == "cancelled"
    assert (await client.get(f"/hitl/approvals/{one}")).json()["status"] == "cancelled"
    assert (await ask("hitl_cancel_approval", {"approval_id": two}))["data"]["code"] == "approval_already_decided"


@pytest.mark.parametrize(
    "body", [{"type": "subscribe", "data": {"inbox": True}}, {"type": "x"}, {"type": "ping", "more": 1}, []]
)
async def test_a_frame_that_needs_a_connection_or_is_none_is_422_over_http(
    client: httpx2.AsyncClient, body: Any
) -> None:
    answer = await client.post("/hitl/websocket/message", json=body)

    assert answer.status_code == 422
    assert answer.json()["errors"]


# hostile frames


async def still_answers(live: Socket) -> None:
    assert await live.ask("ping", {"alive": True}, "pong") == {"type": "pong", "data": {"alive": True}}


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "null", "1", "[]", '"ping"', "{}", '{"type":1}', '{"type":"nonsense"}', '{"type":"subscribe"}',
        '{"type":"subscribe","data":{}}', '{"type":"subscribe","data":[]}', '{"type":"subscribe","data":"x"}',
        '{"type":"subscribe","data":{"inbox":false}}', '{"type":"subscribe","data":{"run_id":1}}',
        '{"type":"subscribe","data":{"run_id":"x","inbox":true}}',
        '{"type":"subscribe","data":{"user_id":"u","more":1}}',
        '{"type":"subscribe","data":{"user_id":"u","after":{"x":1}}}',
        '{"type":"subscribe","data":{"user_id":"u","after":{"01890000-0000-7000-8000-000000000001":-1}}}',
        '{"type":"subscribe","data":{"user_id":"u","after":{"01890000-0000-7000-8000-000000000001":1.5}}}',
        '{"type":"hitl_approval_response","data":{"action":"approve"}}',
        '{"type":"hitl_approval_response","data":{"approval_id":"x","action":"nonsense"}}',
        '{"type":"hitl_list_pending","data":{"user_id":1}}', '{"type":"hitl_cancel_approval","data":{}}',
        '{"type":"ping","type":"ping"}', '{"type":"ping","data":NaN}', '{"type":"ping","data":"\\u0000"}',
        '{"type":"ping","data":"\\ud800"}', '{"type":"ping","data":[1]}', "[" * 100_000,
        '{"type":"ping","data":' + '{"a":' * 500 + "1" + "}" * 501, '{"type":"ping","data":1' + "0" * 5000 + "}",
    ],
)  # fmt: skip
async def test_a_bad_frame_is_answered_and_the_connection_lives_on(stack: Stack, text: str) -> None:
    async with socket(stack.base_url) as live:
        await live.connection.send(text)
        error = await live.hear()
        assert error["type"] == "error"
        assert error["data"]["code"] in ("invalid_json", "validation_failed")
        assert error["data"]["message"]
        await still_answers(live)


async def test_a_binary_frame_is_answered_and_the_connection_lives_on(stack: Stack) -> None:
    async with socket(stack.base_url) as live:
        await live.connection.send(b'{"type":"ping"}')
        assert (await live.hear())["data"]["code"] == "invalid_json"
        await still_answers(live)


async def test_an_unknown_run_is_an_error(stack: Stack) -> None:
    async with socket(stack.base_url) as live:
        for name in (str(uuid4()), "x", "\x01"):
            error = await live.ask("subscribe", {"run_id": name})
            assert (error["type"], error["data"]["code"]) == ("error", "not_found")
        await still_answers(live)


async def test_a_frame_over_a_mebibyte_closes_with_1009_and_nobody_else_notices(stack: Stack) -> None:
    async with socket(stack.base_url) as other:
        for size, fits in ((1024 * 1024, True), (1024 * 1024 + 1, False), (17 * 1024 * 1024, False)):
            async with socket(stack.base_url) as live:
                head = '{"type":"ping","data":{"a":"'
                with suppress(ConnectionClosed):  # the largest is not even read to its end
                    await live.connection.send(head + "x" * (size - len(head) - 3) + '"}}')
                if fits:
                    assert (await live.hear())["type"] == "pong"
                else:
                    assert await live.ended() == 1009
        await still_answers(other)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
TYPES = st.sampled_from(
    ["subscribe", "unsubscribe", "hitl_approval_response", "hitl_list_pending", "hitl_cancel_approval", "ping"]
)
NAMES = st.sampled_from(
    ["run_id", "session_id", "user_id", "inbox", "after", "approval_id", "action", "edits", "reason", "approved"]
)
FRAME = st.fixed_dictionaries({"type": TYPES | JSON, "data": st.dictionaries(NAMES, JSON, max_size=4) | JSON})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.lists(FRAME.map(json.dumps) | st.text() | st.binary(), max_size=12))
def test_whatever_is_sent_is_answered_one_for_one(stack: Stack, frames: list[str | bytes]) -> None:
    async def talk() -> None:
        async with socket(stack.base_url) as live:
            for said in frames:
                await live.connection.send(said)
                answer = await live.hear(
                    "error", "pong", "subscribed", "unsubscribed", "hitl_approval_response_ack",
                    "hitl_pending_approvals", "hitl_cancel_approval_ack",
                )  # fmt: skip
                assert isinstance(answer["data"], dict | list)
            await still_answers(live)

    asyncio.run(talk())


async def test_no_frame_was_a_fault_of_ours(stack: Stack) -> None:
    """Runs last in this file: whatever was sent above, the service met no fault of its own."""
    log = (Path(stack.folder) / "web.log").read_text()

    assert '"live.failed"' not in log
    assert '"live.frame_failed"' not in log
