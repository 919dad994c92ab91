"""JSON Schemas of payloads: taken in with care, compiled once, and violations told without the value."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import jsonschema_rs
from jsonschema_rs import ValidationError, ValidationErrorKind

from service.domain.canonical import JSON
from service.domain.patch import pointer

MAX_BYTES: Final = 64 * 1024
MAX_DEPTH: Final = 32
MAX_EXPANDED: Final = 100_000  # nodes once every $ref is followed: a "billion laughs" schema has more
_BACKTRACKS: Final = 100_000
_MAX_REF_HOPS: Final = 8
_COMBINED: Final = frozenset({"$ref", "allOf", "anyOf", "oneOf"})


class BadSchema(ValueError):
    """A schema that we do not take; the message is for the client and repeats no content."""

    code = "bad_schema"


@dataclass(frozen=True, slots=True)
class Violation:
    """One fault of a value: `pointer` (RFC 6901; a missing field's own) and a message without the value."""

    pointer: str
    message: str


def check(schema: JSON) -> None:
    """Refuse a schema that is no object, is over 64 KiB or 32 levels, or does not compile offline.

    Raises `BadSchema`. No `$ref` is ever fetched: one that leaves the document is refused.
    """
    if not isinstance(schema, Mapping):
        raise BadSchema("must be an object")
    if _depth_over(schema, MAX_DEPTH):
        raise BadSchema(f"must not be nested deeper than {MAX_DEPTH}")
    text = _spelled(schema)
    if len(text.encode()) > MAX_BYTES:
        raise BadSchema(f"must not be larger than {MAX_BYTES} bytes")
    if _weight(schema, schema, {}) > MAX_EXPANDED:
        raise BadSchema("expands to too many subschemas")
    _compiled(text)


def violations(schema: JSON | None, value: JSON) -> tuple[Violation, ...]:
    """Every fault of `value` against `schema`, in schema order; none without a schema.

    Raises `BadSchema` when the schema does not compile.
    """
    if schema is None:
        return ()
    try:
        errors = list(_compiled(_spelled(schema)).iter_errors(value))
    except UnicodeEncodeError:
        return (Violation("", "must not hold a lone surrogate"),)
    return tuple(dict.fromkeys(found for error in errors for found in _told(error)))


def facets(root: JSON | None, node: JSON) -> dict[str, JSON]:
    """`node` flattened: local `$ref`s and `allOf` merged in, the null branch of a union left out.

    The node's own keywords win over those it refers to. `type` is one name, or absent.
    """
    return _facets(root, node, _MAX_REF_HOPS)


def properties(root: JSON | None, node: JSON) -> dict[str, JSON]:
    """The properties of an object schema by name, each still as written; empty where there are none."""
    found = facets(root, node).get("properties")
    return dict(found) if isinstance(found, Mapping) else {}


def required(root: JSON | None, node: JSON) -> tuple[str, ...]:
    """The names that an object schema requires, in its order."""
    names = facets(root, node).get("required")
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list | tuple) else ()


def spelled(value: JSON) -> str:
    """A schema's value for a human: strings bare, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _facets(root: JSON | None, node: JSON, hops: int) -> dict[str, JSON]:
    if not isinstance(node, Mapping):
        return {}
    if _COMBINED.isdisjoint(node) and not isinstance(node.get("type"), list | tuple):
        return dict(node)
    own = {key: value for key, value in node.items() if key not in ("$ref", "allOf")}
    parts = [*_array(node.get("allOf")), *([_target(root, node["$ref"])] if "$ref" in node else [])]
    parts += _sole_branch(root, node)
    if hops:
        for part in parts:
            own = _merged(_facets(root, part, hops - 1), own)
    if isinstance(own.get("type"), list | tuple):
        named = [name for name in own["type"] if name != "null"]
        own = {**own, "type": named[0]} if len(named) == 1 else _without(own, "type")
    return own


def _sole_branch(root: JSON | None, node: Mapping[str, JSON]) -> list[JSON]:
    branches = [*_array(node.get("anyOf")), *_array(node.get("oneOf"))]
    real = [one for one in branches if not (isinstance(one, Mapping) and one.get("type") == "null")]
    return real if len(real) == 1 else []


def _merged(base: dict[str, JSON], own: dict[str, JSON]) -> dict[str, JSON]:
    merged = {**base, **own}
    if isinstance(base.get("properties"), Mapping) and isinstance(own.get("properties"), Mapping):
        merged["properties"] = {**base["properties"], **own["properties"]}
    if "required" in base and "required" in own:
        merged["required"] = list(dict.fromkeys([*_array(base["required"]), *_array(own["required"])]))
    return merged


def _without(node: dict[str, JSON], name: str) -> dict[str, JSON]:
    return {key: value for key, value in node.items() if key != name}


def _array(value: JSON) -> list[JSON]:
    return list(value) if isinstance(value, list | tuple) else []


def _target(root: JSON | None, ref: JSON) -> JSON:
    """What a local `#/…` reference points at; null for any other."""
    if ref == "#":
        return root
    if not (isinstance(ref, str) and ref.startswith("#/")):
        return None
    here = root
    for part in ref[2:].split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        here = here.get(name) if isinstance(here, Mapping) else None
    return here


def _depth_over(value: JSON, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [child for node in level for child in _children(node)]
    return any(isinstance(node, Mapping | list | tuple) for node in level)


def _children(node: JSON) -> Iterable[JSON]:
    if isinstance(node, Mapping):
        return node.values()
    return node if isinstance(node, list | tuple) else ()


def _weight(root: JSON, node: JSON, known: dict[str, int]) -> int:
    """How many nodes the schema has once its local references are followed; a cycle counts once."""
    total = 1 + sum(_weight(root, child, known) for child in _children(node))
    ref = node.get("$ref") if isinstance(node, Mapping) else None
    if not isinstance(ref, str):
        return total
    if ref not in known:
        known[ref] = 1
        known[ref] = _weight(root, _target(root, ref), known)
    return total + known[ref]


def _spelled(schema: JSON) -> str:
    # Not RFC 8785: model schemas in the wild carry bounds beyond 2**53 (a seed's maximum).
    try:
        return json.dumps(schema, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        raise BadSchema("must be JSON") from None


@lru_cache(maxsize=512)
def _compiled(text: str) -> jsonschema_rs.Validator:
    patterns = jsonschema_rs.FancyRegexOptions(backtrack_limit=_BACKTRACKS)
    try:
        return jsonschema_rs.validator_for(text, offline=True, validate_formats=True, pattern_options=patterns)
    except ValidationError as error:
        where = pointer(error.instance_path)
        raise BadSchema(f"is no valid JSON Schema at {where}" if where else "does not compile") from None
    except (ValueError, jsonschema_rs.ReferencingError):
        raise BadSchema("does not compile") from None


def _told(error: ValidationError) -> Iterator[Violation]:
    at = error.instance_path
    match error.kind:
        case ValidationErrorKind.Required(property=name):
            yield Violation(pointer([*at, name]), "is required")
        case ValidationErrorKind.AdditionalProperties(unexpected=names):
            yield from (Violation(pointer([*at, name]), "is not a known field") for name in names)
        case ValidationErrorKind.UnevaluatedProperties(unexpected=names):
            yield from (Violation(pointer([*at, name]), "is not a known field") for name in names)
        case ValidationErrorKind.AnyOf(context=branches) | ValidationErrorKind.OneOfNotValid(context=branches):
            yield from _told_of_branches(error, branches)
        case kind:
            yield Violation(pointer(at), _message(kind))


def _told_of_branches(error: ValidationError, branches: list[list[ValidationError]]) -> Iterator[Violation]:
    """The faults of the only branch of the value's own type, else one that names the types."""
    types = [_types_at(branch, error.instance_path) for branch in branches]
    fitting = [branch for branch, wrong in zip(branches, types, strict=True) if not wrong]
    if len(fitting) == 1:
        for inner in fitting[0]:
            yield from _told(inner)
        return
    allowed = " or ".join(dict.fromkeys(name for names in types for name in names))
    message = "must match one of the allowed forms" if fitting else f"must be of type {allowed}"
    yield Violation(pointer(error.instance_path), message)


def _types_at(branch: list[ValidationError], path: list[str | int]) -> list[str]:
    return [
        name
        for error in branch
        if error.instance_path == path and isinstance(error.kind, ValidationErrorKind.Type)
        for name in error.kind.types
    ]


def _message(kind: ValidationErrorKind) -> str:
    match kind:
        case ValidationErrorKind.Type(types=types):
            return f"must be of type {' or '.join(sorted(types, key=lambda name: name == 'null'))}"
        case ValidationErrorKind.Enum(options=options):
            return f"must be one of: {', '.join(map(spelled, options))}"
        case ValidationErrorKind.Constant(expected_value=expected):
            return f"must be {spelled(expected)}"
        case ValidationErrorKind.Minimum(limit=limit):
            return f"must be at least {limit}"
        case ValidationErrorKind.Maximum(limit=limit):
            return f"must be at most {limit}"
        case ValidationErrorKind.ExclusiveMinimum(limit=limit):
            return f"must be greater than {limit}"
        case ValidationErrorKind.ExclusiveMaximum(limit=limit):
            return f"must be less than {limit}"
        case ValidationErrorKind.MultipleOf(multiple_of=step):
            return f"must be a multiple of {step}"
        case ValidationErrorKind.MinLength(limit=limit):
            return "must not be empty" if limit == 1 else f"must have at least {limit} characters"
        case ValidationErrorKind.MaxLength(limit=limit):
            return f"must have at most {limit} characters"
        case ValidationErrorKind.MinItems(limit=limit):
            return f"must have at least {limit} items"
        case ValidationErrorKind.MaxItems(limit=limit) | ValidationErrorKind.AdditionalItems(limit=limit):
            return f"must have at most {limit} items"
        case ValidationErrorKind.MinProperties(limit=limit):
            return f"must have at least {limit} fields"
        case ValidationErrorKind.MaxProperties(limit=limit):
            return f"must have at most {limit} fields"
        case ValidationErrorKind.Pattern(pattern=pattern):
            return f"must match the pattern {pattern}"
        case ValidationErrorKind.Format(format=name):
            return f"must have the format {name}"
        case _:
            return _PLAIN.get(kind.name, f"does not satisfy {kind.name}")


_PLAIN: Final[Mapping[str, str]] = {
    "uniqueItems": "must not repeat an item",
    "contains": "lacks a required item",
    "oneOf": "must match exactly one of the allowed forms",
    "not": "must not have this form",
    "propertyNames": "has a field name that is not allowed",
    "falseSchema": "is not allowed",
    "unevaluatedItems": "has too many items",
}
