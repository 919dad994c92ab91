"""An OIDC provider on loopback at which a person signs in: it says yes at once, and checks what it is sent."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.conftest import _response
from tests.contract.issuer import StandIn

CLIENT, SECRET = "console", "a secret of the client"


@dataclass
class SignsIn(StandIn):
    """`who` are the claims of whoever signs in; `asked` the authorization requests by code; `changes` go into the
    next token's claims; `denies` sends people back without a code."""

    who: dict[str, Any] = field(default_factory=lambda: {"sub": "ann", "role": "reviewer"})
    changes: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, dict[str, str]] = field(default_factory=dict)
    redeemed: list[dict[str, str]] = field(default_factory=list)
    denies: bool = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            writer.write(self._reply(head[0].split(" ")[1], headers, body))
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _reply(self, target: str, headers: dict[str, str], body: bytes) -> bytes:
        parts = urlsplit(target)
        if parts.path == "/authorize":
            return self._authorize({name: values[0] for name, values in parse_qs(parts.query).items()})
        if parts.path == "/token":
            return self._token(headers, {name: values[0] for name, values in parse_qs(body.decode()).items()})
        self.about = {"authorization_endpoint": f"{self.url}/authorize", "token_endpoint": f"{self.url}/token"}
        self.seen[target] += 1
        return self._answer(target)

    def _authorize(self, asked: dict[str, str]) -> bytes:
        code = f"code-{len(self.asked)}"
        self.asked[code] = asked
        answer = {"error": "access_denied"} if self.denies else {"code": code, "iss": self.url}
        back = f"{asked['redirect_uri']}?{urlencode({**answer, 'state': asked['state']})}"
        return _response(302, b"", {"location": back})

    def _token(self, headers: dict[str, str], form: dict[str, str]) -> bytes:
        asked = self.asked.pop(form.get("code", ""), None)
        pair = f"{CLIENT}:{SECRET.replace(' ', '+')}"
        if headers.get("authorization") != f"Basic {base64.b64encode(pair.encode()).decode()}" or asked is None:
            return _response(400, {"error": "invalid_grant"})
        challenge = base64.urlsafe_b64encode(sha256(form["code_verifier"].encode()).digest()).rstrip(b"=").decode()
        if asked["code_challenge"] != challenge or asked["code_challenge_method"] != "S256":
            return _response(400, {"error": "invalid_grant"})
        self.redeemed.append(form)
        claims = {"role": None, "aud": CLIENT, "nonce": asked["nonce"], **self.who, **self.changes}
        self.changes = {}
        return _response(200, {"access_token": "x", "token_type": "Bearer", "id_token": self.token(**claims)})


@asynccontextmanager
async def signing_in() -> AsyncIterator[SignsIn]:
    issuer = SignsIn()
    server = await asyncio.start_server(issuer.serve, "127.0.0.1", 0)
    issuer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    issuer.rotate("one")
    yield issuer
    server.close()
