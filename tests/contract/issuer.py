"""An OIDC provider on loopback: a discovery document, a key set that can be rotated, tokens signed at will."""

import asyncio
import base64
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import jwt
import orjson
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests.conftest import _response

AUDIENCE = "hitl"


def jwk_of(key: Any, kid: str | None, **more: Any) -> dict[str, Any]:
    """The public half of a key as the provider lists it."""
    match key:
        case rsa.RSAPrivateKey():
            found = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
        case ec.EllipticCurvePrivateKey():
            found = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
        case _:
            found = jwt.algorithms.OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    found = {name: value for name, value in found.items() if name != "key_ops"}
    return {**found, **({"kid": kid} if kid else {}), "use": "sig", **more}


@dataclass
class StandIn:
    """`seen` counts the requests by path; `broken` answers everything with 500."""

    url: str = ""
    keys: list[dict[str, Any]] = field(default_factory=list)
    signing: Any = None
    kid: str | None = "one"
    about: dict[str, Any] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    broken: bool = False
    hold: asyncio.Event | None = None

    def rotate(self, kid: str, key: Any = None) -> None:
        self.signing, self.kid = key or ec.generate_private_key(ec.SECP256R1()), kid
        self.keys = [jwk_of(self.signing, kid)]

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = int(time.time())
        usual = {"iss": self.url, "aud": AUDIENCE, "sub": "ann", "role": "reviewer", "iat": now, "exp": now + 300}
        return {name: value for name, value in {**usual, **changes}.items() if value is not None}

    def token(self, *, algorithm: str = "ES256", key: Any = None, kid: str | None = "", **changes: Any) -> str:
        """A token signed with the current key; a claim that is None is left out."""
        name = self.kid if kid == "" else kid
        headers = {"kid": name} if name else {}
        return jwt.encode(self.claims(**changes), key or self.signing, algorithm=algorithm, headers=headers)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
            self.seen[path] += 1
            if self.hold is not None:
                await self.hold.wait()
            writer.write(self._answer(path))
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(self, path: str) -> bytes:
        if self.broken:
            return _response(500, {})
        if path == "/.well-known/openid-configuration":
            return _response(200, {"issuer": self.url, "jwks_uri": f"{self.url}/keys", **self.about})
        return _response(200, {"keys": self.keys}) if path == "/keys" else _response(404, {})


@asynccontextmanager
async def stand_in() -> AsyncIterator[StandIn]:
    issuer = StandIn()
    server = await asyncio.start_server(issuer.serve, "127.0.0.1", 0)
    issuer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    issuer.rotate("one")
    yield issuer
    server.close()


def forged(header: dict[str, Any], claims: dict[str, Any], signature: bytes = b"x") -> str:
    """A token with any header at all."""
    parts = [orjson.dumps(header), orjson.dumps(claims), signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def ed_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()
