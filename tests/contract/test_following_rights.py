"""Contract, sections 3 and 8: who may follow what, and that what is open ends with its key."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import pytest_asyncio
from websockets.exceptions import InvalidStatus

from service.commands.keys import revoke_key
from service.runtime import open_runtime
from service.settings import Settings
from service.store.database import EVERY
from tests.conftest import DEADLINE_S, Stack, at, echo, run_body, settled, start, web
from tests.contract.test_conventions import Secured
from tests.following import blocks, socket, stream, told

ASK = {"policy": "require_human", "allowed_steps": ["payload_review"]}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def locked(stack: Stack) -> AsyncIterator[Secured]:
    """A web process that wants keys; the one worker serves it too."""
    env = stack.env
    settings = Settings(
        database_url=env["DATABASE_URL"], redis_url=env["REDIS_URL"], hitl_secret_key=env["HITL_SECRET_KEY"],
        _env_file=None,
    )  # fmt: skip
    async with AsyncExitStack() as opened:
        runtime = await opened.enter_async_context(open_runtime(settings, process="test"))
        url = opened.enter_context(web({**env, "HITL_AUTH": "required"}, stack.folder, "locked"))
        yield Secured(url, runtime.services, opened)


def bearing(key: str) -> dict[str, Any]:
    return {"additional_headers": {"Authorization": f"Bearer {key}"}}


async def refused(url: str, *protocols: str, **options: Any) -> int:
    with pytest.raises(InvalidStatus) as refusal:
        async with socket(url, *protocols, **options):
            pass
    return refusal.value.response.status_code


async def test_a_socket_wants_a_key_or_a_ticket(locked: Secured) -> None:
    assert await refused(locked.url) == 401
    assert await refused(locked.url, **bearing("hitl_nonsense")) == 401
    assert await refused(locked.url, "hitl.v1", "hitl.ticket.nonsense") == 401
    async with socket(locked.url, **bearing((await locked.key("submitter"))[1])) as live:
        assert (await live.ask("ping"))["type"] == "pong"


async def test_a_key_in_the_query_opens_nothing(locked: Secured) -> None:
    _, key = await locked.key("admin")
    async with httpx2.AsyncClient(base_url=locked.url, trust_env=False) as client:
        for name in ("key", "token", "access_token", "ticket"):
            assert (await client.get("/hitl/events", params={"user_id": "u", name: key})).status_code == 401


async def test_a_ticket_acts_for_the_one_who_asked_for_it(locked: Secured) -> None:
    _, key = await locked.key("service", tenant="tickets", groups=("ops",))
    client = await locked.bearing(key, **{"X-HITL-Actor": "ada"})
    run_id = await start(client, run_body(echo(), reviewers={"users": ["ada"]}, **ASK))
    approval = await at(client, run_id, "payload_review")
    ticket = (await client.post("/hitl/ws/ticket")).json()["ticket"]

    async with socket(locked.url, "hitl.v1", f"hitl.ticket.{ticket}") as live:
        ack = await live.ask("hitl_approval_response", {"approval_id": approval["approval_id"], "action": "approve"})
    assert ack["data"]["success"] is True
    decided = (await client.get(f"/hitl/approvals/{approval['approval_id']}")).json()
    assert decided["decisions"][0]["actor"] == "ada"


async def test_a_ticket_of_a_revoked_key_or_from_before_its_time_opens_nothing(locked: Secured) -> None:
    key_id, key = await locked.key("reviewer")
    client = await locked.bearing(key)
    old, orphan = [(await client.post("/hitl/ws/ticket")).json()["ticket"] for _ in range(2)]
    async with locked.services.db.transaction(EVERY) as conn:
        await conn.execute("update ws_tickets set expires_at = now() where key_id = $1", key_id)
    assert await refused(locked.url, "hitl.v1", f"hitl.ticket.{old}") == 401
    async with locked.services.db.transaction(EVERY) as conn:
        await conn.execute("update ws_tickets set expires_at = now() + interval '1 min' where key_id = $1", key_id)
    await revoke_key(locked.services.db, key_id)
    assert await refused(locked.url, "hitl.v1", f"hitl.ticket.{orphan}") == 401


async def test_tickets_are_kept_as_hashes_only(locked: Secured) -> None:
    client = await locked.client("reviewer")
    ticket = (await client.post("/hitl/ws/ticket")).json()["ticket"]
    async with locked.services.db.connection(EVERY) as conn:
        rows = await conn.fetch("select ws_tickets::text as row from ws_tickets")

    assert rows
    assert not [row for row in rows if ticket in row["row"]]


async def test_another_tenant_sees_and_moves_nothing(locked: Secured) -> None:
    _, ours = await locked.key("admin", tenant="ours")
    _, theirs = await locked.key("admin", tenant="theirs")
    client, stranger = await locked.bearing(ours), await locked.bearing(theirs)
    name = str(uuid4())
    body = {**run_body(echo(), **ASK), "session_id": name, "user_id": name}
    old = await start(client, body)
    approval = await at(client, old, "payload_review")
    async with socket(locked.url, **bearing(theirs)) as live:
        error = await live.ask("subscribe", {"run_id": old, "after": {}})
        assert (error["type"], error["data"]["code"]) == ("error", "not_found")
        for topic in ({"session_id": name, "after": {}}, {"user_id": name, "after": {old: 1}}, {"inbox": True}):
            assert (await live.ask("subscribe", topic))["type"] == "subscribed"
        assert (await live.ask("subscribe", {"inbox": True, "after": {old: 0}}))["type"] == "subscribed"
        answer = {"approval_id": approval["approval_id"], "action": "approve"}
        assert (await live.ask("hitl_approval_response", answer))["data"]["code"] == "not_found"
        assert (await live.ask("hitl_cancel_approval", {"approval_id": answer["approval_id"]}))["data"][
            "code"
        ] == "not_found"
        assert (await live.ask("hitl_list_pending"))["data"] == []
        fresh = await start(client, body)
        await at(client, fresh, "payload_review")
        own = await start(stranger, {**run_body(echo()), "session_id": name})  # told after what came before it
        await live.until_over()
        assert {frame["run_id"] for frame in live.seen if "event" in frame} == {own}

    assert (await stranger.get(f"/hitl/runs/{old}/events", headers={"Accept": "text/event-stream"})).status_code == 404
    async with stream(client, "/hitl/events", session_id=name) as answer:
        async for block in blocks(answer):
            cursor = block.id
            break
    await client.delete(f"/hitl/run/{fresh}")
    async with stream(stranger, "/hitl/events", last=cursor, session_id=name) as answer:
        await settled(stranger, own := await start(stranger, {**run_body(echo()), "session_id": name}))
        assert {block.json["run_id"] for block in await told(answer, 3)} == {own}


async def test_a_role_does_over_a_socket_what_it_may_and_no_more(locked: Secured) -> None:
    tenant = f"roles-{uuid4().hex[:6]}"
    client = await locked.client("submitter", tenant=tenant)
    approval_id = (await at(client, await start(client, run_body(echo(), **ASK)), "payload_review"))["approval_id"]

    async def codes(role: Any) -> tuple[Any, Any]:
        async with socket(locked.url, **bearing((await locked.key(role, tenant=tenant))[1])) as live:
            answer = {"approval_id": approval_id, "action": "approve", "payload_sha256": "0" * 64}
            decided = await live.ask("hitl_approval_response", answer)
            cancelled = await live.ask("hitl_cancel_approval", {"approval_id": str(uuid4())})
        return decided["data"]["code"], cancelled["data"]["code"]

    assert await codes("submitter") == ("forbidden", "not_found")
    assert await codes("reviewer") == ("payload_changed", "forbidden")
    assert await codes("service") == ("payload_changed", "not_found")
    assert await codes("admin") == ("payload_changed", "not_found")


async def test_what_is_open_ends_when_the_key_is_revoked(locked: Secured) -> None:
    key_id, key = await locked.key("reviewer")
    client = await locked.bearing(key)
    ticket = (await client.post("/hitl/ws/ticket")).json()["ticket"]
    async with (
        socket(locked.url, **bearing(key)) as one,
        socket(locked.url, "hitl.v1", f"hitl.ticket.{ticket}") as two,
        socket(locked.url, **bearing((await locked.key("reviewer"))[1])) as other,
        stream(client, "/hitl/events", session_id="s") as line,
    ):
        await one.ask("subscribe", {"inbox": True})
        await revoke_key(locked.services.db, key_id)
        assert [await one.ended(), await two.ended()] == [1008, 1008]
        assert await told(line) == []
        assert (await other.ask("ping"))["type"] == "pong"


async def test_a_long_poll_that_outlives_its_key_tells_nothing(locked: Secured) -> None:
    tenant = f"polls-{uuid4().hex[:6]}"
    client = await locked.client("admin", tenant=tenant)
    key_id, key = await locked.key("reviewer", tenant=tenant)
    waiting, other = await locked.bearing(key), await locked.client("reviewer", tenant=tenant)
    run_id = await start(client, run_body(echo(), **ASK))
    approval_id = (await at(client, run_id, "payload_review"))["approval_id"]
    path = f"/hitl/approvals/{approval_id}"
    polls = [asyncio.create_task(one.get(path, params={"wait": 60})) for one in (waiting, other)]
    async with socket(locked.url, **bearing(key)) as live:  # once it is closed, the key is known to be over everywhere
        await live.ask("ping")
        await revoke_key(locked.services.db, key_id)
        assert await live.ended() == 1008
    await client.delete(f"/hitl/run/{run_id}")
    answers = await asyncio.gather(*polls)

    assert [answer.status_code for answer in answers] == [401, 200]
    assert approval_id not in answers[0].text


async def test_what_is_open_ends_when_the_key_is_over(locked: Secured) -> None:
    key_id, key = await locked.key("reviewer", expires_in_s=3600)
    async with socket(locked.url, **bearing(key)) as live:
        await live.ask("ping")
        async with locked.services.db.transaction(EVERY) as conn:
            await conn.execute("update api_keys set expires_at = now() where id = $1", key_id)
        assert await live.ended() == 1008


async def test_a_reader_that_left_is_forgotten(locked: Secured) -> None:
    """Hundreds come and go, politely or not; one who stays is told as before."""
    _, key = await locked.key("admin", tenant="leavers")
    client = await locked.bearing(key)
    session = str(uuid4())

    async def leaves(n: int) -> None:
        async with socket(locked.url, **bearing(key)) as live:
            await live.ask("subscribe", {"session_id": session})
            if n % 2:
                live.connection.transport.abort()

    async with socket(locked.url, **bearing(key)) as stays, asyncio.timeout(DEADLINE_S):
        await stays.ask("subscribe", {"session_id": session})
        await asyncio.gather(*(leaves(n) for n in range(100)))
        await start(client, {**run_body(echo()), "session_id": session})
        frames = await stays.until_over()
    assert [frame["seq"] for frame in frames] == list(range(1, len(frames) + 1))
