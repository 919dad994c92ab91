"""The inbox of one person: open approvals that they may decide, soonest deadline first."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from service.domain.principal import Principal
from service.store.database import Conn

FIRST_AT: Final = datetime.min.replace(tzinfo=UTC)
FIRST_ID: Final = UUID(int=0)
_PART_OF_ID: Final = re.compile(r"[0-9A-Fa-f-]+")


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
    claimed: bool


async def entries(
    conn: Conn, who: Principal, wanted: Wanted, *, after: tuple[datetime, UUID] | None = None, limit: int
) -> list[Entry]:
    """The rules are those of `domain.approval.may_decide`: named, where anybody is named, and not banned.

    One walk along `approvals_inbox` in the order of deadlines, which ends with the page. All that narrows stands in
    one CASE: Postgres would guess how few fit, mostly wrong, and sort them all instead; so it expects nearly every row
    to fit, and asks in this order: what narrows, then whom it is for. Ids become text only for what could be part of
    one.
    """
    at, last = after or (FIRST_AT, FIRST_ID)
    text = wanted.text or None
    rows = await conn.fetch(
        """
        select id, version, checkpoint_type as checkpoint, expires_at,
               coalesce(claimed_until > now(), false) as claimed
        from approvals
        where tenant = $1 and status = 'pending' and (expires_at, id) > ($4, $5) and case when
              ($6::text is null or checkpoint_type = $6)
          and ($7::text is null or session_id = $7)
          and ($8::text is null or user_id = $8)
          and ($9::interval is null or created_at <= now() - $9)
          and ($10::text is null or reviewers->'groups' ? $10)
          and ($11::text is null
               or position(e'\\n' || $11 in e'\\n' || array_to_string(reasons, e'\\n')) > 0)
          and ($12::text is null
               or position(lower($12) in
                    lower(concat_ws(' ', user_id, session_id, submitter, checkpoint_type, claimed_by))) > 0
               or ($13 and position(lower($12) in concat_ws(' ', id, run_id)) > 0))
          and ($14::text is null or exists (
               select from runs r where r.id = run_id and r.tenant = $1 and r.provider = $14
                  and r.status in ('queued', 'running', 'awaiting_human', 'awaiting_provider', 'paused')))
          and (reviewers->'users' = '[]' and reviewers->'groups' = '[]'
               or reviewers->'users' ? $2 or reviewers->'groups' ?| $3)
          and (submitter <> $2 and user_id is distinct from $2
               or coalesce((reviewers->>'allow_self_approval')::boolean, (reviewers->>'quorum')::integer = 1))
        then 1 else 0 end <> 0
        order by expires_at, id limit $15
        """,
        who.tenant, who.subject, list(who.groups), at, last, wanted.checkpoint, wanted.session, wanted.user,
        timedelta(seconds=wanted.older_than_s) if wanted.older_than_s is not None else None, wanted.group,
        wanted.reason, text, text is not None and bool(_PART_OF_ID.fullmatch(text)), wanted.provider, limit,
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
