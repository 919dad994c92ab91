"""Floor 1: traces, where `OTEL_EXPORTER_OTLP_ENDPOINT` is set; elsewhere every function here does nothing at once.

A run's trace goes from the POST that started it over its jobs, its provider calls and its webhooks: `runs.traceparent`
is the span of that POST. A decision is a request with a trace of its own; the job after it carries a link to it.
Spans say who, where and how long: what they say beside that, they take from the log's lines, which hold no content.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, Literal, ParamSpec, TypeVar
from urllib.parse import urlsplit

from structlog.contextvars import bound_contextvars

P = ParamSpec("P")
R = TypeVar("R")
Kind = Literal["internal", "server", "client", "consumer"]
Line = Mapping[str, Any]

_NOTHING: Final[AbstractContextManager[None]] = nullcontext()
_FIELDS: Final = (
    *("run_id", "approval_id", "tenant", "step", "provider", "status", "code", "outcome", "action", "channel"),
    *("checkpoint", "on_timeout", "cause", "call", "tries"),
)
_ATTRIBUTES: Final = frozenset(
    {"run.created", "approval.decided", "approval.expired", "provider.call", "webhook.delivered", "webhook.failed"}
)
_EVENTS: Final = frozenset(
    {"step.finished", "approval.requested", "approval.expired", "run.finished", "run.recovered", "run.lease_lost",
     "run.handed_over"}
)  # fmt: skip
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"})


@dataclass(slots=True)
class _Here:
    """What this process exports with; the module stands here too, since OpenTelemetry is an extra."""

    exporter: Any = None
    otel: Any = None


_here: Final = _Here()


@asynccontextmanager
async def exporting(endpoint: str | None, *, process: str, version: str) -> AsyncIterator[None]:
    """Export as long as the body lasts, and what is left at its end within three seconds. Nobody waits for it: a
    collector that is away costs spans, and nothing else."""
    if endpoint is None:
        yield
        return
    from service import otel  # an extra, and a fifth of a second

    _here.exporter, _here.otel = otel.Otel(endpoint, process=process, version=version), otel
    try:
        yield
    finally:
        exporter, _here.exporter, _here.otel = _here.exporter, None, None
        await asyncio.to_thread(exporter.close)


def on() -> bool:
    return _here.exporter is not None


def span(
    name: str, *, kind: Kind = "internal", parent: str | None = None, **attributes: Any
) -> AbstractContextManager[None]:
    """A span for the block; lines of the log in it bear its `trace_id`."""
    if _here.exporter is None:
        return _NOTHING
    return _span(name, kind, parent, {name: value for name, value in attributes.items() if value is not None})


@contextmanager
def _span(name: str, kind: Kind, parent: str | None, attributes: Mapping[str, Any]) -> Iterator[None]:
    with _here.exporter.span(name, kind, parent, attributes), bound_contextvars(**ids()):
        yield


def serving(method: str, parent: str | None, *, path: str) -> AbstractContextManager[None]:
    """The span of one request, named once its line is logged. What only probes ask for has none."""
    if _here.exporter is None or path in ("/healthz", "/readyz", "/metrics"):
        return _NOTHING
    return _span(method, "server", parent, {"http.request.method": method if method in _METHODS else "_OTHER"})


def under(traceparent: str | None) -> AbstractContextManager[None]:
    """Spans of the block are children of this one, which somebody else has begun."""
    return _NOTHING if _here.exporter is None or traceparent is None else _here.otel.under(traceparent)


def traced(
    name: str, *, kind: Kind = "internal"
) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Coroutine[Any, Any, R]]]:
    """The function in a span of its own."""

    def around(work: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
        @wraps(work)
        async def inside(*args: P.args, **kwargs: P.kwargs) -> R:
            with span(name, kind=kind):
                return await work(*args, **kwargs)

        return inside

    return around


def note(attributes: Mapping[str, Any]) -> None:
    """Say more about the current span, unless it is over: a call may outlive its job."""
    if _here.exporter is not None and (current := _here.otel.current()).is_recording():
        current.set_attributes({name: value for name, value in attributes.items() if value is not None})


def link(traceparent: str | None) -> None:
    """The current span goes back to this one, in another trace."""
    if _here.exporter is not None and traceparent is not None:
        _here.otel.link(_here.otel.current(), traceparent)


def traceparent() -> str | None:
    """The current span's, for who goes on from here: stored with a run, sent to a provider."""
    return None if _here.exporter is None else _here.otel.traceparent(_here.otel.current())


def outgoing(method: str, url: str) -> dict[str, Any]:
    """What a span says of a request of ours: where to, and nothing of the path, which may hold secrets."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return {"http.request.method": method, "server.address": parts.hostname, "server.port": port}


def headers() -> dict[str, str]:
    """What a request of ours to the outside carries."""
    here = traceparent()
    return {} if here is None else {"traceparent": here}


def ids() -> dict[str, str]:
    """The current span's `trace_id`, for the log."""
    here = traceparent()
    return {} if here is None else {"trace_id": here.split("-")[1]}


def observe(line: Line) -> None:
    """Say on the current span what this line of the log says."""
    if _here.exporter is None:
        return
    event = line["event"]
    current = _here.otel.current()
    if not current.is_recording():
        return
    if line.get("level") in ("error", "critical"):
        _here.otel.failed(current)
    if event == "http.request":
        _answered(line)
    if event in _ATTRIBUTES:
        current.set_attributes(_said(line))
    if event in _EVENTS:
        current.add_event(event, _said(line))


def _answered(line: Line) -> None:
    """Name the request's span after its route, with what its log line says of it."""
    method, route, status = line.get("method"), str(line.get("route")), line.get("status", 0)
    current = _here.otel.current()
    current.update_name(f"{method if method in _METHODS else 'HTTP'} {route}")
    current.set_attributes({"http.route": route, "http.response.status_code": status})
    current.set_attributes({name: value for name, value in _said(line).items() if name != "status"})
    if status >= 500:
        _here.otel.failed(current)


def _said(line: Line) -> dict[str, Any]:
    return {name: line[name] for name in _FIELDS if isinstance(line.get(name), str | int | float | bool)}
