"""Floor 1: one JSON object a line on standard output; facts, never content.

The catalogue below is the whole of what is logged; `hitl doctor --events` prints it.
"""

import logging
import logging.config
import re
import sys
from collections.abc import Mapping
from typing import Any, Final

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from service import __version__, metrics

CATALOGUE: Final[Mapping[str, str]] = {
    "http.request": "one request was answered: method, route template, status, duration_ms",
    "http.error": "a request ended in an error of ours: the exception's class only",
    "oidc.failed": "the provider of bearer tokens could not be asked for its keys",
    "run.created": "a run was accepted",
    "run.finished": "a run reached a final status",
    "run.recovered": "a run was taken over from a worker that fell silent",
    "run.lease_lost": "this worker was refused at a write and dropped the run",
    "run.handed_over": "a draining worker gave a run back",
    "job.started": "a worker began a job",
    "job.finished": "a worker ended a job: outcome, duration_ms",
    "job.buried": "a job could not be read or run and was taken out of the queue; `hitl queue` lists it with its cause",
    "step.finished": "a step of a run is durable",
    "approval.requested": "a run or a program asks a human",
    "approval.delegated": "a reviewer handed an approval on",
    "approval.view_not_noted": "that somebody opened an approval could not be written down: the class of the reason",
    "approval.decided": "a human, or silence, decided",
    "approval.expired": "an approval's time ran out",
    "provider.call": "one try of a provider call ended: outcome, duration_ms",
    "provider.cancelled": "what nobody wanted any more was ended at its provider",
    "provider.cancel_failed": "a provider could not be reached to end a call, and was tried often enough",
    "file.copy_failed": "an output file could not be copied: the class of the reason; it is tried again",
    "webhook.delivered": "a webhook was acknowledged: host, tries, duration_ms",
    "webhook.failed": "one try of a webhook failed: code; `dead` when it was the last",
    "relay.connected": "the relay is there",
    "relay.disconnected": "the relay is away; messages wait for it",
    "relay.delivered": "the relay acknowledged messages of a run: count",
    "relay.failed": "messages of a run were not acknowledged; they are sent again",
    "relay.answered": "a decision came back over the relay: code where it was refused",
    "queue.wake_failed": "a wake-up could not be sent; the sweep will send it",
    "notify.failed": "a hint to followers could not be sent; they poll",
    "live.failed": "telling news to followers met a fault; they resume from what they have",
    "live.frame_failed": "a client's frame met a fault of ours: the exception's class only",
    "socket.closed": "a WebSocket ended: close code, duration_ms",
    "worker.started": "a worker takes jobs",
    "worker.draining": "a worker was told to stop and takes no more jobs",
    "worker.stopped": "a worker ended",
    "worker.poll_failed": "Redis did not answer; the worker tries again",
    "worker.task_failed": "a background task of the worker failed and goes on",
    "sweep.finished": "one sweep that found something: counts",
    "sweep.part_failed": "a part of a sweep met a fault; the rest of it went on",
    "metrics.served": "the port of HITL_METRICS_PORT answers",
    "metrics.not_served": "that port is taken; the process runs without it",
    "audit.anchored": "what changed in the record was anchored: number, runs, hash; keep this line elsewhere",
    "purge.finished": "what was over for longer than its tenant keeps it was removed: counts",
    "purge.failed": "the file store is away; the runs stay until the next time",
    "lib": "a line of a library at WARNING or above",
}

_NOT_LOGGED = re.compile(r"(payload|prompt|secret|password|authorization|token$|body)", re.IGNORECASE)


def get_logger(name: str) -> FilteringBoundLogger:
    logger: FilteringBoundLogger = structlog.get_logger(logger_name=name)  # `logger` is taken by structlog itself
    return logger


def configure(*, process: str, level: str = "INFO", fmt: str | None = None) -> None:
    """Set up structlog and route the libraries' own lines through it. `process` is web, worker or cli."""
    numeric = logging.getLevelNamesMapping()[level]
    counts = process in ("web", "worker")
    renderer: Processor = structlog.processors.JSONRenderer()
    if (fmt or ("console" if sys.stdout.isatty() else "json")) == "console":
        renderer = structlog.dev.ConsoleRenderer()
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        *([_count] if counts else []),
        _from(numeric),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _stamp(process),
        _guard,
    ]
    structlog.configure(
        processors=[*shared, renderer],
        # what is counted is counted at every level: lines below ours are dropped after that
        wrapper_class=structlog.make_filtering_bound_logger(min(numeric, logging.INFO) if counts else numeric),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stdout),
        cache_logger_on_first_use=False,
    )
    logging.config.dictConfig(library_config())


def library_config() -> dict[str, Any]:
    """The dict that `logging.config` and arq's `--custom-log-dict` take: libraries speak at WARNING only,
    because arq logs arguments and results at INFO."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"structlog": {"class": "service.logs.LibraryHandler"}},
        "root": {"handlers": ["structlog"], "level": "WARNING"},
        # uvicorn's own lines show paths as they came, with the secrets of links and callbacks in them
        "loggers": {"uvicorn.access": {"level": "WARNING"}},
    }


class LibraryHandler(logging.Handler):
    """A library's line as an event `lib`: its logger and the class of its exception, never its text,
    which may quote what it was working on."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None
        log = get_logger(record.name)
        log.log(record.levelno, "lib", template=str(record.msg)[:120], error=error)


ARQ_LOG_CONFIG: Final = library_config()  # for `arq … --custom-log-dict service.logs.ARQ_LOG_CONFIG`


def _count(_: Any, __: str, event: EventDict) -> EventDict:
    metrics.observe(event)
    return event


def _from(numeric: int) -> Processor:
    def drop(_: Any, name: str, event: EventDict) -> EventDict:
        if logging.getLevelNamesMapping().get(name.upper(), logging.CRITICAL) < numeric:
            raise structlog.DropEvent
        return event

    return drop


def _stamp(process: str) -> Processor:
    def stamp(_: Any, __: str, event: EventDict) -> EventDict:
        event["logger"] = event.pop("logger_name", "root")
        event["service"] = "hitl"
        event["process"] = process
        event["version"] = __version__
        return event

    return stamp


def _guard(_: Any, __: str, event: EventDict) -> EventDict:
    """The last wall: a key that names content is dropped, whatever the caller meant."""
    for key in [key for key in event if _NOT_LOGGED.search(key)]:
        del event[key]
    return event
