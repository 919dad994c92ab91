"""Signatures of webhooks by Standard Webhooks (standardwebhooks.com): HMAC-SHA256 over id, time and body."""

import base64
import binascii
import hmac
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Final

PREFIX: Final = "whsec_"
TOLERANCE_S: Final = 300
_MAX_SIGNATURES: Final = 32


def key_of(secret: str) -> bytes:
    """The key inside `whsec_<base64>`. Raises `ValueError` for anything else."""
    encoded = secret.removeprefix(PREFIX)
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(PREFIX) or not key:
        raise ValueError("a secret is whsec_ and base64")
    return key


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """One signature, as it stands in `webhook-signature`; those of several secrets are joined by a blank."""
    return _signature(key_of(secret), message_id, str(timestamp), body)


def verify(secrets: Iterable[str], headers: Mapping[str, str], body: bytes, *, now: float) -> bool:
    """Whether one of the secrets made one of the signatures over exactly this body, within five minutes of `now`.

    `headers` by lower-case name. Whatever a sender puts into them, the answer is a bool.
    """
    message_id = headers.get("webhook-id", "")
    timestamp = headers.get("webhook-timestamp", "")
    if not message_id or not _is_near(timestamp, now):
        return False
    given = [one.encode("utf-8", "replace") for one in headers.get("webhook-signature", "").split()[:_MAX_SIGNATURES]]
    expected = [_signature(key_of(secret), message_id, timestamp, body).encode() for secret in secrets]
    matches = [hmac.compare_digest(ours, theirs) for ours in expected for theirs in given]
    return any(matches)


def _is_near(timestamp: str, now: float) -> bool:
    digits = timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12
    return digits and abs(now - int(timestamp)) <= TOLERANCE_S


def _signature(key: bytes, message_id: str, timestamp: str, body: bytes) -> str:
    signed = f"{message_id}.{timestamp}.".encode("utf-8", "surrogatepass") + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, sha256)).decode()
