"""Every door writes down who decided and when they first saw what they decided."""

from typing import Any
from uuid import UUID

import httpx2

from service.store.database import EVERY
from tests.conftest import Stack, at, echo, eventually, run_body, start
from tests.contract.conftest import Secured
from tests.following import socket


async def asked(client: httpx2.AsyncClient) -> tuple[str, dict[str, Any]]:
    run_id = await start(client, run_body(echo(), policy="require_human"))
    return run_id, await at(client, run_id, "information_review")


async def decided(client: httpx2.AsyncClient, run_id: str) -> dict[str, Any]:
    """The event of the run's first decision."""
    events = (await client.get(f"/hitl/runs/{run_id}/events")).json()["events"]
    found: dict[str, Any] = next(event for event in events if event["type"] == "approval.decided")
    return found


async def test_without_auth_it_is_said_so_and_the_run_page_counts_as_opening(client: httpx2.AsyncClient) -> None:
    run_id, approval = await asked(client)
    answer = await client.post(f"/hitl/run/{run_id}/approve", json={"action": "approve"})
    assert answer.status_code == 200
    data = (await decided(client, run_id))["data"]
    assert (data["authenticated_by"], data["role"], data["approval_id"]) == ("off", "admin", approval["approval_id"])
    assert data["first_seen_at"] is not None, "`at` has read the run"


async def test_a_key_is_named_in_one_decision_and_in_many(client: httpx2.AsyncClient, secured: Secured) -> None:
    key_id, secret = await secured.key("reviewer", subject="rita")
    rita = await secured.bearing(secret)
    for many in (False, True):
        run_id, approval = await asked(client)
        path = f"/hitl/approvals/{approval['approval_id']}"
        assert (await rita.get(path)).status_code == 200
        body: dict[str, Any] = {"action": "approve"}
        if many:
            body, path = {"decisions": [{**body, "approval_id": approval["approval_id"]}]}, "/hitl/approvals/decisions"
        else:
            path += "/decision"
        assert (await rita.post(path, json=body)).status_code == 200
        event = await decided(client, run_id)
        data = event["data"]
        assert (event["actor"], data["role"]) == ("rita", "reviewer")
        assert (data["authenticated_by"], data["credential"]) == ("api_key", str(key_id))
        assert data["first_seen_by_anyone_at"] < data["first_seen_at"], "dev has seen it before"


async def test_whom_a_service_names_is_vouched_for_and_a_program_that_polls_has_seen_nothing(
    client: httpx2.AsyncClient, secured: Secured
) -> None:
    key_id, secret = await secured.key("service")
    program, ann = await secured.bearing(secret), await secured.bearing(secret, **{"X-HITL-Actor": "ann"})
    asking = {"checkpoint_type": "deploy", "message": "May it go?", "context": {}}
    question = (await program.post("/hitl/approvals", json=asking)).json()
    path = f"/hitl/approvals/{question['approval_id']}"
    assert (await program.get(path)).status_code == 200
    assert await views(secured, question) == {}
    assert (await ann.get(path)).status_code == 200
    assert await views(secured, question) == {"ann": "http"}
    assert (await ann.post(f"{path}/decision", json={"action": "approve"})).status_code == 200
    async with secured.services.db.connection(EVERY) as conn:
        row = await conn.fetchrow(
            "select actor, role, authenticated_by, credential, first_seen_at from decisions where approval_id = $1",
            UUID(question["approval_id"]),
        )
    assert row is not None and row["first_seen_at"] is not None
    assert tuple(row)[:4] == ("ann", "service", "actor", str(key_id))


async def test_a_socket_that_carried_it_has_shown_it_and_a_ticket_keeps_whose_it_is(
    client: httpx2.AsyncClient, secured: Secured
) -> None:
    key_id, secret = await secured.key("reviewer", subject="tick")
    ticket = (await (await secured.bearing(secret)).post("/hitl/ws/ticket")).json()["ticket"]
    async with socket(secured.url, "hitl.v1", f"hitl.ticket.{ticket}") as live:
        await live.ask("subscribe", {"inbox": True}, "subscribed")
        run_id, approval = await asked(client)
        while (await live.hear("hitl_approval_request"))["run_id"] != run_id:
            pass

        async def noted() -> bool:
            return (await views(secured, approval)).get("tick") == "websocket"

        assert await eventually(noted, "the view")
        response = {"approval_id": approval["approval_id"], "action": "approve"}
        ack = await live.ask("hitl_approval_response", response, "hitl_approval_response_ack")
    assert ack["data"]["success"], ack
    data = (await decided(client, run_id))["data"]
    assert (data["authenticated_by"], data["credential"]) == ("api_key", str(key_id))
    assert (data["channel"], data["first_seen_at"] is not None) == ("websocket", True)


async def test_the_page_of_a_link_is_opening_and_a_scanners_head_is_not(
    client: httpx2.AsyncClient, stack: Stack
) -> None:
    run_id, approval = await asked(client)
    made = await client.post(f"/hitl/approvals/{approval['approval_id']}/link", json={"reviewer": "lea"})
    path = made.json()["url"].split("://", 1)[1].split("/", 1)[1]
    assert (await client.head(f"/{path}")).status_code == 200
    page = await client.get(f"/{path}")
    nonce = page.text.split('name="nonce" value="', 1)[1].split('"', 1)[0]
    assert (await client.post(f"/{path}", data={"action": "approve", "nonce": nonce})).status_code == 200
    data = (await decided(client, run_id))["data"]
    assert (data["authenticated_by"], data["credential"], data["channel"]) == ("link", "dev", "link")
    assert data["first_seen_at"] is not None


async def test_a_worker_anchors_by_itself_and_says_so(client: httpx2.AsyncClient, stack: Stack) -> None:
    await asked(client)

    async def said() -> bool:
        return '"audit.anchored"' in stack.log("worker")

    assert await eventually(said, "the line")


async def views(secured: Secured, approval: dict[str, Any]) -> dict[str, str]:
    async with secured.services.db.connection(EVERY) as conn:
        rows = await conn.fetch(
            "select subject, channel from approval_views where approval_id = $1", UUID(approval["approval_id"])
        )
    return {row["subject"]: row["channel"] for row in rows}
