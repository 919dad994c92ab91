"""Use case: cancel what an approval stands for, which is its run, or the question itself where it has none."""

from uuid import UUID

from service.commands.approvals import tell
from service.commands.context import After, Services, carry_out
from service.commands.runs import cancel_run
from service.domain import approval as rules
from service.domain.approval import Approval, ApprovalStatus
from service.domain.event import EventType
from service.domain.principal import Permission, Principal, demand
from service.errors import AlreadyDecided, NotFound
from service.store import approvals


async def withdraw(services: Services, approval_id: UUID, principal: Principal, *, reason: str | None) -> Approval:
    """The approval as it ended; withdrawing it again changes nothing.

    Raises `Forbidden`, `NotFound`, `AlreadyDecided`, and as `cancel_run`.
    """
    demand(principal, Permission.SUBMIT)
    found = await _get(services, approval_id, principal)
    if not found.is_open and found.status is not ApprovalStatus.CANCELLED:
        raise AlreadyDecided("somebody decided first", extra={"approval": found})
    if found.run_id is None:
        return await close_question(services, approval_id, principal)
    await cancel_run(services, found.run_id, principal, reason=reason)
    return await _get(services, approval_id, principal)


async def _get(services: Services, approval_id: UUID, principal: Principal) -> Approval:
    async with services.db.connection(principal.tenant) as conn:
        found = await approvals.get(conn, principal.tenant, approval_id)
    if found is None:
        raise NotFound("no such approval")
    return found


async def close_question(services: Services, approval_id: UUID, principal: Principal) -> Approval:
    """End a question that belongs to no run, unless somebody was first."""
    demand(principal, Permission.SUBMIT)
    after = After.nothing()
    async with services.db.transaction(principal.tenant) as conn:
        current = await approvals.lock(conn, approval_id)
        assert current is not None
        if current.status is ApprovalStatus.CANCELLED:
            return current
        if not current.is_open:
            raise AlreadyDecided("somebody decided first", extra={"approval": current})
        now = services.db.now()
        closed = rules.cancelled(current, now=now)
        await approvals.save(conn, closed)
        await tell(conn, closed, EventType.APPROVAL_DECIDED, now)
        after.changed.append(closed.id)
    await carry_out(services, after)
    return closed
