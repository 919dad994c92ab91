"""The question that a run puts to reviewers: what it is made of, and everything that is shown with it."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from service.domain import attachments, detectors, form, patch, payload, policy
from service.domain.altered import altered
from service.domain.approval import Approval, ApprovalStatus, Decision, patched
from service.domain.call import Description, ProviderCall
from service.domain.canonical import JSON
from service.domain.ids import uuid7
from service.domain.plan import Ask, Documents
from service.domain.policy import Checkpoint
from service.domain.run import Run

_MESSAGES: Final = {
    Checkpoint.INFORMATION_REVIEW: "Is the information for this run complete?",
    Checkpoint.PAYLOAD_REVIEW: "May this payload be sent to the provider?",
    Checkpoint.RESPONSE_REVIEW: "Is this response good to use?",
    Checkpoint.ERROR_RECOVERY: "The provider refused the payload: what shall be changed?",
    Checkpoint.OUTCOME_UNKNOWN: "The call was sent and never answered: did it happen?",
}


def material(run_input: Mapping[str, Any]) -> payload.Material:
    """What a payload is made of, out of a run's input."""
    given = tuple(
        attachments.Attachment(a["url"], a.get("media_type"), a.get("name")) for a in run_input.get("attachments") or ()
    )
    turns = run_input.get("conversation") or run_input.get("chat_history") or ()
    return payload.Material(
        prompt=run_input["prompt"],
        attachments=given,
        document_url=run_input.get("document_url"),
        conversation=tuple(turn for turn in turns if isinstance(turn, dict)),
    )


def prepared(run_input: Mapping[str, Any], about: Description) -> tuple[dict[str, Any], dict[str, JSON]]:
    """`Documents.description` and the payload, of a run's input and what the provider knows of the tool."""
    built = payload.build(material(run_input), schema=about.schema, example=about.example)
    description = {
        "schema": built.schema,
        "baseline": built.baseline,
        "origins": built.origins,
        "confidence": built.confidence if about.confidence is None else about.confidence,
        "flag_words": dict(about.flag_words or {}),
        "missing": list(built.missing),
    }
    return description, built.payload


def opened(run: Run, docs: Documents, call: ProviderCall | None, action: Ask, *, now: datetime) -> Approval:
    """The approval for a question, with everything that is to be shown."""
    waits = policy.silence(docs.config, action.checkpoint)
    return Approval(
        id=uuid7(), tenant=run.tenant, run_id=run.id, checkpoint_type=action.checkpoint,
        status=ApprovalStatus.PENDING, reasons=list(action.reasons), message=_MESSAGES[action.checkpoint],
        context=_context(run, docs, call, action.checkpoint), schema=schema_of(docs),
        payload_sha256=run.payload_sha256, user_id=run.user_id, session_id=run.session_id,
        submitter=run.submitter, reviewers=waits.reviewers, on_timeout=waits.on_timeout, timeout_s=waits.timeout_s,
        escalate_to=waits.escalate_to, escalated_at=None, remind_after_s=waits.remind_after_s,
        remind_at=now + timedelta(seconds=waits.remind_after_s) if waits.remind_after_s else None, created_at=now,
        expires_at=now + timedelta(seconds=waits.timeout_s), clock_stopped_at=None, timer_no=1, armed=False,
        edited=False, claimed_by=None, claimed_until=None, decided_at=None, callback_url=None, version=1,
    )  # fmt: skip


def revised(docs: Documents, decisions: Iterable[Decision]) -> Documents:
    """The documents with the edits of these decisions in the payload, and who made each in the description."""
    for decision in decisions:
        if decision.action == "edit":
            docs = _edited(docs, patched(docs.payload, decision.edits), decision.actor)
    return docs


def counted(docs: Documents) -> dict[str, Any]:
    """The description with one more round in it, where required input is still missing."""
    about = dict(docs.description or {})
    if payload.missing(docs.payload, about.get("schema")):
        about["rounds"] = about.get("rounds", 0) + 1
    return about


def redrawn(approval: Approval, docs: Documents) -> Approval:
    """The approval after an edit: what it shows of the payload follows, a provider's complaints stand."""
    checkpoint = Checkpoint(approval.checkpoint_type)
    shown = _about_payload(docs, checkpoint, _faults(docs, None, checkpoint))
    if checkpoint is Checkpoint.ERROR_RECOVERY:
        del shown["validation_issues"]
    return altered(approval, context={**approval.context, **shown})


def schema_of(docs: Documents) -> Any:
    """What the run's payload is validated against."""
    return (docs.description or {}).get("schema")


def _edited(docs: Documents, after: Any, actor: str) -> Documents:
    about = docs.description or {}
    touched = payload.changed(docs.payload, after)
    if not touched:
        return docs
    origins = {**(about.get("origins") or {}), **dict.fromkeys(touched, "edited")}
    editors = {**(about.get("editors") or {}), **dict.fromkeys(touched, actor)}
    description = {
        **about,
        "origins": {name: origin for name, origin in origins.items() if name in after},
        "editors": {name: editor for name, editor in editors.items() if name in after},
        "built": about.get("built", docs.payload),
        "previous": docs.payload,
    }
    return replace(docs, payload=after, description=description)


def _context(run: Run, docs: Documents, call: ProviderCall | None, checkpoint: Checkpoint) -> dict[str, Any]:
    about = docs.description or {}
    shows_answer = checkpoint is Checkpoint.RESPONSE_REVIEW
    asked = about.get("rounds", 0) + 1
    return {
        "payload": docs.payload,
        "payload_sha256": run.payload_sha256,
        "schema": about.get("schema"),
        **_about_payload(docs, checkpoint, _faults(docs, call, checkpoint)),
        "confidence": about.get("confidence"),
        "estimated_cost_usd": run.estimated_usd,
        "round": {"asked": asked, "most": docs.config.max_information_rounds}
        if checkpoint is Checkpoint.INFORMATION_REVIEW
        else None,
        "response": docs.raw_response if shows_answer else None,
        "output": docs.output if shows_answer else None,
    }


def _about_payload(docs: Documents, checkpoint: Checkpoint, faults: list[dict[str, Any]]) -> dict[str, Any]:
    """What changes with the payload: its form, its differences, its faults and what raised a flag."""
    about = docs.description or {}
    previous = about.get("previous")
    found = detectors.findings(docs.payload, about.get("flag_words") or {})
    return {
        "form": form.form(
            docs.payload,
            about.get("schema"),
            about.get("origins") or {},
            title=_MESSAGES[checkpoint],
            editors=about.get("editors") or {},
            first=[fault["field"] for fault in faults] if checkpoint is Checkpoint.ERROR_RECOVERY else (),
        ),
        "diff": patch.diff(about.get("baseline") or {}, docs.payload),
        "revision_diff": None if previous is None else patch.diff(previous, docs.payload),
        "validation_issues": faults,
        "findings": [{"flag": one.flag, "detector": one.detector, "field": one.field} for one in found],
    }


def _faults(docs: Documents, call: ProviderCall | None, checkpoint: Checkpoint) -> list[dict[str, Any]]:
    schema = schema_of(docs)
    if checkpoint is Checkpoint.ERROR_RECOVERY and call is not None and call.issues:
        return [form.with_allowed(issue, docs.payload, schema) for issue in call.issues]
    return form.issues(docs.payload, schema)
