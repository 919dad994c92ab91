"""Rows of `approval_views`: when somebody who may decide first opened an approval."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from service.domain.record import Seen
from service.store.database import Conn


async def note(conn: Conn, tenant: str, approval_ids: Sequence[UUID], subject: str, channel: str) -> None:
    """The first time stays."""
    await conn.execute(
        """
        insert into approval_views (approval_id, subject, tenant, channel)
        select id, $3, $1, $4 from unnest($2::uuid[]) as id on conflict do nothing
        """,
        tenant,
        list(approval_ids),
        subject,
        channel,
    )


async def first(conn: Conn, approval_id: UUID, subject: str) -> Seen:
    """When it was first opened, by this person and by anybody."""
    row = await conn.fetchrow(
        """
        select min(first_seen_at) filter (where subject = $2) as by_them, min(first_seen_at) as by_anyone
        from approval_views where approval_id = $1
        """,
        approval_id,
        subject,
    )
    assert row is not None
    return Seen(row["by_them"], row["by_anyone"])


async def forget(conn: Conn, tenant: str, *, days: int) -> None:
    """What was noted longer ago about approvals that are no more."""
    await conn.execute(
        """
        delete from approval_views v where tenant = $1 and first_seen_at < now() - $2::interval
          and not exists (select from approvals a where a.id = v.approval_id)
        """,
        tenant,
        timedelta(days=days),
    )
