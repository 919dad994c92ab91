"""One page of the console: who may, what it takes; and the pipeline that serves it.

To add a page: a handler `async def runs(visit: Visit) -> Response` that calls one function and returns
`visit.html("runs.html", …)`, a template that extends `base.html`, and a `Page` in `pages.py`. A POST has been checked
for its origin and its token before the handler sees it; forms in templates begin with `{{ csrf() }}`.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, quote

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from service.border.body import read_bytes
from service.border.origin import check_form_origin
from service.commands import sessions
from service.commands.context import Services
from service.console import cookies, rendering
from service.domain.ids import parse_id
from service.domain.principal import Permission, Principal, demand, may
from service.errors import BadNonce, HitlError, Invalid, NotFound, Unauthenticated, UnsupportedMediaType

CSRF: Final = "console-csrf"
TOKEN_FIELD: Final = "csrf"  # noqa: S105  the name of a field, no secret
MAX_FIELDS: Final = 5_000


@dataclass(frozen=True, slots=True)
class Form:
    """The fields of a POST, in their order."""

    pairs: tuple[tuple[str, str], ...] = ()

    def get(self, name: str, default: str = "") -> str:
        return next((value for key, value in self.pairs if key == name), default)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.pairs if key == name]

    def __contains__(self, name: str) -> bool:
        return any(key == name for key, _ in self.pairs)


@dataclass(frozen=True, slots=True)
class Visit:
    """One request of a person, unpacked and recognised. `guard`: what this visitor's form tokens are bound to."""

    services: Services
    request: Request
    template: str
    principal: Principal
    guard: str
    signed_in: bool
    form: Form = field(default_factory=Form)

    def id(self, name: str) -> Any:
        """A UUID of the path. What is none was never given out: `NotFound`."""
        value = parse_id(self.request.path_params[name])
        if value is None:
            raise NotFound("there is nothing here")
        return value

    @property
    def token(self) -> str:
        return self.services.keyring.sign(CSRF, self.guard)

    @property
    def wants_json(self) -> bool:
        return "application/json" in self.request.headers.get("accept", "")

    def may(self, permission: str) -> bool:
        return may(self.principal.role, Permission(permission))

    def html(self, template: str, status: int = 200, **context: Any) -> Response:
        """The page, with what `base.html` needs."""
        return rendering.html(
            template, status, visit=self, me=self.principal, signed_in=self.signed_in, now=self.services.db.now(),
            theme=cookies.theme(self.request), here=self.template, csrf=self._field, **context,
        )  # fmt: skip

    def json(self, body: Any, status: int = 200) -> Response:
        return JSONResponse(body, status)

    def _field(self) -> Markup:
        """The field that every form of ours carries."""
        return Markup('<input type="hidden" name="{}" value="{}">').format(TOKEN_FIELD, self.token)


Handler = Callable[[Visit], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Page:
    """`permission` None: for everybody, also who is not signed in. `name`: what the navigation calls it."""

    path: str
    handlers: Mapping[str, Handler]
    permission: Permission | None = Permission.READ
    name: str | None = None


async def serve(page: Page, request: Request) -> Response:
    """Recognise, check, unpack, call. Every refusal is a page for a person."""
    request.state.route = page.path
    visit = _unknown(request, page.path)
    try:
        visit = await _recognised(visit, page)
        if request.method == "POST":
            visit = await _checked(visit)
        _refuse_nul(request)
        return await page.handlers["GET" if request.method == "HEAD" else request.method](visit)
    except HitlError as refusal:
        return refused(visit, refusal)


def nowhere(request: Request) -> Response:
    """The page for a path that leads nowhere."""
    return refused(_unknown(request, ""), NotFound("there is nothing here"))


def _unknown(request: Request, template: str) -> Visit:
    """A visit of nobody that is known yet."""
    nobody = Principal("nobody", "", "submitter")
    return Visit(request.app.state.services, request, template, nobody, "", signed_in=False)


def refused(visit: Visit, refusal: HitlError) -> Response:
    """Why not; who is not signed in is sent there and comes back."""
    request = visit.request
    if visit.wants_json:
        errors = [dict(error) for error in refusal.errors]
        body = {"ok": False, "title": refusal.title, "detail": refusal.detail, "code": refusal.code, "errors": errors}
        return visit.json(body, refusal.status)
    if isinstance(refusal, Unauthenticated) and not visit.signed_in and visit.template != "/signin":
        wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        back = f"?next={quote(wanted, safe='')}" if request.method in ("GET", "HEAD") and wanted != "/" else ""
        return RedirectResponse(f"/signin{back}", 303)
    answer = visit.html("refusal.html", refusal.status, refusal=refusal)
    if refusal.retry_after_s is not None:
        answer.headers["Retry-After"] = str(refusal.retry_after_s)
    return answer


async def _recognised(visit: Visit, page: Page) -> Visit:
    """The visit with its principal. Raises `Unauthenticated`, `Forbidden`."""
    who, guard = await _who(visit)
    if who is None:
        if page.permission is not None:
            raise Unauthenticated("sign in first")
        started = cookies.read(visit.request, visit.services, cookies.STARTED)
        return _with(visit, visit.principal, started, signed_in=False)
    if page.permission is not None:
        demand(who, page.permission)
    return _with(visit, who, guard, signed_in=True)


async def _who(visit: Visit) -> tuple[Principal | None, str]:
    if not visit.request.app.state.auth_required:
        return sessions.developer(), "off"
    token = cookies.read(visit.request, visit.services, cookies.SESSION)
    session = await sessions.recognise(visit.services, token) if token else None
    return (session.principal, token) if session else (None, "")


async def _checked(visit: Visit) -> Visit:
    """The visit with its form. Raises `ForeignOrigin`, `BadNonce`, and what reading it raises."""
    request = visit.request
    if request.headers.get("sec-fetch-site") != "same-origin":  # no page can set it; localhost has several names
        check_form_origin(request, visit.services.public_url)
    form = await _read(request)
    given = form.get(TOKEN_FIELD)
    if not visit.guard or not visit.services.keyring.verify(CSRF, visit.guard, given):
        raise BadNonce("the form is too old, or not one of this page: load the page again")
    return _with(visit, visit.principal, visit.guard, signed_in=visit.signed_in, form=form)


def _with(visit: Visit, who: Principal, guard: str, *, signed_in: bool, form: Form | None = None) -> Visit:
    return Visit(visit.services, visit.request, visit.template, who, guard, signed_in, form or Form())


async def _read(request: Request) -> Form:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise UnsupportedMediaType("the form must be application/x-www-form-urlencoded")
    raw = await read_bytes(request)
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
    except ValueError:
        raise Invalid("the form cannot be read") from None
    if any("\x00" in key or "\x00" in value for key, value in pairs):
        raise Invalid("the form holds a NUL character, which cannot be stored")
    return Form(tuple(pairs))


def _refuse_nul(request: Request) -> None:
    values = [*request.path_params.values(), *(value for _, value in request.query_params.multi_items())]
    if any("\x00" in value for value in values):
        raise NotFound("there is nothing here")
