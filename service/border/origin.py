"""Whether a request comes from a page of this service: what a browser says of it, and no page can change."""

from typing import Final
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from service.errors import ForeignOrigin

_PORTS: Final = {"http": 80, "https": 443}


def check_origin(connection: HTTPConnection, public_url: str) -> None:
    """Raises `ForeignOrigin` for a browser's page of another site. No Origin: no browser."""
    origin = connection.headers.get("origin")
    if origin is not None and _origin(origin) != _origin(public_url):
        raise ForeignOrigin("the Origin is not that of HITL_PUBLIC_URL")


def check_form_origin(connection: HTTPConnection, public_url: str) -> None:
    """A browser says where a form comes from: by its origin, or, where it withholds that (`null`), by
    `Sec-Fetch-Site`, which no page can set. A client that says nothing has the form's own secret still.

    Raises `ForeignOrigin`.
    """
    if connection.headers.get("origin") == "null" and connection.headers.get("sec-fetch-site") == "same-origin":
        return
    check_origin(connection, public_url)


def _origin(url: str) -> tuple[str, str, int | None] | None:
    try:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname or "", parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return None
