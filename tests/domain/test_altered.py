"""Copies of frozen values: as `dataclasses.replace` makes them."""

from dataclasses import FrozenInstanceError, dataclass, fields, replace

import pytest

from service.domain.altered import altered, made
from service.domain.approval import Approval
from service.domain.call import ProviderCall
from service.domain.run import Run


@dataclass(frozen=True)
class Value:
    one: int
    two: str = "b"


def test_a_copy_is_what_replace_makes_and_leaves_the_first_as_it_was() -> None:
    value = Value(1)
    assert altered(value, two="c") == replace(value, two="c") == Value(1, "c")
    assert value == Value(1, "b")
    assert made(Value, {"one": 1, "two": "b"}) == value


def test_what_is_no_field_is_refused() -> None:
    with pytest.raises(TypeError, match="Value has no three"):
        altered(Value(1), three=3)


def test_a_copy_is_as_frozen_as_the_first() -> None:
    with pytest.raises(FrozenInstanceError):
        altered(Value(1)).one = 2  # type: ignore[misc]


@pytest.mark.parametrize("kind", [Run, Approval, ProviderCall])
def test_what_is_altered_on_the_way_of_a_run_can_be(kind: type) -> None:
    value = made(kind, {field.name: None for field in fields(kind)})
    assert replace(value) == altered(value)
