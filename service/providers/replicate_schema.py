"""What Replicate tells of a model, in our terms: the schema of its input, an example, and the faults of a 422."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from service.domain import schema as schemas
from service.domain.canonical import JSON

_VERBATIM: Final = frozenset({"default", "example", "examples", "enum", "const"})
_MAX_HOPS: Final = 16
# one line of a 422's detail: "- input.num_outputs: Must be less than or equal to 4", "- input: prompt is required"
_LINE: Final = re.compile(r"(?:-\s+|(?=input\b))(?P<field>[\w.\[\]-]+):\s+(?P<text>.+)")
_BARE: Final = re.compile(r"-\s+(?P<text>.+)")
_NAMED: Final = re.compile(
    r"(?:Additional property (?P<extra>\S+) is not allowed|(?P<absent>\S+) is required)$", re.IGNORECASE
)
# what a fault's text says of the allowed values, and how we say it
_FIXES: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), fix)
    for pattern, fix in (
        (r"must be one of(?: the following)?:?\s*(.+)$", "{}"),
        (r"must be less than or equal to (\S+)$", "at most {}"),
        (r"must be greater than or equal to (\S+)$", "at least {}"),
        (r"must be less than (\S+)$", "less than {}"),
        (r"must be greater than (\S+)$", "greater than {}"),
        (r"invalid type\. expected: ([^,]+)", "a value of type {}"),
    )
)


def input_schema(version: Mapping[str, JSON]) -> dict[str, JSON] | None:
    """The Input of a version's `openapi_schema` as a schema of its own; null where there is none that we take.

    Enums that stand behind a `$ref` are written in place, OpenAPI 3.0's `nullable` and boolean bounds become
    JSON Schema's, and the properties come in the order in which Replicate shows them.
    """
    root = version.get("openapi_schema")
    components = root.get("components") if isinstance(root, Mapping) else None
    parts = components.get("schemas") if isinstance(components, Mapping) else None
    node = parts.get("Input") if isinstance(parts, Mapping) else None
    if not isinstance(node, Mapping):
        return None
    try:
        found: dict[str, JSON] = _Inliner(root).inlined(node)
        schemas.check(found)
    except (schemas.BadSchema, RecursionError):
        return None
    if isinstance(own := node.get("properties"), Mapping):
        ordered = sorted(own, key=lambda name: _order(own[name]))
        found["properties"] = {name: found["properties"][name] for name in ordered}
    return found


def example_input(model: Mapping[str, JSON], schema: JSON) -> dict[str, JSON] | None:
    """The input of the model's own example, as far as the schema knows its fields."""
    example = model.get("default_example")
    given = example.get("input") if isinstance(example, Mapping) else None
    if not isinstance(given, Mapping):
        return None
    known = schemas.properties(schema, schema) if schema is not None else given
    return {name: value for name, value in given.items() if name in known}


def faults(answer: JSON) -> list[dict[str, Any]]:
    """Every fault that a 422 names: `invalid_fields`, a list of `{loc|field, msg|message}`, or lines of text."""
    about = answer if isinstance(answer, Mapping) else {"detail": answer}
    found = [
        fault
        for key in ("invalid_fields", "errors", "detail", "error", "title")
        for fault in _faults_in(about.get(key))
    ]
    named = [fault for fault in found if fault["field"]]
    chosen = named or found[:1] or [_fault("", "refused by the provider")]
    return list({(fault["field"], fault["issue"]): fault for fault in chosen}.values())


def _faults_in(told: JSON) -> list[dict[str, Any]]:
    match told:
        case str():
            return _faults_of_lines(told)
        case Mapping():
            return [_fault(str(name), _joined(text)) for name, text in told.items()]
        case list():
            return [_fault_of(entry) for entry in told]
        case _:
            return []


def _faults_of_lines(text: str) -> list[dict[str, Any]]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    structured = [match for line in lines if (match := _LINE.match(line) or _BARE.match(line))]
    if not structured:
        return [_fault("", text.strip())] if lines else []
    return [_fault(match.groupdict().get("field") or "", match["text"]) for match in structured]


def _fault_of(entry: JSON) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        return _fault("", str(entry))
    where = next((entry[key] for key in ("field", "loc", "path", "pointer") if entry.get(key)), "")
    spelled = ".".join(str(part) for part in where) if isinstance(where, list) else str(where).replace("/", ".")
    text = next((entry[key] for key in ("description", "msg", "message", "issue") if entry.get(key)), None)
    return _fault(spelled, _joined(text or "refused by the provider"))


def _joined(text: JSON) -> str:
    return ", ".join(map(str, text)) if isinstance(text, list) else str(text)


def _fault(where: str, text: str) -> dict[str, Any]:
    parts = [part for part in re.split(r"[.\[\]]+", where) if part]
    while parts and parts[0] in ("body", "input"):
        parts.pop(0)
    named = _NAMED.search(text)
    if not parts and named:  # the field is told inside the text: "input: prompt is required"
        parts = [named["extra"] or named["absent"]]
    fixes = (fix.format(found[1].replace('"', "")) for pattern, fix in _FIXES if (found := pattern.search(text)))
    return {
        "field": ".".join(parts),
        "issue": text.strip(),
        "severity": "error",
        "suggested_fix": next(fixes, None),
        "auto_fixable": False,
    }


@dataclass(slots=True)
class _Inliner:
    """Writes what a `$ref` points at in its place. Anybody may publish a model, so the work is bounded."""

    root: JSON
    left: int = schemas.MAX_EXPANDED

    def inlined(self, node: JSON, hops: int = _MAX_HOPS) -> Any:
        self.left -= 1
        if self.left < 0:
            raise schemas.BadSchema("expands to too many subschemas")
        if isinstance(node, list):
            return [self.inlined(one, hops) for one in node]
        if not isinstance(node, Mapping):
            return node
        own = {
            key: self._value(key, value, hops)
            for key, value in node.items()
            if key not in ("$ref", "allOf") and not key.startswith("x-")
        }
        target = _target(self.root, node["$ref"]) if "$ref" in node and hops else None
        parts = [self.inlined(part, hops) for part in node.get("allOf") or ()]
        parts += [self.inlined(target, hops - 1)] if isinstance(target, Mapping) else []
        if len(parts) == 1 and isinstance(parts[0], Mapping):
            own = {**parts[0], **own}
        elif parts:
            own["allOf"] = parts
        return _as_json_schema(own)

    def _value(self, key: str, value: JSON, hops: int) -> JSON:
        if key in _VERBATIM:
            return value
        if key == "properties" and isinstance(value, Mapping):  # names, not keywords
            return {name: self.inlined(one, hops) for name, one in value.items()}
        return self.inlined(value, hops)


def _as_json_schema(node: dict[str, JSON]) -> dict[str, JSON]:
    """OpenAPI 3.0's own keywords, which cog still writes, in JSON Schema's words."""
    for bound, plain in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(node.get(bound), bool):
            exclusive = node.pop(bound)
            if exclusive and plain in node:
                node[bound] = node.pop(plain)
    if node.pop("nullable", None) is True and isinstance(node.get("type"), str):
        node["type"] = [node["type"], "null"]
        if isinstance(node.get("enum"), list) and None not in node["enum"]:
            node["enum"] = [*node["enum"], None]
    return node


def _target(root: JSON, ref: JSON) -> JSON:
    here = root
    for part in str(ref).removeprefix("#/").split("/"):
        here = here.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(here, Mapping) else None
    return here


def _order(node: JSON) -> float:
    order = node.get("x-order") if isinstance(node, Mapping) else None
    return float(order) if isinstance(order, int | float) else float("inf")
