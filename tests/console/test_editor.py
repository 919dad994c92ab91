"""The form of a payload: what nobody touched comes back as it was, what somebody typed keeps its type."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.console.editor import MISSING, Input, inputs_of, placed, read
from service.console.page import Form
from service.domain.canonical import same
from service.domain.patch import NoPatch, merge_patch, patch_between

TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False,
    allow_infinity=False) | TEXT  # fmt: skip
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=4)
SCHEMA = {
    "type": "object",
    "properties": {
        "prompt": {"type": "string"},
        "n": {"type": "integer", "minimum": 1},
        "weight": {"type": "number"},
        "on": {"type": "boolean"},
        "size": {"enum": ["small", 2, None]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "sizes": {"type": "array", "items": {"type": "integer"}},
        "frame": {"$ref": "#/$defs/frame"},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/frame"}},
        "free": {},
    },
    "required": ["prompt", "tags"],
    "$defs": {"frame": {"type": "object", "properties": {"w": {"type": "integer"}, "note": {"type": "string"}}}},
}


def leaves(one: Input) -> Iterator[Input]:
    if one.kind in ("object", "list"):
        for child in one.children:
            yield from leaves(child)
    else:
        yield one


def as_sent(root: Input, **typed: str) -> Form:
    """What a browser sends of the form: with its own line ends, and with what was typed."""
    pairs = [(one.name, typed.get(one.path, one.value)) for one in leaves(root)]
    pairs += [(name, value) for name, value in typed.items() if name.startswith("x/")]
    return Form(
        tuple((name, value.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")) for name, value in pairs)
    )


def after(payload: Any, **typed: str) -> tuple[Any, list[str]]:
    root = inputs_of(SCHEMA, payload)
    value, faults = read(root, as_sent(root, **typed))
    return value, [f"{fault.path} {fault.message}" for fault in faults]


@given(OBJECTS)
def test_without_a_schema_what_nobody_touched_comes_back(payload: Any) -> None:
    root = inputs_of(None, payload)

    value, faults = read(root, as_sent(root))

    assert faults == []
    assert same(value, payload) or (payload == {} and value is not MISSING)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(SCHEMA["properties"], VALUES)))  # type: ignore[attr-defined]
def test_with_a_schema_what_nobody_touched_comes_back_however_wrong_it_is(payload: Any) -> None:
    root = inputs_of(SCHEMA, payload)

    value, faults = read(root, as_sent(root))

    assert faults == []
    assert same({} if value is MISSING else value, payload)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ({"/n": "3"}, {"n": 3}),
        ({"/n": " -3 "}, {"n": -3}),
        ({"/weight": "3"}, {"weight": 3}),
        ({"/weight": "0.5"}, {"weight": 0.5}),
        ({"/weight": "1e3"}, {"weight": 1000.0}),
        ({"/on": "false"}, {"on": False}),
        ({"/size": "2"}, {"size": 2}),
        ({"/size": '"small"'}, {"size": "small"}),
        ({"/tags": "red\n\n fox "}, {"tags": ["red", "fox"]}),
        ({"/sizes": "1\n2"}, {"sizes": [1, 2]}),
        ({"/frame/w": "8"}, {"frame": {"w": 8}}),
        ({"/parts/0/w": "8"}, {"parts": [{"w": 8}]}),
        ({"/prompt": ""}, {"prompt": ""}),
        ({"/free": '{"a": [1]}'}, {"free": {"a": [1]}}),
        ({"/prompt": "one\ntwo"}, {"prompt": "one\ntwo"}),
    ],
)
def test_what_is_typed_keeps_the_type_of_its_field(typed: dict[str, str], expected: dict[str, Any]) -> None:
    value, faults = after({"prompt": "p", "tags": []}, **typed)

    assert faults == []
    assert value == {"prompt": "p", "tags": [], **expected}
    assert [type(value[name]) for name in expected] == [type(one) for one in expected.values()]


@pytest.mark.parametrize(
    ("typed", "fault"),
    [
        ({"/n": "1.5"}, "/n must be a whole number"),
        ({"/weight": "much"}, "/weight must be a number, as 0.5"),
        ({"/weight": "NaN"}, "/weight must be a number, as 0.5"),
        ({"/sizes": "1\nx"}, "/sizes must be a whole number"),
        ({"/on": "maybe"}, "/on must be true or false"),
        ({"/free": "{"}, "/free it is not JSON: "),
        ({"/free": '{"a": 1, "a": 2}'}, "/free an object has a key twice"),
    ],
)
def test_what_cannot_be_a_value_says_where(typed: dict[str, str], fault: str) -> None:
    _, faults = after({"prompt": "p", "tags": []}, **typed)

    assert len(faults) == 1 and faults[0].startswith(fault), faults


def test_what_a_schema_allows_is_offered_and_said() -> None:
    schema = {
        "type": "object",
        "properties": {
            "style": {"oneOf": [{"const": "wc", "title": "Watercolour"}, {"const": 2}, {"type": "null"}]},
            "fixed": {"const": "v1"},
            "seed": {"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "null"}]},
            "day": {"type": "string", "format": "date"},
            "tags": {"type": "array", "maxItems": 3, "items": {"enum": ["red", "green"]}},
            "frame": {"type": "object", "properties": {"note": {"type": "string", "minLength": 2}}},
        },
    }
    root = inputs_of(schema, {"style": 2, "fixed": "v1", "day": "2026-02-01", "tags": ["red"], "frame": {"note": "ok"}})
    found = {one.path: one for one in leaves(root)}

    assert (found["/style"].kind, found["/style"].options) == ("enum", [('"wc"', "Watercolour"), ("2", "2")])
    assert found["/fixed"].options == [('"v1"', "v1")]
    assert (found["/seed"].kind, found["/seed"].hint) == ("integer", "Allowed: greater than 0.")
    assert found["/day"].date and not inputs_of(schema, {"day": "2026-02-31"}).children[3].date
    assert found["/tags"].hint == "Allowed: at most 3 items. Each: One of: red, green."
    assert found["/frame/note"].hint == "Allowed: at least 2 characters."
    assert read(root, as_sent(root, **{"/style": '"wc"', "/seed": "4"}))[0] == {
        "style": "wc", "fixed": "v1", "seed": 4, "day": "2026-02-01", "tags": ["red"], "frame": {"note": "ok"},
    }  # fmt: skip


def test_emptied_fields_go_and_items_can_be_taken_out() -> None:
    payload = {"prompt": "p", "tags": ["a"], "n": 3, "weight": 0.5, "on": True, "parts": [{"w": 1}, {"w": 2}, {"w": 3}]}

    value, faults = after(payload, **{"/tags": "", "/n": "", "/weight": "", "/on": "", "x/parts/1": "1"})

    assert faults == []
    assert value == {"prompt": "p", "tags": [], "parts": [{"w": 1}, {"w": 3}]}


def test_faults_come_to_the_field_they_belong_to() -> None:
    root = inputs_of(SCHEMA, {"prompt": "p", "tags": ["a"], "frame": {"w": 1}})
    errors = [
        {"pointer": "/frame/w", "message": "is too small"},
        {"pointer": "/tags/0", "message": "is too short"},
        {"pointer": "", "message": "is odd"},
    ]

    assert placed(root, errors) == (
        {"/frame/w": ["is too small"], "/tags": ["/0 is too short"]},
        ["is odd"],
    )


@given(OBJECTS, OBJECTS)
def test_a_patch_between_two_makes_one_of_the_other_or_is_refused(before: Any, wanted: Any) -> None:
    try:
        patch = patch_between(before, wanted)
    except NoPatch:
        return

    assert same(merge_patch(before, patch), wanted)


def test_a_null_that_was_not_there_cannot_be_said() -> None:
    with pytest.raises(NoPatch):
        patch_between({"a": 1}, {"a": None})
    assert patch_between({"a": None, "b": 1}, {"a": None}) == {"b": None}
