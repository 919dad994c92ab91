"""Templates into pages: escaped by default, under a policy that lets nothing of others run or load."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

import orjson
from jinja2 import Environment, PackageLoader
from starlette.responses import HTMLResponse

from service.console import assets, words
from service.domain.text import visible

_CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": _CSP,
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # not `no-referrer`: with it a browser sends forms as from nowhere, and they are refused
    "Referrer-Policy": "same-origin",
    "Vary": "Cookie",
}


def html(template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """The page of a template; everything in `context` is text until the template says otherwise."""
    return HTMLResponse(environment().get_template(template).render(**context), status, HEADERS)


@cache
def environment() -> Environment:
    made = Environment(
        loader=PackageLoader("service.console"), autoescape=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {
        "json": as_json, "seen": seen, "utc": utc, "iso": iso, "reason": words.reason, "checkpoint": words.checkpoint,
        "flat": flat,
    }  # fmt: skip
    made.globals |= {"asset": assets.url_of, "words": words}
    return made


def as_json(value: Any) -> str:
    """A value for reading: text as it is, anything else as indented JSON."""
    return value if isinstance(value, str) else orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def flat(value: Any) -> str:
    """A value as JSON in one line."""
    return orjson.dumps(value).decode()


def seen(value: Any) -> str:
    """Text of others, with what would hide or turn it made visible."""
    return visible(as_json(value))


def utc(at: datetime | None) -> str:
    """For those without script; `clock.js` puts it into the reader's zone."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC") if at else ""


def iso(at: datetime | None) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z") if at else ""
