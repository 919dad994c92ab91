"""Floor 1: faults of our own to Sentry, where `SENTRY_DSN` is set: what the log calls one, with its tags.

The house catches its faults at its doors and logs the class alone; whoever logs one stands in its `except`, and so the
exception is at hand here. What leaves is built from names that are listed: class, place in the code, tags. No text of
an exception, no variable, nothing of a request.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

FLUSH_S: Final = 2.0
FAULTS: Final = frozenset(
    {"http.error", "job.buried", "live.failed", "live.frame_failed", "sweep.part_failed", "worker.task_failed", "lib"}
)
TAGS: Final = (
    *("event", "process", "tenant", "run_id", "approval_id", "job_id", "request_id", "trace_id", "route", "step"),
    *("provider", "task", "part"),
)
_KEPT: Final = ("event_id", "timestamp", "level", "platform", "release", "environment", "server_name", "sdk")
_FRAME: Final = (
    *("filename", "module", "function", "lineno", "in_app", "pre_context", "context_line", "post_context"),
)


@dataclass(slots=True)
class _Here:
    """What this process reports with, once it was started."""

    sdk: Any = None
    process: str = ""
    expected: tuple[type[BaseException], ...] = ()


_here: Final = _Here()


def start(dsn: str | None, *, process: str, version: str, expected: tuple[type[BaseException], ...]) -> None:
    """Report this process's faults from now on; those of the classes `expected` are none. For a worker before arq
    makes it, since its integration wraps the jobs."""
    if dsn is None:
        return
    import sentry_sdk  # an extra
    from sentry_sdk.integrations.dedupe import DedupeIntegration

    integrations: list[Any] = [DedupeIntegration()]
    if process == "worker":
        from sentry_sdk.integrations.arq import ArqIntegration

        integrations.append(ArqIntegration())
    _here.process, _here.expected = process, expected
    sentry_sdk.init(
        dsn,
        release=f"hitl-service@{version}",
        environment=os.environ.get("SENTRY_ENVIRONMENT"),
        integrations=integrations,
        default_integrations=False,  # they read requests, log lines, queries and the command line
        auto_enabling_integrations=False,
        send_default_pii=False,
        max_request_body_size="never",
        include_local_variables=False,
        max_breadcrumbs=0,
        auto_session_tracking=False,
        send_client_reports=False,
        before_send=cast("Any", scrubbed),
    )
    _here.sdk = sentry_sdk


def asgi() -> list[Any]:
    """Sentry's middleware for the web process: it keeps requests apart and sees what escapes ours. The integration
    for Starlette would read a body without a length, whatever its size, before our limit does."""
    if _here.sdk is None:
        return []
    from sentry_sdk.integrations.asgi import SentryAsgiMiddleware

    return [SentryAsgiMiddleware]


@asynccontextmanager
async def flushing() -> AsyncIterator[None]:
    """At the end of the body what is left goes out, within two seconds."""
    try:
        yield
    finally:
        if _here.sdk is not None:
            await asyncio.to_thread(_here.sdk.flush, FLUSH_S)


def observe(line: Mapping[str, Any]) -> None:
    """Report the exception that this line of the log is about, if it is a fault of ours."""
    if _here.sdk is None or line["event"] not in FAULTS:
        return
    error = sys.exc_info()[1]
    if error is None or _is_expected(error):
        return
    if line["event"] == "lib" and not str(line.get("logger_name")).startswith("uvicorn"):
        return
    with _here.sdk.new_scope() as scope:
        for name in TAGS:
            if line.get(name) is not None:
                scope.set_tag(name, str(line[name]))
        _here.sdk.capture_exception(error)


def scrubbed(event: Mapping[str, Any], hint: Mapping[str, Any]) -> dict[str, Any] | None:
    """What may leave of an event; None for what is no fault of ours."""
    error = (hint.get("exc_info") or (None, None, None))[1]
    if error is None or _is_expected(error):
        return None
    tags = dict(event.get("tags") or {})
    if "arq_task_id" in tags:
        tags.setdefault("job_id", tags["arq_task_id"])
    kept = {name: event[name] for name in _KEPT if name in event}
    kept["tags"] = {"process": _here.process} | {name: tags[name] for name in TAGS if name in tags}
    kept["transaction"] = tags.get("route") or tags.get("task") or tags.get("part") or tags.get("event")
    kept["exception"] = {"values": [_bare(one) for one in (event.get("exception") or {}).get("values", ())]}
    return kept


def _is_expected(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(_is_expected(one) for one in error.exceptions)
    return isinstance(error, _here.expected)


def _bare(error: Mapping[str, Any]) -> dict[str, Any]:
    """An exception without its text and its variables."""
    frames = (error.get("stacktrace") or {}).get("frames") or ()
    mechanism = error.get("mechanism") or {}
    return {
        "type": error.get("type"),
        "module": error.get("module"),
        "mechanism": {name: mechanism[name] for name in ("type", "handled") if name in mechanism},
        "stacktrace": {"frames": [{name: frame[name] for name in _FRAME if name in frame} for frame in frames]},
    }
