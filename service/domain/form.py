"""What a human is shown of a payload: a form to fill in, and what is wrong with it."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from service.domain import schema as schemas
from service.domain.canonical import JSON
from service.domain.fields import Field, fields_of
from service.domain.payload import missing

_NOBODY: Final[Mapping[str, str]] = MappingProxyType({})
_QUESTIONS: Final[Mapping[str, str]] = {
    "image": "Which image should be used?",
    "audio": "Which audio should be used?",
    "video": "Which video should be used?",
    "file": "Which file should be used?",
}
_BOUNDS: Final[Mapping[str, str]] = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "exclusiveMinimum": "greater than {}",
    "exclusiveMaximum": "less than {}",
    "multipleOf": "a multiple of {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "pattern": "matching {}",
}


def form(
    payload: Mapping[str, JSON],
    schema: JSON | None,
    origins: Mapping[str, str],
    *,
    title: str,
    editors: Mapping[str, str] = _NOBODY,
    first: Iterable[str] = (),
) -> dict[str, JSON]:
    """The form of contract section 6, a field for each that schema or payload knows, those of `first` first.

    `{"title", "fields": [{name, label, type, category, required, current_value, default, prompt,
    collection, hint, allowed, origin, edited_by}]}`; `category`: content | setting | hybrid; `type`: string |
    integer | number | boolean | array | object | enum; `allowed`: the values of an enum; `origin`: prompt |
    attachment | conversation | example | schema_default | edited, null for a field that nothing has filled.
    """
    known = fields_of(schema, payload)
    # what a closed schema does not name is shown too, so that a human can remove it
    known |= fields_of(None, {name: value for name, value in payload.items() if name not in known})
    ahead = dict.fromkeys(name.partition(".")[0] for name in first)
    ordered = [
        known[name]
        for name in (*(name for name in ahead if name in known), *(name for name in known if name not in ahead))
    ]
    return {"title": title, "fields": [_row(field, payload, origins, editors) for field in ordered]}


def issues(payload: Mapping[str, JSON], schema: JSON | None) -> list[dict[str, JSON]]:
    """What keeps a payload from being sent: `[{field, issue, severity, suggested_fix, auto_fixable}]`.

    Missing fields first, then violations of the schema; `field` is the payload's name, dotted inside
    objects; `suggested_fix` lists allowed values and ranges. Raises `schema.BadSchema`.
    """
    absent = missing(payload, schema)
    known = fields_of(schema, payload)
    found = [_issue(name, "is required", known.get(name)) for name in absent]
    for violation in schemas.violations(schema, payload):
        path = [part.replace("~1", "/").replace("~0", "~") for part in violation.pointer.split("/")[1:]]
        top = path[0] if path else ""
        if top not in absent:
            found.append(_issue(".".join(path), violation.message, known.get(top), nested=len(path) > 1))
    return found


def with_allowed(issue: Mapping[str, JSON], payload: Mapping[str, JSON], schema: JSON | None) -> dict[str, JSON]:
    """A provider's complaint with what stands there now and, where our schema knows it, what is allowed."""
    node, value = _at(schema, str(issue["field"]).split("."), payload)
    facets = schemas.facets(schema, node)
    fix = issue.get("suggested_fix") or " ".join(allowed(facets)) or None
    return {**issue, "suggested_fix": fix, "current_value": value, "allowed_values": facets.get("enum")}


def _at(schema: JSON | None, path: Sequence[str], value: JSON) -> tuple[JSON, JSON]:
    """The part of the schema, and the value, that a dotted path leads to; null where it leads nowhere."""
    node = schema
    for name in path:
        if isinstance(value, list) and name.isdigit():
            node = schemas.facets(schema, node).get("items")
            value = value[int(name)] if int(name) < len(value) else None
        else:
            node = schemas.properties(schema, node).get(name)
            value = value.get(name) if isinstance(value, Mapping) else None
    return node, value


def _row(
    field: Field, payload: Mapping[str, JSON], origins: Mapping[str, str], editors: Mapping[str, str]
) -> dict[str, JSON]:
    return {
        "name": field.name,
        "label": _label(field),
        "type": _type(field),
        "category": field.category,
        "required": field.required,
        "current_value": payload.get(field.name),
        "default": field.facets.get("default"),
        "prompt": _question(field),
        "collection": field.type == "array",
        "hint": _hint(field),
        "allowed": field.facets.get("enum"),
        "origin": origins.get(field.name),
        "edited_by": editors.get(field.name),
    }


def _label(field: Field) -> str:
    title = field.facets.get("title")
    words = field.name.replace("_", " ").replace("-", " ").strip()
    return title if isinstance(title, str) and title else words[:1].upper() + words[1:]


def _type(field: Field) -> str:
    return "enum" if "enum" in field.facets else field.type or "string"


def _question(field: Field) -> str:
    if field.kind is not None and field.kind in _QUESTIONS:
        return _QUESTIONS[field.kind]
    label = _label(field)
    if field.kind == "text":
        return "What should be made?" if field.name == "prompt" else f"What is the {label.lower()}?"
    match _type(field):
        case "boolean":
            return f"{label}: yes or no?"
        case "enum":
            return f"Which {label.lower()} should be used?"
        case "array":
            return f"Which values for {label.lower()}?"
        case _:
            return f"What {label.lower()} should be used?"


def _hint(field: Field) -> str:
    description = field.facets.get("description")
    told = [description] if isinstance(description, str) and description else []
    return " ".join([*told, *allowed(field.facets)])


def allowed(facets: Mapping[str, JSON]) -> list[str]:
    """The allowed values and ranges, as sentences; empty where the schema sets none."""
    options = facets.get("enum")
    told = [f"One of: {', '.join(map(schemas.spelled, options))}."] if isinstance(options, list) else []
    bounds = [text.format(facets[key]) for key, text in _BOUNDS.items() if key in facets]
    return [*told, f"Allowed: {', '.join(bounds)}."] if bounds else told


def _issue(name: str, issue: str, field: Field | None, *, nested: bool = False) -> dict[str, JSON]:
    default = field.facets.get("default") if field and not nested else None
    told = [] if field is None or nested else allowed(field.facets)
    return {
        "field": name,
        "issue": issue,
        "severity": "error",
        "suggested_fix": " ".join(told) or (f"Give {name} a value." if issue == "is required" else _fix(issue)),
        "auto_fixable": default is not None and field.category == "setting" if field else False,
    }


def _fix(issue: str) -> str:
    return "Remove it." if issue in ("is not a known field", "is not allowed") else f"It {issue}."
