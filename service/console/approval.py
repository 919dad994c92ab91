"""One approval: why it stopped, what is under review, what an edit would do, and the answer."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from starlette.responses import RedirectResponse, Response

from service.border.body import parse
from service.border.files import send_file
from service.commands.delegation import delegate
from service.commands.reviews import Proposal, Review, propose, review, watch
from service.commands.seen import note_seen
from service.console import editor, live, words
from service.console.deciding import CHANNEL, decide_at, handed_to, reason_of
from service.console.media import Media, media_of
from service.console.page import Page, Visit
from service.domain import approval as rules
from service.domain import schema as schemas
from service.domain.approval import Approval, Decision, Order
from service.domain.patch import NoPatch, patch_between
from service.domain.policy import Checkpoint
from service.domain.principal import Permission
from service.domain.view import approval_view
from service.errors import Conflict, Forbidden, HitlError, Invalid, InvalidJson

JSON_FIELD: Final = "json"
RESPONSE_FIELD: Final = "response"


async def show(visit: Visit) -> Response:
    """The approval as it stands, with the form where this person can answer."""
    found = await review(visit.services, visit.id("approval_id"), visit.principal)
    if visit.request.method == "GET":
        await note_seen(visit.services, visit.principal, [approval_view(found.approval)], CHANNEL)
    return _page(visit, found)


async def follow(visit: Visit) -> Response:
    """Says when the page would be another one."""
    approval_id = visit.id("approval_id")

    async def look() -> str:
        return await watch(visit.services, approval_id, visit.principal)

    return live.changes(visit, look)


async def change(visit: Visit) -> Response:
    """What the edit in the form would do: shown before it is sent, or what is wrong with it, by field."""
    found = await review(visit.services, visit.id("approval_id"), visit.principal)
    approval = found.approval
    try:
        order = _edit(visit, approval)
        proposal = propose(visit.services, approval, order, visit.principal)
        if not proposal.changes:
            raise Invalid("nothing is changed yet")
    except (Invalid, Conflict, Forbidden) as refusal:
        if visit.wants_json:
            return visit.json({"ok": False, "detail": _says(refusal), **_faults(_inputs(approval, None), refusal)})
        return _page(visit, found, refusal.status, refusal=refusal)
    if visit.wants_json:
        return visit.json({"ok": True, "changes": [dict(one) for one in proposal.changes]})
    return _page(visit, found, proposal=proposal)


async def decide(visit: Visit) -> Response:
    """The answer. A refusal is shown on the page, with who was first where somebody was."""
    try:
        return await decide_at(visit)
    except (Invalid, Conflict, Forbidden) as refusal:
        if visit.wants_json:
            refusal.detail = _says(refusal)
            raise
        found = await review(visit.services, visit.id("approval_id"), visit.principal)
        return _page(visit, found, refusal.status, refusal=refusal)


async def hand_on(visit: Visit) -> Response:
    """Others are asked instead. A refusal is shown on the page, and what was typed stays."""
    approval_id = visit.id("approval_id")
    try:
        note = reason_of(visit, "note")
        await delegate(visit.services, approval_id, handed_to(visit), visit.principal, reason=note)
    except (Invalid, Conflict, Forbidden) as refusal:
        refusal.detail = "; ".join([refusal.detail, *(error["message"] for error in refusal.errors)])
        refusal.errors = ()
        found = await review(visit.services, approval_id, visit.principal)
        return _page(visit, found, refusal.status, refusal=refusal)
    return RedirectResponse(f"/approvals/{approval_id}", 303)


async def file(visit: Visit) -> Response:
    """A copy of an output, for the pages that show it."""
    return await send_file(visit.services, visit.principal.tenant, visit.id("file_id"), visit.request)


def _page(
    visit: Visit,
    found: Review,
    status: int = 200,
    *,
    refusal: HitlError | None = None,
    proposal: Proposal | None = None,
) -> Response:
    approval = found.approval
    typed = visit.form if visit.form.pairs else None
    inputs = _inputs(approval, typed) if not found.closed else None
    faults = _faults(inputs, refusal) if refusal is not None else {"fields": {}, "rest": []}
    context = approval.context if approval.run_id is not None else _own(approval)
    return visit.html(
        "approval.html",
        status,
        found=found,
        a=approval,
        context=context,
        actions=() if found.closed else actions(approval),
        outcome=needs_outcome(approval),
        inputs=inputs,
        response_text=_response_text(approval, typed),
        edits_response=edits_response(approval),
        json_text=typed.get(JSON_FIELD) if typed and JSON_FIELD in typed else editor.text_of(context.get("payload")),
        typed_reason=typed.get("reason") if typed else "",
        problem=_says(refusal) if refusal else None,
        faults=faults["fields"],
        problems=faults["rest"],
        editing=bool(typed and typed.get("as")),
        edit_as=typed.get("as") if typed else "",
        proposal=proposal,
        media=_media(found, context, in_fields=inputs is not None and not edits_response(approval)),
        media_in=lambda value: media_of(value, found.files),
        mine=_my_vote(approval, visit.principal.subject),
        handing={name: visit.form.get(name) for name in ("to", "name", "note")},
        turns=_turns(found.run_input),
        extra=_extra(approval),
    )


def _media(found: Review, context: Mapping[str, Any], *, in_fields: bool) -> Sequence[Media]:
    """What the output and the attachments hold; what the payload holds stands at its fields, where it has any."""
    shown = media_of([context.get("output"), found.run_input.get("attachments")], found.files, found.texts)
    payload = media_of(context.get("payload"), found.files, found.texts)
    if in_fields:
        return [one for one in shown if one not in payload]
    return list(dict.fromkeys([*shown, *payload]))


def _my_vote(approval: Approval, subject: str) -> Decision | None:
    """What this person has said to what is under review now, while more must say so."""
    mine = [one for one in rules.standing(approval) if one.actor == subject] if approval.is_open else []
    return mine[-1] if mine else None


def actions(approval: Approval) -> tuple[str, ...]:
    return ("approve", *(("retry",) if rules.may_retry(approval) else ()), "reject")


def needs_outcome(approval: Approval) -> bool:
    """Whether an approval must say what came of a call that was never answered."""
    return approval.checkpoint_type == Checkpoint.OUTCOME_UNKNOWN and approval.run_id is not None


def edits_response(approval: Approval) -> bool:
    """Whether an edit changes the output rather than the payload."""
    return approval.run_id is not None and approval.checkpoint_type == Checkpoint.RESPONSE_REVIEW


def edits_payload(approval: Approval) -> bool:
    return rules.shows_payload(approval) or (
        approval.run_id is None and isinstance(approval.context.get("payload"), Mapping)
    )


def _edit(visit: Visit, approval: Approval) -> Order:
    """The order of an edit by fields, as JSON, or of the response. Raises `Invalid`."""
    form = visit.form
    sha = form.get("payload_sha256") or None
    if edits_response(approval):
        return Order("edit", {"response": _any_value(form.get(RESPONSE_FIELD), approval)}, reason_of(visit), sha)
    if not edits_payload(approval):
        raise Invalid("there is nothing to edit here")
    payload = approval.context.get("payload")
    after = _as_json(form.get(JSON_FIELD)) if form.get("as") == "json" else _by_field(visit, approval)
    try:
        patch: Any = patch_between(payload, after)
    except NoPatch as fault:
        raise Invalid(str(fault)) from None
    ambiguous = isinstance(patch, Mapping) and set(patch) == {"payload"} and "payload" not in (payload or {})
    return Order("edit", {"payload": patch} if ambiguous else patch, reason_of(visit), sha)


def _by_field(visit: Visit, approval: Approval) -> Any:
    inputs = _inputs(approval, visit.form)
    assert inputs is not None
    value, faults = editor.read(inputs, visit.form)
    if faults:
        errors = [{"pointer": fault.path, "message": fault.message} for fault in faults]
        raise Invalid("some fields cannot be read", errors=errors)
    return {} if value is editor.MISSING else value


def _as_json(text: str) -> Any:
    try:
        value = parse(text.encode())
    except InvalidJson as fault:
        raise Invalid(fault.detail.replace("the body", "it")) from None
    if not isinstance(value, Mapping):
        raise Invalid("a payload is a JSON object")
    return value


def _any_value(text: str, approval: Approval) -> Any:
    """Text where the output is text, else JSON."""
    output = approval.context.get("output")
    plain = text.replace("\r\n", "\n")
    if isinstance(output, str):
        return output if plain == output.replace("\r\n", "\n") else plain
    try:
        return parse(plain.encode())
    except InvalidJson as fault:
        raise Invalid(fault.detail.replace("the body", "it")) from None


def _response_text(approval: Approval, typed: Any) -> str:
    if typed is not None and RESPONSE_FIELD in typed:
        return str(typed.get(RESPONSE_FIELD))
    return editor.text_of(approval.context.get("output"))


def _inputs(approval: Approval, typed: Any) -> editor.Input | None:
    if not edits_payload(approval):
        return None
    told = approval.context.get("form") if approval.run_id is not None else {"fields": _own_rows(approval)}
    rows = told.get("fields", ()) if isinstance(told, Mapping) else ()
    return editor.inputs_of(approval.schema, approval.context.get("payload"), rows, typed)


def _own_rows(approval: Approval) -> list[Mapping[str, Any]]:
    """Where the fields of a program's own question came from: the program, or who edited them before."""
    edited: dict[str, str] = {}
    for decision in approval.decisions:
        patch = decision.edits if decision.action == "edit" and isinstance(decision.edits, Mapping) else {}
        inner = patch["payload"] if set(patch) == {"payload"} else patch
        edited |= dict.fromkeys(inner if isinstance(inner, Mapping) else patch, decision.actor)
    payload = approval.context.get("payload")
    given = payload if isinstance(payload, Mapping) else {}
    origins = {**dict.fromkeys(given, "program"), **{name: "edited" for name in edited if name in given}}
    names = dict.fromkeys([*schemas.properties(approval.schema, approval.schema), *given])
    return [{"name": name, "origin": origins.get(name), "edited_by": edited.get(name)} for name in names]


def _faults(inputs: editor.Input | None, refusal: HitlError) -> dict[str, Any]:
    """The refusal's faults by field, and those that belong to none."""
    if inputs is None:
        return {"fields": {}, "rest": [f"{e['pointer']} {e['message']}" for e in refusal.errors]}
    fields, rest = editor.placed(inputs, refusal.errors)
    return {"fields": {path: "; ".join(told) for path, told in fields.items()}, "rest": rest}


def _says(refusal: HitlError) -> str:
    """Why not, with who was first where somebody was."""
    first = refusal.extra.get("approval")
    winner = first.winner if isinstance(first, Approval) else None
    detail = f"{refusal.detail[:1].upper()}{refusal.detail[1:]}."
    if winner is None:
        return detail
    return f"{detail} {winner.actor} {words.DID[winner.action]} it at {winner.at:%Y-%m-%d %H:%M:%S} UTC."


def _turns(run_input: Mapping[str, Any]) -> Sequence[tuple[str, Any]]:
    """The conversation as `(who, what)`."""
    turns = run_input.get("conversation") or run_input.get("chat_history") or ()
    return [
        (str(turn.get("role", "")), turn.get("content", turn)) if isinstance(turn, Mapping) else ("", turn)
        for turn in (turns if isinstance(turns, list) else ())
    ]


def _own(approval: Approval) -> Mapping[str, Any]:
    """Of a program's own question, what is under review; its other fields mean whatever it likes."""
    return {name: value for name, value in approval.context.items() if name in ("payload", "output")}


def _extra(approval: Approval) -> Mapping[str, Any]:
    """What a program's own question shows beside its payload."""
    if approval.run_id is not None:
        return {}
    return {name: value for name, value in approval.context.items() if name not in ("payload", "output")}


PAGES: Final = (
    Page("/approvals/{approval_id}", {"GET": show}),
    Page("/live/approvals/{approval_id}", {"GET": follow}),
    Page("/approvals/{approval_id}/change", {"POST": change}, Permission.DECIDE),
    Page("/approvals/{approval_id}/decision", {"POST": decide}, Permission.DECIDE),
    Page("/approvals/{approval_id}/delegation", {"POST": hand_on}, Permission.DECIDE),
    Page("/files/{file_id}", {"GET": file}),
)
