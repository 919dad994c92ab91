"""Rows of `runs`, `run_documents` and `steps`."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg

from service.domain import policy
from service.domain.altered import made
from service.domain.content import is_sealed
from service.domain.delivery import told, url_host
from service.domain.event import Event, EventType, Fact, chain
from service.domain.plan import Documents
from service.domain.run import STATE_VERSION, Run, RunStatus, Step
from service.errors import LeaseLost
from service.store import content, deliveries, events
from service.store.database import Conn, outbox

_KNOWN: Final = tuple(field.name for field in fields(Run))  # a later release may have added columns


NewRun = tuple[Run, Documents, Sequence[Fact]]


def of_row(row: asyncpg.Record) -> Run:
    values = {name: row[name] for name in _KNOWN}
    values["status"] = RunStatus(values["status"])
    values["step"] = Step(values["step"])
    return made(Run, values)


async def insert(conn: Conn, run: Run, docs: Documents, facts: Sequence[Fact]) -> Run:
    """A new run with its documents and first events."""
    return (await insert_all(conn, [(run, docs, facts)]))[0]


async def insert_all(conn: Conn, new: Sequence[NewRun]) -> list[Run]:
    """New runs, in one statement each and one trip: this is the start's hot path. With messages to the outside
    it needs a transaction around it."""
    chained = [(*chain(run, facts, at=run.created_at), docs) for run, docs, facts in new]
    await conn.executemany(
        """
        with key as (
            insert into content_keys (subject, tenant, wrapped) values ($1, $2, $41)),
        docs as (
            insert into run_documents (run_id, tenant, run_input, hitl_config, tool_config, sealed, callback_url)
            values ($1, $2, $27, $28, $29, $30, $31)),
        first as (
            insert into events (run_id, tenant, seq, at, type, actor, data, stands, digest)
            select $1, $2, e.* from unnest($32::bigint[], $33::timestamptz[], $34::text[], $35::text[], $36::json[],
                $37::smallint[], $38::bytea[]) as e)
        insert into runs (id, tenant, status, step, version, fencing_token, due_at, status_since, woken_at,
            event_seq, event_hash, asked, provider, tool, submitter, user_id, session_id, priority, queues,
            created_at, updated_at, deadline_at, estimated_usd, request_id, traceparent, armed, state_version,
            calls_back)
        values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19,
            $20, $21, $22, $23, $24, $25, $26, $39, $40)
        """,
        [_new(conn, run, docs, first) for run, first, docs in chained],
    )
    await tell(conn, [(run, first) for run, first, _ in chained])
    return [run for run, _, _ in chained]


def _new(conn: Conn, run: Run, docs: Documents, first: Sequence[Event]) -> list[Any]:
    pen, wrapped = content.new_pen(conn, run.id)
    return [
        run.id, run.tenant, run.status, run.step, run.version, run.fencing_token, run.due_at, run.status_since,
        run.woken_at, run.event_seq, run.event_hash, run.asked, run.provider, run.tool, run.submitter,
        run.user_id, run.session_id, run.priority, run.queues, run.created_at, run.updated_at,
        run.deadline_at, run.estimated_usd, run.request_id, run.traceparent, run.armed,
        pen.seal("run_documents.run_input", run_input=docs.run_input, tool_config=docs.tool_config),
        policy.stored(docs.config), {}, docs.sealed,
        pen.url("run_documents.callback_url", docs.callback_url, url_host(docs.callback_url)),
        *events.columns(first), STATE_VERSION, docs.callback_url is not None, wrapped,
    ]  # fmt: skip


async def tell(conn: Conn, changed: Sequence[tuple[Run, Sequence[Event]]]) -> None:
    """Write the messages that tell these events to the outside, where anybody is told; in one trip."""
    box = outbox(conn)
    wanted = [
        (run.tenant, run.id, messages)
        for run, appended in changed
        if box.relays or run.calls_back is not False
        if (messages := told(appended, relays=box.relays, calls_back=run.calls_back is not False))
    ]
    if wanted and await deliveries.add_of_runs(conn, wanted):
        box.filled = True


async def get(conn: Conn, tenant: str, run_id: UUID) -> Run | None:
    row = await conn.fetchrow("select * from runs where id = $1 and tenant = $2", run_id, tenant)
    return of_row(row) if row else None


async def lock(conn: Conn, tenant: str, run_id: UUID) -> Run | None:
    row = await conn.fetchrow("select * from runs where id = $1 and tenant = $2 for update", run_id, tenant)
    return of_row(row) if row else None


async def lock_held(conn: Conn, run_id: UUID, token: int) -> Run:
    """The run, locked, if this token still holds it. Raises `LeaseLost`."""
    row = await conn.fetchrow(
        "select * from runs where id = $1 and fencing_token = $2 and lease_until is not null for update",
        run_id,
        token,
    )
    if row is None:
        raise LeaseLost
    return of_row(row)


async def lock_any(conn: Conn, run_id: UUID) -> Run | None:
    """The run of any tenant, locked: for timers and callbacks, which act for nobody."""
    row = await conn.fetchrow("select * from runs where id = $1 for update", run_id)
    return of_row(row) if row else None


async def lock_of_approval(conn: Conn, tenant: str, approval_id: UUID) -> Run | None:
    """The run of the tenant's approval, locked; None where the approval is unknown or belongs to no run."""
    row = await conn.fetchrow(
        "select * from runs where id = (select run_id from approvals where id = $1 and tenant = $2) for update",
        approval_id,
        tenant,
    )
    return of_row(row) if row else None


async def lock_live_in_session(conn: Conn, tenant: str, session_id: str) -> list[Run]:
    """The session's live runs in order. The session itself is locked first, so that two starts take turns."""
    await conn.execute("select pg_advisory_xact_lock(hashtextextended($1 || chr(10) || $2, 7))", tenant, session_id)
    rows = await conn.fetch(
        """
        select * from runs where tenant = $1 and session_id = $2
           and status not in ('completed', 'failed', 'cancelled') order by created_at, id for update
        """,
        tenant,
        session_id,
    )
    return [of_row(row) for row in rows]


async def claim(conn: Conn, run_id: UUID, *, worker_id: str, lease_s: float) -> Run | None:
    """Take a due run: one guarded UPDATE that raises the token. None: somebody has it, nothing is due, or a newer
    release wrote it, whose workers take it on.

    A paused run that is due stays paused: its call is only looked at, so that its answer is kept.

    `due_at` came from another machine's idea of Postgres's clock: a wake-up that is a little early is not lost.
    """
    row = await conn.fetchrow(
        """
        update runs set
            queue_ms = queue_ms + case when status = 'queued'
                then greatest(0, extract(epoch from now() - greatest(status_since, due_at)) * 1000)::bigint else 0 end,
            provider_ms = provider_ms + case when status = 'awaiting_provider'
                then greatest(0, extract(epoch from now() - status_since) * 1000)::bigint else 0 end,
            status = case when status = 'paused' then 'paused' else 'running' end,
            status_since = case when status = 'paused' then status_since else now() end,
            fencing_token = fencing_token + 1, version = version + 1,
            lease_until = now() + $3, worker_id = $2, due_at = null, armed = false,
            claimed_at = now(), updated_at = now(), state_version = $4
        where id = $1 and status in ('queued', 'awaiting_provider', 'paused') and lease_until is null
          and state_version <= $4 and due_at <= now() + interval '0.25 s'
        returning *
        """,
        run_id,
        worker_id,
        timedelta(seconds=lease_s),
        STATE_VERSION,
    )
    return of_row(row) if row else None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a worker has to know of a run beside its row. `actors`: who decided last, by checkpoint; `tries`: how often
    its provider was called, over all its calls; `called`: whether its current call was begun."""

    docs: Documents
    actors: Mapping[str, str]
    tries: int
    called: bool


async def claim_all(
    conn: Conn, run_ids: Sequence[UUID], *, worker_id: str, lease_s: float
) -> dict[UUID, tuple[Run, Loaded | None]]:
    """As `claim`, of each, in one statement each and one trip. Nobody is waited for: one that somebody has locked just
    now is not among them, due or not. What cannot be opened is no reason to forget that it was claimed: it is None.

    The disk is waited for: a claim that a crash of Postgres forgot would give its token to a second holder.
    """
    rows = await conn.fetchmany(
        """
        with due as (
            select id from runs where id = $1 and status in ('queued', 'awaiting_provider', 'paused')
               and lease_until is null and state_version <= $4 and due_at <= now() + interval '0.25 s'
            for no key update skip locked),
        taken as (
            update runs set
                queue_ms = queue_ms + case when status = 'queued'
                    then greatest(0, extract(epoch from now() - greatest(status_since, due_at)) * 1000)::bigint
                    else 0 end,
                provider_ms = provider_ms + case when status = 'awaiting_provider'
                    then greatest(0, extract(epoch from now() - status_since) * 1000)::bigint else 0 end,
                status = case when status = 'paused' then 'paused' else 'running' end,
                status_since = case when status = 'paused' then status_since else now() end,
                fencing_token = fencing_token + 1, version = version + 1,
                lease_until = now() + $3, worker_id = $2, due_at = null, armed = false,
                claimed_at = now(), updated_at = now(), state_version = $4
            where id = (select id from due)
            returning *)
        select r.*, d.run_id, d.run_input, d.hitl_config, d.tool_config, d.sealed, d.description, d.payload, d.output,
            d.raw_response, d.result, d.callback_url, k.wrapped, e.at as erased_at,
            (select coalesce(sum(tries), 0)::int from provider_calls where run_id = $1) as tries,
            exists (select from provider_calls where run_id = $1 and number = r.call_no) as called,
            (select version from runs where id = $1) = r.version - 1 as fresh,
            case when r.asked <> '{}' then (
                select json_object_agg(checkpoint_type, actor order by created_at) from (
                    select a.checkpoint_type, a.created_at, (select s.actor from decisions s
                        where s.approval_id = a.id order by s.n desc limit 1) as actor
                    from approvals a where a.run_id = $1) decided where actor is not null) end as actors
        from taken r join run_documents d on d.run_id = r.id left join content_keys k on k.subject = r.id
        left join erased_content e on e.subject = r.id
        """,
        [(run_id, worker_id, timedelta(seconds=lease_s), STATE_VERSION) for run_id in run_ids],
    )
    return {row["id"]: (of_row(row), _loaded(conn, row)) for row in rows}


def _loaded(conn: Conn, row: asyncpg.Record) -> Loaded | None:
    """None as well where the run moved on in the moment of the claim, and its documents are of before."""
    try:
        known = Loaded(_documents(conn, row), row["actors"] or {}, row["tries"], row["called"])
    except Exception:  # whatever it is: said where the run is read alone, and its company is claimed by now
        return None
    return known if row["fresh"] else None


async def claim_mine(conn: Conn, run_id: UUID, *, worker_id: str, lease_s: float) -> Run | None:
    """The run that this worker has claimed without hearing of it, under a new token: two who ask, one wins."""
    row = await conn.fetchrow(
        """
        update runs set fencing_token = fencing_token + 1, version = version + 1, lease_until = now() + $3
        where id = $1 and status = 'running' and worker_id = $2 and lease_until is not null
        returning *
        """,
        run_id,
        worker_id,
        timedelta(seconds=lease_s),
    )
    return of_row(row) if row else None


async def save(conn: Conn, run: Run, facts: Sequence[Fact], *, now: datetime) -> tuple[Run, list[Event]]:
    """Write a run that this transaction has locked, its new events, and the messages that tell them to the outside.
    Returns run and events as they stand."""
    run, appended = chain(run, facts, at=now)
    told = await stored(conn, run, appended)
    error = await sealed_error(conn, run)
    await conn.execute(
        """
        with appended as (
            insert into events (run_id, tenant, seq, at, type, actor, data, stands, digest)
            select $1, $27, e.* from unnest($28::bigint[], $29::timestamptz[], $30::text[], $31::text[],
                $32::json[], $33::smallint[], $34::bytea[]) as e)
        update runs set status = $2, step = $3, version = version + 1, fencing_token = $4, lease_until = $5,
            worker_id = $6, due_at = $7, armed = $8, paused_at = $9, status_since = $10, woken_at = $11,
            released_at = $12, event_seq = $13, event_hash = $14, call_no = $15, completed_steps = $16,
            asked = $17, payload_sha256 = $18, finished_at = $19, queue_ms = $20, human_ms = $21,
            provider_ms = $22, estimated_usd = $23, actual_usd = $24, error = $25, updated_at = $26,
            state_version = greatest(state_version, $35)
        where id = $1
        """,
        run.id, run.status, run.step, run.fencing_token, run.lease_until, run.worker_id, run.due_at, run.armed,
        run.paused_at, run.status_since, run.woken_at, run.released_at, run.event_seq, run.event_hash,
        run.call_no, run.completed_steps, run.asked, run.payload_sha256, run.finished_at, run.queue_ms,
        run.human_ms, run.provider_ms, run.estimated_usd, run.actual_usd, error, now, run.tenant,
        *events.columns(told), STATE_VERSION,
    )  # fmt: skip
    await tell(conn, [(run, appended)])
    return run, appended


async def move_on(conn: Conn, run_id: UUID) -> None:
    """What belongs to the run was changed under its lock: whoever read it before is to look again."""
    await conn.execute("update runs set version = version + 1 where id = $1", run_id)


async def stored(conn: Conn, run: Run, appended: Sequence[Event]) -> Sequence[Event]:
    """The events as they are stored: what a provider told of its answer so far is sealed."""
    if not any(event.type == EventType.PROVIDER_PROGRESS for event in appended):
        return appended
    pen = await content.pen(conn, run.id)
    return [pen.told(event) for event in appended]


async def sealed_error(conn: Conn, run: Run) -> Mapping[str, Any] | None:
    """What ended the run in people's or a provider's words is content; the rest of the error is the record."""
    if run.error is None or run.error["message"] is None or is_sealed(run.error["message"]):
        return run.error
    pen = await content.pen(conn, run.id)
    return {**run.error, "message": pen.seal("runs.error", message=run.error["message"])}


async def error_of(conn: Conn, run: Run) -> Mapping[str, Any] | None:
    """The run's error with its message to be read. Whose documents were read has a key that is known by then."""
    if run.error is None or not is_sealed(run.error["message"]):
        return run.error
    read = await content.reader_of(conn, run.id)
    return {**run.error, **read.values(run.error, "runs.error", "message", ("message",))}


async def documents(conn: Conn, run_id: UUID) -> Documents:
    return (await documents_of(conn, [run_id]))[run_id]


async def documents_of(conn: Conn, run_ids: Sequence[UUID]) -> dict[UUID, Documents]:
    """The documents of each run, for a page of runs, in one query."""
    rows = await conn.fetch(
        """
        select d.*, k.wrapped, e.at as erased_at from run_documents d left join content_keys k on k.subject = d.run_id
        left join erased_content e on e.subject = d.run_id where d.run_id = any($1)
        """,
        list(run_ids),
    )
    return {row["run_id"]: _documents(conn, row) for row in rows}


def _documents(conn: Conn, row: asyncpg.Record) -> Documents:
    read = content.reader(conn, row["run_id"], row["wrapped"])
    asked = read.values(row, "run_documents.run_input", "run_input", ("run_input", "tool_config"))
    return Documents(
        run_input=asked["run_input"] or {},
        config=policy.load(row["hitl_config"]),
        tool_config=asked["tool_config"] or {},
        sealed=row["sealed"],
        **built_of(read, row),
        **read.values(row, "run_documents.output", "output", ("output", "raw_response")),
        **read.values(row, "run_documents.result", "result", ("result",)),
        callback_url=read.url("run_documents.callback_url", row["callback_url"]),
        erased_at=row["erased_at"],
    )


def built_of(read: content.Reader, row: asyncpg.Record) -> dict[str, Any]:
    """`{description, payload}` of a row of `run_documents`."""
    return read.values(row, "run_documents.payload", "payload", ("description", "payload"))


async def set_built(conn: Conn, run_id: UUID, *, description: Any, payload: Any) -> None:
    pen = await content.pen(conn, run_id)
    await conn.execute(
        "update run_documents set description = null, payload = $2 where run_id = $1",
        run_id,
        pen.seal("run_documents.payload", description=description, payload=payload),
    )


async def count_build(conn: Conn, run_id: UUID, tries: int) -> None:
    """How often in a row the provider could not be asked what it knows of the tool."""
    await conn.execute("update runs set build_tries = $2 where id = $1", run_id, tries)


async def set_answer(conn: Conn, run_id: UUID, *, output: Any, raw: Any) -> None:
    pen = await content.pen(conn, run_id)
    await conn.execute(
        "update run_documents set output = $2, raw_response = null, result = null where run_id = $1",
        run_id,
        pen.seal("run_documents.output", output=output, raw_response=raw),
    )


async def set_result(conn: Conn, run_id: UUID, result: Any) -> None:
    pen = await content.pen(conn, run_id)
    sealed = pen.seal("run_documents.result", result=result)
    await conn.execute("update run_documents set result = $2 where run_id = $1", run_id, sealed)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What each step left behind: the durable save points, and the run's history."""

    step: str
    status: str
    at: datetime
    actor: str
    message: str


async def record_steps(conn: Conn, run: Run, records: Sequence[StepRecord]) -> None:
    """Append to the run's history, in one statement."""
    await conn.execute(
        """
        insert into steps (tenant, run_id, n, step, status, at, actor, message)
        select $1, $2, (select coalesce(max(n), 0) from steps where run_id = $2) + s.n, s.step, s.status, s.at,
               s.actor, s.message
        from unnest($3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::text[])
            with ordinality as s (step, status, at, actor, message, n)
        """,
        run.tenant,
        run.id,
        *columns_of_steps(records),
    )


def columns_of_steps(records: Sequence[StepRecord]) -> tuple[list[Any], ...]:
    """As `events.columns`: `step, status, at, actor, message`."""
    return (
        [r.step for r in records],
        [r.status for r in records],
        [r.at for r in records],
        [r.actor for r in records],
        [r.message for r in records],
    )


async def steps_of(conn: Conn, run_ids: Sequence[UUID]) -> dict[UUID, list[StepRecord]]:
    """The history of each run, for a page of runs, in one query."""
    rows = await conn.fetch(
        "select run_id, step, status, at, actor, message from steps where run_id = any($1) order by run_id, n",
        list(run_ids),
    )
    found: dict[UUID, list[StepRecord]] = {}
    for row in rows:
        values = dict(row)
        found.setdefault(values.pop("run_id"), []).append(StepRecord(**values))
    return found


async def renew(conn: Conn, leases: Sequence[tuple[UUID, int]], *, lease_s: float) -> set[tuple[UUID, int]]:
    """Renew leases in one statement; those that are not returned are lost."""
    rows = await conn.fetch(
        """
        update runs set lease_until = now() + $3 from unnest($1::uuid[], $2::bigint[]) as mine (id, token)
        where runs.id = mine.id and runs.fencing_token = mine.token and runs.lease_until is not null
        returning runs.id, runs.fencing_token
        """,
        [run_id for run_id, _ in leases],
        [token for _, token in leases],
        timedelta(seconds=lease_s),
    )
    return {(row["id"], row["fencing_token"]) for row in rows}


async def lock_abandoned(conn: Conn, *, dead: Collection[str], limit: int) -> list[Run]:
    """Runs whose worker fell silent for a lease's length, or is known to be dead."""
    rows = await conn.fetch(
        """
        select * from runs where lease_until is not null and (lease_until < now() or worker_id = any($1))
          and state_version <= $3
        order by lease_until limit $2 for update skip locked
        """,
        list(dead),
        limit,
        STATE_VERSION,
    )
    return [of_row(row) for row in rows]


async def due_unclaimed(
    conn: Conn, *, for_s: float, limit: int, after: tuple[datetime, UUID] | None = None
) -> list[Run]:
    """Runs that are due for a while and that nobody took: their wake-up may be lost. A page, oldest first."""
    at, last = after or (None, None)
    rows = await conn.fetch(
        """
        select * from runs where due_at < now() - $1::interval and lease_until is null and state_version <= $3
          and ($4::timestamptz is null or (due_at, id) > ($4, $5::uuid))
        order by due_at, id limit $2
        """,
        timedelta(seconds=for_s),
        limit,
        STATE_VERSION,
        at,
        last,
    )
    return [of_row(row) for row in rows]


async def arm_due(conn: Conn, *, horizon_s: float, limit: int) -> list[Run]:
    """Runs that fall due inside the horizon and have no deferred job yet; marked as having one."""
    rows = await conn.fetch(
        """
        update runs set armed = true where id = any (array(
            select id from runs where due_at between now() and now() + $1::interval and not armed
               and lease_until is null order by due_at limit $2 for update skip locked))
        returning *
        """,
        timedelta(seconds=horizon_s),
        limit,
    )
    return [of_row(row) for row in rows]


async def lock_past_deadline(conn: Conn, *, limit: int) -> list[Run]:
    rows = await conn.fetch(
        """
        select * from runs where deadline_at <= now() and status not in ('completed', 'failed', 'cancelled')
          and state_version <= $2
        order by deadline_at limit $1 for update skip locked
        """,
        limit,
        STATE_VERSION,
    )
    return [of_row(row) for row in rows]


async def lock_next_in_session(conn: Conn, tenant: str, session_id: str) -> Run | None:
    """The session's first run that stands in line, if nothing that is live stands before it."""
    row = await conn.fetchrow(
        """
        select * from runs r where tenant = $1 and session_id = $2 and status = 'queued' and due_at is null
          and lease_until is null and queues
          and not exists (select from runs e where e.tenant = $1 and e.session_id = $2
               and e.status not in ('completed', 'failed', 'cancelled') and (e.created_at, e.id) < (r.created_at, r.id))
        order by created_at, id limit 1 for update skip locked
        """,
        tenant,
        session_id,
    )
    return of_row(row) if row else None


async def sessions_in_line(conn: Conn, *, limit: int) -> list[tuple[str, str]]:
    """Sessions in which a run stands in line with nothing live before it."""
    rows = await conn.fetch(
        """
        select distinct tenant, session_id from runs r
        where status = 'queued' and due_at is null and queues and session_id is not null
          and not exists (select from runs e where e.tenant = r.tenant and e.session_id = r.session_id
               and e.status not in ('completed', 'failed', 'cancelled') and (e.created_at, e.id) < (r.created_at, r.id))
        limit $1
        """,
        limit,
    )
    return [(row["tenant"], row["session_id"]) for row in rows]


@dataclass(frozen=True, slots=True)
class RunFilter:
    """What a list of runs is narrowed by; None means not at all. `before` is the last row of the page before."""

    statuses: Sequence[str] | None = None
    user_id: str | None = None
    session_id: str | None = None
    provider: str | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    before: tuple[datetime, UUID] | None = None


async def page(conn: Conn, tenant: str, wanted: RunFilter, *, limit: int) -> list[Run]:
    """Newest first."""
    at, last = wanted.before or (None, None)
    rows = await conn.fetch(
        """
        select * from runs where tenant = $1
          and ($2::text[] is null or status = any($2)) and ($3::text is null or user_id = $3)
          and ($4::text is null or session_id = $4) and ($5::text is null or provider = $5)
          and ($6::timestamptz is null or created_at > $6) and ($7::timestamptz is null or created_at < $7)
          and ($8::timestamptz is null or (created_at, id) < ($8, $9::uuid))
        order by created_at desc, id desc limit $10
        """,
        tenant, wanted.statuses, wanted.user_id, wanted.session_id, wanted.provider, wanted.created_after,
        wanted.created_before, at, last, limit,
    )  # fmt: skip
    return [of_row(row) for row in rows]


async def queue_figures(conn: Conn, tenant: str, *, at_most: int | None = None) -> dict[str, Any]:
    """Counts of the tenant's runs by what they wait for, and the age of the oldest that is due. With `at_most` each
    kind is counted so far and one further, the earliest first."""
    row = await conn.fetchrow(
        """
        select count(*) filter (where due_at <= now()) as queued,
               count(*) filter (where due_at is null or due_at > now()) as deferred,
               coalesce(extract(epoch from now() - min(due_at) filter (where due_at <= now())), 0)::float8
                   as oldest_queued_seconds
        from (select due_at from runs where tenant = $1 and status = 'queued'
              order by created_at, id limit $2::bigint + 1) as waiting
        """,
        tenant,
        at_most,
    )
    counts = await conn.fetch(
        """
        select k.name, c.n
        from (values ('running', 'in_progress'), ('awaiting_human', 'awaiting_human'),
                     ('awaiting_provider', 'awaiting_provider'), ('failed', 'failed')) as k (status, name)
        cross join lateral (select count(*) as n from (
            select from runs where tenant = $1 and status = k.status limit $2::bigint + 1) as r) as c
        """,
        tenant,
        at_most,
    )
    assert row is not None
    return {**row, **{count["name"]: count["n"] for count in counts}}


async def find(conn: Conn, run_id: UUID) -> Run | None:
    """The run of any tenant: for the operator."""
    row = await conn.fetchrow("select * from runs where id = $1", run_id)
    return of_row(row) if row else None


async def recent(conn: Conn, tenant: str | None, wanted: RunFilter, *, limit: int) -> list[Run]:
    """Newest first, of every tenant where none is named: for the operator."""
    rows = await conn.fetch(
        """
        select * from runs where ($1::text is null or tenant = $1)
          and ($2::text[] is null or status = any($2)) and ($3::text is null or user_id = $3)
          and ($4::text is null or session_id = $4) and ($5::text is null or provider = $5)
        order by created_at desc, id desc limit $6
        """,
        tenant, wanted.statuses, wanted.user_id, wanted.session_id, wanted.provider, limit,
    )  # fmt: skip
    return [of_row(row) for row in rows]


async def queue_by_tenant(conn: Conn) -> list[dict[str, Any]]:
    """`queue_figures` of every tenant that has live or failed runs, each with its `tenant`."""
    rows = await conn.fetch(
        """
        select tenant,
               count(*) filter (where status = 'queued' and due_at <= now()) as queued,
               count(*) filter (where status = 'queued' and (due_at is null or due_at > now())) as deferred,
               count(*) filter (where status = 'running') as in_progress,
               count(*) filter (where status = 'awaiting_human') as awaiting_human,
               count(*) filter (where status = 'awaiting_provider') as awaiting_provider,
               count(*) filter (where status = 'failed') as failed,
               coalesce(extract(epoch from now() - min(due_at) filter (where status = 'queued' and due_at <= now())),
                   0)::float8 as oldest_queued_seconds
        from runs where status not in ('completed', 'cancelled') group by tenant order by tenant
        """
    )
    return [dict(row) for row in rows]
