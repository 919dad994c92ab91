import json
import time
from typing import Any

import pytest

from service.domain.schema import BadSchema, Violation, check, facets, properties, required, violations


def _nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels - 1):
        schema = {"not": schema}
    return schema


def _laughs(levels: int) -> dict[str, Any]:
    twice = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(levels)}
    return {"$ref": "#/$defs/d0", "$defs": {**twice, f"d{levels}": {"type": "integer"}}}


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"seed": {"type": "integer", "maximum": 2**64}}},
        {"properties": {"child": {"$ref": "#"}}},
        {"allOf": [{"$ref": "#"}]},
        {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"},
        {"type": "string", "format": "of-our-own"},
        _nested(32),
    ],
)
def test_a_schema_of_the_world_is_taken(schema: Any) -> None:
    check(schema)


@pytest.mark.parametrize(
    "schema",
    [
        [],
        True,
        None,
        "{}",
        {"type": "foo"},
        {"minimum": "1"},
        {"pattern": "("},
        {"$ref": "https://example.com/schema.json"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "#/$defs/nowhere"},
        {"$id": "http://127.0.0.1:1/a", "properties": {"x": {"$ref": "b"}}},
        {"$schema": "https://example.com/meta"},
        {"const": float("nan")},
        {"const": object()},
        pytest.param({"description": "x" * 64 * 1024}, id="64-kib"),
        pytest.param({"enum": list(range(15_000))}, id="large-enum"),
        _nested(33),
        pytest.param(_nested(5_000), id="nested-5000"),
        _laughs(28),
    ],
)
def test_a_schema_that_does_not_compile_alone_and_small_is_refused(schema: Any) -> None:
    started = time.monotonic()

    with pytest.raises(BadSchema):
        check(schema)

    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("schema", "value", "expected"),
    [
        ({"required": ["prompt"]}, {}, ("/prompt", "is required")),
        ({"type": "integer"}, "4", ("", "must be of type integer")),
        ({"type": ["null", "string"]}, 4, ("", "must be of type string or null")),
        ({"enum": ["a", "b", 3]}, "c", ("", "must be one of: a, b, 3")),
        ({"const": "x"}, "y", ("", "must be x")),
        ({"maximum": 4}, 5, ("", "must be at most 4")),
        ({"minimum": 1}, 0, ("", "must be at least 1")),
        ({"exclusiveMinimum": 0}, 0, ("", "must be greater than 0")),
        ({"exclusiveMaximum": 1}, 1, ("", "must be less than 1")),
        ({"multipleOf": 8}, 9, ("", "must be a multiple of 8")),
        ({"minLength": 1}, "", ("", "must not be empty")),
        ({"maxLength": 2}, "abc", ("", "must have at most 2 characters")),
        ({"minItems": 2}, [1], ("", "must have at least 2 items")),
        ({"pattern": "^a$"}, "b", ("", "must match the pattern ^a$")),
        ({"format": "uri"}, "not a uri", ("", "must have the format uri")),
        ({"uniqueItems": True}, [1, 1], ("", "must not repeat an item")),
        ({"properties": {}, "additionalProperties": False}, {"a/b": 1}, ("/a~1b", "is not a known field")),
        (
            {"properties": {"a": {"items": {"type": "number"}}}},
            {"a": [1, "x"]},
            ("/a/1", "must be of type number"),
        ),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, 7, ("", "must be of type string or null")),
        ({"anyOf": [{"type": "string"}, {"type": "number", "maximum": 3}]}, 7, ("", "must be at most 3")),
        ({"oneOf": [{"minimum": 9}, {"maximum": 3}]}, 7, ("", "must match one of the allowed forms")),
        ({"oneOf": [{"minimum": 1}, {"maximum": 9}]}, 7, ("", "must match exactly one of the allowed forms")),
    ],
)
def test_each_fault_is_told_by_its_pointer_and_what_is_allowed(
    schema: Any, value: Any, expected: tuple[str, str]
) -> None:
    assert violations(schema, value) == (Violation(*expected),)


def test_all_faults_are_told_and_none_repeats_the_value() -> None:
    schema = {
        "type": "object",
        "required": ["prompt", "image"],
        "properties": {
            "count": {"type": "integer"},
            "size": {"enum": ["s", "m"]},
            "code": {"pattern": "^x"},
            "any": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "uri": {"format": "uri"},
            "not": {"not": {"type": "string"}},
        },
    }
    value = dict.fromkeys(schema["properties"], "hunter2 secret")

    found = violations(schema, value)

    assert len(found) == 8
    assert "hunter2" not in json.dumps([violation.message for violation in found])


def test_a_fitting_value_and_a_missing_schema_have_no_faults() -> None:
    assert violations(None, {"anything": 1}) == ()
    assert violations({"required": ["a"]}, {"a": None}) == ()


def test_text_that_is_not_unicode_is_a_fault_not_a_crash() -> None:
    assert violations({"type": "string"}, "\ud800") == (Violation("", "must not hold a lone surrogate"),)


def test_facets_follow_local_references_and_leave_null_out() -> None:
    root = {
        "$defs": {"ratio": {"type": "string", "enum": ["1:1", "16:9"]}},
        "properties": {
            "ratio": {"allOf": [{"$ref": "#/$defs/ratio"}], "default": "1:1"},
            "seed": {"anyOf": [{"type": "integer"}, {"type": "null"}], "title": "Seed"},
            "name": {"type": ["string", "null"]},
            "loop": {"$ref": "#/properties/loop"},
            "far": {"$ref": "https://example.com/x"},
        },
        "required": ["ratio"],
    }
    parts = properties(root, root)

    assert facets(root, parts["ratio"]) == {"type": "string", "enum": ["1:1", "16:9"], "default": "1:1"}
    assert facets(root, parts["seed"])["type"] == "integer"
    assert facets(root, parts["name"]) == {"type": "string"}
    assert facets(root, parts["loop"]) == facets(root, parts["far"]) == {}
    assert required(root, root) == ("ratio",)
    assert properties(None, None) == {}
