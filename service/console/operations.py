"""The page of operations: what waits and what stands still, what failed and what was not delivered, and what helps."""

from collections.abc import Awaitable, Callable
from typing import Any, Final
from uuid import UUID

from starlette.responses import Response

from service.commands import operations
from service.commands.operations import Operations
from service.console import graphs, live, words
from service.console.page import Page, Visit
from service.console.results import Result, page
from service.domain.ids import parse_id
from service.domain.principal import Permission
from service.errors import HitlError, Invalid

APART_S: Final = 1.0
Act = Callable[[Visit, UUID], Awaitable[str]]
_QUEUE: Final = (
    ("queued", "Due", "queued", "a worker takes them on"),
    ("deferred", "Deferred", "queued", "for a turn or a later try"),
    ("in_progress", "In progress", "running", "held by a worker"),
    ("awaiting_human", "Waiting for people", "awaiting_human", "nothing runs meanwhile"),
    ("awaiting_provider", "At a provider", "awaiting_provider", "it will call back"),
    ("failed", "Failed", "failed", "until they are taken up again"),
)


async def show(visit: Visit) -> Response:
    """The state of the tenant's runs."""
    found = await operations.look(visit.services, visit.principal)
    return visit.html(
        "operations.html",
        o=found,
        at=found.at,
        queue=_tiles(found),
        ages=list(zip(words.AGES, found.ages, strict=True)),
        share=graphs.share,
        shown=operations.SHOWN,
        among=operations.AMONG,
        counted=operations.COUNTED,
    )


async def follow(visit: Visit) -> Response:
    """Says when the same page would be another one."""

    async def look() -> str:
        return (await operations.look(visit.services, visit.principal)).mark

    return live.changes(visit, look, apart_s=APART_S)


async def requeue(visit: Visit) -> Response:
    """Take up again what was picked."""
    return await _each(visit, _requeued, "taken up again", "/runs/")


async def resume(visit: Visit) -> Response:
    """Go on with what was picked."""
    return await _each(visit, _resumed, "resumed", "/runs/")


async def redeliver(visit: Visit) -> Response:
    """Send again what was picked."""
    return await _each(visit, _redelivered, "sent again", None)


async def _requeued(visit: Visit, run_id: UUID) -> str:
    run = await operations.requeue(visit.services, visit.principal, run_id)
    return words.RUN_STATES[run.status]


async def _resumed(visit: Visit, run_id: UUID) -> str:
    run = await operations.resume(visit.services, visit.principal, run_id)
    return words.RUN_STATES[run.status]


async def _redelivered(visit: Visit, message_id: UUID) -> str:
    await operations.redeliver(visit.services, visit.principal, message_id)
    return "Due now"


async def _each(visit: Visit, act: Act, done: str, path: str | None) -> Response:
    """Do it to each, each on its own; and what came of each, as a page or in brief for the script."""
    picked = visit.form.all("pick")
    if not picked or len(picked) > operations.EACH:
        raise Invalid(f"pick 1 to {operations.EACH} first")
    results = [await _one(visit, act, text, path) for text in picked]
    taken = sum(result.ok for result in results)
    title = f"{taken} of {len(results)} {done}" if len(results) > 1 or not taken else done.capitalize()
    if visit.wants_json:
        fault = next((result for result in results if not result.ok), None)
        detail = f"{fault.title}: {fault.detail}" if fault else ""
        return visit.json({"ok": fault is None, "title": title, "detail": detail})
    return page(visit, results, title, back="/operations", back_to="operations")


async def _one(visit: Visit, act: Act, text: str, path: str | None) -> Result:
    one = parse_id(text)
    if one is None:
        return Result("not an id", None, ok=False, title="Not found")
    leads = f"{path}{one}" if path else None
    try:
        return Result(str(one), leads, ok=True, title=await act(visit, one))
    except HitlError as refusal:
        return Result(str(one), leads, ok=False, title=refusal.title, detail=refusal.detail)


def _tiles(found: Operations) -> list[dict[str, Any]]:
    """The queue in figures; each leads to its runs."""
    most = max((found.queue[name] for name, *_ in _QUEUE), default=0)
    return [
        {
            "name": title, "status": status, "hint": hint, "share": graphs.share(found.queue[name], most),
            "figure": words.count(found.queue[name], operations.COUNTED), "kind": name,
        }
        for name, title, status, hint in _QUEUE
    ]  # fmt: skip


PAGES: Final = (
    Page("/operations", {"GET": show}, name="Operations"),
    Page("/live/operations", {"GET": follow}),
    Page("/operations/requeue", {"POST": requeue}, Permission.SUBMIT),
    Page("/operations/resume", {"POST": resume}, Permission.SUBMIT),
    Page("/operations/redeliver", {"POST": redeliver}, Permission.ADMIN),
)
