"""AsyncAPI 3 from the frame models: what the WebSocket reads and sends is what is described.

https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, Literal

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from service import __version__
from service.api.frames import ANSWERS, CLIENT, EVENT_FRAMES, SUBPROTOCOL
from service.domain.event import EventType

_REF: Final = "#/components/schemas/{model}"
_CHANNEL: Final = "#/channels/socket"
_REPLIES: Final[Mapping[str, str]] = {
    "subscribe": "subscribed",
    "unsubscribe": "unsubscribed",
    "hitl_approval_response": "hitl_approval_response_ack",
    "hitl_list_pending": "hitl_pending_approvals",
    "hitl_cancel_approval": "hitl_cancel_approval_ack",
    "ping": "pong",
}


@cache
def document() -> dict[str, Any]:
    """The whole document. Cached: it changes only with the code."""
    kinds: list[tuple[str, JsonSchemaMode, Any]] = []
    kinds += [(name, "validation", model) for name, model in CLIENT.items()]
    kinds += [(name, "serialization", model) for name, model in {**EVENT_FRAMES, **ANSWERS}.items()]
    adapters = [(name, mode, TypeAdapter(model)) for name, mode, model in kinds]
    refs, defs = TypeAdapter.json_schemas(adapters, ref_template=_REF, schema_generator=GenerateJsonSchema)
    schemas = dict(defs.get("$defs", {}))
    messages = {}
    for name, mode, model in kinds:
        event = name in EVENT_FRAMES
        schemas[f"{name}_frame"] = _frame(name, refs[(name, mode)], event=event, bare=name == "ping")
        messages[name] = _message(name, model)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Human-in-the-loop runs, live",
            "version": __version__,
            "description": "Every change of every run, once and in order. Frames are JSON text: {type, data}.",
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "channels": {"socket": _channel(list(messages))},
        "operations": _operations(),
        "components": {"messages": messages, "schemas": schemas, "securitySchemes": _SECURITY},
    }


_SECURITY: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "hitl keys create"},
    "ticket": {
        "type": "httpApiKey",
        "name": "Sec-WebSocket-Protocol",
        "in": "header",
        "description": "for browsers: hitl.v1, hitl.ticket.<ticket> of POST /hitl/ws/ticket",
    },
}


def _channel(names: list[str]) -> dict[str, Any]:
    return {
        "address": "/hitl/ws",
        "title": "The WebSocket",
        "description": f"Subprotocol {SUBPROTOCOL}.",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
        "bindings": {"ws": {"method": "GET"}},
    }


def _operations() -> dict[str, Any]:
    found: dict[str, Any] = {}
    security = [{"$ref": "#/components/securitySchemes/bearer"}, {"$ref": "#/components/securitySchemes/ticket"}]
    for name, reply in _REPLIES.items():
        found[name] = {
            **_operation("receive", [name], _summary(CLIENT[name])),
            "security": security,
            "reply": {"channel": {"$ref": _CHANNEL}, "messages": _in_channel([reply, "error"])},
        }
    found["events"] = _operation("send", list(EVENT_FRAMES), "Exactly one frame for each event")
    return found


def _operation(action: Literal["send", "receive"], names: list[str], summary: str) -> dict[str, Any]:
    return {"action": action, "channel": {"$ref": _CHANNEL}, "summary": summary, "messages": _in_channel(names)}


def _in_channel(names: list[str]) -> list[dict[str, str]]:
    return [{"$ref": f"{_CHANNEL}/messages/{name}"} for name in names]


def _message(name: str, model: Any) -> dict[str, Any]:
    return {
        "name": name,
        "summary": _summary(model),
        "contentType": "application/json",
        "payload": {"$ref": f"#/components/schemas/{name}_frame"},
    }


def _summary(model: Any) -> str:
    described = isinstance(model, type) and issubclass(model, BaseModel)
    return (inspect.getdoc(model) or "").split("\n")[0] if described and model.__doc__ else "The approvals"


def _frame(name: str, data: Any, *, event: bool, bare: bool) -> dict[str, Any]:
    """`{type, data}`, and for one that tells an event `{…, run_id, seq, event}`."""
    properties: dict[str, Any] = {"type": {"const": name}, "data": data}
    required = ["type"] if bare else ["type", "data"]
    if event:
        properties |= {
            "run_id": {"type": ["string", "null"], "format": "uuid"},
            "seq": {"type": ["integer", "null"], "minimum": 1},
            "event": {"enum": [kind.value for kind in EventType]},
        }
        required += ["run_id", "seq", "event"]
    return {"type": "object", "properties": properties, "required": required}
