"""Use case of a reviewer's look at one approval: all that is there to judge by, and what this person may do."""

from dataclasses import dataclass
from uuid import UUID

from service.commands.context import Services
from service.domain.approval import Approval, check_claim, check_open, may_decide
from service.domain.principal import Principal
from service.domain.run import Run
from service.errors import ApprovalClaimed, Conflict, Forbidden, NotFound
from service.store import approvals, runs


@dataclass(frozen=True, slots=True)
class Review:
    """`closed` says why this person cannot answer; None: they can. `claimed` is somebody else's claim."""

    approval: Approval
    run: Run | None
    closed: str | None
    claimed: str | None
    mark: str


async def review(services: Services, approval_id: UUID, who: Principal) -> Review:
    """Raises `NotFound`."""
    async with services.db.connection(who.tenant) as conn:
        approval = await approvals.get(conn, who.tenant, approval_id)
        if approval is None:
            raise NotFound("there is no such approval")
        run = await runs.get(conn, who.tenant, approval.run_id) if approval.run_id else None
    closed, claimed = _closed(services, approval, who)
    return Review(approval, run, closed, claimed, f"{approval.version}-{run.version if run else 0}")


def _closed(services: Services, approval: Approval, who: Principal) -> tuple[str | None, str | None]:
    now = services.db.now()
    try:
        check_open(approval, now=now)
        if approval.clock_stopped_at is not None:
            return "the run is paused: it can be answered once it goes on", None
        may_decide(approval, who)
        check_claim(approval, who, now=now)
    except ApprovalClaimed as refusal:
        return refusal.detail, approval.claimed_by
    except (Conflict, Forbidden) as refusal:
        return refusal.detail, None
    return None, None
