"""`hitl payload explain`: the payload that a request would give, and where each value comes from. No server."""

from collections.abc import Mapping
from typing import Any, BinaryIO, Final

import click
import orjson
from pydantic import BaseModel, ValidationError

from service.api.models import RunInput, StartHitlRequest, StartRunRequest
from service.api.operation import pointers
from service.border.body import parse
from service.cli.output import dumps, json_option, show
from service.domain import form, payload
from service.domain.call import Description
from service.domain.canonical import NotCanonical, payload_sha256
from service.domain.fields import fields_of
from service.domain.question import prepared
from service.domain.schema import BadSchema, check
from service.errors import Invalid, NoProvider
from service.providers.config import config_of

TOOLS: Final = ("echo-agent-tool", "http-agent-tool", "openai-agent-tool", "replicate-agent-tool")
COLUMNS: Final = ("field", "kind", "type", "required", "origin", "value")


@click.group("payload")
def payload_group() -> None:
    """Payloads: how one is built."""


@payload_group.command("explain")
@click.argument("file", type=click.File("rb"))
@click.option("--schema", type=click.File("rb"), help="The model's input schema, where the tool's config has none.")
@json_option
def explain(file: BinaryIO, schema: BinaryIO | None, as_json: bool) -> None:
    """The payload of the start request or run_input in FILE (- for standard input), field by field.

    Pure: no provider is asked, so a model's schema is known only from the tool's config or from --schema.
    """
    run_input = _run_input(parse(file.read()))
    tool, config = _tool(run_input.get("agent_tool_config"))
    known = _schema(schema.read() if schema else config.get("schema"))
    example = config.get("example_input")
    about = Description(schema=known, example=example if isinstance(example, Mapping) else None)
    description, built = prepared(run_input, about)
    told = _told(tool, description, built)
    if as_json:
        click.echo(dumps(told))
        return
    summary = f"{tool}: confidence {told['confidence']}, {told['changes']} fields differ from the example"
    missing = f", missing: {', '.join(told['missing'])}" if told["missing"] else ""
    click.echo(summary + missing)
    show(told["fields"], COLUMNS, as_json=False)
    for issue in told["validation_issues"]:
        click.echo(f"{issue['field']}: {issue['issue']}", err=True)


def _run_input(document: Any) -> dict[str, Any]:
    """Of a start request, of the body of /teams/run-hitl, or the run input itself."""
    model: type[BaseModel] = RunInput
    if isinstance(document, dict) and "run_input" in document:
        model = StartHitlRequest if document.keys() <= {"run_input", "hitl_config"} else StartRunRequest
    try:
        found = model.model_validate(document)
    except ValidationError as error:
        raise Invalid("the request is not valid", errors=pointers(error)) from None
    whole = found.model_dump(mode="json", exclude_none=True)
    inner: dict[str, Any] = whole.get("run_input", whole)
    return inner


def _tool(agent_tool_config: Mapping[str, Any] | None) -> tuple[str, Mapping[str, Any]]:
    named = [tool for tool in agent_tool_config or {} if tool in TOOLS]
    if len(named) != 1 or agent_tool_config is None:
        raise NoProvider("agent_tool_config must name one of: " + ", ".join(TOOLS))
    entry = agent_tool_config[named[0]]
    if not isinstance(entry, Mapping):
        raise Invalid(f"the config of {named[0]} must be an object")
    return named[0], config_of(entry)


def _schema(given: Any) -> Any:
    """The schema of the config, or the bytes of a file: a model's own may hold numbers that no request may."""
    try:
        schema = orjson.loads(given) if isinstance(given, bytes) else given
        if schema is not None:
            check(schema)
    except (BadSchema, orjson.JSONDecodeError) as error:
        raise Invalid(f"the schema {error}" if isinstance(error, BadSchema) else "the schema is not JSON") from None
    return schema


def _told(tool: str, about: Mapping[str, Any], built: Mapping[str, Any]) -> dict[str, Any]:
    schema = about["schema"]
    rows = form.form(built, schema, about["origins"], title=tool)["fields"]
    carried = {name: one.kind for name, one in fields_of(schema, about["baseline"]).items()}
    for row in rows:
        row |= {"field": row["name"], "kind": _kind(row, carried.get(row["name"])), "value": row["current_value"]}
    return {
        "tool": tool,
        "payload": dict(built),
        "payload_sha256": _hash(built),
        "confidence": about["confidence"],
        "changes": payload.changes(about["baseline"], built),
        "missing": about["missing"],
        "validation_issues": form.issues(built, schema),
        "fields": rows,
    }


def _kind(row: Mapping[str, Any], carried: str | None) -> str:
    return f"{row['category']}: {carried}" if carried else str(row["category"])


def _hash(built: Mapping[str, Any]) -> str | None:
    try:
        return payload_sha256(built)
    except NotCanonical:
        return None
