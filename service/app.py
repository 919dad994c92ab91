"""Floor 8: the web process. `uvicorn --factory service.app:create_app`."""

import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any, Final
from uuid import uuid4

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import __version__, faults, logs, tracing
from service.api import asyncapi, gate, openapi, problems
from service.api.edges import Edges, HeaderLimits
from service.api.leaving import Leaving
from service.api.operation import json_response
from service.api.routes import routes
from service.commands.watch import exposition
from service.console import pages
from service.errors import HitlError
from service.exporter import exporting
from service.live.hub import Hub
from service.runtime import collect_rarely, open_runtime
from service.settings import Settings, load_or_exit, require_or_exit

log = logs.get_logger("web")

_REQUEST_ID: Final = re.compile(r"^[\x21-\x7e]{1,128}$")
# W3C trace context: version ff and ids of zeros are not valid
_TRACEPARENT: Final = re.compile(r"^(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$")
GONE: Final = 499
_PROBES: Final = frozenset({"/healthz", "/readyz", "/metrics"})
_CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"
    "; frame-ancestors 'none'"
)


def create_app(settings: Settings | None = None) -> Starlette:
    """The app of this process. A bad setting ends the process with one line and status 2."""
    given = require_or_exit(settings or load_or_exit())
    logs.configure(process="web", level=given.log_level, fmt=given.log_format)
    faults.start(given.sentry_dsn, process="web", version=__version__, expected=(HitlError,))

    leaving = Leaving()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        gate.mount()
        async with (
            _reporting(given),
            open_runtime(given, process="web") as runtime,
            runtime.services.notifier.running(),
        ):
            services = runtime.services
            hub = Hub(services.db, services.notifier)
            async with hub.running(), exporting(given, lambda: exposition(services)):
                app.state.services = services
                app.state.auth_required = given.auth_required
                app.state.hub = hub
                collect_rarely()
                with leaving.on_sigterm(services.notifier.leave):
                    yield

    static = resources.files("service.api") / "static"
    return Starlette(
        routes=[
            *routes(),
            Route("/openapi.json", _openapi),
            Route("/asyncapi.json", _asyncapi),
            Route("/docs", _docs),
            *pages.routes(),
            Mount("/docs/static", StaticFiles(directory=str(static))),
        ],
        middleware=[
            *(Middleware(each, mechanism_type="starlette") for each in faults.asgi()),
            Middleware(Edges, public_url=given.public_url),
            Middleware(RequestContext, leaving=leaving),
            Middleware(HeaderLimits),
        ],
        exception_handlers={HitlError: problems.on_refusal, HTTPException: _on_http_exception},
        lifespan=lifespan,
    )


@asynccontextmanager
async def _reporting(settings: Settings) -> AsyncIterator[None]:
    """Spans and faults go out, and what is left of them at the end."""
    endpoint = settings.otel_exporter_otlp_endpoint
    async with faults.flushing(), tracing.exporting(endpoint, process="web", version=__version__):
        yield


async def _on_http_exception(request: Request, exc: Exception) -> Response:
    page = pages.lost(request) if isinstance(exc, HTTPException) and exc.status_code == 404 else None
    return page or await problems.on_http_exception(request, exc)


async def _openapi(request: Request) -> Response:
    request.state.route = "/openapi.json"
    return json_response(openapi.document(), 200)


async def _asyncapi(request: Request) -> Response:
    request.state.route = "/asyncapi.json"
    return json_response(asyncapi.document(), 200)


async def _docs(request: Request) -> Response:
    """Swagger UI from the package: no network is needed to read the API."""
    request.state.route = "/docs"
    page = (resources.files("service.api") / "static" / "docs.html").read_text()
    return HTMLResponse(page, headers={"Content-Security-Policy": _CSP})


class RequestContext:
    """Ids in and out, one line a request, and the wall behind which no exception text passes."""

    def __init__(self, app: ASGIApp, *, leaving: Leaving) -> None:
        self._app = app
        self._leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            ids = _ids(HTTPConnection(scope))
            scope.setdefault("state", {}).update({"route": "/hitl/ws", **ids})
            with structlog.contextvars.bound_contextvars(request_id=ids["request_id"], trace_id=ids["trace_id"]):
                with tracing.under(
                    ids["traceparent"]
                ):  # each decision is a span; one for the hours of a socket is none
                    await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._leaving.asked()
        request = Request(scope)
        ids = _ids(request)
        with tracing.serving(scope["method"], ids["traceparent"], path=scope["path"]):
            await self._serve(scope, receive, send, request, ids)

    async def _serve(
        self, scope: Scope, receive: Receive, send: Send, request: Request, ids: dict[str, str | None]
    ) -> None:
        trace_id = tracing.ids().get("trace_id") or ids["trace_id"]
        state: dict[str, Any] = scope.setdefault("state", {})
        # what goes on from here, a run say, is a child of our span; what is echoed is what came
        state |= {"route": "unmatched", **ids, "traceparent": tracing.traceparent() or ids["traceparent"]}
        status = 500
        begun = False
        started = time.monotonic()

        async def send_with_ids(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                status, begun = message["status"], True
                own = {name.lower() for name, _ in message["headers"]}
                close = [(b"connection", b"close")] if self._leaving.begun else []
                ours = [header for header in _headers(ids) if header[0] not in own]
                message["headers"] = [*message["headers"], *ours, *close]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=ids["request_id"], trace_id=trace_id):
            try:
                await self._app(scope, receive, send_with_ids)
            except ClientDisconnect:  # nobody is there any more who could be told anything
                status = GONE
            except Exception as error:
                log.error("http.error", error=type(error).__name__, route=state["route"])
                if begun:  # a stream that broke: only a closed connection tells that it is not whole
                    raise
                await problems.internal(request)(scope, receive, send_with_ids)
            took_ms = round((time.monotonic() - started) * 1000, 1)
            log.info(
                "http.request",
                method=scope["method"],
                route=state["route"],
                status=status,
                duration_ms=took_ms,
                sample=status < 400 and state["route"] in _PROBES and not _wants_its_line(request),
                **state.get("about", {}),
            )


def _wants_its_line(request: Request) -> bool:
    """Whoever gives an id means to find the line again."""
    return "x-request-id" in request.headers or "traceparent" in request.headers


def _ids(request: HTTPConnection) -> dict[str, str | None]:
    given = request.headers.get("x-request-id", "")
    traceparent = request.headers.get("traceparent", "").strip().lower()
    traced = _TRACEPARENT.match(traceparent)
    return {
        "request_id": given if _REQUEST_ID.match(given) else uuid4().hex,
        "traceparent": traceparent if traced else None,
        "trace_id": traced[1] if traced else None,
    }


def _headers(ids: dict[str, str | None]) -> list[tuple[bytes, bytes]]:
    found = [
        (b"x-request-id", (ids["request_id"] or "").encode("ascii")),
    ]
    if ids["traceparent"]:
        found.append((b"traceparent", ids["traceparent"].encode("ascii")))
    return found
