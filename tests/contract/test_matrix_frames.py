"""Who may do what over a WebSocket: the handshake and every frame of a client, tried by everybody over the socket and
over `POST /hitl/websocket/message`. The expected answer of each cell stands in FRAMES and HANDSHAKES.

The frames are those of the code's own table: one that is in no row fails here until somebody says who may send it.
"""

from collections.abc import Mapping
from typing import Any, Final
from uuid import uuid4

import pytest
from websockets.exceptions import InvalidStatus

from service.api.frames import CLIENT, Subscribe, Unsubscribe
from tests.contract.everybody import EVERYBODY, World
from tests.following import socket

MEANINGS: Final = {
    "role": "forbidden",
    "list": "not_a_reviewer",
    "self": "self_approval",
    "othr": "not_found",
    "422": "validation_failed",
}
"""A cell is `ok`, or 401 at the door, or one of these codes: the role may not, not in the reviewers list, the ban on
self-approval, another tenant's, not to be asked this way."""

FOLLOWS = "401 401 401 401   ok   ok   ok   ok    ok   ok    ok    ok  401"
FOLLOWS_RUN = FOLLOWS.replace("ok    ok   ok    ok    ok", "ok    ok   ok  othr    ok")
ASKS = FOLLOWS
DECIDES = "401 401 401 401  role   ok   ok   ok  list self  othr    ok  401"
CANCELS = "401 401 401 401    ok role   ok   ok  role   ok  othr  role  401"
NEEDS_A_SOCKET = "401 401 401 401   422  422  422  422   422  422   422   422  401"

FRAMES: Final[Mapping[tuple[str, str], tuple[str, str]]] = {  # over the socket, over HTTP
    # who is:                 none bad over revk  subm revw admn serv  nogr self  othr  oidc oold
    ("subscribe", "run_id"): (FOLLOWS_RUN, NEEDS_A_SOCKET),
    ("subscribe", "session_id"): (FOLLOWS, NEEDS_A_SOCKET),
    ("subscribe", "user_id"): (FOLLOWS, NEEDS_A_SOCKET),
    ("subscribe", "inbox"): (FOLLOWS, NEEDS_A_SOCKET),
    ("unsubscribe", "run_id"): (FOLLOWS, NEEDS_A_SOCKET),
    ("unsubscribe", "session_id"): (FOLLOWS, NEEDS_A_SOCKET),
    ("unsubscribe", "user_id"): (FOLLOWS, NEEDS_A_SOCKET),
    ("unsubscribe", "inbox"): (FOLLOWS, NEEDS_A_SOCKET),
    ("hitl_approval_response", ""): (DECIDES, DECIDES),
    ("hitl_list_pending", ""): (ASKS, ASKS),
    ("hitl_cancel_approval", ""): (CANCELS, CANCELS),
    ("ping", ""): (ASKS, ASKS),
}

HANDSHAKES: Final[Mapping[str, str]] = {
    # who is:           none bad over revk  subm revw admn serv  nogr self  othr  oidc oold
    "by the header": "  401 401 401 401  101 101 101 101  101 101  101  101 401",
    "by a ticket": "    401 401 401 401  101 101 101 101  101 101  101  101 401",
    "by a ticket again": "401 401 401 401  401 401 401 401  401 401  401  401 401",
    "by a key as a ticket": "401 401 401 401  401 401 401 401  401 401  401  401 401",
    "by a foreign page": "403 403 403 403  403 403 403 403  403 403  403  403 403",
}


def test_every_frame_stands_in_the_matrix() -> None:
    follows = {name: set(kind.model_fields) - {"after"} for name, kind in CLIENT.items() if issubclass(kind, Subscribe)}
    served = {(name, way) for name in CLIENT for way in follows.get(name, {""})}

    for name, way in sorted(served - FRAMES.keys()):
        pytest.fail(f"the frame {name} {way} is in no row of FRAMES: say there who may send it")
    assert FRAMES.keys() == served
    rows = [*HANDSHAKES.values(), *(row for both in FRAMES.values() for row in both)]
    assert {len(row.split()) for row in rows} == {len(EVERYBODY.split())}
    assert {cell for both in FRAMES.values() for row in both for cell in row.split()} <= {"ok", "401", *MEANINGS}
    assert issubclass(Unsubscribe, Subscribe)


def data_of(frame: str, way: str, ids: Mapping[str, str]) -> dict[str, Any]:
    """What makes the frame one that would be taken."""
    match frame, way:
        case _, "inbox":
            return {"inbox": True}
        case _, "user_id":
            return {"user_id": "u-of-nobody"}
        case (("subscribe" | "unsubscribe"), _):
            return {way: ids[way]}
        case "hitl_approval_response", _:
            return {"approval_id": ids["approval_id"], "action": "approve"}
        case "hitl_cancel_approval", _:
            return {"approval_id": ids["approval_id"]}
        case _:
            return {}


def expected(row: str) -> dict[str, str]:
    return {name: MEANINGS.get(cell, cell) for name, cell in zip(EVERYBODY.split(), row.split(), strict=True)}


@pytest.mark.parametrize(("frame", "way"), list(FRAMES), ids=lambda part: part or "-")
async def test_everybody_is_answered_over_a_socket_as_the_matrix_says(world: World, frame: str, way: str) -> None:
    told = {name: await over_socket(world, name, frame, way) for name in EVERYBODY.split()}

    assert told == expected(FRAMES[frame, way][0])


@pytest.mark.parametrize(("frame", "way"), list(FRAMES), ids=lambda part: part or "-")
async def test_everybody_is_answered_over_http_as_the_matrix_says(world: World, frame: str, way: str) -> None:
    told = {name: await over_http(world, name, frame, way) for name in EVERYBODY.split()}

    assert told == expected(FRAMES[frame, way][1])


async def over_socket(world: World, name: str, frame: str, way: str) -> str:
    ids = await world.ids()
    before = await world.versions(ids)
    data = data_of(frame, way, ids)
    try:
        async with socket(world.url, **bearing(world, name)) as live:
            answer = await live.ask(frame, data)
    except InvalidStatus as refusal:
        assert await world.versions(ids) == before
        return str(refusal.response.status_code)
    return await judged(world, name, ids, before, data, answer)


async def over_http(world: World, name: str, frame: str, way: str) -> str:
    ids = await world.ids()
    before = await world.versions(ids)
    data = data_of(frame, way, ids)
    answer = await world.clients[name].post("/hitl/websocket/message", json={"type": frame, "data": data})
    if answer.status_code == 401:
        assert await world.versions(ids) == before
        return "401"
    if answer.status_code != 200:
        return str(answer.json()["code"])
    return await judged(world, name, ids, before, data, answer.json())


async def judged(
    world: World, name: str, ids: Mapping[str, str], before: Any, data: Mapping[str, Any], answer: dict[str, Any]
) -> str:
    """`ok` or the code of the refusal, which changes nothing and tells another tenant nothing."""
    told = answer["data"]
    code = None if not isinstance(told, dict) or told.get("success", answer["type"] != "error") else told["code"]
    moved = await world.versions(ids) != before
    if code is not None or answer["type"] not in ("hitl_approval_response_ack", "hitl_cancel_approval_ack"):
        assert not moved, f"{name} was told {answer['type']} {code} and changed something"
    else:
        assert moved, f"{name} was told that it was done"
    if name == "othr":
        unasked = set(ids.values()) - set(map(str, data.values()))
        assert not [value for value in unasked if value in str(answer)], "it told another tenant of an id"
    return str(code) if code else "ok"


@pytest.mark.parametrize("way", list(HANDSHAKES))
async def test_everybody_is_let_in_as_the_matrix_says(world: World, way: str) -> None:
    told = {name: await shake(world, name, way) for name in EVERYBODY.split()}

    assert told == dict(zip(EVERYBODY.split(), map(int, HANDSHAKES[way].split()), strict=True))


async def shake(world: World, name: str, way: str) -> int:
    """The status of the handshake; who is let in is themselves."""
    if way == "by the header":
        return await opened(world, name, **bearing(world, name))
    if way == "by a foreign page":
        return await opened(world, name, origin="https://evil.example", **bearing(world, name))
    if way == "by a key as a ticket":
        return await opened(world, name, "hitl.v1", f"hitl.ticket.{world.keys[name] or 'none'}")
    issued = await world.clients[name].post("/hitl/ws/ticket")
    if issued.status_code != 201:
        return issued.status_code
    shown = ("hitl.v1", f"hitl.ticket.{issued.json()['ticket']}")
    first = await opened(world, name, *shown)
    return first if way == "by a ticket" else await opened(world, name, *shown)


async def opened(world: World, name: str, *protocols: str, **options: Any) -> int:
    try:
        async with socket(world.url, *protocols, **options) as live:
            unknown = {"approval_id": str(uuid4()), "action": "approve"}
            code = (await live.ask("hitl_approval_response", unknown))["data"]["code"]
            assert code == ("forbidden" if name == "subm" else "not_found")
            return 101
    except InvalidStatus as refusal:
        return refusal.response.status_code


def bearing(world: World, name: str) -> dict[str, Any]:
    key = world.keys[name]
    return {"additional_headers": {"Authorization": f"Bearer {key}"} if key else {}}
