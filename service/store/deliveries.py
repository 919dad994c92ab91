"""Rows of `delivery_lines` and `deliveries`: written with what made them true, sent by who holds the line."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from service.domain.delivery import Kind, Told
from service.domain.ids import uuid7
from service.errors import ContentErased
from service.store import content
from service.store.database import Conn


@dataclass(frozen=True, slots=True)
class Line:
    """What goes to one target about one subject. `run_id` is None for a question that belongs to no run."""

    subject: UUID
    kind: Kind
    tenant: str
    run_id: UUID | None
    approval_id: UUID | None
    target: str
    lease_id: UUID


@dataclass(frozen=True, slots=True)
class Message:
    """`body` is what the first try sent, for all tries to send the same."""

    id: UUID
    seq: int | None
    type: str
    approval_id: UUID | None
    tries: int
    body: bytes | None
    created_at: datetime


def columns(messages: Sequence[Told]) -> tuple[list[Any], ...]:
    """`id, kind, seq, type, approval_id, at` as arrays: `unnest` of them is
    `(uuid, text, bigint, text, uuid, timestamptz)`."""
    return (
        [uuid7() for _ in messages],
        [m.kind for m in messages],
        [m.seq for m in messages],
        [m.type for m in messages],
        [m.approval_id for m in messages],
        [m.at for m in messages],
    )


async def add_of_runs(conn: Conn, wanted: Sequence[tuple[str, UUID, Sequence[Told]]]) -> bool:
    """Messages about runs, each of a tenant: for the relay, and for its callback if it has one; in one trip. Returns
    whether there are any."""
    rows = await conn.fetchmany(
        """
        with told as (
            select m.*, d.callback_url
            from unnest($3::uuid[], $4::text[], $5::bigint[], $6::text[], $7::uuid[], $8::timestamptz[])
                as m (id, kind, seq, type, approval_id, at) join run_documents d on d.run_id = $1
            where m.kind = 'relay' or d.callback_url is not null),
        lines as (
            insert into delivery_lines (subject, kind, tenant, run_id, target, due_at)
            select distinct $1::uuid, kind, $2::text, $1::uuid,
                case kind when 'relay' then 'relay' else url_host(callback_url) end, now() from told
            on conflict (subject, kind) do update set due_at = coalesce(delivery_lines.due_at, excluded.due_at)),
        messages as (
            insert into deliveries (id, tenant, subject, kind, seq, type, approval_id, created_at)
            select id, $2, $1, kind, seq, type, approval_id, at from told order by seq)
        select count(*) as messages from told
        """,
        [(run_id, tenant, *columns(messages)) for tenant, run_id, messages in wanted],
    )
    return any(row["messages"] for row in rows)


async def add_of_question(conn: Conn, tenant: str, approval_id: UUID, messages: Sequence[Told]) -> None:
    """Messages about an approval that belongs to no run."""
    await conn.execute(
        """
        with told as (
            select m.*, a.callback_url
            from unnest($3::uuid[], $4::text[], $5::bigint[], $6::text[], $7::uuid[], $8::timestamptz[])
                as m (id, kind, seq, type, approval_id, at) join approvals a on a.id = $1
            where m.kind = 'relay' or a.callback_url is not null),
        lines as (
            insert into delivery_lines (subject, kind, tenant, approval_id, target, due_at)
            select distinct $1::uuid, kind, $2::text, $1::uuid,
                case kind when 'relay' then 'relay' else url_host(callback_url) end, now() from told
            on conflict (subject, kind) do update set due_at = coalesce(delivery_lines.due_at, excluded.due_at))
        insert into deliveries (id, tenant, subject, kind, seq, type, approval_id, created_at)
        select id, $2, $1, kind, seq, type, approval_id, at from told
        """,
        approval_id, tenant, *columns(messages),
    )  # fmt: skip


async def claim(
    conn: Conn, kind: Kind, *, busy: Sequence[str], lease_id: UUID, lease_s: float, limit: int
) -> list[Line]:
    """Take lines that are due and that nobody holds, but none to a busy target. The lease is what orders a line."""
    rows = await conn.fetch(
        """
        with due as (
            select subject, kind from delivery_lines
            where kind = $1 and due_at <= now() and (lease_until is null or lease_until < now())
              and not (target = any($2)) order by due_at limit $3 for update skip locked)
        update delivery_lines l set lease_id = $4, lease_until = now() + $5::interval
        from due where l.subject = due.subject and l.kind = due.kind
        returning l.subject, l.kind, l.tenant, l.run_id, l.approval_id, l.target, l.lease_id
        """,
        kind,
        list(busy),
        limit,
        lease_id,
        timedelta(seconds=lease_s),
    )
    return [Line(**row) for row in rows]


async def release(conn: Conn, lines: Sequence[Line]) -> None:
    """Let lines go as they are, for anybody to take."""
    await conn.execute(
        """
        update delivery_lines l set lease_id = null, lease_until = null
        from unnest($1::uuid[], $2::text[], $3::uuid[]) as mine (subject, kind, lease_id)
        where l.subject = mine.subject and l.kind = mine.kind and l.lease_id = mine.lease_id
        """,
        [line.subject for line in lines],
        [line.kind for line in lines],
        [line.lease_id for line in lines],
    )


async def lock(conn: Conn, line: Line) -> bool:
    """Lock a line that is still held under this lease. False: it is lost, write nothing of it.

    In a statement of its own: the next one then sees every message that was added before the lock was had.
    """
    held = await conn.fetchval(
        "select true from delivery_lines where subject = $1 and kind = $2 and lease_id = $3 for update",
        line.subject,
        line.kind,
        line.lease_id,
    )
    return bool(held)


async def first(conn: Conn, line: Line, *, limit: int) -> list[Message]:
    """The line's next messages, in order."""
    rows = await conn.fetch(
        """
        select d.id, d.seq, d.type, d.approval_id, d.tries, d.body, d.created_at, k.wrapped from deliveries d
        left join content_keys k on k.subject = d.subject
        where d.subject = $1 and d.kind = $2 and d.status = 'waiting' order by d.n limit $3
        """,
        line.subject,
        line.kind,
        limit,
    )
    return [_message(conn, line, dict(row)) for row in rows]


def _message(conn: Conn, line: Line, values: dict[str, Any]) -> Message:
    read = content.reader(conn, line.subject, values.pop("wrapped"))
    return Message(**{**values, "body": read.body(_place(values["id"]), values["body"])})


def _place(message_id: UUID) -> str:
    return f"deliveries.body/{message_id}"


async def callback_url(conn: Conn, line: Line) -> str | None:
    """Where its messages go; None once its content was erased."""
    row = await conn.fetchrow(
        """
        select u.callback_url, u.place, k.wrapped from (
            select run_id as subject, callback_url, 'run_documents.callback_url' as place
            from run_documents where run_id = $1
            union all select id, callback_url, 'approvals.callback_url/' || id from approvals where id = $2) u
        left join content_keys k using (subject)
        """,
        line.run_id,
        line.approval_id,
    )
    return content.reader(conn, line.subject, row["wrapped"]).url(row["place"], row["callback_url"]) if row else None


async def addressee(conn: Conn, line: Line) -> tuple[str | None, str | None]:
    """Session and user of the line's subject."""
    row = await conn.fetchrow(
        """
        select session_id, user_id from runs where id = $1
        union all select session_id, user_id from approvals where id = $2
        """,
        line.run_id,
        line.approval_id,
    )
    return (row["session_id"], row["user_id"]) if row else (None, None)


async def keep_body(conn: Conn, line: Line, message_id: UUID, body: bytes) -> None:
    """Of a line that this transaction has locked."""
    sealed = (await content.pen(conn, line.subject)).body(_place(message_id), body)
    await conn.execute("update deliveries set body = $2 where id = $1", message_id, sealed)


async def delivered(conn: Conn, message_id: UUID) -> None:
    """Keep that it was delivered, not what was."""
    await conn.execute(
        """
        update deliveries set status = 'delivered', tries = tries + 1, error = null, body = null,
            tried_at = now(), delivered_at = now() where id = $1
        """,
        message_id,
    )


async def forget(conn: Conn, message_ids: Sequence[UUID]) -> None:
    """A relay's messages are gone once they are acknowledged: the events stay."""
    await conn.execute("delete from deliveries where id = any($1)", list(message_ids))


async def failed(conn: Conn, message_id: UUID, *, error: str, dead: bool) -> None:
    await conn.execute(
        """
        update deliveries set status = case when $3 then 'dead' else 'waiting' end, tries = tries + 1, error = $2,
            tried_at = now() where id = $1
        """,
        message_id,
        error,
        dead,
    )


async def put_down(conn: Conn, line: Line, *, wait: timedelta) -> None:
    """Let a locked line go: due again after `wait` if something of it still waits, else not due."""
    await conn.execute(
        """
        update delivery_lines set lease_id = null, lease_until = null, due_at = case when exists (
            select from deliveries d where d.subject = $1 and d.kind = $2 and d.status = 'waiting')
            then now() + $3::interval end
        where subject = $1 and kind = $2
        """,
        line.subject,
        line.kind,
        wait,
    )


async def again(conn: Conn, message_id: UUID, tenant: str | None) -> bool:
    """Make a webhook due once more, under the same id and with all its tries. False: there is none such.
    Raises `ContentErased`: there is nothing left to send, nor where to."""
    line = await conn.fetchrow(
        """
        select l.subject, l.kind, exists (select from erased_content e where e.subject = l.subject) as erased
        from deliveries d join delivery_lines l using (subject, kind)
        where d.id = $1 and d.kind = 'webhook' and ($2::text is null or d.tenant = $2) for update of l
        """,
        message_id,
        tenant,
    )
    if line is None:
        return False
    if line["erased"]:
        raise ContentErased("the content of this webhook was erased")
    await conn.execute(
        "update deliveries set status = 'waiting', tries = 0, error = null, delivered_at = null where id = $1",
        message_id,
    )
    await conn.execute(
        "update delivery_lines set due_at = now() where subject = $1 and kind = $2", line["subject"], line["kind"]
    )
    return True


async def recent(conn: Conn, tenant: str | None, *, status: str | None, limit: int) -> list[dict[str, Any]]:
    """Webhooks, newest first, of every tenant where none is named: for the operator. `due_at` of those that wait;
    null for one that waits for its turn in its line."""
    rows = await conn.fetch(
        """
        select d.id, d.status, d.type, d.tenant, l.run_id, coalesce(d.approval_id, l.approval_id) as approval_id, d.seq,
               l.target as host, d.tries, d.error, d.created_at, d.tried_at, d.delivered_at,
               case when d.status = 'waiting' and not exists (select from deliveries e where e.subject = d.subject
                   and e.kind = d.kind and e.status = 'waiting' and e.n < d.n) then l.due_at end as due_at
        from deliveries d join delivery_lines l using (subject, kind)
        where d.kind = 'webhook' and ($1::text is null or d.tenant = $1) and ($2::text is null or d.status = $2)
        order by d.n desc limit $3
        """,
        tenant,
        status,
        limit,
    )
    return [dict(row) for row in rows]


async def figures(conn: Conn) -> dict[str, dict[str, int]]:
    """`{deliveries_waiting, deliveries_dead}` by tenant, of those that have any."""
    rows = await conn.fetch(
        """
        select tenant, count(*) filter (where status = 'waiting') as deliveries_waiting,
               count(*) filter (where status = 'dead') as deliveries_dead
        from deliveries where status <> 'delivered' group by tenant
        """
    )
    return {row["tenant"]: dict(list(row.items())[1:]) for row in rows}


NONE = {"deliveries_waiting": 0, "deliveries_dead": 0}


async def figures_of(conn: Conn, tenant: str, *, at_most: int | None = None) -> dict[str, int]:
    """The same of one tenant. With `at_most` each is counted so far and one further."""
    rows = await conn.fetch(
        """
        select 'deliveries_' || k.status as name, c.n from (values ('waiting'), ('dead')) as k (status)
        cross join lateral (select count(*) as n from (
            select from deliveries where tenant = $1 and status = k.status and status <> 'delivered'
            limit $2::bigint + 1) as r) as c
        """,
        tenant,
        at_most,
    )
    return {row["name"]: row["n"] for row in rows}
