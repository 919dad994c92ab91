"""Rows of `approvals` and `decisions`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg

from service.domain.altered import made
from service.domain.approval import Approval, ApprovalStatus, Decision
from service.domain.delivery import url_host
from service.domain.policy import EscalateTo, Reviewers
from service.domain.record import Recorded, Seen
from service.domain.run import Run
from service.errors import HitlError
from service.store import content, runs
from service.store.content import Pen, Reader, Row
from service.store.database import Conn

SAID: Final = ("reason", "edits")  # of a decision, under one seal


def _of_row(row: Row, read: Reader, decisions: tuple[Decision, ...], erased_at: datetime | None) -> Approval:
    values = dict(row)
    values |= read.values(row, _place("context", row["id"]), "context", ("message", "context", "schema"))
    values["message"], values["context"] = values["message"] or "", values["context"] or {}
    values["callback_url"] = read.url(_place("callback_url", row["id"]), values["callback_url"])
    values["status"] = ApprovalStatus(values["status"])
    values["reviewers"] = Reviewers.model_validate(values["reviewers"])
    target = values["escalate_to"]
    values["escalate_to"] = EscalateTo.model_validate(target) if target else None
    return made(Approval, {**values, "decisions": decisions, "erased_at": erased_at})


def _place(column: str, approval_id: UUID) -> str:
    return f"approvals.{column}/{approval_id}"


def _place_of(approval_id: UUID, actor: str) -> str:
    return f"decisions.edits/{approval_id}/{actor}"


def shown(pen: Pen, a: Approval) -> str | None:
    """What is asked, as it is stored: under one seal, since much of it is said twice."""
    return pen.seal(_place("context", a.id), message=a.message, context=a.context, schema=a.schema)


def reviewers_of(a: Approval) -> dict[str, Any]:
    """Who may decide, as it is stored: queries look at `users`, `groups` and `quorum`, which are always there."""
    return a.reviewers.model_dump(exclude_none=True)


async def with_decisions(conn: Conn, rows: Sequence[asyncpg.Record]) -> list[Approval]:
    """The approvals in these rows, with the keys of their content, and their decisions."""
    if not rows:
        return []
    found = await conn.fetch(
        """
        select a.id as approval_id, k.wrapped, e.at as erased_at,
               d.actor, d.action, d.reason, d.edits, d.at, d.channel, d.payload_sha256, d.nonce
        from unnest($1::uuid[], $2::uuid[]) as a (id, subject)
        left join content_keys k on k.subject = a.subject left join erased_content e on e.subject = a.subject
        left join decisions d on d.approval_id = a.id order by a.id, d.n
        """,
        [row["id"] for row in rows],
        [row["run_id"] or row["id"] for row in rows],
    )
    by_id: dict[UUID, list[asyncpg.Record]] = {}
    for row in found:
        by_id.setdefault(row["approval_id"], []).append(row)
    return [_whole(conn, row, by_id[row["id"]]) for row in rows]


def _whole(conn: Conn, row: asyncpg.Record, more: Sequence[asyncpg.Record]) -> Approval:
    read = content.reader(conn, row["run_id"] or row["id"], more[0]["wrapped"])
    decisions = tuple(_decision(read, one) for one in more if one["actor"] is not None)
    return _of_row(row, read, decisions, more[0]["erased_at"])


def _decision(read: Reader, row: asyncpg.Record) -> Decision:
    return Decision(
        actor=row["actor"],
        action=row["action"],
        at=row["at"],
        channel=row["channel"],
        payload_sha256=row["payload_sha256"],
        nonce=row["nonce"],
        **read.values(row, _place_of(row["approval_id"], row["actor"]), "edits", SAID),
    )


async def insert(conn: Conn, a: Approval) -> None:
    if a.run_id is None:
        pen, wrapped = content.new_pen(conn, a.id)
    else:
        pen, wrapped = await content.pen(conn, a.run_id), None
    await conn.execute(
        """
        with key as (
            insert into content_keys (subject, tenant, wrapped) select $1, $2, $24::bytea where $24::bytea is not null)
        insert into approvals (id, tenant, run_id, checkpoint_type, status, reasons, message, context, schema,
            payload_sha256, user_id, session_id, submitter, reviewers, on_timeout, timeout_s, escalate_to,
            remind_after_s, remind_at, created_at, expires_at, callback_url, armed)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22,
            $23)
        """,
        a.id, a.tenant, a.run_id, a.checkpoint_type, a.status, list(a.reasons), "", shown(pen, a), None,
        a.payload_sha256, a.user_id, a.session_id, a.submitter, reviewers_of(a), a.on_timeout,
        a.timeout_s, a.escalate_to.model_dump() if a.escalate_to else None, a.remind_after_s, a.remind_at,
        a.created_at, a.expires_at, pen.url(_place("callback_url", a.id), a.callback_url, url_host(a.callback_url)),
        a.armed, wrapped,
    )  # fmt: skip


def values(pen: Pen, a: Approval) -> list[Any]:
    """`id, checkpoint_type … armed` of a run's question, in the order in which `changes` inserts it."""
    return [
        a.id, a.checkpoint_type, a.status, list(a.reasons), shown(pen, a), a.payload_sha256, a.user_id, a.session_id,
        a.submitter, a.reviewers.model_dump(), a.on_timeout, a.timeout_s,
        a.escalate_to.model_dump() if a.escalate_to else None, a.remind_after_s, a.remind_at, a.created_at,
        a.expires_at, a.armed,
    ]  # fmt: skip


async def get(conn: Conn, tenant: str, approval_id: UUID) -> Approval | None:
    rows = await conn.fetch("select * from approvals where id = $1 and tenant = $2", approval_id, tenant)
    found = await with_decisions(conn, rows)
    return found[0] if found else None


async def some(conn: Conn, approval_ids: Sequence[UUID]) -> list[Approval]:
    """These approvals of any tenant, in no order."""
    return await with_decisions(conn, await conn.fetch("select * from approvals where id = any($1)", approval_ids))


async def lock(conn: Conn, approval_id: UUID, *, tenant: str | None = None) -> Approval | None:
    """The approval, of any tenant or of this one, locked. Its run, if it has one, was locked before: always in this
    order."""
    rows = await conn.fetch(
        "select * from approvals where id = $1 and ($2::text is null or tenant = $2) for update", approval_id, tenant
    )
    found = await with_decisions(conn, rows)
    return found[0] if found else None


@dataclass(frozen=True, slots=True)
class ToDecide:
    """An open approval of a run that nobody has answered yet, its run, and when it was opened by whom."""

    approval: Approval
    run: Run
    seen: Seen


async def to_decide(conn: Conn, tenant: str, wanted: Sequence[tuple[UUID, str]]) -> list[ToDecide | None]:
    """Of each approval, for who wants to decide it: as it stands, without a lock; in one trip. None: there is none
    that is open, or its answer is more than a first one's."""
    rows = await conn.fetchmany(
        """
        select $4::integer as n, r.*, a.id as a_id, a.checkpoint_type as a_checkpoint_type, a.status as a_status,
            a.reasons as a_reasons, a.message as a_message, a.context as a_context, a.schema as a_schema,
            a.payload_sha256 as a_payload_sha256, a.user_id as a_user_id, a.session_id as a_session_id,
            a.submitter as a_submitter, a.reviewers as a_reviewers, a.on_timeout as a_on_timeout,
            a.timeout_s as a_timeout_s, a.escalate_to as a_escalate_to, a.escalated_at as a_escalated_at,
            a.remind_after_s as a_remind_after_s, a.remind_at as a_remind_at, a.created_at as a_created_at,
            a.expires_at as a_expires_at, a.clock_stopped_at as a_clock_stopped_at, a.timer_no as a_timer_no,
            a.armed as a_armed, a.edited as a_edited, a.claimed_by as a_claimed_by,
            a.claimed_until as a_claimed_until, a.decided_at as a_decided_at, a.callback_url as a_callback_url,
            a.version as a_version, a.tenant as a_tenant, a.run_id as a_run_id, k.wrapped,
            (select min(first_seen_at) from approval_views v where v.approval_id = a.id and v.subject = $3) as by_them,
            (select min(first_seen_at) from approval_views v where v.approval_id = a.id) as by_anyone
        from approvals a join runs r on r.id = a.run_id join content_keys k on k.subject = a.run_id
        where a.id = $1 and a.tenant = $2 and a.status = 'pending'
          and not exists (select from decisions d where d.approval_id = a.id)
        """,
        [(approval_id, tenant, subject, n) for n, (approval_id, subject) in enumerate(wanted)],
    )
    found = {row["n"]: _to_decide(conn, row) for row in rows}
    return [found.get(n) for n in range(len(wanted))]


def _to_decide(conn: Conn, row: asyncpg.Record) -> ToDecide | None:
    own = {name[2:]: value for name, value in row.items() if name.startswith("a_")}
    try:
        read = content.reader(conn, row["id"], row["wrapped"])
        approval = _of_row(own, read, (), None)
    except HitlError:  # the fault of one: said where it is asked alone
        return None
    return ToDecide(approval, runs.of_row(row), Seen(row["by_them"], row["by_anyone"]))


async def run_of(conn: Conn, approval_id: UUID) -> tuple[UUID | None] | None:
    """The approval's run in a tuple (None for a client's own approval), or None for an unknown approval."""
    row = await conn.fetchrow("select run_id from approvals where id = $1", approval_id)
    return (row["run_id"],) if row else None


async def open_of_run(conn: Conn, run_id: UUID) -> list[Approval]:
    rows = await conn.fetch(
        "select * from approvals where run_id = $1 and status = 'pending' order by created_at", run_id
    )
    return await with_decisions(conn, rows)


async def open_of_runs(conn: Conn, run_ids: Sequence[UUID]) -> dict[UUID, list[Approval]]:
    """The open approvals of each run, for a page of runs, in one query."""
    rows = await conn.fetch(
        "select * from approvals where run_id = any($1) and status = 'pending' order by created_at",
        list(run_ids),
    )
    return await _by_run(conn, rows)


async def of_runs(conn: Conn, run_ids: Sequence[UUID]) -> dict[UUID, list[Approval]]:
    """All approvals of each run, whatever became of them."""
    rows = await conn.fetch("select * from approvals where run_id = any($1) order by created_at, id", list(run_ids))
    return await _by_run(conn, rows)


async def _by_run(conn: Conn, rows: Sequence[asyncpg.Record]) -> dict[UUID, list[Approval]]:
    found: dict[UUID, list[Approval]] = {}
    for approval in await with_decisions(conn, rows):
        assert approval.run_id is not None
        found.setdefault(approval.run_id, []).append(approval)
    return found


async def save(conn: Conn, a: Approval) -> None:
    """Write an approval that this transaction has locked."""
    pen = await content.pen(conn, a.run_id or a.id)
    await conn.execute(
        """
        update approvals set status = $2, message = '', context = $3, schema = null, payload_sha256 = $4,
            reviewers = $5, escalated_at = $6, remind_at = $7, expires_at = $8, clock_stopped_at = $9, timer_no = $10,
            armed = $11, edited = $12, claimed_by = $13, claimed_until = $14, decided_at = $15, version = $16
        where id = $1
        """,
        a.id, a.status, shown(pen, a), a.payload_sha256, reviewers_of(a), a.escalated_at, a.remind_at,
        a.expires_at, a.clock_stopped_at, a.timer_no, a.armed, a.edited, a.claimed_by, a.claimed_until,
        a.decided_at, a.version,
    )  # fmt: skip


def said(pen: Pen, approval_id: UUID, decision: Decision) -> str | None:
    return pen.seal(_place_of(approval_id, decision.actor), reason=decision.reason, edits=decision.edits)


def recorded_values(decision: Decision, said: str | None, record: Recorded) -> list[Any]:
    """`actor, action, edits … nonce` of a decision's row; `said` as it is sealed."""
    return [
        decision.actor, decision.action, said, decision.payload_sha256, decision.at, decision.channel, record.role,
        record.authenticated_by, record.credential, record.seen.by_them, record.position, record.quorum,
        list(record.changes), record.nonce,
    ]  # fmt: skip


async def add_decision(conn: Conn, approval: Approval, decision: Decision, record: Recorded) -> None:
    pen = await content.pen(conn, approval.run_id or approval.id)
    await conn.execute(
        """
        insert into decisions (approval_id, n, tenant, actor, action, reason, edits, payload_sha256, at, channel,
            role, authenticated_by, credential, first_seen_at, position, quorum, changes, nonce)
        select $1, coalesce(max(n), 0) + 1, $2, $3, $4, null, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16
        from decisions where approval_id = $1
        """,
        approval.id, approval.tenant, *recorded_values(decision, said(pen, approval.id, decision), record),
    )  # fmt: skip


async def due(conn: Conn, *, limit: int) -> list[UUID]:
    """Open approvals whose time is out by Postgres's clock."""
    rows = await conn.fetch(
        """
        select id from approvals where status = 'pending' and clock_stopped_at is null and expires_at <= now()
        order by expires_at limit $1
        """,
        limit,
    )
    return [row["id"] for row in rows]


async def to_remind(conn: Conn, *, limit: int) -> list[UUID]:
    rows = await conn.fetch(
        """
        select id from approvals where status = 'pending' and clock_stopped_at is null and remind_at <= now()
        order by remind_at limit $1
        """,
        limit,
    )
    return [row["id"] for row in rows]


async def arm(conn: Conn, *, horizon_s: float, limit: int) -> Sequence[Mapping[str, Any]]:
    """`{id, timer_no, expires_at}` of deadlines that came inside the horizon; marked as having their job."""
    rows = await conn.fetch(
        """
        update approvals set armed = true where id = any (array(
            select id from approvals where status = 'pending' and clock_stopped_at is null and not armed
               and expires_at < now() + $1::interval order by expires_at limit $2 for update skip locked))
        returning id, timer_no, expires_at
        """,
        timedelta(seconds=horizon_s),
        limit,
    )
    return [dict(row) for row in rows]


@dataclass(frozen=True, slots=True)
class InboxFilter:
    user_id: str | None = None
    session_id: str | None = None
    checkpoint_type: str | None = None
    run_id: UUID | None = None
    after: tuple[datetime, UUID] | None = None


async def inbox(conn: Conn, tenant: str, wanted: InboxFilter, *, limit: int) -> list[Approval]:
    """Open approvals, soonest deadline first."""
    at, last = wanted.after or (None, None)
    rows = await conn.fetch(
        """
        select * from approvals where tenant = $1 and status = 'pending'
          and ($2::text is null or user_id = $2) and ($3::text is null or session_id = $3)
          and ($4::text is null or checkpoint_type = $4) and ($5::uuid is null or run_id = $5)
          and ($6::timestamptz is null or (expires_at, id) > ($6, $7::uuid))
        order by expires_at, id limit $8
        """,
        tenant, wanted.user_id, wanted.session_id, wanted.checkpoint_type, wanted.run_id, at, last, limit,
    )  # fmt: skip
    return await with_decisions(conn, rows)


async def last_actors(conn: Conn, run_id: UUID) -> dict[str, str]:
    """Who decided last about each checkpoint of the run."""
    rows = await conn.fetch(
        """
        select distinct on (a.checkpoint_type) a.checkpoint_type, d.actor
        from approvals a join decisions d on d.approval_id = a.id
        where a.run_id = $1 order by a.checkpoint_type, a.created_at desc, d.n desc
        """,
        run_id,
    )
    return {row["checkpoint_type"]: row["actor"] for row in rows}


async def find(conn: Conn, approval_id: UUID) -> Approval | None:
    """The approval of any tenant: for the operator."""
    rows = await conn.fetch("select * from approvals where id = $1", approval_id)
    found = await with_decisions(conn, rows)
    return found[0] if found else None


async def recent(
    conn: Conn, tenant: str | None, *, status: str | None, run_id: UUID | None, limit: int
) -> list[Approval]:
    """Newest first, of every tenant where none is named: for the operator."""
    rows = await conn.fetch(
        """
        select * from approvals where ($1::text is null or tenant = $1) and ($2::text is null or status = $2)
          and ($3::uuid is null or run_id = $3)
        order by created_at desc, id desc limit $4
        """,
        tenant, status, run_id, limit,
    )  # fmt: skip
    return await with_decisions(conn, rows)
