"""What stands still, and what went wrong, of one tenant: bounded reads, the earliest first."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from service.domain.stuck import Failures, HeldUp, Overdue, Waiting
from service.store.database import Conn
from service.store.runs import of_row


async def held_up(
    conn: Conn, tenant: str, *, due_for: timedelta, long: timedelta, among: int, limit: int
) -> list[HeldUp]:
    """Runs that should have gone on by now: due for a while with nobody at work; with a worker that fell silent, or has
    been at one step for long; past their deadline; paused, or in their session's line, for long. Looked for among the
    earliest of each status."""
    rows = await conn.fetch(
        """
        with suspects as (
            select r.id from unnest(array['queued', 'awaiting_provider', 'paused']) as k (status)
            cross join lateral (
                select * from runs where tenant = $1 and status = k.status order by created_at, id limit $4) as r
            where (r.lease_until is null and r.due_at < now() - $2::interval)
               or (r.status = 'queued' and r.due_at is null and r.created_at < now() - $3::interval)
               or r.paused_at < now() - $3::interval
            union
            select id from runs where tenant = $1 and lease_until is not null
              and (lease_until < now() - $2::interval or (status = 'running' and status_since < now() - $3::interval))
            union
            select id from runs where tenant = $1 and deadline_at < now() - $2::interval
              and status not in ('completed', 'failed', 'cancelled'))
        select r.*, ahead.id as ahead_id, ahead.status as ahead_status
        from suspects join runs r using (id) left join lateral (
            select e.id, e.status from runs e
            where r.queues and r.status = 'queued' and r.due_at is null
              and e.tenant = $1 and e.session_id = r.session_id and e.status not in ('completed', 'failed', 'cancelled')
              and (e.created_at, e.id) < (r.created_at, r.id)
            order by e.created_at, e.id limit 1) as ahead on true
        order by r.created_at, r.id limit $5
        """,
        tenant, due_for, long, among, limit,
    )  # fmt: skip
    return [HeldUp(of_row(row), row["ahead_id"], row["ahead_status"]) for row in rows]


async def overdue(conn: Conn, tenant: str, *, for_: timedelta, limit: int) -> list[Overdue]:
    """Open approvals whose deadline passed a while ago: whoever should have closed them did not."""
    rows = await conn.fetch(
        """
        select id, run_id, expires_at from approvals
        where tenant = $1 and status = 'pending' and expires_at < now() - $2::interval and clock_stopped_at is null
        order by expires_at, id limit $3
        """,
        tenant, for_, limit,
    )  # fmt: skip
    return [Overdue(**row) for row in rows]


async def longest_asked(conn: Conn, tenant: str, *, limit: int) -> list[Waiting]:
    """Open approvals that were opened first."""
    rows = await conn.fetch(
        """
        select id, run_id, checkpoint_type as what, user_id as whom, created_at as since from approvals
        where tenant = $1 and status = 'pending' order by created_at limit $2
        """,
        tenant,
        limit,
    )
    return [Waiting(**row) for row in rows]


async def longest_called(conn: Conn, tenant: str, *, among: int, limit: int) -> list[Waiting]:
    """Runs whose provider was called first, of those that await one."""
    rows = await conn.fetch(
        """
        select r.id, r.id as run_id, r.provider as what, r.user_id as whom,
               coalesce(c.started_at, r.status_since) as since
        from (select * from runs where tenant = $1 and status = 'awaiting_provider'
              order by created_at, id limit $2) as r
        left join provider_calls c on c.run_id = r.id and c.number = r.call_no
        order by since limit $3
        """,
        tenant, among, limit,
    )  # fmt: skip
    return [Waiting(**row) for row in rows]


async def by_age(conn: Conn, tenant: str, ages: Sequence[timedelta], *, at_most: int) -> list[int]:
    """Open approvals by how long they have been open: so many for less than the first age, for less than the second
    and so on, and for more than the last; each counted so far and one further."""
    rows = await conn.fetch(
        """
        select c.n from unnest($2::interval[], $3::interval[]) with ordinality as a (above, below, place)
        cross join lateral (select count(*) as n from (
            select from approvals where tenant = $1 and status = 'pending'
              and created_at <= now() - a.above and created_at > now() - a.below limit $4 + 1) as r) as c
        order by a.place
        """,
        tenant, [timedelta(days=-1), *ages], [*ages, timedelta(days=36500)], at_most,
    )  # fmt: skip
    return [row["n"] for row in rows]


async def failures(conn: Conn, tenant: str, *, among: int, each: int) -> list[Failures]:
    """The runs that failed, of those that were started last, by what ended them; the commonest first. Of each the ids
    of some that can be taken up again."""
    rows = await conn.fetch(
        """
        select coalesce(error->>'code', '') as code, count(*) as n, max(finished_at) as last,
               count(*) filter (where (error->>'recoverable')::boolean) as recoverable,
               (array_agg(id order by created_at desc, id desc) filter (where (error->>'recoverable')::boolean))[1:$3]
                   as ids
        from (select id, error, created_at, finished_at from runs where tenant = $1 and status = 'failed'
              order by created_at desc, id desc limit $2) as newest
        group by 1 order by n desc, code
        """,
        tenant, among, each,
    )  # fmt: skip
    return [Failures(**{**row, "ids": tuple(row["ids"] or ())}) for row in rows]


@dataclass(frozen=True, slots=True)
class Backlog:
    """Messages of one kind that are not delivered yet; `retrying` of them were tried."""

    kind: str
    waiting: int
    retrying: int
    oldest: datetime


async def backlog(conn: Conn, tenant: str, *, at_most: int) -> list[Backlog]:
    """The messages that wait for longest, by kind: so many and one further in all."""
    rows = await conn.fetch(
        """
        select kind, count(*) as waiting, count(*) filter (where tries > 0) as retrying, min(created_at) as oldest
        from (select kind, tries, created_at from deliveries where tenant = $1 and status = 'waiting'
              order by n limit $2 + 1) as first
        group by kind order by kind
        """,
        tenant,
        at_most,
    )
    return [Backlog(**row) for row in rows]


@dataclass(frozen=True, slots=True)
class Buried:
    """A job that no worker could run, with the run that it was about."""

    job_id: str
    cause: str
    worker_id: str
    at: datetime
    run_id: UUID


async def dead_jobs(conn: Conn, tenant: str, *, limit: int) -> list[Buried]:
    """Those about the tenant's runs and approvals, newest first. Whose job it was is told by its name alone, and by
    what is known under the id in it: a name is whatever somebody put into Redis."""
    rows = await conn.fetch(
        """
        select d.job_id, d.cause, d.worker_id, d.at, r.id as run_id
        from (select id, job_id, cause, worker_id, at, substring(job_id from
                  '^(?:run|cancel|approval):([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})')::uuid
                  as about from dead_jobs) as d
        cross join lateral (
            select coalesce((select run_id from approvals a where a.tenant = $1 and a.id = d.about), d.about) as run_id
            offset 0) as about
        cross join lateral (select id from runs where tenant = $1 and id = about.run_id limit 1) as r
        order by d.id desc limit $2
        """,
        tenant,
        limit,
    )
    return [Buried(**row) for row in rows]
