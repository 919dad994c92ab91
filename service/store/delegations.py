"""Rows of `delegations`: who handed an approval on to whom."""

from uuid import UUID

from service.domain.approval import Approval
from service.domain.delegation import Delegation
from service.store.database import Conn


async def insert(conn: Conn, approval: Approval, delegation: Delegation) -> None:
    """The next delegation of an approval that this transaction has locked."""
    await conn.execute(
        """
        insert into delegations (approval_id, n, tenant, actor, users, groups, reason, at)
        select $1, coalesce(max(n), 0) + 1, $2, $3, $4, $5, $6, $7 from delegations where approval_id = $1
        """,
        approval.id, approval.tenant, delegation.actor, list(delegation.users), list(delegation.groups),
        delegation.reason, delegation.at,
    )  # fmt: skip


async def of_approval(conn: Conn, approval_id: UUID) -> list[Delegation]:
    """In their order."""
    rows = await conn.fetch(
        "select actor, users, groups, reason, at from delegations where approval_id = $1 order by n", approval_id
    )
    return [Delegation(**row) for row in rows]
