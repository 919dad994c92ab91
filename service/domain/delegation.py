"""Handing an approval on: other reviewers under the same id, as an escalation does, but by a person and at once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from service.domain.approval import Approval, check_claim, check_open, may_decide, standing
from service.domain.policy import EscalateTo
from service.domain.principal import Principal
from service.errors import Invalid


@dataclass(frozen=True, slots=True)
class Delegation:
    """Who handed an approval on to whom."""

    actor: str
    users: Sequence[str]
    groups: Sequence[str]
    reason: str | None
    at: datetime


def delegated(approval: Approval, to: EscalateTo, principal: Principal, *, now: datetime) -> Approval:
    """The approval for other reviewers; its deadline, quorum and the votes that stand are kept, a claim ends.

    Raises as a decision does; `SelfApproval` when it is handed to whom the ban is for, and `Invalid` when the
    quorum could not be reached any more.
    """
    may_decide(approval, principal)
    check_open(approval, now=now)
    check_claim(approval, principal, now=now)
    after = replace(
        approval,
        reviewers=approval.reviewers.model_copy(update={"users": list(to.users), "groups": list(to.groups)}),
        claimed_by=None,
        claimed_until=None,
        version=approval.version + 1,
    )
    for user in to.users:
        may_decide(after, Principal(user, approval.tenant, "reviewer"))
    if not to.groups and len({d.actor for d in standing(approval)} | set(to.users)) < approval.reviewers.quorum:
        message = "one user cannot make up the quorum: delegate to a group"
        raise Invalid("the quorum could not be reached", errors=[{"pointer": "/user", "message": message}])
    return after
