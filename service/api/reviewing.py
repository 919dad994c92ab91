"""Routes by which an approval comes to its reviewer: delegate."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.api.models import ApprovalView
from service.api.operation import Call, Operation, Reply
from service.commands.delegation import delegate as hand_on
from service.domain.delegation import Delegation
from service.domain.policy import EscalateTo, Name
from service.domain.principal import Permission
from service.domain.view import approval_view, when


class DelegateRequest(BaseModel):
    """Whom to ask instead: one user or one group."""

    model_config = ConfigDict(extra="forbid", strict=True)
    user: Name | None = None
    group: Name | None = None
    reason: Annotated[str, Field(max_length=10_000)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.user is None) == (self.group is None):
            raise ValueError("name either a user or a group")
        return self


async def delegate(call: Call) -> Reply:
    """Ask somebody else instead: it replaces the reviewers, under the same approval id."""
    body: DelegateRequest = call.body
    to = EscalateTo(users=[body.user] if body.user else [], groups=[body.group] if body.group else [])
    handed_on = await hand_on(call.services, call.id("approval_id"), to, call.principal, reason=body.reason)
    return Reply(approval_view(handed_on))


def delegation_view(delegation: Delegation) -> dict[str, Any]:
    return {
        "actor": delegation.actor,
        "to": {"users": list(delegation.users), "groups": list(delegation.groups)},
        "reason": delegation.reason,
        "at": when(delegation.at),
    }


OPERATIONS = (
    Operation(
        "POST", "/hitl/approvals/{approval_id}/delegate", delegate, ApprovalView, Permission.DECIDE,
        body=DelegateRequest, problems=(404, 409), tag="approvals",
    ),
)  # fmt: skip
