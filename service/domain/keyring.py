"""Everything that derives from the master secret: key hashes, sealed secrets, signatures of callback URLs."""

import base64
import hmac
import secrets
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_PREFIX: Final = "hitl_"
_NAME_BYTES: Final = 4  # of the key that wraps, before what it wrapped
_NONCE_BYTES: Final = 12


def new_api_key() -> str:
    """256 random bits, shown once."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


class Keyring:
    """The current master secret makes; it and the previous one check."""

    def __init__(self, secret: str, previous: str | None = None) -> None:
        self._secrets = [secret.encode()] + ([previous.encode()] if previous else [])
        seals = [Fernet(base64.urlsafe_b64encode(self._derive(master, "seal"))) for master in self._secrets]
        self._current, self._fernet = seals[0], MultiFernet(seals)
        wraps = [self._derive(master, "content-key") for master in self._secrets]
        self._wraps = {sha256(key).digest()[:_NAME_BYTES]: AESGCM(key) for key in reversed(wraps)}
        self.wrap_name = sha256(wraps[0]).digest()[:_NAME_BYTES]
        self.rotating = previous is not None

    def __repr__(self) -> str:
        return "Keyring(…)"

    def key_hashes(self, api_key: str) -> list[bytes]:
        """The hashes under which a key may be stored, the current secret's first."""
        return self.hashes("api-key", api_key)

    def hashes(self, purpose: str, text: str) -> list[bytes]:
        """The keyed hashes of a secret that we gave out and only recognise, the current secret's first."""
        return [self._mac(master, purpose, text) for master in self._secrets]

    def seal(self, value: Mapping[str, Any]) -> bytes:
        return self._fernet.encrypt(orjson.dumps(value))

    def unseal(self, sealed: bytes | None) -> Mapping[str, Any]:
        """What was sealed; nothing for nothing. Raises `cryptography.fernet.InvalidToken`."""
        if sealed is None:
            return {}
        opened: Mapping[str, Any] = orjson.loads(self._fernet.decrypt(bytes(sealed)))
        return opened

    def resealed(self, sealed: bytes) -> bytes | None:
        """What the previous secret sealed, sealed by the current one; None where it already is."""
        try:
            self._current.decrypt(bytes(sealed))
        except InvalidToken:
            return self._fernet.rotate(bytes(sealed))
        return None

    def wrap(self, key: bytes, subject: bytes) -> bytes:
        """A content key as it is stored, good for this subject only. It begins with `wrap_name`."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return self.wrap_name + nonce + self._wraps[self.wrap_name].encrypt(nonce, key, subject)

    def unwrap(self, wrapped: bytes, subject: bytes) -> bytes | None:
        """The content key; None for one that neither secret wrapped for this subject."""
        name, rest = wrapped[:_NAME_BYTES], wrapped[_NAME_BYTES:]
        try:
            return self._wraps[name].decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], subject)
        except (KeyError, InvalidTag):
            return None

    def sign(self, purpose: str, text: str) -> str:
        """A URL-safe signature of `text`, good for this purpose only."""
        return _text(self._mac(self._secrets[0], purpose, text))

    def verify(self, purpose: str, text: str, signature: str) -> bool:
        given = signature.encode("utf-8", "replace")
        checks = [hmac.compare_digest(_text(self._mac(m, purpose, text)).encode(), given) for m in self._secrets]
        return any(checks)

    def signing_keys(self, purpose: str) -> list[Ed25519PrivateKey]:
        """Keys whose signatures anybody can check who has the public half; the current secret's first."""
        return [Ed25519PrivateKey.from_private_bytes(self._derive(master, purpose)) for master in self._secrets]

    def _mac(self, master: bytes, purpose: str, text: str) -> bytes:
        return hmac.digest(self._derive(master, purpose), text.encode("utf-8", "surrogatepass"), sha256)

    @staticmethod
    def _derive(master: bytes, purpose: str) -> bytes:
        return HKDF(algorithm=SHA256(), length=32, salt=None, info=f"hitl:{purpose}".encode()).derive(master)


def _text(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
