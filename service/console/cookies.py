"""The console's cookies: out of reach of scripts, of other sites and, where it can be, of plain connections."""

from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from service.commands.context import Services

SESSION: Final = "hitl_session"
STARTED: Final = "hitl_signin"
THEME: Final = "hitl_theme"
STARTED_LASTS_S: Final = 600
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


def put(response: Response, services: Services, name: str, value: str, *, lasts_s: int) -> None:
    """Lax: strict ones would not come along when the OIDC provider sends the person back."""
    response.set_cookie(
        _name(services, name), value, max_age=lasts_s, path="/", httponly=True, samesite="lax", secure=_secure(services)
    )


def drop(response: Response, services: Services, name: str) -> None:
    response.delete_cookie(_name(services, name), path="/", httponly=True, samesite="lax", secure=_secure(services))


def read(request: Request, services: Services, name: str) -> str:
    return request.cookies.get(_name(services, name), "")


def theme(request: Request) -> str:
    """What the reader chose; empty: as their system has it."""
    chosen = request.cookies.get(THEME, "")
    return chosen if chosen in ("light", "dark") else ""


def _name(services: Services, name: str) -> str:
    """With the prefix a browser takes the cookie only from this host, over TLS."""
    return f"__Host-{name}" if _secure(services) else name


def _secure(services: Services) -> bool:
    """Plain only on this machine, where a browser may not keep a secure cookie of a plain page."""
    there = urlsplit(services.public_url)
    return there.scheme == "https" or there.hostname not in _LOOPBACK
