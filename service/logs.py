"""Floor 1: one JSON object a line on standard output; facts, never content.

What may be logged stands in catalogue.py; `hitl doctor --events` prints it.
"""

import logging
import logging.config
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor

from service import __version__, faults, metrics, tracing
from service.catalogue import EVENTS

CATALOGUE: Final[Mapping[str, str]] = {name: event.says for name, event in EVENTS.items()}

SAMPLE_EVERY_S: Final = 60.0
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
        _Sample(every_s=0 if numeric < logging.INFO else SAMPLE_EVERY_S),
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
        "loggers": {
            "uvicorn": {"level": "WARNING", "handlers": [], "propagate": True},
            "uvicorn.error": {"level": "WARNING", "propagate": True},
            "uvicorn.access": {"level": "WARNING"},
        },
    }


_NOT_SO: Final = frozenset({"ASGI callable returned without completing handshake."})
"""What uvicorn says of every handshake that was refused with an answer, though nothing is wrong."""


class LibraryHandler(logging.Handler):
    """A library's line as an event `lib`: its logger and the class of its exception, never its text,
    which may quote what it was working on."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None
        if record.msg in _NOT_SO:
            return
        log = get_logger(record.name)
        first = str(record.msg).partition("\n")[0]  # what asyncio puts below it quotes exceptions
        log.log(record.levelno, "lib", template=first[:120], error=error)


ARQ_LOG_CONFIG: Final = library_config()  # for `arq … --custom-log-dict service.logs.ARQ_LOG_CONFIG`


def _count(_: Any, __: str, event: EventDict) -> EventDict:
    metrics.observe(event)
    tracing.observe(event)
    faults.observe(event)
    return event


def _from(numeric: int) -> Processor:
    def drop(_: Any, name: str, event: EventDict) -> EventDict:
        if logging.getLevelNamesMapping().get(name.upper(), logging.CRITICAL) < numeric:
            raise structlog.DropEvent
        return event

    return drop


class _Sample:
    """Of the lines that say `sample=True`, one in so many seconds for each event and route; it tells how many were
    left out before it. They were counted: metrics miss nothing."""

    def __init__(self, *, every_s: float) -> None:
        self._every_s = every_s
        self._last: dict[tuple[str, str], float] = {}
        self._skipped: Counter[tuple[str, str]] = Counter()

    def __call__(self, _: Any, __: str, event: EventDict) -> EventDict:
        if not event.pop("sample", False):
            return event
        kind, now = (event["event"], event.get("route", "")), time.monotonic()
        if now - self._last.get(kind, float("-inf")) < self._every_s:
            self._skipped[kind] += 1
            raise structlog.DropEvent
        self._last[kind] = now
        if skipped := self._skipped.pop(kind, 0):
            event["skipped"] = skipped
        return event


def _stamp(process: str) -> Processor:
    def stamp(_: Any, __: str, event: EventDict) -> EventDict:
        event["logger"] = event.pop("logger_name", "root")
        event["service"] = "hitl"
        event["process"] = process
        event["version"] = __version__
        return event

    return stamp


@lru_cache(maxsize=1024)  # all that the catalogue names, several times over
def _names_content(key: str) -> bool:
    return _NOT_LOGGED.search(key) is not None


def _guard(_: Any, __: str, event: EventDict) -> EventDict:
    """The last wall: a key that names content is dropped, whatever the caller meant."""
    for key in [key for key in event if _names_content(key)]:
        del event[key]
    if "@" in str(event.get("actor", "")):  # a subject may be a mail address, and those are not logged
        event["actor"] = f"mail:{sha256(event['actor'].encode()).hexdigest()[:12]}"
    return event
