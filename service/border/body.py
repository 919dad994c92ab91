"""Reading a request body: limited before it is read, and only JSON that Postgres and RFC 8785 can carry."""

import asyncio
import json
import math
from typing import Any, Final

from starlette.requests import Request

from service.errors import InvalidJson, RequestTimeout, TooLarge, UnsupportedMediaType

MAX_BYTES: Final = 1024 * 1024
MAX_DEPTH: Final = 64
BODY_S: Final = 30.0
MAX_INTEGER: Final = 2**53 - 1


async def read_json(request: Request) -> Any:
    """The body, or None where there is none. Raises `TooLarge`, `UnsupportedMediaType`, `InvalidJson`."""
    raw = await read_bytes(request)
    if not raw:
        return None
    if not _says_json(request):
        raise UnsupportedMediaType("the body must be application/json")
    return parse(raw)


async def read_answer(request: Request) -> Any:
    """A provider's late answer, read as a 2xx body would be: JSON, or text where it is none and does not say it is.

    Raises `TooLarge`, `InvalidJson`.
    """
    raw = await read_bytes(request)
    try:
        return parse(raw)
    except InvalidJson:
        if raw and _says_json(request):
            raise
        return raw.decode("utf-8", "replace")


def _says_json(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


def parse(raw: bytes) -> Any:
    """JSON without NUL, duplicate keys, lone surrogates, or numbers that a double cannot carry exactly."""
    try:
        text = raw.decode("utf-8")
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_float
        )
    except (UnicodeDecodeError, RecursionError):
        raise InvalidJson("the body is not UTF-8 JSON of bounded depth") from None
    except json.JSONDecodeError as error:
        raise InvalidJson(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    _check(value, 0, whole="\\" in text or text.count("[") + text.count("{") > MAX_DEPTH)
    return value


async def read_bytes(request: Request) -> bytes:
    """The body byte for byte. Raises `TooLarge`, `RequestTimeout`."""
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > MAX_BYTES:
        raise TooLarge("the body is larger than 1 MiB")
    try:
        async with asyncio.timeout(BODY_S):
            return await _read(request)
    except TimeoutError:
        raise RequestTimeout(f"the body did not come within {BODY_S:g} seconds") from None


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BYTES:
            raise TooLarge("the body is larger than 1 MiB")
    return bytes(body)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise InvalidJson("an object has a key twice")
    return value


def _constant(name: str) -> Any:
    raise InvalidJson(f"{name} is not a JSON number")


def _integer(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > MAX_INTEGER:
        raise InvalidJson("an integer is beyond ±(2^53 - 1), which JSON numbers cannot carry (RFC 7493)")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise InvalidJson("a number is beyond what a JSON number can carry")
    return value


def _check(value: Any, depth: int, *, whole: bool) -> None:
    """NUL, lone surrogates and depth; `whole` is false where the text cannot hold any of them."""
    if not whole:
        return
    if depth > MAX_DEPTH:
        raise InvalidJson(f"the body is nested deeper than {MAX_DEPTH}")
    match value:
        case str():
            if "\x00" in value or any("\ud800" <= c <= "\udfff" for c in value):
                raise InvalidJson("a string holds NUL or half a surrogate pair")
        case list():
            for item in value:
                _check(item, depth + 1, whole=whole)
        case dict():
            for key, item in value.items():
                _check(key, depth + 1, whole=whole)
                _check(item, depth + 1, whole=whole)
        case _:
            pass
