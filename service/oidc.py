"""Floor 4: the OIDC provider, asked for its public keys; checks the bearer tokens that it signed.

RFC 8725 in short: the key decides which algorithms may be used, none of them symmetric; issuer, audience and
expiry are required; a header that says what must be understood (`crit`) is not.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
import jwt
import orjson
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from service.domain.claims import principal_of
from service.domain.principal import Principal, Proof
from service.errors import HitlError, IssuerUnavailable, Unauthenticated
from service.logs import get_logger

LEEWAY_S: Final = 5.0
FRESH_S: Final = 600.0
AGAIN_S: Final = 60.0
"""Keys are fetched again for an unknown `kid`, or because they grew old, at most this often."""
DOWN_S: Final = 5.0
"""How long a provider that could not be asked is left alone while there are no keys at all."""
TIMEOUT_S: Final = 5.0
MAX_BYTES: Final = 1024 * 1024
MIN_RSA_BITS: Final = 2048

_ALGORITHMS: Final[Mapping[tuple[str, str | None], Sequence[str]]] = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}

log = get_logger("oidc")


class _Fault(Exception):
    """The provider's documents could not be had."""

    refusal: type[HitlError] = IssuerUnavailable


class _Unfit(_Fault):
    """The provider's documents are not those of the issuer that the settings name: nothing of it is believed."""

    refusal = Unauthenticated


class _Refused(_Fault):
    """The provider does not take what it was sent."""

    refusal = Unauthenticated


@dataclass(frozen=True, slots=True)
class Key:
    """A public key of the provider, and what it may be used with."""

    kid: str | None
    algorithms: Sequence[str]
    key: Any


class Issuer:
    """`claims` goes from our names to the claims' (contract, section 1)."""

    def __init__(self, url: str, audience: str, claims: Mapping[str, str]) -> None:
        self._url = url
        self._audience = audience
        self._claims = claims
        self._client = httpx2.AsyncClient(trust_env=False, follow_redirects=False)
        self._keys: Sequence[Key] = ()
        self._loaded_at: float | None = None
        self._failed_at = self._asked_again_at = float("-inf")
        self._refusal: type[HitlError] = IssuerUnavailable
        self._loading = asyncio.Lock()

    @property
    def url(self) -> str:
        return self._url

    async def aclose(self) -> None:
        await self._client.aclose()

    async def principal(self, token: str) -> Principal:
        """Whose token it is. Raises `Unauthenticated`, and `IssuerUnavailable` while there are no keys yet."""
        return (await self.identity(token, self._audience))[0]

    async def identity(self, token: str, audience: str) -> tuple[Principal, Mapping[str, Any]]:
        """Whose token it is, made for this audience, with its claims. Raises as `principal`."""
        try:
            header = jwt.get_unverified_header(token)
            algorithm, kid = header.get("alg"), header.get("kid")
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise Unauthenticated("the token is not a signed token") from None
        if not isinstance(algorithm, str) or not isinstance(kid, str | None) or "crit" in header:
            raise Unauthenticated("the token's header is not one that is understood here")
        key = await self._key(kid, algorithm)
        claims = self._verified(token, key, algorithm, audience)
        principal = principal_of(claims, self._claims)
        return replace(principal, shown=Proof("oidc", self._url), until=_end(claims)), claims

    async def about(self) -> Mapping[str, Any]:
        """The discovery document. Raises `IssuerUnavailable`, `Unauthenticated`."""
        try:
            return await self._discovered()
        except _Fault as fault:
            log.warning("oidc.failed", error=str(fault))
            raise fault.refusal from None

    async def post(self, url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> Mapping[str, Any]:
        """The provider's answer to a form. Raises `Unauthenticated` where it refuses, `IssuerUnavailable`."""
        try:
            return await self._document(url, form=form, headers=headers)
        except _Fault as fault:
            log.warning("oidc.failed", error=str(fault))
            raise fault.refusal from None

    def _verified(self, token: str, key: Key, algorithm: str, audience: str) -> Mapping[str, Any]:
        try:
            claims: Mapping[str, Any] = jwt.decode(
                token, key.key, [algorithm], audience=audience, issuer=self._url, leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud"]},
            )  # fmt: skip
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token has expired") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise Unauthenticated("the token is not valid here") from None
        return claims

    async def _key(self, kid: str | None, algorithm: str) -> Key:
        found = self._find(kid, algorithm)
        if found is None or (self._old() and not self._loading.locked()):
            async with self._loading:
                await self._refresh(known=self._find(kid, algorithm) is not None)
            found = self._find(kid, algorithm)
        if found is None:
            raise Unauthenticated("the token was not signed with a key of the provider")
        return found

    def _find(self, kid: str | None, algorithm: str) -> Key | None:
        """The key of that name for that algorithm; without a name, the only one that it can be."""
        fits = [key for key in self._keys if algorithm in key.algorithms and kid in (None, key.kid)]
        return fits[0] if len(fits) == 1 or (fits and kid is not None) else None

    def _old(self) -> bool:
        return self._loaded_at is None or time.monotonic() - self._loaded_at > FRESH_S

    async def _refresh(self, *, known: bool) -> None:
        """Fetch the keys if it is time to. What was fetched stays when the provider cannot be asked."""
        now = time.monotonic()
        first = self._loaded_at is None
        if first and now - self._failed_at < DOWN_S:
            raise self._refusal
        if not first and ((known and not self._old()) or now - self._asked_again_at < AGAIN_S):
            return
        if not first:
            self._asked_again_at = now
        try:
            self._keys = await self._fetched()
            self._loaded_at = time.monotonic()
        except _Fault as fault:
            log.warning("oidc.failed", error=str(fault))
            self._failed_at, self._refusal = time.monotonic(), fault.refusal
            if first:
                raise fault.refusal from None

    async def _discovered(self) -> Mapping[str, Any]:
        about = await self._document(f"{self._url.rstrip('/')}/.well-known/openid-configuration")
        if about.get("issuer") != self._url:
            raise _Unfit("the discovery document is of another issuer")
        return about

    async def _fetched(self) -> list[Key]:
        about = await self._discovered()
        uri = about.get("jwks_uri")
        if not isinstance(uri, str) or not self.safe(uri):
            raise _Unfit("jwks_uri is not an https URL")
        listed = (await self._document(uri)).get("keys")
        if not isinstance(listed, list):
            raise _Unfit("the key set is not one")
        return [key for jwk in listed if (key := _key_of(jwk)) is not None]

    def safe(self, uri: str) -> bool:
        """https; or plain http on the issuer's own host, where the settings let the issuer be one of loopback."""
        there, here = urlsplit(uri), urlsplit(self._url)
        return there.scheme == "https" or (there.scheme == here.scheme and there.hostname == here.hostname)

    async def _document(
        self, url: str, *, form: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> Mapping[str, Any]:
        body = bytearray()
        sent = self._client.stream("GET" if form is None else "POST", url, data=form, headers=headers)
        try:
            async with asyncio.timeout(TIMEOUT_S), sent as answer:
                if form is not None and 400 <= answer.status_code < 500:
                    raise _Refused(f"the provider answered {answer.status_code}")
                if answer.status_code != 200:
                    raise _Fault(f"the provider answered {answer.status_code}")
                async for piece in answer.aiter_bytes():
                    body += piece
                    if len(body) > MAX_BYTES:
                        raise _Fault("the provider's document is too large")
            document = orjson.loads(body)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, TimeoutError, ValueError) as error:
            raise _Fault(type(error).__name__) from None
        if not isinstance(document, dict):
            raise _Fault("the provider's document is no object")
        return document


def _end(claims: Mapping[str, Any]) -> datetime:
    """When the token is over. The leeway is for the door: nothing stays open on it."""
    try:
        return datetime.fromtimestamp(int(claims["exp"]), UTC)
    except (OverflowError, ValueError, OSError):  # beyond the years that there are
        return datetime.max.replace(tzinfo=UTC)


def _key_of(jwk: Any) -> Key | None:
    """A key for signatures that is strong enough and names what it may do; anything else is no key for us."""
    if not isinstance(jwk, dict) or "d" in jwk or jwk.get("use", "sig") != "sig":
        return None
    kind, curve, kid = jwk.get("kty"), jwk.get("crv"), jwk.get("kid")
    fits = _ALGORITHMS.get((kind, curve), ()) if isinstance(kind, str) and isinstance(curve, str | None) else ()
    usable = [name for name in fits if jwk.get("alg") in (None, name)]
    if not usable or not isinstance(kid, str | None) or "verify" not in jwk.get("key_ops", ["verify"]):
        return None
    try:
        key = jwt.PyJWK(jwk, algorithm=usable[0]).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if isinstance(key, RSAPublicKey) and key.key_size < MIN_RSA_BITS:
        return None
    return Key(kid, usable, key)
