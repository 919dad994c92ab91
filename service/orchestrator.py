"""Floor 5: the orchestrator. It claims a run, does what `domain.plan` says, and puts the run down again.

A plain async class on the worker's own event loop. Every write carries the fencing token; a provider is
never called inside a transaction; a run that waits holds nothing.
"""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from structlog.contextvars import bind_contextvars

from service.commands.callbacks import callback_url
from service.commands.context import After, Services, carry_out, finish, queued
from service.domain import attachments, form, patch, payload, policy
from service.domain import schema as schemas
from service.domain.approval import Approval, ApprovalStatus
from service.domain.call import CallStatus, Description, Outcome, ProviderCall, Unreachable, backoff, settled
from service.domain.canonical import canonical, payload_sha256, sha256_hex
from service.domain.event import EventType, Fact
from service.domain.ids import uuid7
from service.domain.plan import Action, Ask, Build, Call, Documents, Fail, Finish, Pass, Suspend, next_action
from service.domain.policy import Checkpoint
from service.domain.run import Run, RunStatus, advanced, fail, move, ms_between, released, woken
from service.errors import HitlError, LeaseLost, Unavailable
from service.logs import get_logger
from service.providers.protocol import Provider, Request
from service.store import approvals, calls, runs
from service.store.database import Conn

HAND_OVER_TIMEOUT_S: Final = 5.0
LEASE_LOST: Final = "lease lost"

log = get_logger("orchestrator")

_MESSAGES: Final = {
    Checkpoint.INFORMATION_REVIEW: "Is the information for this run complete?",
    Checkpoint.PAYLOAD_REVIEW: "May this payload be sent to the provider?",
    Checkpoint.RESPONSE_REVIEW: "Is this response good to use?",
    Checkpoint.ERROR_RECOVERY: "The provider refused the payload: what shall be changed?",
    Checkpoint.OUTCOME_UNKNOWN: "The call was sent and never answered: did it happen?",
}


@dataclass(slots=True)
class Held:
    """A run that this worker holds, as it stood after the last commit, and what is not yet written of it."""

    run: Run
    docs: Documents
    call: ProviderCall | None
    provider: Provider
    token: int
    built: bool = False


class HITLOrchestrator:
    def __init__(self, services: Services, *, worker_id: str, lease_s: float) -> None:
        self._services = services
        self._worker_id = worker_id
        self._lease_s = lease_s
        self._live: dict[UUID, tuple[int, asyncio.Task[Any]]] = {}
        self.draining = asyncio.Event()

    @property
    def leases(self) -> list[tuple[UUID, int]]:
        """What this process holds: run and token."""
        return [(run_id, token) for run_id, (token, _) in self._live.items()]

    def drop(self, run_id: UUID, token: int | None = None) -> None:
        """Stop working on a run whose lease is lost: under this token, or under any."""
        held = self._live.get(run_id)
        if held is not None and token in (None, held[0]):
            held[1].cancel(LEASE_LOST)

    async def advance(self, run_id: UUID) -> str:
        """Take the run as far as it goes. Returns what became of it, for the log; never raises for the run's sake."""
        run = await self._claim(run_id)
        if run is None:
            return "nothing_due"
        bind_contextvars(**_origin(run))  # the job's own task: it ends with the job
        task = asyncio.current_task()
        assert task is not None
        self._live[run_id] = (run.fencing_token, task)
        try:
            return await self._work(run)
        except LeaseLost:
            log.info("run.lease_lost", run_id=str(run_id))
            return "lease_lost"
        except Unavailable:
            return "database_away"
        except asyncio.CancelledError as stop:
            if stop.args == (LEASE_LOST,):
                log.info("run.lease_lost", run_id=str(run_id))
                return "lease_lost"
            await asyncio.shield(self._hand_over(run_id, run.fencing_token))
            return "handed_over"
        except Exception as error:
            log.error("http.error", run_id=str(run_id), error=type(error).__name__)
            await self._fail(run_id, run.fencing_token)
            return "internal_error"
        finally:
            if self._live.get(run_id) == (run.fencing_token, task):  # else a later claim of this process holds it
                del self._live[run_id]

    async def _claim(self, run_id: UUID) -> Run | None:
        try:
            async with self._services.db.connection() as conn:
                return await runs.claim(conn, run_id, worker_id=self._worker_id, lease_s=self._lease_s)
        except Unavailable:
            return None

    async def _work(self, run: Run) -> str:
        async with self._services.db.connection() as conn:
            docs = await runs.documents(conn, run.id)
            call = await calls.get(conn, run.id, run.call_no)
        provider = self._services.registry.by_tool(run.tool)
        held = Held(run, docs, call, provider, run.fencing_token)
        while True:
            if self.draining.is_set():
                await self._hand_over(run.id, held.token)
                return "handed_over"
            outcome = await self._step(held)
            if outcome is not None:
                return outcome

    async def _step(self, held: Held) -> str | None:
        """Do the next thing that is more than a pass; the passes before it share its transaction."""
        passed, action = self._walk(held)
        match action:
            case Build():
                await self._build(held)
                return None
            case Call():
                return await self._call(held, passed, action)
            case Ask():
                return await self._ask(held, passed, action)
            case Suspend():
                return await self._suspend(held, action)
            case Finish():
                return await self._finish(held, passed)
            case Fail():
                return await self._end(held, passed, action)
            case Pass():
                raise AssertionError("a pass is never the last word of a walk")

    def _walk(self, held: Held) -> tuple[list[Pass], Action]:
        """Pure steps up to the next action that needs the outside."""
        passed: list[Pass] = []
        run = held.run
        while True:
            action = next_action(
                run, held.docs, held.call, repeatable=held.provider.repeatable, now=self._services.db.now()
            )
            if not isinstance(action, Pass):
                return passed, action
            passed.append(action)
            run = advanced(run)

    async def _build(self, held: Held) -> None:
        """Make the payload in memory; it is written with the first thing that comes of it."""
        about = await held.provider.describe(held.docs.tool_config)
        assert isinstance(about, Description)  # the two local providers know their tools
        built = payload.build(material(held.docs.run_input), schema=about.schema, example=about.example)
        schema = payload.effective_schema(about.schema, about.example)
        description = {
            "schema": schema,
            "baseline": built.baseline,
            "origins": built.origins,
            "confidence": built.confidence if about.confidence is None else about.confidence,
            "flag_words": dict(about.flag_words or {}),
        }
        held.docs = replace(held.docs, description=description, payload=built.payload)
        held.run = replace(
            held.run, payload_sha256=payload_sha256(built.payload), estimated_usd=about.estimated_cost_usd
        )
        held.built = True

    async def _locked(self, conn: Conn, held: Held, passed: Sequence[Pass]) -> tuple[Run, list[Fact]] | None:
        """The run under its token, with what was built and passed written to it; None when it was paused."""
        fresh = await runs.lock_held(conn, held.run.id, held.token)
        if fresh.status is RunStatus.PAUSED:
            await self._put_down(conn, fresh)
            return None
        facts: list[Fact] = []
        now = self._services.db.now()
        if held.built:
            await runs.set_built(conn, fresh.id, description=held.docs.description, payload=held.docs.payload)
            fresh = replace(fresh, payload_sha256=held.run.payload_sha256, estimated_usd=held.run.estimated_usd)
            facts.append(Fact(EventType.STEP_STARTED, "system", {"step": fresh.step}))
            held.built = False
        for done in passed:
            actor = await approvals.last_actor(conn, fresh.id, done.step) or "policy"
            message = "passed by policy" if actor == "policy" else f"decided by {actor}"
            if done.step == "api_call":
                actor, message = f"provider:{fresh.provider}", "answered"
            await runs.record_step(conn, fresh, runs.StepRecord(done.step, "completed", now, actor, message))
            data = {"step": done.step, "payload_sha256": fresh.payload_sha256, "call": fresh.call_no}
            facts.append(Fact(EventType.STEP_COMPLETED, actor, data))
            fresh = advanced(fresh)
            if fresh.step != "completed":
                facts.append(Fact(EventType.STEP_STARTED, "system", {"step": fresh.step}))
        return fresh, facts

    async def _put_down(self, conn: Conn, run: Run) -> None:
        now = self._services.db.now()
        await runs.save(conn, replace(run, lease_until=None, worker_id=None, released_at=now), [], now=now)

    async def _ask(self, held: Held, passed: Sequence[Pass], action: Ask) -> str:
        after = After.nothing()
        async with self._services.db.transaction() as conn:
            locked = await self._locked(conn, held, passed)
            if locked is None:
                return "paused"
            run, facts = locked
            now = self._services.db.now()
            question = opened(run, held.docs, held.call, action, now=now)
            armed = question.expires_at <= now + timedelta(seconds=self._services.horizon_s)
            await approvals.insert(conn, replace(question, armed=armed))
            data = {
                "approval_id": str(question.id),
                "checkpoint_type": question.checkpoint_type,
                "reasons": list(question.reasons),
                "payload_sha256": question.payload_sha256,
            }
            run = released(run, RunStatus.AWAITING_HUMAN, now=now)
            await runs.save(conn, run, [*facts, Fact(EventType.APPROVAL_REQUESTED, "system", data)], now=now)
            after.changed += [run.id, question.id]
        log.info(
            "approval.requested", run_id=str(run.id), approval_id=str(question.id), tenant=run.tenant,
            step=run.step, reasons=list(action.reasons),
        )  # fmt: skip
        self._log_steps(run, passed)
        await carry_out(self._services, after)
        if armed:
            await self._services.queue.arm_timer(question.id, question.timer_no, question.expires_at)
        if question.remind_at is not None:
            await self._services.queue.arm_reminder(question.id, question.remind_at)
        return "awaiting_human"

    async def _call(self, held: Held, passed: Sequence[Pass], action: Call) -> str | None:
        request = await self._intend(held, passed, action)
        if request is None:
            return "paused"
        started = time.monotonic()
        outcome = await held.provider.call(request)
        took_ms = round((time.monotonic() - started) * 1000)
        log.info(
            "provider.call", run_id=str(held.run.id), tenant=held.run.tenant, provider=held.provider.name,
            outcome=type(outcome).__name__.lower(), duration_ms=took_ms, call=request.number,
        )  # fmt: skip
        return await self._settle(held, outcome, took_ms)

    async def _intend(self, held: Held, passed: Sequence[Pass], action: Call) -> Request | None:
        """Write that the call is about to be made; only then may it be made."""
        body = canonical(held.docs.payload)
        after = After.nothing()
        async with self._services.db.transaction() as conn:
            locked = await self._locked(conn, held, passed)
            if locked is None:
                return None
            run, facts = locked
            now = self._services.db.now()
            if sha256_hex(body) != run.payload_sha256 or payload.missing(held.docs.payload, _schema(held.docs)):
                raise RuntimeError("the payload is not the one that was let through")
            sent_before = await calls.tries(conn, run.id)
            limit = timedelta(seconds=held.provider.timeout_s(held.docs.tool_config))
            call = _again(action.again, now + limit) if action.again else _first(run, now, now + limit)
            await calls.intend(conn, call)
            data = {"call": call.number, "try": call.tries, "payload_sha256": call.payload_sha256}
            facts.append(Fact(EventType.PROVIDER_SUBMITTED, f"provider:{run.provider}", data))
            held.run, _ = await runs.save(conn, run, facts, now=now)
            held.call = call
            after.changed.append(run.id)
        self._log_steps(held.run, passed)
        await carry_out(self._services, after)
        assert call.deadline_at is not None
        return Request(
            run_id=run.id,
            number=call.number,
            sent_before=sent_before,
            idempotency_key=call.idempotency_key,
            body=body,
            payload_sha256=call.payload_sha256,
            config=held.docs.tool_config,
            secrets=self._services.keyring.unseal(held.docs.sealed),
            callback_url=callback_url(self._services, run.id, call.number),
            timeout_s=max(0.001, (call.deadline_at - self._services.db.now()).total_seconds()),
        )

    async def _settle(self, held: Held, outcome: Outcome, took_ms: int) -> str | None:
        """Write what came of one try, and what it means for the run."""
        assert held.call is not None
        after = After.nothing()
        async with self._services.db.transaction() as conn:
            run = await runs.lock_held(conn, held.run.id, held.token)
            now = self._services.db.now()
            stored = await calls.lock(conn, run.id, held.call.number)
            assert stored is not None
            facts: list[Fact] = []
            if stored.status is CallStatus.INTENT:  # else the callback was here first
                stored = settled(stored, outcome, now=now)
                await calls.save(conn, stored)
                facts = _told(run, stored, took_ms)
                if stored.status is CallStatus.ANSWERED:
                    await runs.set_answer(conn, run.id, output=stored.output, raw=stored.raw)
            cost = (run.actual_usd or 0) + stored.cost_usd if stored.cost_usd is not None else run.actual_usd
            run = replace(run, provider_ms=run.provider_ms + took_ms, actual_usd=cost)
            result = self._after_call(run, stored, outcome, now, after)
            run, facts = result[0], [*facts, *result[1]]
            held.run, _ = await runs.save(conn, run, facts, now=now)
            held.call = stored
            if stored.status is CallStatus.ANSWERED:
                held.docs = replace(held.docs, output=stored.output, raw_response=stored.raw)
            after.changed.append(run.id)
        await carry_out(self._services, after)
        return result[2]

    def _after_call(
        self, run: Run, call: ProviderCall, outcome: Outcome, now: datetime, after: After
    ) -> tuple[Run, list[Fact], str | None]:
        """The run, further facts, and what became of it if its worker lets go of it now."""
        if run.status is RunStatus.PAUSED:
            return replace(run, lease_until=None, worker_id=None, released_at=now), [], "paused"
        if call.status is CallStatus.RETRY:
            hint = outcome.retry_after_s if isinstance(outcome, Unreachable) else None
            wait = backoff(call.tries, retry_after_s=hint, jitter=random.random())  # noqa: S311  spread, not secrecy
            later = woken(run, now=now, due_at=now + wait, released_at=now)
            after.wake.append(later)
            return replace(later, armed=True), [queued(later, "retry")], "retry_later"
        if call.status is CallStatus.ACCEPTED:
            waiting = released(run, RunStatus.AWAITING_PROVIDER, now=now, due_at=call.deadline_at, armed=False)
            return waiting, [], "awaiting_provider"
        return run, [], None

    async def _suspend(self, held: Held, action: Suspend) -> str:
        async with self._services.db.transaction() as conn:
            run = await runs.lock_held(conn, held.run.id, held.token)
            if run.status is RunStatus.PAUSED:
                await self._put_down(conn, run)
                return "paused"
            now = self._services.db.now()
            waiting = released(run, RunStatus.AWAITING_PROVIDER, now=now, due_at=action.until, armed=False)
            await runs.save(conn, waiting, [], now=now)
        return "awaiting_provider"

    async def _finish(self, held: Held, passed: Sequence[Pass]) -> str:
        after = After.nothing()
        async with self._services.db.transaction() as conn:
            locked = await self._locked(conn, held, passed)
            if locked is None:
                return "paused"
            run, facts = locked
            now = self._services.db.now()
            if held.docs.result is None:
                await runs.set_result(conn, run.id, {"response": held.docs.output})
            ended = move(run, RunStatus.COMPLETED, now=now, fencing_token=run.fencing_token + 1, error=None)
            data = {"total_ms": ms_between(run.created_at, now), "payload_sha256": run.payload_sha256}
            facts.append(Fact(EventType.RUN_COMPLETED, "system", data))
            ended = await finish(conn, ended, facts, now=now, after=after, actor="system")
        self._log_steps(ended, passed)
        log.info("run.finished", run_id=str(ended.id), tenant=ended.tenant, status=ended.status)
        await carry_out(self._services, after)
        return "completed"

    async def _end(self, held: Held, passed: Sequence[Pass], action: Fail) -> str:
        after = After.nothing()
        async with self._services.db.transaction() as conn:
            locked = await self._locked(conn, held, passed)
            if locked is None:
                return "paused"
            run, facts = locked
            await self._fail_in(conn, run, facts, action, after)
        await carry_out(self._services, after)
        return "failed"

    async def _fail(self, run_id: UUID, token: int) -> None:
        """A fault of our own: the run says so and may be resumed, instead of coming back for ever."""
        after = After.nothing()
        try:
            async with self._services.db.transaction() as conn:
                run = await runs.lock_held(conn, run_id, token)
                action = Fail("internal_error", "the service met a fault of its own", recoverable=True)
                await self._fail_in(conn, run, [], action, after)
        except (LeaseLost, HitlError):
            return
        await carry_out(self._services, after)

    async def _fail_in(self, conn: Conn, run: Run, facts: Sequence[Fact], action: Fail, after: After) -> None:
        now = self._services.db.now()
        ended = fail(run, code=action.code, message=action.message, recoverable=action.recoverable, now=now)
        told = Fact(EventType.RUN_FAILED, "system", {"code": action.code, "step": run.step})
        ended = await finish(conn, ended, [*facts, told], now=now, after=after, actor="system")
        await runs.record_step(conn, ended, runs.StepRecord(run.step, "failed", now, "system", action.code))
        log.info("run.finished", run_id=str(run.id), tenant=run.tenant, status=ended.status, code=action.code)

    async def _hand_over(self, run_id: UUID, token: int) -> None:
        """Give the run back under a new token, for another worker to go on at once."""
        after = After.nothing()
        try:
            async with asyncio.timeout(HAND_OVER_TIMEOUT_S), self._services.db.transaction() as conn:
                run = await runs.lock_held(conn, run_id, token)
                if run.status is RunStatus.PAUSED:
                    await self._put_down(conn, run)
                    return
                now = self._services.db.now()
                ready = woken(run, now=now, released_at=now)
                await runs.save(conn, ready, [queued(ready, "handed_over")], now=now)
                after.wake.append(ready)
        except (LeaseLost, HitlError, TimeoutError):
            return
        log.info("run.handed_over", run_id=str(run_id))
        await carry_out(self._services, after)

    def _log_steps(self, run: Run, passed: Sequence[Pass]) -> None:
        for done in passed:
            log.info("step.finished", run_id=str(run.id), tenant=run.tenant, step=done.step)


def _origin(run: Run) -> dict[str, str]:
    """The ids of the request that started the run, for this job's log lines."""
    trace_id = run.traceparent.split("-")[1] if run.traceparent else None
    return {name: value for name, value in (("request_id", run.request_id), ("trace_id", trace_id)) if value}


def material(run_input: Mapping[str, Any]) -> payload.Material:
    """What a payload is made of, out of a run's input."""
    given = tuple(
        attachments.Attachment(a["url"], a.get("media_type"), a.get("name")) for a in run_input.get("attachments") or ()
    )
    turns = run_input.get("conversation") or run_input.get("chat_history") or ()
    return payload.Material(
        prompt=run_input["prompt"],
        attachments=given,
        document_url=run_input.get("document_url"),
        conversation=tuple(turn for turn in turns if isinstance(turn, dict)),
    )


def opened(run: Run, docs: Documents, call: ProviderCall | None, action: Ask, *, now: datetime) -> Approval:
    """The approval for a question, with everything that is to be shown."""
    waits = policy.silence(docs.config, action.checkpoint)
    return Approval(
        id=uuid7(), tenant=run.tenant, run_id=run.id, checkpoint_type=action.checkpoint,
        status=ApprovalStatus.PENDING, reasons=list(action.reasons), message=_MESSAGES[action.checkpoint],
        context=_context(run, docs, call, action.checkpoint), schema=_schema(docs),
        payload_sha256=run.payload_sha256, user_id=run.user_id, session_id=run.session_id,
        submitter=run.submitter, reviewers=waits.reviewers, on_timeout=waits.on_timeout, timeout_s=waits.timeout_s,
        escalate_to=waits.escalate_to, escalated_at=None, remind_after_s=waits.remind_after_s,
        remind_at=now + timedelta(seconds=waits.remind_after_s) if waits.remind_after_s else None, created_at=now,
        expires_at=now + timedelta(seconds=waits.timeout_s), clock_stopped_at=None, timer_no=1, armed=False,
        edited=False, claimed_by=None, claimed_until=None, decided_at=None, callback_url=None, version=1,
    )  # fmt: skip


def _context(run: Run, docs: Documents, call: ProviderCall | None, checkpoint: Checkpoint) -> dict[str, Any]:
    about = docs.description or {}
    schema = about.get("schema")
    found = form.issues(docs.payload, schema)
    if checkpoint is Checkpoint.ERROR_RECOVERY and call is not None and call.issues:
        found = [_with_allowed(issue, schema) for issue in call.issues]
    shows_answer = checkpoint is Checkpoint.RESPONSE_REVIEW
    return {
        "payload": docs.payload,
        "payload_sha256": run.payload_sha256,
        "schema": schema,
        "form": form.form(docs.payload, schema, about.get("origins") or {}, title=_MESSAGES[checkpoint]),
        "diff": patch.diff(about.get("baseline") or {}, docs.payload),
        "validation_issues": found,
        "estimated_cost_usd": run.estimated_usd,
        "response": docs.raw_response if shows_answer else None,
        "output": docs.output if shows_answer else None,
    }


def _with_allowed(issue: Mapping[str, Any], schema: Any) -> dict[str, Any]:
    """A provider's complaint with the allowed values, where our schema knows them and the provider did not say."""
    node = schemas.properties(schema, schema).get(issue["field"])
    allowed = schemas.facets(schema, node).get("enum") if node is not None else None
    fix = issue.get("suggested_fix") or (", ".join(str(value) for value in allowed) if allowed else None)
    return {**issue, "suggested_fix": fix}


def _schema(docs: Documents) -> Any:
    return (docs.description or {}).get("schema")


def _first(run: Run, now: datetime, deadline_at: datetime) -> ProviderCall:
    assert run.payload_sha256 is not None
    return ProviderCall(
        run_id=run.id, number=run.call_no, tenant=run.tenant, idempotency_key=f"{run.id}-{run.call_no}",
        payload_sha256=run.payload_sha256, status=CallStatus.INTENT, tries=1, provider_ref=None,
        started_at=now, finished_at=None, deadline_at=deadline_at, output=None, raw=None, issues=None,
        problem=None, quality=None, safety_flags=(), cost_usd=None,
    )  # fmt: skip


def _again(call: ProviderCall, deadline_at: datetime) -> ProviderCall:
    """The next try of the same call, under the same idempotency key.

    A try that had no effect is over, and the next has its own time; one that nobody knows of goes on.
    """
    ends = deadline_at if call.status is CallStatus.RETRY else call.deadline_at
    return replace(
        call, status=CallStatus.INTENT, tries=call.tries + 1, finished_at=None, problem=None, deadline_at=ends
    )


def _told(run: Run, call: ProviderCall, took_ms: int) -> list[Fact]:
    """The event of a try that ended. One that goes on, or will be tried again, has none yet."""
    data: dict[str, Any] = {"call": call.number, "try": call.tries, "ms": took_ms}
    actor = f"provider:{run.provider}"
    match call.status:
        case CallStatus.ANSWERED:
            return [Fact(EventType.PROVIDER_COMPLETED, actor, {**data, "provider_ref": call.provider_ref})]
        case CallStatus.ACCEPTED:
            return []
        case _:
            return [Fact(EventType.PROVIDER_FAILED, actor, {**data, "code": call.status})]
