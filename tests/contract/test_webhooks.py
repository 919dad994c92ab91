"""Contract, section 9, on the running service: a callback goes out by a worker process and is signed."""

import httpx2
from standardwebhooks.webhooks import Webhook

from tests.conftest import Provider, Stack, at, decide, echo, eventually, run_body, settled, start


async def test_a_run_calls_back_signed_and_says_in_the_log_only_to_which_host(
    client: httpx2.AsyncClient, provider: Provider, stack: Stack
) -> None:
    url = f"{provider.url}?token=swordfish"
    run_id = await start(client, {**run_body(echo(), policy="require_human"), "callback_url": url})
    approval = await at(client, run_id, "information_review")
    assert (await decide(client, approval["approval_id"], "reject", reason="no")).status_code == 200
    assert (await settled(client, run_id))["status"] == "cancelled"

    async def told() -> bool:
        return len(provider.seen) == 3

    await eventually(told, "the webhooks")
    answer = await client.get("/hitl/webhooks/secret")
    assert answer.status_code == 200 and answer.headers["cache-control"] == "no-store"
    secret = answer.json()["key"]
    for seen in provider.seen:
        assert Webhook(secret).verify(seen.body, seen.headers)
    assert [s.json["type"] for s in provider.seen] == ["approval.requested", "approval.decided", "run.cancelled"]
    assert provider.seen[-1].json["data"]["run"]["error"]["code"] == "rejected"

    async def logged() -> bool:
        return stack.log("worker").count("webhook.delivered") >= 3

    await eventually(logged, "the log line")
    assert "swordfish" not in stack.log("worker") + stack.log("web")


async def test_the_queue_counts_messages(client: httpx2.AsyncClient) -> None:
    queue = (await client.get("/hitl/queue")).json()
    assert queue["deliveries_waiting"] >= 0 and queue["deliveries_dead"] >= 0
