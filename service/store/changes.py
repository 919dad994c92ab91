"""What one transaction makes of one run, written whole in one statement, if the run still stands as it was read.

Nobody is waited for: who finds the run locked, or moved on, is refused and looks again under its lock. Whatever
changes a run, or what belongs to it, moves `runs.version` on; so the version alone says that nothing has changed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from service.domain.altered import altered
from service.domain.approval import Approval, Decision
from service.domain.call import ProviderCall
from service.domain.delivery import told
from service.domain.event import Event, Fact, chain
from service.domain.record import Recorded
from service.domain.run import STATE_VERSION, Run
from service.store import approvals, calls, events, runs
from service.store.content import Pen, pen
from service.store.database import Conn, Database, Scope

_RUN: Final = """
with held as (
    select id, tenant from runs where id = $1 and version = $2 and fencing_token = $3
       and not ($4 = 'completed' and exists (select from approvals where run_id = $1 and status = 'pending'))
    for no key update skip locked),
stands as (
    update runs set status = $4, step = $5, version = version + 1, fencing_token = $6,
        lease_until = case when $7::timestamptz is null then null else greatest(lease_until, $7) end,
        worker_id = $8, due_at = $9, armed = $10, paused_at = $11, status_since = $12, woken_at = $13,
        released_at = $14, event_seq = $15, event_hash = $16, call_no = $17, completed_steps = $18, asked = $19,
        payload_sha256 = $20, finished_at = $21, queue_ms = $22, human_ms = $23, provider_ms = $24,
        estimated_usd = $25, actual_usd = $26, error = $27, updated_at = $28,
        state_version = greatest(state_version, $29)
    where id = (select id from held)
    returning id, tenant, session_id),
appended as (
    insert into events (run_id, tenant, seq, at, type, actor, data, stands, digest)
    select h.id, h.tenant, e.* from held h, unnest($30::bigint[], $31::timestamptz[], $32::text[], $33::text[],
        $34::json[], $35::smallint[], $36::bytea[]) as e),
passed as (
    insert into steps (tenant, run_id, n, step, status, at, actor, message)
    select h.tenant, h.id, (select coalesce(max(n), 0) from steps where run_id = $1) + s.n, s.step, s.status, s.at,
           s.actor, s.message
    from held h, unnest($37::text[], $38::text[], $39::timestamptz[], $40::text[], $41::text[])
        with ordinality as s (step, status, at, actor, message, n)),
documented as (
    update run_documents set payload = coalesce($42::json, payload),
        description = case when $42::json is null then description end,
        output = case when $44 then $43::json else output end,
        raw_response = case when $44 then null else raw_response end,
        result = case when $44 or $45::json is not null then $45::json else result end
    where run_id = (select id from held) and ($42::json is not null or $44 or $45::json is not null))"""
_STANDS: Final = """
select $46::integer as n, $4 = 'completed' and exists (
    select from runs r where r.tenant = s.tenant and r.session_id = s.session_id and r.status = 'queued'
       and r.due_at is null and r.queues) as next
from stands s"""
_CALLED: Final = """,
called as (
    insert into provider_calls (run_id, number, tenant, idempotency_key, payload_sha256, status, tries, started_at,
        deadline_at, provider_ref, finished_at, output, quality, safety_flags, cost_usd, looks, copy_tries)
    select h.id, $47, h.tenant, $48, $49, $50, $51, $52, $53, $54, $55, $56, $57, $58, $59, $60, $61 from held h
    on conflict (run_id, number) do update set status = excluded.status, tries = excluded.tries,
        started_at = excluded.started_at, deadline_at = excluded.deadline_at, provider_ref = excluded.provider_ref,
        finished_at = excluded.finished_at, output = excluded.output, raw = null, issues = null, problem = null,
        quality = excluded.quality, safety_flags = excluded.safety_flags, cost_usd = excluded.cost_usd,
        looks = excluded.looks, copy_tries = excluded.copy_tries)"""
_ASKED: Final = """,
asked as (
    insert into approvals (id, tenant, run_id, checkpoint_type, status, reasons, message, context, payload_sha256,
        user_id, session_id, submitter, reviewers, on_timeout, timeout_s, escalate_to, remind_after_s, remind_at,
        created_at, expires_at, armed)
    select $47, h.tenant, h.id, $48, $49, $50, '', $51, $52, $53, $54, $55, $56, $57, $58, $59, $60, $61, $62, $63, $64
    from held h)"""
_DECIDED: Final = """,
decided as (
    update approvals set status = $48, edited = $49, claimed_by = null, claimed_until = null, decided_at = $50,
        version = version + 1
    where id = $47 and run_id = (select id from held)),
said as (
    insert into decisions (approval_id, n, tenant, actor, action, reason, edits, payload_sha256, at, channel, role,
        authenticated_by, credential, first_seen_at, position, quorum, changes, nonce)
    select $47, (select coalesce(max(n), 0) + 1 from decisions where approval_id = $47), h.tenant, $51, $52, null,
           $53, $54, $55, $56, $57, $58, $59, $60, $61, $62, $63, $64
    from held h)"""


@dataclass(frozen=True, slots=True)
class Asked:
    approval: Approval


@dataclass(frozen=True, slots=True)
class Decided:
    """`approval` as it stands after the decision, which has let its content as it was."""

    approval: Approval
    decision: Decision
    record: Recorded


@dataclass(frozen=True, slots=True)
class Called:
    call: ProviderCall


More = Asked | Decided | Called | None


@dataclass(frozen=True, slots=True)
class Change:
    """`before`: the run as it was read, `run` as it is to stand, with its next `events`. Content that is written:
    `built` (description and payload), `answer` (output and raw response; sets the result, too), `result`."""

    before: Run
    run: Run
    events: Sequence[Event]
    steps: Sequence["runs.StepRecord"] = ()
    built: Mapping[str, Any] | None = None
    answer: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None
    more: More = None

    @classmethod
    def of(cls, before: Run, run: Run, facts: Sequence[Fact], *, now: datetime, **parts: Any) -> "Change":
        run, appended = chain(run, facts, at=now)
        return cls(before, altered(run, version=before.version + 1, updated_at=now), appended, **parts)

    def tells(self, *, relays: bool) -> bool:
        """Whether it writes messages to the outside, and so is more than one statement."""
        calls_back = self.run.calls_back is not False
        return (relays or calls_back) and bool(told(self.events, relays=relays, calls_back=calls_back))


async def write(conn: Conn, wanted: Sequence[Change]) -> list[bool | None]:
    """Of each change, all of one kind: None if it was refused, else whether a run of its session that stands in line
    may be next (one that came in this very moment is left to the sweep). What tells anybody outside needs a
    transaction around it."""
    tail = _TAILS[type(wanted[0].more)]
    rows = await conn.fetchmany(
        _RUN + tail + _STANDS, [await _args(conn, n, change) for n, change in enumerate(wanted)]
    )
    stands: dict[int, bool] = {row["n"]: row["next"] for row in rows}
    await runs.tell(conn, [(wanted[n].run, wanted[n].events) for n in stands])
    return [stands.get(n) for n in range(len(wanted))]


async def write_together(db: Database, scope: Scope, wanted: Sequence[Change]) -> list[bool | None]:
    """As `write`, on a connection of its own; in a transaction where it takes more than the one statement."""
    told = any(change.tells(relays=db.relays) for change in wanted)
    async with (db.transaction if told else db.connection)(scope) as conn:
        return await write(conn, wanted)


async def _args(conn: Conn, n: int, change: Change) -> list[Any]:
    run, before, writer = change.run, change.before, await pen(conn, change.run.id)
    return [
        run.id, before.version, before.fencing_token, run.status, run.step, run.fencing_token, run.lease_until,
        run.worker_id, run.due_at, run.armed, run.paused_at, run.status_since, run.woken_at, run.released_at,
        run.event_seq, run.event_hash, run.call_no, run.completed_steps, run.asked, run.payload_sha256,
        run.finished_at, run.queue_ms, run.human_ms, run.provider_ms, run.estimated_usd, run.actual_usd,
        await runs.sealed_error(conn, run), run.updated_at, STATE_VERSION,
        *events.columns(await runs.stored(conn, run, change.events)), *runs.columns_of_steps(change.steps),
        writer.seal("run_documents.payload", **change.built) if change.built else None,
        writer.seal("run_documents.output", **change.answer) if change.answer else None,
        change.answer is not None,
        writer.seal("run_documents.result", result=change.result) if change.result is not None else None,
        n, *_more(writer, change.more),
    ]  # fmt: skip


Kind = tuple[Scope, type]


def kind(scope: Scope, change: Change) -> Kind:
    """What can be written in one statement."""
    return scope, type(change.more)


def _more(writer: Pen, more: More) -> list[Any]:
    match more:
        case Called(call):
            return calls.values(writer, call)
        case Asked(approval):
            return approvals.values(writer, approval)
        case Decided(approval, decision, record):
            a, said = approval, approvals.said(writer, approval.id, decision)
            return [a.id, a.status, a.edited, a.decided_at, *approvals.recorded_values(decision, said, record)]
        case None:
            return []


_TAILS: Final[Mapping[type, str]] = {Called: _CALLED, Asked: _ASKED, Decided: _DECIDED, type(None): ""}
