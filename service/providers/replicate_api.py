"""The calls to Replicate's HTTP API: one answer or one silence each, never too often, never a redirect."""

import asyncio
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import httpx2

from service import tracing
from service.domain.call import Rejected, Unreachable
from service.domain.canonical import JSON
from service.providers.http import MAX_ANSWER_BYTES, parsed, retry_after_s
from service.providers.limiter import Limiter

BASE_URL: Final = "https://api.replicate.com"
CREATES_PER_MINUTE: Final = 600
OTHERS_PER_MINUTE: Final = 3000
PATIENCE_S: Final = 3.0  # a longer wait does not hold a worker's slot
CONNECT_TIMEOUT_S: Final = 10.0
LOOK_TIMEOUT_S: Final = 30.0
TOKENLESS: Final = "this service has no REPLICATE_API_TOKEN"
_UNITS_S: Final = {"m": 60.0, "h": 3600.0, "ms": 0.001}
_RESET: Final = re.compile(r"(?:resets|available) in\s*~?\s*((?:\d+(?:\.\d+)?\s*[a-z]+\s*)+)", re.IGNORECASE)
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|h|m|s)[a-z]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back. `reset_s`: after how long to come again, where the answer says so."""

    status: int
    body: JSON
    reset_s: float | None = None
    too_large: bool = False

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def object(self) -> Mapping[str, JSON]:
        return self.body if isinstance(self.body, Mapping) else {}


@dataclass(frozen=True, slots=True)
class Silence:
    """No answer. `sent`: the request may have arrived. `held_back_s`: it was not made, for so long."""

    problem: str
    sent: bool
    held_back_s: float | None = None


class ReplicateApi:
    """`token` None: nothing is asked, and each call says why."""

    def __init__(self, token: str | None, base_url: str = BASE_URL) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self.token = token
        self._creates = Limiter(CREATES_PER_MINUTE)
        self._others = Limiter(OTHERS_PER_MINUTE)
        trust = httpx2.create_ssl_context(trust_env=False) if token else False  # nothing is sent without one
        # a kept connection may be closed by the other side just as a create is sent on it, and nobody would know
        self._fresh = self._client(trust, httpx2.Limits(max_connections=None, max_keepalive_connections=0))
        self._kept = self._client(trust, httpx2.Limits(max_connections=100, max_keepalive_connections=20))

    @property
    def host(self) -> str:
        return urlsplit(self.base_url).hostname or ""

    async def aclose(self) -> None:
        await self._fresh.aclose()
        await self._kept.aclose()

    async def look(self, path: str, *, timeout_s: float = LOOK_TIMEOUT_S) -> Reply | Silence:
        return await self._send(self._kept, self._others, "GET", path, b"", {}, timeout_s)

    async def stop(self, path: str) -> Reply | Silence:
        return await self._send(self._kept, self._others, "POST", path, b"", {}, LOOK_TIMEOUT_S)

    async def create(self, path: str, body: bytes, headers: Mapping[str, str], *, timeout_s: float) -> Reply | Silence:
        return await self._send(self._fresh, self._creates, "POST", path, body, headers, timeout_s)

    def _client(self, trust: ssl.SSLContext | bool, limits: httpx2.Limits) -> httpx2.AsyncClient:
        # the address is the operator's own choice: no guard, but its token goes nowhere else
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        timeout = httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S, pool=CONNECT_TIMEOUT_S)
        return httpx2.AsyncClient(
            base_url=self.base_url, headers=headers, limits=limits, timeout=timeout, verify=trust, trust_env=False,
            follow_redirects=False,
        )  # fmt: skip

    async def _send(
        self,
        client: httpx2.AsyncClient,
        limiter: Limiter,
        method: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> Reply | Silence:
        if self.token is None:
            return Silence(TOKENLESS, sent=False)
        later_s = await limiter.admit(patience_s=min(PATIENCE_S, timeout_s))
        if later_s is not None:
            return Silence("Replicate's rate limit is used up", sent=False, held_back_s=later_s)
        tracing.note(tracing.outgoing(method, self.base_url))
        try:
            async with asyncio.timeout(timeout_s):
                reply = await _exchange(client, method, path, body, headers)
        except TimeoutError:
            return Silence("Replicate did not answer in time", sent=True)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout):
            return Silence("Replicate could not be reached", sent=False)
        except httpx2.RequestError:
            return Silence("the connection to Replicate broke before the answer", sent=True)
        tracing.note({"http.response.status_code": reply.status})
        if reply.status == 429 and reply.reset_s:
            limiter.pause(reply.reset_s)
        return reply


async def _exchange(
    client: httpx2.AsyncClient, method: str, path: str, body: bytes, headers: Mapping[str, str]
) -> Reply:
    given = {"Content-Type": "application/json", **headers} if body else dict(headers)
    async with client.stream(method, path, content=body, headers=given) as response:
        raw = bytearray()
        async for piece in response.aiter_bytes():
            raw += piece
            if len(raw) > MAX_ANSWER_BYTES:
                return Reply(response.status_code, None, too_large=True)
        answer = parsed(bytes(raw))
        limited = response.status_code in (429, 503)
        reset_s = _reset_s(answer, response.headers.get("retry-after")) if limited else None
        return Reply(response.status_code, answer, reset_s)


def _reset_s(answer: JSON, header: str | None) -> float | None:
    """The reset that the text names ("Your rate limit resets in ~30s."), else the header's."""
    detail = answer.get("detail") if isinstance(answer, Mapping) else answer
    found = _RESET.search(detail) if isinstance(detail, str) else None
    if found is None:
        return retry_after_s(header)
    parts = _DURATION.findall(found[1])
    return sum(float(amount) * _UNITS_S.get(unit.lower(), 1.0) for amount, unit in parts) or None


def refusal(answer: Reply | Silence) -> Unreachable | Rejected:
    """What an answer that is not the wanted one means for a request without an effect."""
    if isinstance(answer, Silence):
        return Unreachable(answer.problem, answer.held_back_s, held_back=answer.held_back_s is not None)
    if answer.ok and answer.too_large:
        return Rejected(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")
    if answer.ok:
        return Unreachable("Replicate's answer was not understood")
    if answer.status == 429 or answer.status >= 500:
        return Unreachable(f"Replicate answered {answer.status}", answer.reset_s)
    return Rejected(f"Replicate answered {answer.status}{_reason(answer)}", raw=answer.body)


def _reason(answer: Reply) -> str:
    if answer.status == 401:
        return ": REPLICATE_API_TOKEN is not valid"
    told = answer.object.get("title") or answer.object.get("detail")
    return f": {told.strip()[:200]}" if isinstance(told, str) and told.strip() else ""
