"""Use case of handing an approval on to other reviewers."""

from uuid import UUID

from service.commands.approvals import locked_for, naming
from service.commands.context import After, Services, carry_out
from service.domain.approval import Approval
from service.domain.delegation import Delegation, delegated
from service.domain.event import EventType, Fact
from service.domain.policy import EscalateTo
from service.domain.principal import Permission, Principal, demand
from service.errors import Conflict
from service.logs import get_logger
from service.store import approvals, delegations, runs

log = get_logger("commands.delegation")


async def delegate(
    services: Services, approval_id: UUID, to: EscalateTo, principal: Principal, *, reason: str | None
) -> Approval:
    """Put others in the place of the reviewers. Raises as `delegated`, and `NotFound`.

    The reason is kept beside the approval, not in the event: events hold no content.
    """
    demand(principal, Permission.DECIDE)
    after = After.nothing()
    async with services.db.transaction(principal.tenant) as conn:
        current, run = await locked_for(conn, principal, approval_id)
        now = services.db.now()
        try:
            handed_on = delegated(current, to, principal, now=now)
        except Conflict as refusal:
            raise naming(refusal, current, run) from None
        await approvals.save(conn, handed_on)
        await delegations.insert(conn, current, Delegation(principal.subject, to.users, to.groups, reason, now))
        after.changed.append(current.id)
        if run is not None:
            data = {"approval_id": str(current.id), "to": {"users": list(to.users), "groups": list(to.groups)}}
            await runs.save(conn, run, [Fact(EventType.APPROVAL_DELEGATED, principal.subject, data)], now=now)
            after.changed.append(run.id)
    log.info("approval.delegated", approval_id=str(approval_id), tenant=handed_on.tenant, actor=principal.subject)
    await carry_out(services, after)
    return handed_on
