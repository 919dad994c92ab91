"""The AsyncAPI document describes the frames that are read and sent: same models, sound structure."""

import re
from collections.abc import Iterator
from typing import Any

import httpx2
import jsonschema_rs
import pytest

from service.api.asyncapi import document
from service.api.frames import ANSWERS, CLIENT, EVENT_FRAMES
from service.domain.event import EventType
from tests.conftest import Stack, echo, run_body, start
from tests.following import socket


def resolved(ref: str) -> Any:
    found: Any = document()
    for part in ref.removeprefix("#/").split("/"):
        found = found[part]
    return found


def refs(node: Any) -> Iterator[str]:
    match node:
        case {"$ref": str() as ref}:
            yield ref
        case dict():
            for value in node.values():
                yield from refs(value)
        case list():
            for value in node:
                yield from refs(value)


def validator(name: str) -> jsonschema_rs.Draft202012Validator:
    schemas = document()["components"]["schemas"]
    return jsonschema_rs.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}_frame", "components": {"schemas": schemas}}
    )


def test_the_document_has_the_shape_of_asyncapi_3() -> None:
    """The rules of the specification's own schema, for the objects that are used."""
    doc = document()
    assert re.fullmatch(r"3\.0\.\d", doc["asyncapi"])
    assert {"title", "version"} <= doc["info"].keys()
    assert doc.keys() <= {
        "asyncapi",
        "id",
        "info",
        "servers",
        "defaultContentType",
        "channels",
        "operations",
        "components",
    }
    for channel in doc["channels"].values():
        assert channel.keys() <= {
            "address", "messages", "title", "summary", "description", "servers", "parameters", "tags",
            "externalDocs", "bindings",
        }  # fmt: skip
        assert all(message.keys() == {"$ref"} for message in channel["messages"].values())
    for operation in doc["operations"].values():
        assert operation["action"] in ("send", "receive")
        assert operation["channel"]["$ref"].startswith("#/channels/")
        assert operation["messages"]
        # an operation's messages are a subset of its channel's, referenced there
        inside = operation["channel"]["$ref"] + "/messages/"
        for message in [*operation["messages"], *operation.get("reply", {}).get("messages", [])]:
            assert message["$ref"].startswith(inside)
    for message in doc["components"]["messages"].values():
        assert message.keys() <= {
            "headers", "payload", "correlationId", "contentType", "name", "title", "summary", "description", "tags",
            "externalDocs", "bindings", "examples", "traits",
        }  # fmt: skip
        assert message["summary"]
    for scheme in doc["components"]["securitySchemes"].values():
        assert scheme["type"] in ("http", "httpApiKey")
    assert all(re.fullmatch(r"[\w.\-]+", name) for part in doc["components"].values() for name in part)


def test_every_reference_leads_somewhere() -> None:
    for ref in refs(document()):
        assert resolved(ref) is not None


def test_every_frame_is_described_and_its_schema_is_sound() -> None:
    assert document()["components"]["messages"].keys() == {*CLIENT, *EVENT_FRAMES, *ANSWERS}
    for name in document()["components"]["messages"]:
        validator(name)


async def test_it_is_served_to_anybody(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/asyncapi.json")).json() == document()


async def test_what_is_sent_fits_what_is_described(stack: Stack, client: httpx2.AsyncClient) -> None:
    async with socket(stack.base_url) as live:
        run_id = await start(client, run_body(echo(), policy="require_human", allowed_steps=["payload_review"]))
        await live.ask("subscribe", {"run_id": run_id, "after": {}})
        asked = await live.hear("hitl_approval_request")
        await live.say("hitl_list_pending")
        await live.say("hitl_approval_response", {"approval_id": asked["data"]["approval_id"], "action": "approve"})
        await live.until_over()
        await live.ask("hitl_cancel_approval", {"approval_id": "x"}, "hitl_cancel_approval_ack")
        await live.ask("unsubscribe", {"run_id": run_id}, "unsubscribed")
        await live.ask("nonsense", None, "error")
        await live.ask("ping", None, "pong")

    assert {frame["type"] for frame in live.seen} == {*EVENT_FRAMES, *ANSWERS} - {"hitl_error"}
    for frame in live.seen:
        assert [error.message for error in validator(frame["type"]).iter_errors(frame)] == []
        assert "event" not in frame or frame["event"] in set(EventType)


@pytest.mark.parametrize("bad", [{"type": "subscribe", "data": {"inbox": 1}}, {"type": "hitl_cancel_approval"}])
def test_what_is_refused_does_not_fit(bad: dict[str, Any]) -> None:
    assert not validator(bad["type"]).is_valid(bad)
