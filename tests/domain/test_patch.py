import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.canonical import same
from service.domain.patch import diff, merge_patch, pointer

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab/~", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab/~", max_size=2), inner, max_size=3),
    max_leaves=8,
)

# RFC 7396, appendix A.
RFC_CASES: list[tuple[Any, Any, Any]] = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("target", "patch", "expected"), RFC_CASES)
def test_the_examples_of_rfc_7396_hold(target: Any, patch: Any, expected: Any) -> None:
    assert merge_patch(target, patch) == expected


@given(VALUES, VALUES)
def test_a_patch_changes_neither_argument_and_shares_nothing(target: Any, patch: Any) -> None:
    before = copy.deepcopy((target, patch))

    _scribble(merge_patch(target, patch))

    assert (target, patch) == before


@given(VALUES, VALUES)
def test_a_patch_applied_twice_is_a_patch_applied_once(target: Any, patch: Any) -> None:
    once = merge_patch(target, patch)

    assert same(merge_patch(once, patch), once)


@given(VALUES)
def test_equal_values_have_no_difference(value: Any) -> None:
    assert diff(value, copy.deepcopy(value)) == []


@given(st.dictionaries(st.text("ab/~"), VALUES), st.dictionaries(st.text("ab/~"), VALUES))
def test_applying_a_difference_gives_the_later_value(before: Any, after: Any) -> None:
    result = copy.deepcopy(before)
    for entry in diff(before, after):
        *way, last = [part.replace("~1", "/").replace("~0", "~") for part in entry["path"].split("/")[1:]]
        here = result
        for part in way:
            here = here[part]
        if entry["op"] == "remove":
            assert same(here.pop(last), entry["from"])
        else:
            here[last] = entry["value"]

    assert same(result, after)


def test_a_difference_recurses_into_objects_and_takes_arrays_whole() -> None:
    before = {"a": {"x": 1, "y": 2}, "list": [1, 2], "gone": "g", "same": 0}
    after = {"a": {"x": 1, "y": 3}, "list": [1, 3], "new": None, "same": 0}

    assert diff(before, after) == [
        {"op": "replace", "path": "/a/y", "from": 2, "value": 3},
        {"op": "remove", "path": "/gone", "from": "g"},
        {"op": "replace", "path": "/list", "from": [1, 2], "value": [1, 3]},
        {"op": "add", "path": "/new", "value": None},
    ]


def test_a_change_of_type_is_a_difference() -> None:
    assert diff({"a": 1}, {"a": True}) == [{"op": "replace", "path": "/a", "from": 1, "value": True}]
    assert diff(1, "1") == [{"op": "replace", "path": "", "from": 1, "value": "1"}]


def test_a_pointer_escapes_its_parts() -> None:
    assert pointer(["a/b", "c~d", 0]) == "/a~1b/c~0d/0"
    assert pointer([]) == ""


def _scribble(value: Any) -> None:
    if isinstance(value, dict):
        for item in value.values():
            _scribble(item)
        value["scribble"] = 1
    elif isinstance(value, list):
        for item in value:
            _scribble(item)
        value.append("scribble")
