"""What a person does with an approval: decide, decide many, claim, release. The same commands as the API's."""

from collections.abc import Awaitable, Callable
from typing import Any, Final, cast, get_args
from uuid import UUID

from starlette.responses import RedirectResponse, Response

from service.border.body import parse
from service.commands import approvals as commands
from service.console.page import Page, Visit
from service.console.results import Result, page
from service.console.words import STATES
from service.domain.approval import Action, Approval, Order
from service.domain.ids import parse_id
from service.domain.policy import EscalateTo
from service.domain.principal import Permission
from service.errors import HitlError, Invalid, InvalidJson

CHANNEL: Final = "console"
VOTED: Final = "Your vote was taken"
MAX_REASON: Final = 10_000
MAX_PICKED: Final = 500
MAX_NAME: Final = 200
_DECIDE: Final = Permission.DECIDE


async def decide_at(visit: Visit) -> Response:
    """Take the answer. Back to where the person was, or what came of it as JSON for the script."""
    approval_id = visit.id("approval_id")
    order = order_of(visit)
    decided = await commands.decide(visit.services, approval_id, order, visit.principal, channel=CHANNEL)
    if visit.wants_json:
        return visit.json(
            {
                "ok": True,
                "title": STATES[decided.approval.status] if not decided.approval.is_open else VOTED,
                "detail": "",
            }
        )
    return RedirectResponse(_back(visit, approval_id), 303)


async def decide_many(visit: Visit) -> Response:
    """One answer for each that was picked, each on its own; and what came of each."""
    picked = visit.form.all("pick")
    if not picked or len(picked) > MAX_PICKED:
        raise Invalid(f"pick 1 to {MAX_PICKED} approvals first")
    if visit.form.get("action") == "reject" and reason_of(visit) is None:
        raise Invalid("a rejection needs a reason: nothing was decided, go back and give one")
    results = [await _one_of_many(visit, text) for text in picked]
    title = f"{sum(result.ok for result in results)} of {len(results)} decided"
    return page(visit, results, title, back=_inbox(visit), back_to="the inbox")


async def claim(visit: Visit) -> Response:
    """Keep it from others for ten minutes."""
    return await _claim(visit, release=False)


async def release(visit: Visit) -> Response:
    """Let the claim go."""
    return await _claim(visit, release=True)


def order_of(visit: Visit, payload_sha256: str | None = None) -> Order:
    """The answer in the form. Raises `Invalid`."""
    form = visit.form
    action = form.get("action")
    if action not in get_args(Action):
        raise Invalid("choose an answer", errors=[{"pointer": "/action", "message": "is required"}])
    sha = payload_sha256 or form.get("payload_sha256") or None
    return Order(cast("Action", action), _edits(visit, action), reason_of(visit), sha)


def reason_of(visit: Visit, field: str = "reason") -> str | None:
    reason = visit.form.get(field).replace("\r\n", "\n").strip() or None
    if reason is not None and len(reason) > MAX_REASON:
        message = f"has more than {MAX_REASON} characters"
        raise Invalid("the reason is too long", errors=[{"pointer": f"/{field}", "message": message}])
    return reason


def handed_to(visit: Visit) -> EscalateTo:
    """The one person, or the one group, in the form. Raises `Invalid`."""
    kind, name = visit.form.get("to"), visit.form.get("name").strip()
    if kind not in ("user", "group"):
        raise Invalid("choose a person or a group")
    if not name or len(name) > MAX_NAME:
        raise Invalid(f"name a {'person' if kind == 'user' else 'group'}, in 1 to {MAX_NAME} characters")
    return EscalateTo(users=[name]) if kind == "user" else EscalateTo(groups=[name])


def _edits(visit: Visit, action: str) -> Any:
    """What was proposed, or what came of a call that was never answered: JSON, or text where it is none."""
    form = visit.form
    if action == "approve" and "outcome" in form:
        outcome = form.get("outcome").strip()
        if not outcome:
            return None
        try:
            return {"response": parse(outcome.encode())}
        except InvalidJson:
            return {"response": outcome}
    if action != "edit":
        return None
    try:
        return parse(form.get("edits").encode())
    except InvalidJson as fault:
        raise Invalid(fault.detail, errors=[{"pointer": "/edits", "message": "is not JSON"}]) from None


async def _one_of_many(visit: Visit, text: str) -> Result:
    named, _, sha = text.partition(" ")
    approval_id = parse_id(named)
    if approval_id is None:
        return Result(named[:MAX_NAME], None, ok=False, title="Not found")
    path = f"/approvals/{approval_id}"
    try:
        order = order_of(visit, sha or None)
        decided = await commands.decide(visit.services, approval_id, order, visit.principal, channel=CHANNEL)
    except HitlError as refusal:
        shown = refusal.extra.get("approval")
        name = shown.message if isinstance(shown, Approval) else ""
        return Result(name or str(approval_id), path, ok=False, title=refusal.title, detail=_first(refusal))
    approval = decided.approval
    title = VOTED if approval.is_open else STATES[approval.status]
    return Result(approval.message or str(approval_id), path, ok=True, title=title)


async def _claim(visit: Visit, *, release: bool) -> Response:
    approval_id = visit.id("approval_id")
    act: Callable[..., Awaitable[Approval]] = commands.claim
    await act(visit.services, approval_id, visit.principal, release=release)
    if visit.wants_json:
        return visit.json({"ok": True, "title": "Released" if release else "Claimed", "detail": ""})
    return RedirectResponse(_back(visit, approval_id), 303)


def _first(refusal: HitlError) -> str:
    """Why not, and where a field was at fault, which."""
    return "; ".join([refusal.detail, *(f"{error['pointer']} {error['message']}" for error in refusal.errors)])


def _back(visit: Visit, approval_id: UUID) -> str:
    """The inbox as it was, where the answer was given there."""
    return _inbox(visit) if visit.form.get("back") else f"/approvals/{approval_id}"


def _inbox(visit: Visit) -> str:
    back = visit.form.get("back")
    return back if back.startswith("/?") and back.isprintable() else "/"


PAGES: Final = (
    Page("/approvals/{approval_id}/claim", {"POST": claim}, _DECIDE),
    Page("/approvals/{approval_id}/release", {"POST": release}, _DECIDE),
    Page("/decisions", {"POST": decide_many}, _DECIDE),
)
