"""One spelling for one JSON value: what hashes and signatures are taken over (RFC 8785)."""

import hashlib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, TypeAlias

import orjson
import rfc8785

JSON: TypeAlias = Any
"""A JSON value: object (str keys), array, string, number, boolean or null."""


_SORTED: Final = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER
_SPELLED_ALIKE: Final = frozenset({str, int, bool, type(None)})


class NotCanonical(ValueError):
    """The value has no RFC 8785 form; the message names the cause, never the value."""

    code = "not_canonical"


def canonical(value: JSON) -> bytes:
    """The RFC 8785 (JCS) form of `value`, UTF-8.

    Raises `NotCanonical` for integers beyond ±(2**53-1), NaN, infinities, lone surrogates,
    keys that are not strings, values that are not JSON, and nesting that Python cannot follow.
    """
    try:
        return _by_orjson(value) or rfc8785.dumps(value)
    except rfc8785.IntegerDomainError:
        raise NotCanonical("an integer is beyond ±(2**53-1)") from None
    except rfc8785.FloatDomainError:
        raise NotCanonical("a number is not finite") from None
    except UnicodeEncodeError:
        raise NotCanonical("a string holds a lone surrogate") from None
    except RecursionError:
        raise NotCanonical("the value is nested too deeply") from None
    except rfc8785.CanonicalizationError as error:
        lone = isinstance(error.__cause__, UnicodeEncodeError)
        cause = "a string holds a lone surrogate" if lone else "the value is not JSON"
        raise NotCanonical(cause) from None


def _by_orjson(value: JSON) -> bytes | None:
    """The same bytes fifteen times as fast, where orjson is known to spell a value so; None for what it may not."""
    try:
        spelled = orjson.dumps(value, option=_SORTED)
    except orjson.JSONEncodeError:
        return None
    return spelled if _spelled_alike(value) else None


def _spelled_alike(value: JSON) -> bool:
    """Whether it holds only what orjson and the RFC spell alike: no floats, nothing beside JSON's own types, and keys
    that both put in one order, which beyond ASCII they need not. The value is finite: orjson has been through it."""
    nodes = [value]
    for node in nodes:
        kind = type(node)
        if kind is dict:
            if not "".join(node).isascii():
                return False
            nodes.extend(node.values())
        elif kind is list or kind is tuple:
            nodes.extend(node)
        elif kind not in _SPELLED_ALIKE and not issubclass(kind, StrEnum):
            return False
    return True


def sha256_hex(data: bytes) -> str:
    """Lower-case hex SHA-256, 64 characters."""
    return hashlib.sha256(data).hexdigest()


def payload_sha256(payload: JSON) -> str:
    """The hash that an approval freezes (contract section 6). Raises `NotCanonical`."""
    return sha256_hex(canonical(payload))


def same(left: JSON, right: JSON) -> bool:
    """JSON equality: `True` is not 1, while 1 and 1.0 are one number (RFC 8785 spells them alike)."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if _is_array(left) and _is_array(right):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def _is_array(value: JSON) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
