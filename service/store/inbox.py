"""The inbox of one person: open approvals that they may decide, soonest deadline first."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from service.domain.principal import Principal
from service.store.database import Conn


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the inbox is narrowed to; None narrows nothing. `text` is looked for in names and ids."""

    checkpoint: str | None = None
    session: str | None = None
    user: str | None = None
    provider: str | None = None
    reason: str | None = None
    group: str | None = None
    older_than_s: float | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    id: UUID
    version: int
    checkpoint: str
    expires_at: datetime


async def entries(
    conn: Conn, who: Principal, wanted: Wanted, *, after: tuple[datetime, UUID] | None = None, limit: int
) -> list[Entry]:
    """The rules are those of `domain.approval.may_decide`: named, where anybody is named, and not banned.

    Two ways to the rows, each with the same filters and its own limit: what anybody may decide is walked along its
    index in the order of deadlines and stops early, whatever Postgres guesses of the reviewers; what names the person
    is found by the names.
    """
    at, last = after or (None, None)
    rows = await conn.fetch(
        """
        select id, version, checkpoint_type as checkpoint, expires_at from (
            (select id, version, checkpoint_type, expires_at from approvals
             where tenant = $1 and status = 'pending' and reviewers->'users' = '[]' and reviewers->'groups' = '[]'
               and (coalesce((reviewers->>'allow_self_approval')::boolean, (reviewers->>'quorum')::integer = 1)
                    or (submitter <> $2 and user_id is distinct from $2))
               and ($4::timestamptz is null or (expires_at, id) > ($4, $5::uuid))
               and ($6::text is null or checkpoint_type = $6)
               and ($7::text is null or session_id = $7)
               and ($8::text is null or user_id = $8)
               and ($9::text is null or exists (select from runs r where r.id = run_id and r.provider = $9))
               and ($10::text is null or exists (select from unnest(reasons) as r (code) where starts_with(code, $10)))
               and ($11::text is null or reviewers->'groups' ? $11)
               and ($12::interval is null or created_at <= now() - $12)
               and ($13::text is null or position(lower($13) in lower(concat_ws(' ', user_id, session_id,
                    submitter, checkpoint_type, claimed_by, id, run_id))) > 0)
             order by expires_at, id limit $14)
            union all
            (select id, version, checkpoint_type, expires_at from approvals
             where tenant = $1 and status = 'pending' and id = any (array(select hitl_named($1, $2, $3)))
               and (coalesce((reviewers->>'allow_self_approval')::boolean, (reviewers->>'quorum')::integer = 1)
                    or (submitter <> $2 and user_id is distinct from $2))
               and ($4::timestamptz is null or (expires_at, id) > ($4, $5::uuid))
               and ($6::text is null or checkpoint_type = $6)
               and ($7::text is null or session_id = $7)
               and ($8::text is null or user_id = $8)
               and ($9::text is null or exists (select from runs r where r.id = run_id and r.provider = $9))
               and ($10::text is null or exists (select from unnest(reasons) as r (code) where starts_with(code, $10)))
               and ($11::text is null or reviewers->'groups' ? $11)
               and ($12::interval is null or created_at <= now() - $12)
               and ($13::text is null or position(lower($13) in lower(concat_ws(' ', user_id, session_id,
                    submitter, checkpoint_type, claimed_by, id, run_id))) > 0)
             order by expires_at, id limit $14)
        ) found
        order by expires_at, id limit $14
        """,
        who.tenant, who.subject, list(who.groups), at, last, wanted.checkpoint, wanted.session, wanted.user,
        wanted.provider, wanted.reason, wanted.group,
        timedelta(seconds=wanted.older_than_s) if wanted.older_than_s is not None else None, wanted.text, limit,
    )  # fmt: skip
    return [Entry(**row) for row in rows]


@dataclass(frozen=True, slots=True)
class View:
    """A filter of the inbox that a person keeps under a name; `query` is that of its URL."""

    name: str
    query: str


async def views(conn: Conn, who: Principal) -> list[View]:
    rows = await conn.fetch(
        "select name, query from console_views where tenant = $1 and subject = $2 order by name",
        who.tenant,
        who.subject,
    )
    return [View(**row) for row in rows]


async def keep_view(conn: Conn, who: Principal, view: View, *, at_most: int) -> bool:
    """Keep it, in place of an earlier one of that name; False where the person keeps too many already."""
    kept = await conn.fetchval(
        """
        insert into console_views (tenant, subject, name, query)
        select $1, $2, $3, $4
        where (select count(*) from console_views where tenant = $1 and subject = $2 and name <> $3) < $5
        on conflict (tenant, subject, name) do update set query = excluded.query
        returning true
        """,
        who.tenant, who.subject, view.name, view.query, at_most,
    )  # fmt: skip
    return bool(kept)


async def drop_view(conn: Conn, who: Principal, name: str) -> None:
    await conn.execute(
        "delete from console_views where tenant = $1 and subject = $2 and name = $3", who.tenant, who.subject, name
    )
