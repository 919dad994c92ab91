"""The question that a run puts to reviewers: what it is made of, and everything that is shown with it."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from service.domain import attachments, form, patch, payload, policy
from service.domain import schema as schemas
from service.domain.approval import Approval, ApprovalStatus
from service.domain.call import ProviderCall
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


def opened(run: Run, docs: Documents, call: ProviderCall | None, action: Ask, *, now: datetime) -> Approval:
    """The approval for a question, with everything that is to be shown."""
    waits = policy.silence(docs.config, action.checkpoint)
    return Approval(
        id=uuid7(), tenant=run.tenant, run_id=run.id, checkpoint_type=action.checkpoint,
        status=ApprovalStatus.PENDING, reasons=list(action.reasons), message=_MESSAGES[action.checkpoint],
        context=shown(run, docs, call, action.checkpoint), schema=schema_of(docs),
        payload_sha256=run.payload_sha256, user_id=run.user_id, session_id=run.session_id,
        submitter=run.submitter, reviewers=waits.reviewers, on_timeout=waits.on_timeout, timeout_s=waits.timeout_s,
        escalate_to=waits.escalate_to, escalated_at=None, remind_after_s=waits.remind_after_s,
        remind_at=now + timedelta(seconds=waits.remind_after_s) if waits.remind_after_s else None, created_at=now,
        expires_at=now + timedelta(seconds=waits.timeout_s), clock_stopped_at=None, timer_no=1, armed=False,
        edited=False, claimed_by=None, claimed_until=None, decided_at=None, callback_url=None, version=1,
    )  # fmt: skip


def shown(run: Run, docs: Documents, call: ProviderCall | None, checkpoint: Checkpoint) -> dict[str, Any]:
    about = docs.description or {}
    schema = about.get("schema")
    found = form.issues(docs.payload, schema)
    if checkpoint is Checkpoint.ERROR_RECOVERY and call is not None and call.issues:
        found = [_with_allowed(issue, schema) for issue in call.issues]
    shows_answer = checkpoint is Checkpoint.RESPONSE_REVIEW
    return {
        "payload": docs.payload,
        "payload_sha256": run.payload_sha256,
        "schema": schema,
        "form": form.form(docs.payload, schema, about.get("origins") or {}, title=_MESSAGES[checkpoint]),
        "diff": patch.diff(about.get("baseline") or {}, docs.payload),
        "validation_issues": found,
        "estimated_cost_usd": run.estimated_usd,
        "response": docs.raw_response if shows_answer else None,
        "output": docs.output if shows_answer else None,
    }


def _with_allowed(issue: Mapping[str, Any], schema: Any) -> dict[str, Any]:
    """A provider's complaint with the allowed values, where our schema knows them and the provider did not say."""
    node = schemas.properties(schema, schema).get(issue["field"])
    allowed = schemas.facets(schema, node).get("enum") if node is not None else None
    fix = issue.get("suggested_fix") or (", ".join(str(value) for value in allowed) if allowed else None)
    return {**issue, "suggested_fix": fix}


def schema_of(docs: Documents) -> Any:
    return (docs.description or {}).get("schema")
