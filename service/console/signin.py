"""Sign in by an API key or at the OIDC provider, and sign out."""

import secrets
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit

from starlette.responses import RedirectResponse, Response

from service.commands import sessions
from service.console import cookies
from service.console.page import Page, Visit
from service.errors import Unauthenticated

CALLBACK: Final = "/signin/callback"


async def show(visit: Visit) -> Response:
    """The form; a fresh secret of this browser guards it, and the way to the provider and back."""
    if visit.signed_in:
        return RedirectResponse(_local(visit.request.query_params.get("next", "/")), 303)
    started = Visit(visit.services, visit.request, visit.template, visit.principal, _fresh(visit), signed_in=False)
    return _form(started)


async def by_key(visit: Visit) -> Response:
    """A key for a session. A bad one is said so, and the form stands as it was."""
    if visit.signed_in:
        return RedirectResponse("/", 303)
    try:
        token, session = await sessions.sign_in(visit.services, visit.form.get("key").strip())
    except Unauthenticated as refusal:
        return _form(visit, problem=refusal.detail, status=refusal.status)
    return _signed_in(visit, token, session.expires_at, visit.form.get("next", "/"))


async def at_provider(visit: Visit) -> Response:
    """Send the person to the provider; what comes back must be of this attempt."""
    where = _local(visit.request.query_params.get("next", "/"))
    started = f"{secrets.token_urlsafe(32)}{where}"
    answer = RedirectResponse(await sessions.provider_url(visit.services, started, _callback(visit)), 303)
    cookies.put(answer, visit.services, cookies.STARTED, started, lasts_s=cookies.STARTED_LASTS_S)
    return answer


async def come_back(visit: Visit) -> Response:
    """The provider's answer: a code, or why there is none."""
    asked = visit.request.query_params
    started = cookies.read(visit.request, visit.services, cookies.STARTED)
    try:
        if "code" not in asked:
            raise Unauthenticated("the provider did not let you in")
        token, session = await sessions.sign_in_by_code(
            visit.services, started, _callback(visit), code=asked["code"], state=asked.get("state", ""),
            issuer=asked.get("iss"),
        )  # fmt: skip
    except Unauthenticated as refusal:
        fresh = Visit(visit.services, visit.request, "/signin", visit.principal, _fresh(visit), signed_in=False)
        return _form(fresh, problem=refusal.detail, status=refusal.status)
    return _signed_in(visit, token, session.expires_at, started[started.find("/") :] if "/" in started else "/")


async def sign_out(visit: Visit) -> Response:
    """End the session for good, and forget it here."""
    await sessions.sign_out(visit.services, cookies.read(visit.request, visit.services, cookies.SESSION))
    answer = RedirectResponse("/signin", 303)
    cookies.drop(answer, visit.services, cookies.SESSION)
    return answer


def _form(visit: Visit, *, problem: str | None = None, status: int = 200) -> Response:
    where = _local(visit.form.get("next") or visit.request.query_params.get("next", "/"))
    answer = visit.html("signin.html", status, problem=problem, provider=visit.services.sign_on is not None, next=where)
    cookies.put(answer, visit.services, cookies.STARTED, visit.guard, lasts_s=cookies.STARTED_LASTS_S)
    return answer


def _fresh(visit: Visit) -> str:
    """The secret that this browser has already, or a new one: two tabs may be open."""
    return visit.guard or secrets.token_urlsafe(32)


def _signed_in(visit: Visit, token: str, until: datetime, where: str) -> Response:
    left_s = int((until - visit.services.db.now()).total_seconds())
    answer = RedirectResponse(_local(where), 303)
    cookies.put(answer, visit.services, cookies.SESSION, token, lasts_s=max(1, left_s))
    cookies.drop(answer, visit.services, cookies.STARTED)
    return answer


def _callback(visit: Visit) -> str:
    return visit.services.public_url + CALLBACK


def _local(where: str) -> str:
    """A path of this service, never another site: `//host` and `/\\host` lead away in a browser."""
    parts = urlsplit(where)
    local = where.startswith("/") and not where.startswith(("//", "/\\")) and not parts.netloc and where.isprintable()
    return where if local else "/"


PAGES: Final = (
    Page("/signin", {"GET": show, "POST": by_key}, None),
    Page("/signin/provider", {"GET": at_provider}, None),
    Page(CALLBACK, {"GET": come_back}, None),
    Page("/signout", {"POST": sign_out}),
)
