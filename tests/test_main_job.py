"""The main job over real HTTP: start, review, edit, call, review, result."""

from hashlib import sha256

import httpx2

from tests.conftest import Provider, at, decide, http_tool, run_body, settled, start


async def test_what_is_approved_is_what_is_sent(client: httpx2.AsyncClient, provider: Provider) -> None:
    provider.script = [(200, {"image": "https://example.com/fox.png"})]
    body = run_body(http_tool(provider.url), policy="require_human")
    run_id = await start(client, body)

    first = await at(client, run_id, "information_review")
    assert (await decide(client, first["approval_id"], "approve")).status_code == 200
    second = await at(client, run_id, "payload_review")
    assert second["context"]["payload"] == {"prompt": "a red fox", "num_outputs": 1}
    edited = await decide(client, second["approval_id"], "edit", edits={"num_outputs": 3, "prompt": "two foxes"})
    assert edited.json()["status"] == "edited"
    third = await at(client, run_id, "response_review")
    assert third["context"]["output"] == {"image": "https://example.com/fox.png"}
    await decide(client, third["approval_id"], "edit", edits={"response": {"image": "kept"}})
    run = await settled(client, run_id, "completed")

    sent = provider.seen[0]
    assert sent.body == b'{"num_outputs":3,"prompt":"two foxes"}'
    assert sha256(sent.body).hexdigest() == run["payload_sha256"] == sent.headers["x-hitl-payload-sha256"]
    assert run["result"] == {"image": "kept"}
    assert run["raw_response"] == {"image": "https://example.com/fox.png"}
    assert [entry["step"] for entry in run["progress"]["step_history"]] == [
        "information_review",
        "payload_review",
        "api_call",
        "response_review",
    ]
