import hashlib
import json
import math
from http import HTTPStatus

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from service.domain.canonical import NotCanonical, canonical, payload_sha256, same, sha256_hex
from service.domain.event import EventType

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(-1e300, 1e300) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


ODD = (
    st.floats()
    | st.integers()
    | st.characters()  # lone surrogates among them
    | st.sampled_from(EventType)
    | st.sampled_from(HTTPStatus)
    | st.uuids()
    | st.datetimes()
    | st.binary(max_size=3)
)
ODD_VALUES = st.recursive(
    ODD | st.none() | st.booleans() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.text("az\x7f\uffff\U00010000") | ODD, inner, max_size=4)
    ),
    max_leaves=12,
)


@given(ODD_VALUES | JSON_VALUES)
@example({"\U0001f600": 1, "\ufb33": 2})
@example([2**53 - 1, -(2**53) + 1, 2**53, 1.0, -0.0, 1e16, math.nan, "\x7f\x1f/\u2028"])
def test_the_quick_way_spells_as_the_library_does(value: object) -> None:
    try:
        spelled = rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeEncodeError):
        with pytest.raises(NotCanonical):
            canonical(value)
    else:
        assert canonical(value) == spelled


def test_the_form_is_that_of_the_rfc() -> None:
    value = {"numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 1e-27], "string": '€$\u000f\nA\'B"\\\\"/'}
    expected = '{"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'

    assert canonical(value) == expected.encode()


def test_keys_are_sorted_by_utf16_code_units() -> None:
    value = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\u0080": 6, "\u00f6": 7}

    keys = list(json.loads(canonical(value)))
    assert keys == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


@pytest.mark.parametrize(
    "value",
    [2**53, -(2**53), math.nan, math.inf, -math.inf, "\ud800", {"\udfff": 1}, {1: 2}, {"a": [b"bytes"]}],
    ids=repr,
)
def test_what_json_cannot_carry_exactly_is_refused(value: object) -> None:
    with pytest.raises(NotCanonical):
        canonical({"deep": [value]})


def test_a_nesting_without_end_is_refused() -> None:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]

    with pytest.raises(NotCanonical):
        canonical(value)


def test_a_refusal_never_names_the_value() -> None:
    with pytest.raises(NotCanonical) as caught:
        canonical({"secret": 2**53 + 4711})

    assert "4711" not in str(caught.value)
    assert caught.value.__cause__ is None


@given(JSON_VALUES)
def test_the_form_reads_back_as_the_value(value: object) -> None:
    assert same(json.loads(canonical(value), parse_int=float), value)


@given(st.dictionaries(st.text(), JSON_VALUES, max_size=5))
def test_the_hash_does_not_depend_on_the_order_of_keys(value: dict[str, object]) -> None:
    assert payload_sha256(value) == payload_sha256(dict(reversed(value.items())))


def test_the_hash_is_lower_case_hex_of_the_canonical_form() -> None:
    assert payload_sha256({"b": 1.0, "a": True}) == hashlib.sha256(b'{"a":true,"b":1}').hexdigest()
    assert sha256_hex(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_true_is_not_one_and_one_is_one_point_zero() -> None:
    assert not same(True, 1)
    assert not same({"a": [0]}, {"a": [False]})
    assert same([1, {"a": 2}], [1.0, {"a": 2.0}])
    assert not same("1", 1)
    assert not same([], {})
