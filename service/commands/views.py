"""A run as the JSON of the contract, the same in answers and in messages to the outside."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from service.commands.context import Services
from service.domain import form, policy
from service.domain.altered import altered
from service.domain.approval import Approval
from service.domain.ids import job_id
from service.domain.plan import Documents
from service.domain.question import schema_of
from service.domain.run import TOTAL_STEPS, Run, RunStatus, ms_between
from service.domain.view import approval_view, when
from service.store import approvals, runs
from service.store.database import Conn


async def run_views(conn: Conn, services: Services, page: Sequence[Run]) -> list[dict[str, Any]]:
    """Each run whole, in three queries for all of them; two where all are over, since nothing is open then."""
    ids = [run.id for run in page]
    docs = await runs.documents_of(conn, ids)
    live = [run.id for run in page if not run.final]
    waiting = await approvals.open_of_runs(conn, live) if live else {}
    history = await runs.steps_of(conn, ids)
    now = services.db.now()
    told = [altered(run, error=await runs.error_of(conn, run)) for run in page]
    return [_run_view(r, docs[r.id], waiting.get(r.id, ()), history.get(r.id, ()), now) for r in told]


def _run_view(
    run: Run, docs: Documents, waiting: Sequence[Approval], history: Sequence[runs.StepRecord], now: datetime
) -> dict[str, Any]:
    expiries = [a.expires_at for a in waiting] + ([run.deadline_at] if run.deadline_at and not run.final else [])
    return {
        "run_id": str(run.id),
        "job_id": job_id(run.id, run.fencing_token),
        "tenant": run.tenant,
        "status": run.status.value,
        "current_step": run.step.value,
        "provider": run.provider,
        "user_id": run.user_id,
        "session_id": run.session_id,
        "created_at": when(run.created_at),
        "updated_at": when(run.updated_at),
        "expires_at": when(min(expiries, default=run.deadline_at)),
        "finished_at": when(run.finished_at),
        "submitter": run.submitter,
        "priority": run.priority,
        "run_input": None if docs.erased_at else docs.run_input,
        "hitl_config": policy.dump(docs.config),
        "payload": docs.payload,
        "payload_sha256": run.payload_sha256,
        "validation_issues": _issues(docs, waiting),
        "progress": {
            "total_steps": TOTAL_STEPS,
            "completed_steps": run.completed_steps,
            "percentage": 100 * run.completed_steps / TOTAL_STEPS,
            "current_step": run.step.value,
            "step_history": [
                {"step": s.step, "status": s.status, "timestamp": when(s.at), "actor": s.actor, "message": s.message}
                for s in history
            ],
        },
        "pending_actions": [approval_view(a) for a in waiting],
        "result": docs.result["response"] if docs.result and run.status is RunStatus.COMPLETED else None,
        "raw_response": docs.raw_response,
        "error": run.error,
        "timings": _timings(run, now),
        "cost": {"estimated_usd": run.estimated_usd, "actual_usd": run.actual_usd},
        "version": run.version,
        "content_erased_at": when(docs.erased_at),
    }


def _issues(docs: Documents, waiting: Sequence[Approval]) -> list[dict[str, Any]]:
    """What keeps the payload from being sent: the provider's complaints while they are open, else ours."""
    for approval in waiting:
        if approval.checkpoint_type == policy.Checkpoint.ERROR_RECOVERY:
            told: list[dict[str, Any]] = approval.context.get("validation_issues", [])
            return told
    return form.issues(docs.payload, schema_of(docs)) if docs.payload is not None else []


def _timings(run: Run, now: datetime) -> dict[str, int]:
    """What was added up, and the wait that is still going on."""
    waits = ms_between(run.status_since, now)
    return {
        "queue_ms": run.queue_ms + (waits if run.status is RunStatus.QUEUED else 0),
        "human_ms": run.human_ms + (waits if run.status is RunStatus.AWAITING_HUMAN else 0),
        "provider_ms": run.provider_ms + (waits if run.status is RunStatus.AWAITING_PROVIDER else 0),
        "total_ms": ms_between(run.created_at, run.finished_at or now),
    }
