"""Content, sealed: what people and providers wrote, readable only with the key of its run.

AES-256-GCM under a random key for each run; it is packed first, because sealed bytes do not pack.
`place` says which value of which row it is and is bound in: a value that was moved elsewhere does not open.
"""

import base64
import secrets
import zlib
from collections.abc import Mapping
from typing import Any, Final

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from service.domain.packing import packed, unpacked

MARK: Final = "hitl-sealed:"  # how a sealed value begins where text is stored
URL_MARK: Final = "sealed"  # the scheme of a sealed URL: its host stays to be read
ERASED: Final = "content_erased"
SEALED: Final = "sealed"
KEY_BYTES: Final = 32
_PLAIN, _ZLIB, _PACKED = b"\x01", b"\x02", b"\x03"  # `_ZLIB`: of before `packing`
_NONCE_BYTES: Final = 12


class Unreadable(Exception):
    """Sealed under another key, for another place, or changed since."""


def new_key() -> bytes:
    return secrets.token_bytes(KEY_BYTES)


def seal_bytes(key: bytes, place: str, raw: bytes) -> bytes:
    small = packed(raw)
    kind, body = (_PACKED, small) if len(small) < len(raw) else (_PLAIN, raw)
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return kind + nonce + AESGCM(key).encrypt(nonce, body, kind + place.encode())


def open_bytes(key: bytes, place: str, sealed: bytes) -> bytes:
    """Raises `Unreadable`."""
    kind, nonce, body = sealed[:1], sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
    try:
        raw = AESGCM(key).decrypt(nonce, body, kind + place.encode())
    except (InvalidTag, ValueError) as error:
        raise Unreadable(place) from error
    if kind == _PACKED:
        return unpacked(raw)
    return zlib.decompress(raw) if kind == _ZLIB else raw


def are_sealed(raw: bytes) -> bool:
    """JSON never begins so."""
    return raw[:1] in (_PLAIN, _ZLIB, _PACKED)


def seal(key: bytes, place: str, value: Any) -> str:
    return MARK + base64.b64encode(seal_bytes(key, place, orjson.dumps(value))).decode()


def is_sealed(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(MARK)


def opened(key: bytes, place: str, sealed: str) -> Any:
    """Raises `Unreadable`."""
    return orjson.loads(open_bytes(key, place, _decoded(sealed.removeprefix(MARK))))


def seal_url(key: bytes, place: str, url: str, host: str) -> str:
    """A URL of which only the host is left to read."""
    return f"{URL_MARK}://{host}/{base64.urlsafe_b64encode(seal_bytes(key, place, url.encode())).decode()}"


def is_sealed_url(url: str) -> bool:
    return url.startswith(f"{URL_MARK}://")


def opened_url(key: bytes, place: str, sealed: str) -> str:
    """Raises `Unreadable`."""
    return open_bytes(key, place, _decoded(sealed.rpartition("/")[2], b"-_")).decode()


def erased_data(data: Mapping[str, Any]) -> dict[str, Any]:
    """An event's data without its content."""
    return {ERASED: True, **{name: value for name, value in data.items() if name not in (SEALED, ERASED)}}


def _decoded(text: str, alphabet: bytes = b"+/") -> bytes:
    try:
        return base64.b64decode(text.encode(), altchars=alphabet, validate=True)
    except ValueError as error:
        raise Unreadable("not base64") from error
