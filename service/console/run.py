"""One run: what it is at and was at, drawn to scale; what people and providers said; and what can be done with it."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from uuid import UUID

import orjson
from starlette.responses import RedirectResponse, Response

from service.commands import history, operations, runs
from service.commands.history import History
from service.console import live, run_words
from service.console.deciding import reason_of
from service.console.drawing import draw, length
from service.console.media import media_of
from service.console.page import Page, Visit
from service.console.rendering import as_json
from service.domain.event import wire
from service.domain.principal import Permission, reserved
from service.domain.revision import Revision
from service.domain.run import Run, RunStatus
from service.domain.text import visible_json
from service.errors import Conflict, HitlError, Invalid, NotFound
from service.store.history import Told

MAX_SHOWN: Final = 20_000
"""Characters of a value that the page shows; the whole is behind the disclosures of raw JSON."""
MAX_PROGRESS: Final = 400
APART_S: Final = 1.0
"""Between two answers to who looks on while a provider streams."""
MAX_CHANGES: Final = 100
DONE: Final = {"pause": "Paused", "resume": "It goes on", "requeue": "Requeued", "cancel": "Cancelled"}


async def show(visit: Visit) -> Response:
    """The run as it stands."""
    return await _page(visit)


async def follow(visit: Visit) -> Response:
    """Says when the page would be another one."""
    run_id = visit.id("run_id")

    async def look() -> str:
        return await history.watch(visit.services, run_id, visit.principal)

    return live.changes(visit, look, apart_s=APART_S)


async def raw(visit: Visit) -> Response:
    """What the page tells, as JSON: the run, the provider's answer as it came, or this page of events."""
    run_id = visit.id("run_id")
    match visit.request.path_params["part"]:
        case "events":
            page = await history.told(visit.services, run_id, visit.principal, _told(visit))
            return _json([wire(event) for event in page])
        case "response":
            return _json((await history.whole(visit.services, run_id, visit.principal))["raw_response"])
        case "run":
            return _json(await history.whole(visit.services, run_id, visit.principal))
        case _:
            raise NotFound("there is nothing here")


async def pause(visit: Visit) -> Response:
    """Let no further step start."""
    return await _act(visit, "pause", lambda run_id: runs.pause_run(visit.services, run_id, visit.principal))


async def resume(visit: Visit) -> Response:
    """Let a paused run go on."""
    return await _act(visit, "resume", lambda run_id: operations.resume(visit.services, visit.principal, run_id))


async def requeue(visit: Visit) -> Response:
    """Take up a failed run again, from its last durable step."""
    return await _act(visit, "requeue", lambda run_id: operations.requeue(visit.services, visit.principal, run_id))


async def cancel(visit: Visit) -> Response:
    """End it, with the reason that was given."""

    def act(run_id: UUID) -> Awaitable[Run]:
        return runs.cancel_run(visit.services, run_id, visit.principal, reason=reason_of(visit))

    return await _act(visit, "cancel", act)


async def _act(visit: Visit, name: str, act: Callable[[UUID], Awaitable[Run]]) -> Response:
    """Do it, and go back to the run; what came too late is told with what the run is now."""
    run_id = visit.id("run_id")
    try:
        await act(run_id)
    except Conflict as refusal:
        found = await history.look(visit.services, run_id, visit.principal, Told())
        refusal.detail = run_words.late(name, found.run.status, _who_did(found))
        if visit.wants_json:
            raise
        return await _page(visit, refusal)
    except Invalid as refusal:
        if visit.wants_json:
            raise
        return await _page(visit, refusal)
    if visit.wants_json:
        return visit.json({"ok": True, "title": DONE[name], "detail": ""})
    return RedirectResponse(f"/runs/{run_id}", 303)


async def _page(visit: Visit, refusal: HitlError | None = None) -> Response:
    wanted = _told(visit)
    found = await history.look(visit.services, visit.id("run_id"), visit.principal, wanted)
    docs = found.docs
    return visit.html(
        "run.html",
        refusal.status if refusal else 200,
        found=found,
        r=found.run,
        title=run_words.title(docs.run_input) or "Run",
        drawing=draw(found.moves, now=visit.services.db.now()),
        actions=_actions(visit, found),
        problem=f"{refusal.detail[:1].upper()}{refusal.detail[1:]}" if refusal else None,
        typed_reason=visit.form.get("reason"),
        waiting=[approval for approval in found.asked if approval.is_open],
        output=_output(found),
        revisions=[_revision(found, one) for one in found.revisions],
        media=media_of([_output(found), docs.payload, docs.run_input.get("attachments")], found.files),
        so_far=_so_far(found),
        said=run_words,
        length=length,
        cut=_cut,
        end=_end,
        wanted=wanted,
        who_did=_who_did(found),
        query=_query(wanted),
        everything=_query(Told(None, progress=not wanted.progress)),
        earlier=_query(Told(found.told[-1].seq, wanted.progress)) if found.more else None,
        newest=_query(Told(None, wanted.progress)),
    )


def _actions(visit: Visit, found: History) -> tuple[str, ...]:
    """What state and role allow."""
    if not visit.may(Permission.SUBMIT):
        return ()
    match found.run.status:
        case RunStatus.PAUSED:
            return ("resume", "cancel")
        case RunStatus.FAILED:
            return ("requeue",) if (found.error or {}).get("recoverable") else ()
        case RunStatus.COMPLETED | RunStatus.CANCELLED:
            return ()
        case _:
            return ("pause", "cancel")


def _output(found: History) -> Any:
    """The result, or the output as it stands before its review."""
    result = found.docs.result
    if isinstance(result, Mapping) and found.run.status is RunStatus.COMPLETED:
        return result.get("response")
    return found.docs.output


def _revision(found: History, one: Revision) -> Mapping[str, Any]:
    """A revision with its values cut to what is shown, and the calls that it was sent in."""
    changes = [{name: _cut(value) for name, value in change.items()} for change in one.changes[:MAX_CHANGES]]
    sent = [call.number for call in reversed(found.calls) if call.payload_sha256 == one.sha256]
    return {"of": one, "changes": changes, "more": max(0, len(one.changes) - MAX_CHANGES), "sent": sent}


def _so_far(found: History) -> str | None:
    """What a provider has told of an answer that is not there yet: its end, which is what is new."""
    last = found.last_progress
    if last is None or found.run.final or found.docs.output is not None:
        return None
    told = last.data.get("text")
    text = told if isinstance(told, str) else as_json({n: v for n, v in last.data.items() if n not in _STANDS})
    return _end(text, MAX_SHOWN)


_STANDS: Final = ("run_status", "current_step")


def _who_did(found: History) -> tuple[str, Any] | None:
    """Who made the run what it is, and when, where a person did."""
    last = next((event for event in reversed(found.moves) if event.type.startswith("run.")), None)
    if last is None or last.data.get("run_status") != found.run.status:
        return None
    if last.actor == "system" or reserved(last.actor):
        return None
    return last.actor, last.at


def _end(text: str, most: int = MAX_PROGRESS) -> str:
    """The end of a text that grows."""
    return text if len(text) <= most else "…" + text[-most:]


def _cut(value: Any) -> str:
    """As much of a value as a page shows."""
    text = as_json(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}… ({len(text) - MAX_SHOWN:,} characters more)"


def _told(visit: Visit) -> Told:
    given = visit.request.query_params
    before = given.get("before", "")
    known = before.isascii() and before.isdigit() and len(before) < 19
    return Told(int(before) if known else None, given.get("progress") == "1")


def _query(wanted: Told) -> str:
    parts = [f"before={wanted.before}" if wanted.before is not None else "", "progress=1" if wanted.progress else ""]
    return "&".join(part for part in parts if part)


def _json(value: Any) -> Response:
    """For reading and for keeping: exact, and nothing in it is hidden."""
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    return Response(visible_json(text), media_type="application/json", headers=_RAW)


_RAW: Final = {"Content-Security-Policy": "default-src 'none'; sandbox", "Vary": "Cookie"}
_SUBMIT: Final = Permission.SUBMIT

PAGES: Final = (
    Page("/runs/{run_id}", {"GET": show}),
    Page("/live/runs/{run_id}", {"GET": follow}),
    Page("/runs/{run_id}/{part}.json", {"GET": raw}),
    Page("/runs/{run_id}/pause", {"POST": pause}, _SUBMIT),
    Page("/runs/{run_id}/resume", {"POST": resume}, _SUBMIT),
    Page("/runs/{run_id}/requeue", {"POST": requeue}, _SUBMIT),
    Page("/runs/{run_id}/cancel", {"POST": cancel}, _SUBMIT),
)
