"""Signed links: the route that makes one, and the page behind it. Opening the page changes nothing."""

from datetime import datetime
from typing import Annotated, Any, Final, cast, get_args
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from service.api import link_page
from service.api.models import Answer
from service.api.operation import Call, Operation, Reply
from service.border.body import read_bytes
from service.border.origin import check_form_origin
from service.commands.context import Services
from service.commands.links import decide_by_link, make_link, open_link
from service.commands.seen import note_seen
from service.domain.approval import Action, Order
from service.domain.policy import Name
from service.domain.principal import Permission
from service.domain.view import approval_view, when
from service.errors import (
    ApprovalClaimed,
    ApprovalExpired,
    Conflict,
    Forbidden,
    HitlError,
    Invalid,
    LinkExpired,
    LinkUsed,
    NotFound,
    PayloadChanged,
    UnsupportedMediaType,
)

PATH: Final = "/hitl/links/{token}"
MAX_REASON: Final = 10_000
_FIELDS: Final = frozenset({"action", "reason", "nonce"})
_TITLES: Final[tuple[tuple[type[HitlError], str], ...]] = (
    (NotFound, "There is nothing here"),
    (LinkExpired, "This link is over"),
    (LinkUsed, "This link was used"),
    (ApprovalClaimed, "Somebody else is looking at it"),
    (PayloadChanged, "It was changed in the meantime"),
    (Conflict, "It cannot be answered any more"),
    (Forbidden, "You may not do this"),
    (Invalid, "Something is missing"),
)


class LinkRequest(BaseModel):
    """For whom the link is, and for how long; it is over with the approval at the latest."""

    model_config = ConfigDict(extra="forbid", strict=True)
    reviewer: Name
    expires_in_seconds: Annotated[float, Field(ge=1, le=366 * 86_400)] | None = None


class LinkMade(Answer):
    url: str
    expires_at: datetime


async def link(call: Call) -> Reply:
    """A link by which this reviewer decides once, without a key: to be sent to them and to nobody else."""
    body: LinkRequest = call.body
    url, over_at = await make_link(
        call.services, call.id("approval_id"), body.reviewer, call.principal, expires_in_s=body.expires_in_seconds
    )
    return Reply({"url": url, "expires_at": when(over_at)})


async def page(request: Request) -> Response:
    """GET and HEAD show the approval, POST decides; every answer is a page for a person."""
    request.state.route = PATH
    services: Services = request.app.state.services
    token: str = request.path_params["token"]
    try:
        if request.method == "POST":
            return await _decide(request, services, token)
        return await _show(services, token, opened=request.method == "GET")
    except HitlError as refusal:
        return _refused(refusal)


async def _show(
    services: Services, token: str, *, problems: tuple[str, ...] = (), status: int = 200, opened: bool = False
) -> Response:
    shown = await open_link(services, token)
    if opened:
        await note_seen(services, shown.reviewer, [approval_view(shown.approval)], "link")
    return _html(link_page.approval_page(shown, now=services.db.now(), problems=problems), status)


async def _decide(request: Request, services: Services, token: str) -> Response:
    check_form_origin(request, services.public_url)
    try:
        form = await _form(request)
        order = Order(_action(form), reason=_reason(form))
        decided = await decide_by_link(services, token, order, nonce=form.get("nonce", ""))
    except Invalid as refusal:
        says = [f"{fault['pointer'].removeprefix('/')} {fault['message']}" for fault in refusal.errors]
        return await _show(services, token, problems=(refusal.detail, *says), status=refusal.status)
    return _html(link_page.done_page(decided.approval), 200)


async def _form(request: Request) -> dict[str, str]:
    """The fields of the form. Raises `UnsupportedMediaType`, `TooLarge`, `Invalid`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise UnsupportedMediaType("the form must be application/x-www-form-urlencoded")
    raw = await read_bytes(request)
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, max_num_fields=len(_FIELDS), errors="strict")
    except ValueError:
        raise Invalid("the form cannot be read") from None
    form = dict(pairs)
    if len(form) != len(pairs) or not set(form) <= _FIELDS or any("\x00" in value for value in form.values()):
        raise Invalid("the form is not the one of this page")
    return form


def _action(form: dict[str, str]) -> Action:
    if form.get("action") not in get_args(Action):
        raise Invalid("choose an answer", errors=[{"pointer": "/action", "message": "is required"}])
    return cast("Action", form["action"])


def _reason(form: dict[str, str]) -> str | None:
    reason = form.get("reason", "").strip()
    if len(reason) > MAX_REASON:
        message = f"has more than {MAX_REASON} characters"
        raise Invalid("the reason is too long", errors=[{"pointer": "/reason", "message": message}])
    return reason or None


def _refused(refusal: HitlError) -> Response:
    """A page that says why not; to a link an approval that ran out is over like the link itself."""
    title = next((title for kind, title in _TITLES if isinstance(refusal, kind)), refusal.title)
    status = LinkExpired.status if isinstance(refusal, ApprovalExpired) else refusal.status
    answer = _html(link_page.refusal_page(title, refusal.detail), status)
    if refusal.retry_after_s is not None:
        answer.headers["Retry-After"] = str(refusal.retry_after_s)
    return answer


def _html(content: str, status: int) -> Response:
    headers: dict[str, Any] = {"Content-Security-Policy": link_page.CSP, "X-Frame-Options": "DENY"}
    return HTMLResponse(content, status, headers)


PAGES: Final = (Route(PATH, page, methods=["GET", "HEAD", "POST"]),)
OPERATIONS: Final = (
    Operation(
        "POST", "/hitl/approvals/{approval_id}/link", link, LinkMade, Permission.ADMIN, body=LinkRequest,
        problems=(404, 409), tag="approvals",
    ),
)  # fmt: skip
