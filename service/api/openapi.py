"""OpenAPI 3.1 from the route table and the models: what is served is what is described."""

import inspect
import re
from functools import cache
from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service import __version__
from service.api.models import Problem
from service.api.operation import Operation
from service.api.routes import TABLE

_REF: Final = "#/components/schemas/{model}"
_REASONS: Final = {
    200: "Done",
    201: "Created",
    202: "Accepted",
    206: "The part that was asked for",
    304: "What the caller has is what it is",
    401: "No or bad credentials",
    403: "Known, but not allowed",
    404: "Unknown, or of another tenant",
    408: "The body did not come in time",
    409: "The state does not allow it",
    413: "The body is larger than 1 MiB",
    415: "The body is not application/json",
    416: "The range lies outside of the file",
    422: "The request is not valid",
    429: "Too many requests",
    431: "The headers are too large, or too many",
    500: "A fault of ours",
    503: "Postgres is away",
}


@cache
def document() -> dict[str, Any]:
    """The whole document. Cached: it changes only with the code."""
    inputs = {model for op in TABLE for model in (op.body, op.query) if model is not None}
    outputs = {op.answer for op in TABLE} | {Problem}
    wanted: list[tuple[type[BaseModel], Literal["validation", "serialization"]]] = []
    wanted += [(model, "validation") for model in sorted(inputs, key=_name)]
    wanted += [(model, "serialization") for model in sorted(outputs, key=_name)]
    refs, defs = models_json_schema([*wanted], ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for op in TABLE:
        paths.setdefault(op.path, {})[op.method.lower()] = _operation(op, refs, defs["$defs"])
    schemas = {name: schema for name, schema in defs["$defs"].items() if not name.endswith("Query")}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Human-in-the-loop runs",
            "version": __version__,
            "description": "Runs of AI providers that stop where a human must look.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "tags": [{"name": name} for name in ("runs", "approvals", "live", "operations", "webhooks")],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "description": "hitl keys create"}},
        },
    }


def _operation(op: Operation, refs: Any, defs: dict[str, Any]) -> dict[str, Any]:
    doc = inspect.getdoc(op.handler) or ""
    described: dict[str, Any] = {
        "operationId": _operation_id(op),
        "summary": doc.split("\n")[0],
        "tags": [op.tag],
        "parameters": _parameters(op, defs),
        "responses": _responses(op, refs),
    }
    if op.body is not None:
        schema = refs[(op.body, "validation")]
        whole = schema if op.body_required else {"anyOf": [schema, {"type": "null"}]}  # null says as much as no body
        described["requestBody"] = {"required": op.body_required, "content": {"application/json": {"schema": whole}}}
    elif op.any_body or op.signed_body:
        described["requestBody"] = {"required": False, "content": {"application/json": {"schema": {}}}}
    if op.permission is None:
        described["security"] = []
    return described


def _operation_id(op: Operation) -> str:
    name = op.handler.__name__
    twins = [other for other in TABLE if other.handler is op.handler]
    return name if twins[0] is op else f"{name}_{op.path.strip('/').rsplit('/', 1)[-1]}"


def _parameters(op: Operation, defs: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": _path_schema(name)}
        for name in re.findall(r"{(\w+)}", op.path)
    ]
    query = defs.get(op.query.__name__, {})
    found += [
        {"name": name, "in": "query", "required": name in query.get("required", ()), "schema": _in_text(schema)}
        for name, schema in query.get("properties", {}).items()
    ]
    if op.status in (201, 202) and op.body is not None and op.body_required:
        schema = {"type": "string", "minLength": 1, "maxLength": 255}
        found.append({"name": "Idempotency-Key", "in": "header", "required": False, "schema": schema})
    if "text/event-stream" in op.media_types:
        found.append({"name": "Last-Event-ID", "in": "header", "required": False, "schema": {"type": "string"}})
    return found


def _in_text(schema: dict[str, Any]) -> dict[str, Any]:
    """A query has no null: what may be left out is left out."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    return {**{name: value for name, value in schema.items() if name not in ("anyOf", "default")}, **kinds[0]}


def _path_schema(name: str) -> dict[str, Any]:
    return {"type": "string", "format": "uuid"} if name in ("run_id", "approval_id", "file_id") else {"type": "string"}


def _responses(op: Operation, refs: Any) -> dict[str, Any]:
    content = {kind: {"schema": refs[(op.answer, "serialization")]} for kind in op.media_types}
    answers: dict[str, Any] = {str(op.status): {"description": _REASONS[op.status], "content": content}}
    problem = {"application/problem+json": {"schema": refs[(Problem, "serialization")]}}
    codes = set(op.problems) | {422, 431, 500}
    if op.path == "/readyz":
        answers["503"] = {"description": _REASONS[503], "content": content}
        codes.discard(503)
    if 416 in op.problems:
        answers |= {"206": {"description": _REASONS[206], "content": content}, "304": {"description": _REASONS[304]}}
    if op.path not in ("/readyz", "/healthz"):
        codes |= {503}
    if op.permission is not None:
        codes |= {401, 403}
    if op.body is not None:
        codes |= {408, 413, 415}
    for code in sorted(codes):
        answers[str(code)] = {"description": _REASONS[code], "content": problem}
        if code in (429, 503):
            schema = {"type": "integer"}
            answers[str(code)]["headers"] = {"Retry-After": {"schema": schema, "description": "seconds"}}
    return answers


def _name(model: type[BaseModel]) -> str:
    return model.__name__
