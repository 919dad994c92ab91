"""Floor 4: signing in at the OIDC provider: the authorization code flow with PKCE (RFC 6749, 7636, 9207)."""

import base64
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final
from urllib.parse import quote_plus, urlencode, urlsplit

from service.domain.principal import Principal
from service.errors import IssuerUnavailable, Unauthenticated
from service.oidc import Issuer

SCOPE: Final = "openid profile email"
FRESH_S: Final = 600.0
LONGEST_S: Final = 30 * 86_400.0
"""However long the provider's token lasts, a session ends after this."""


class SignOn:
    """The console as a client of the provider; `secret` is None for a public client, which PKCE protects alone."""

    def __init__(self, issuer: Issuer, client_id: str, secret: str | None) -> None:
        self._issuer = issuer
        self._client_id = client_id
        self._secret = secret
        self._about: Mapping[str, Any] = {}
        self._asked_at = float("-inf")

    async def authorization_url(self, callback: str, *, state: str, nonce: str, verifier: str) -> str:
        """Where the person is sent. Raises `IssuerUnavailable`, `Unauthenticated`."""
        challenge = base64.urlsafe_b64encode(sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        endpoint = await self._endpoint("authorization_endpoint")
        query = urlencode(
            {
                "response_type": "code",
                "client_id": self._client_id,
                "redirect_uri": callback,
                "scope": SCOPE,
                "state": state,
                "nonce": nonce,
                "code_challenge": challenge,
                "code_challenge_method": "S256",
            }
        )
        return f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{query}"

    def is_of(self, issuer: str) -> bool:
        """Whether an answer that names its issuer is the provider's (RFC 9207)."""
        return issuer == self._issuer.url

    async def redeem(self, code: str, callback: str, *, verifier: str, nonce: str) -> tuple[Principal, datetime]:
        """Whom the provider names for this code, and until when. Raises as `authorization_url`."""
        endpoint = await self._endpoint("token_endpoint")
        fields = {"grant_type": "authorization_code", "code": code, "redirect_uri": callback, "code_verifier": verifier}
        headers, more = self._credentials()
        answer = await self._issuer.post(endpoint, {**fields, **more}, headers)
        token = answer.get("id_token")
        if not isinstance(token, str):
            raise Unauthenticated("the provider did not say who signed in")
        principal, claims = await self._issuer.identity(token, self._client_id)
        if claims.get("nonce") != nonce:
            raise Unauthenticated("the provider's answer belongs to another sign-in")
        if claims.get("azp", self._client_id) != self._client_id:
            raise Unauthenticated("the provider's answer is for another client")
        return principal, datetime.fromtimestamp(min(float(claims["exp"]), time.time() + LONGEST_S), UTC)

    def _credentials(self) -> tuple[dict[str, str], dict[str, str]]:
        """By header where the provider takes that (its default), else in the form; a public client names itself."""
        if self._secret is None:
            return {}, {"client_id": self._client_id}
        methods = self._about.get("token_endpoint_auth_methods_supported") or ["client_secret_basic"]
        if "client_secret_basic" not in methods:
            return {}, {"client_id": self._client_id, "client_secret": self._secret}
        pair = f"{quote_plus(self._client_id)}:{quote_plus(self._secret)}"
        return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}, {}

    async def _endpoint(self, name: str) -> str:
        if time.monotonic() - self._asked_at > FRESH_S:
            self._about = await self._issuer.about()
            self._asked_at = time.monotonic()
        found = self._about.get(name)
        if not isinstance(found, str) or not self._issuer.safe(found):
            raise IssuerUnavailable(f"the provider names no {name} that can be used")
        return found
