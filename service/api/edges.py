"""Floor 7: the outermost wall of the web process: no answer leaves without the headers that keep a browser from doing
more with it than it should, and requests with too large headers do not come in.

A page that needs more than nothing says so itself: what an answer sets stands, the rest is added.
"""

from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import on_refusal
from service.errors import HeadersTooLarge, HitlError

MAX_HEADERS: Final = 128
MAX_HEADER_BYTES: Final = 16 * 1024
MAX_HEADERS_BYTES: Final = 64 * 1024
HSTS: Final = "max-age=31536000"

Headers = list[tuple[bytes, bytes]]

SECURITY: Final[Headers] = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


class Edges:
    """`public_url` says whether browsers reach us by https: only then are they told to stay with it."""

    def __init__(self, app: ASGIApp, *, public_url: str) -> None:
        self._app = app
        https = public_url.lower().startswith("https://")
        self._ours = [*SECURITY, *([(b"strict-transport-security", HSTS.encode())] if https else [])]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                message["headers"] = completed(message.get("headers", ()), self._ours)
            await send(message)

        await self._app(scope, receive, send_safely)


class HeaderLimits:
    """Refuses headers that are too large, one or all, or too many. The server's own limit is a little above."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and too_large(scope["headers"]):
            answer = await on_refusal(Request(scope), HeadersTooLarge())
            answer.headers["Connection"] = "close"  # who sent this much may have more to come
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)


def completed(given: Any, ours: Headers) -> Headers:
    """The headers of an answer with those of ours that it does not set itself."""
    headers = list(given)
    own = {bytes(name).lower() for name, _ in headers}
    return [*headers, *(header for header in ours if header[0] not in own)]


def too_large(headers: Headers) -> bool:
    sizes = [len(name) + len(value) for name, value in headers]
    return len(sizes) > MAX_HEADERS or max(sizes, default=0) > MAX_HEADER_BYTES or sum(sizes) > MAX_HEADERS_BYTES


def bare_problem(refusal: type[HitlError]) -> bytes:
    """A problem for what could not be read so far that it has an id."""
    told = {"type": f"urn:hitl:problem:{refusal.code}", "title": refusal.title, "status": refusal.status}
    return orjson.dumps({**told, "detail": refusal.title, "code": refusal.code, "instance": "urn:hitl:request:unread"})
