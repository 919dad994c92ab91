"""Domain objects as the JSON of the contract, and the queries that a page of them needs."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from service.commands.context import Services
from service.commands.views import run_views
from service.domain.approval import Approval
from service.domain.run import Run, RunStatus
from service.domain.view import approval_view, when
from service.store import runs


async def run_view(services: Services, tenant: str, run_id: UUID, *, known: Run | None = None) -> dict[str, Any] | None:
    """`known`: the run as it was read a moment ago, where it is over and will not change."""
    async with services.db.connection(tenant) as conn:
        run = known or await runs.get(conn, tenant, run_id)
        return (await run_views(conn, services, [run]))[0] if run else None


def job_view(run: Run, asked: str, result: Any) -> dict[str, Any]:
    """The state of the run's latest wake-up, under whichever of its job ids it was asked for."""
    return {
        "job_id": asked,
        "status": _job_status(run),
        "result": result,
        "error": run.error,
        "enqueued_at": when(run.woken_at),
        "started_at": when(run.claimed_at),
        "finished_at": when(run.finished_at or run.released_at),
        "meta": {"run_id": str(run.id), "run_status": run.status.value, "current_step": run.step.value},
    }


def _job_status(run: Run) -> str:
    match run.status:
        case RunStatus.QUEUED:
            return "queued" if run.due_at is not None and run.due_at <= run.updated_at else "deferred"
        case RunStatus.RUNNING:
            return "in_progress"
        case RunStatus.FAILED:
            return "failed"
        case _:
            return "complete"


def problem_extra(extra: Mapping[str, Any]) -> dict[str, Any]:
    """What a refusal carries beside its code, with domain objects packed and what is null left out."""
    packed = {key: approval_view(value) if isinstance(value, Approval) else value for key, value in extra.items()}
    return {key: value for key, value in packed.items() if value is not None}
