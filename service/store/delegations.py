"""Rows of `delegations`: who handed an approval on to whom."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import asyncpg

from service.domain.approval import Approval
from service.domain.delegation import Delegation
from service.store import content
from service.store.database import Conn


async def insert(conn: Conn, approval: Approval, delegation: Delegation) -> None:
    """The next delegation of an approval that this transaction has locked."""
    pen = await content.pen(conn, approval.run_id or approval.id)
    reason = pen.seal(_place(approval.id), reason=delegation.reason)
    await conn.execute(
        """
        insert into delegations (approval_id, n, tenant, actor, users, groups, reason, at)
        select $1, coalesce(max(n), 0) + 1, $2, $3, $4, $5, $6, $7 from delegations where approval_id = $1
        """,
        approval.id, approval.tenant, delegation.actor, list(delegation.users), list(delegation.groups),
        reason, delegation.at,
    )  # fmt: skip


async def of_approval(conn: Conn, approval_id: UUID) -> list[Delegation]:
    """In their order."""
    rows = await conn.fetch(
        """
        select d.actor, d.users, d.groups, d.reason, d.at, coalesce(a.run_id, a.id) as subject, k.wrapped
        from delegations d join approvals a on a.id = d.approval_id
        left join content_keys k on k.subject = coalesce(a.run_id, a.id)
        where d.approval_id = $1 order by d.n
        """,
        approval_id,
    )
    return [_of_row(conn, approval_id, row) for row in rows]


def _of_row(conn: Conn, approval_id: UUID, row: asyncpg.Record) -> Delegation:
    read = content.reader(conn, row["subject"], row["wrapped"])
    said = read.values(row, _place(approval_id), "reason", ("reason",))
    return Delegation(row["actor"], row["users"], row["groups"], said["reason"], row["at"])


def _place(approval_id: UUID) -> str:
    return f"delegations.reason/{approval_id}"


@dataclass(frozen=True, slots=True)
class Known:
    """Whom the tenant knows: people who may decide, and groups."""

    users: Sequence[str] = ()
    groups: Sequence[str] = ()


async def known(conn: Conn, tenant: str, *, at_most: int) -> Known:
    """By live keys and sessions of the console, in the order of names."""
    row = await conn.fetchrow(
        """
        with people as (
            select subject, groups from api_keys
            where tenant = $1 and role in ('reviewer', 'admin') and revoked_at is null
              and (expires_at is null or expires_at > now())
            union
            select subject, groups from console_sessions
            where tenant = $1 and role in ('reviewer', 'admin') and expires_at > now())
        select array(select distinct subject from people order by subject limit $2) as users,
               array(select distinct g from people, unnest(groups) as g order by g limit $2) as groups
        """,
        tenant,
        at_most,
    )
    assert row is not None
    return Known(row["users"], row["groups"])
