"""One approval: why it stopped, what is under review, and the answer."""

from typing import Final

from starlette.responses import Response

from service.commands.reviews import Review, review
from service.console import live, words
from service.console.page import Page, Visit
from service.domain import approval as rules
from service.domain.approval import Approval
from service.domain.policy import Checkpoint


async def show(visit: Visit) -> Response:
    """The approval as it stands, with the form where this person can answer."""
    return page(visit, await review(visit.services, visit.id("approval_id"), visit.principal))


async def follow(visit: Visit) -> Response:
    """Says when the page would be another one."""
    approval_id = visit.id("approval_id")

    async def look() -> str:
        return (await review(visit.services, approval_id, visit.principal)).mark

    return live.changes(visit, look)


def page(visit: Visit, found: Review, status: int = 200, problems: tuple[str, ...] = ()) -> Response:
    return visit.html(
        "approval.html",
        status,
        found=found,
        a=found.approval,
        actions=actions(found.approval),
        outcome=needs_outcome(found.approval),
        problems=problems,
        states=words.STATES,
    )


def actions(approval: Approval) -> tuple[str, ...]:
    return ("approve", *(("retry",) if rules.may_retry(approval) else ()), "reject")


def needs_outcome(approval: Approval) -> bool:
    """Whether an approval must say what came of a call that was never answered."""
    return approval.checkpoint_type == Checkpoint.OUTCOME_UNKNOWN and approval.run_id is not None


PAGES: Final = (
    Page("/approvals/{approval_id}", {"GET": show}),
    Page("/live/approvals/{approval_id}", {"GET": follow}),
)
