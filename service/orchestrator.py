"""Floor 5: the orchestrator. It claims a run, does what `domain.plan` says, and puts the run down again.

A plain async class on the worker's own event loop. Every write carries the fencing token; a provider is
never called inside a transaction; a run that waits holds nothing.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from structlog.contextvars import bind_contextvars

from service import tracing
from service.calling import Caller
from service.commands.context import After, Services, carry_out, finish, queued
from service.commands.outage import RETRY_S, outlast
from service.domain.altered import altered
from service.domain.approval import Approval
from service.domain.call import MAX_TRIES, Description, ProviderCall, Rejected, Unreachable, backoff, unsent
from service.domain.canonical import payload_sha256
from service.domain.event import EventType, Fact
from service.domain.plan import (
    Action,
    Ask,
    Build,
    Call,
    Fail,
    Finish,
    Pass,
    Poll,
    Suspend,
    looked_at,
    next_action,
)
from service.domain.policy import Checkpoint
from service.domain.question import opened, prepared
from service.domain.record import asked
from service.domain.run import Run, RunStatus, advanced, fail, released, woken
from service.errors import HitlError, LeaseLost, Unavailable
from service.holding import (
    Held,
    Overtaken,
    Paused,
    abilities,
    awaiting,
    completed,
    locked,
    log_steps,
    put,
    put_down,
    walked,
)
from service.logs import get_logger
from service.store import approvals, calls, events, runs
from service.store.batch import Batch
from service.store.changes import Asked, Change
from service.store.database import EVERY, Conn

HAND_OVER_TIMEOUT_S: Final = 5.0
LEFT_OVER_S: Final = 5.0
DESCRIBE_TIMEOUT_S: Final = 60.0
LEASE_LOST: Final = "lease lost"

Claimed = tuple[Run, runs.Loaded | None]

log = get_logger("orchestrator")


class HITLOrchestrator:
    def __init__(self, services: Services, *, worker_id: str, lease_s: float) -> None:
        self._services = services
        self._worker_id = worker_id
        self._lease_s = lease_s
        self._live: dict[UUID, tuple[int, asyncio.Task[Any]]] = {}
        self._claims: Batch[None, UUID, Claimed | None] = Batch(self._claim_together)
        self._caller = Caller(services, lease_s=lease_s, drop=self.drop, through=self._through)
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

    async def close(self) -> None:
        """Let what was cut off say its last word."""
        await self._caller.leftovers.close(timeout_s=LEFT_OVER_S)

    async def advance(self, run_id: UUID) -> str:
        """Take the run as far as it goes. Returns what became of it, for the log; never raises for the run's sake."""
        try:
            claimed = await self._claim(run_id)
        except asyncio.CancelledError:
            await asyncio.shield(self._give_back(run_id))
            return "handed_over"
        if claimed is None:
            return "nothing_due"
        run, _ = claimed
        bind_contextvars(**_origin(run))  # the job's own task: it ends with the job
        about = {"run_id": str(run_id), "tenant": run.tenant, "provider": run.provider, "step": run.step.value}
        with tracing.span("advance_run", kind="consumer", parent=run.traceparent, **about):
            outcome = await self._carried(claimed)
            tracing.note({"outcome": outcome})
            return outcome

    async def _carried(self, claimed: Claimed) -> str:
        """As `advance`, once the run is claimed."""
        run_id, token = claimed[0].id, claimed[0].fencing_token
        task = asyncio.current_task()
        assert task is not None
        self._live[run_id] = (token, task)
        try:
            return await self._work(claimed)
        except LeaseLost:
            log.info("run.lease_lost", run_id=str(run_id))
            return "lease_lost"
        except Unavailable:
            return "database_away"
        except asyncio.CancelledError as stop:
            if stop.args == (LEASE_LOST,):
                log.info("run.lease_lost", run_id=str(run_id))
                return "lease_lost"
            await asyncio.shield(self._stop(run_id, token))
            return "handed_over"
        except Exception as error:
            log.error("http.error", run_id=str(run_id), error=type(error).__name__)
            await self._fail(run_id, token)
            return "internal_error"
        finally:
            if self._live.get(run_id) == (token, task):  # else a later claim of this process holds it
                del self._live[run_id]

    async def _claim(self, run_id: UUID) -> Claimed | None:
        """Take the run, if it is due. A claim whose answer was lost with the connection is taken up again."""
        lost = False

        async def claim() -> Claimed | None:
            nonlocal lost
            try:
                # if not: it is not due, or locked just now; then alone, waiting for whoever has it
                return await self._claims.ask(run_id, key=None) or await self._claim_alone(run_id, lost=lost)
            except Unavailable:
                lost = True
                if self.draining.is_set():
                    return None
                raise

        try:
            found = await outlast(claim, for_s=self._lease_s)
        except Unavailable:
            return None
        if found is not None and found[0].claimed_at is not None:
            self._services.db.heard(found[0].claimed_at)  # a run must not end before it was begun
        return found

    async def _claim_together(self, _: None, run_ids: Sequence[UUID]) -> list[Claimed | None]:
        async with self._services.db.connection(EVERY) as conn:
            found = await runs.claim_all(conn, run_ids, worker_id=self._worker_id, lease_s=self._lease_s)
        return [found.get(run_id) for run_id in run_ids]

    async def _claim_alone(self, run_id: UUID, *, lost: bool) -> Claimed | None:
        async with self._services.db.connection(EVERY) as conn:
            run = await runs.claim(conn, run_id, worker_id=self._worker_id, lease_s=self._lease_s)
            if run is None and lost and run_id not in self._live:
                run = await runs.claim_mine(conn, run_id, worker_id=self._worker_id, lease_s=self._lease_s)
        return None if run is None else (run, None)

    async def _held(self, claimed: Claimed) -> Held:
        """With all that is known of it. A run whose call nobody has begun is known whole by its claim."""
        run, known = claimed
        if known is not None and not known.called:
            return self._holding(run, known, None)
        async with self._services.db.connection(run.tenant) as conn:
            return await self._loaded(conn, run)

    async def _loaded(self, conn: Conn, run: Run) -> Held:
        call = await calls.get(conn, run.id, run.call_no)  # first: what answers it writes the documents with it
        known = runs.Loaded(
            await runs.documents(conn, run.id),
            await approvals.last_actors(conn, run.id),
            await calls.tries(conn, run.id),
            call is not None,
        )
        return self._holding(run, known, call)

    def _holding(self, run: Run, known: runs.Loaded, call: ProviderCall | None) -> Held:
        provider = self._services.registry.by_tool(run.tool)
        return Held(run, known.docs, call, provider, run.fencing_token, actors=known.actors, tries=known.tries)

    async def _work(self, claimed: Claimed) -> str:
        """Step after step. While Postgres is away nothing is given up: what its heartbeat cannot hold, it drops."""
        held = await outlast(lambda: self._held(claimed), for_s=self._lease_s)
        await self._link(held.run)
        give_up = time.monotonic() + self._lease_s
        while True:
            if self.draining.is_set():
                await self._hand_over(held.run.id, held.token)
                return "handed_over"
            try:
                outcome = await self._step(held)
            except Unavailable:
                if time.monotonic() >= give_up:
                    raise
                held = await self._after_outage(held)
                continue
            if outcome is not None:
                return outcome
            give_up = time.monotonic() + self._lease_s

    async def _link(self, run: Run) -> None:
        """Go back, in the trace, to the decision, the callback or the job that made the run due."""
        if not tracing.on():
            return
        try:
            async with self._services.db.connection(run.tenant) as conn:
                cause = await events.last_data(conn, run.id, EventType.RUN_QUEUED)
        except Unavailable:
            return
        # the token says that it was this wake-up: a look at a provider has no such event
        if cause is not None and cause.get("token") == run.fencing_token - 1:
            came_from = cause.get("traceparent")
            tracing.link(came_from if came_from != run.traceparent else None)

    async def _after_outage(self, held: Held) -> Held:
        await asyncio.sleep(RETRY_S)
        return await outlast(lambda: self._reloaded(held), for_s=self._lease_s)

    async def _reloaded(self, held: Held) -> Held:
        """The run as it stands after an outage: the last write may be in it or not. Raises `LeaseLost`.

        It moves on, so that a write that Postgres has and has not begun comes to nothing."""
        async with self._services.db.transaction(held.run.tenant) as conn:
            run = await runs.lock_held(conn, held.run.id, held.token)
            stored = await calls.lock(conn, run.id, run.call_no) if held.intending else None
            call = unsent(stored, before=held.call)
            if call is not None and call != stored:
                await calls.save(conn, call)
            await runs.move_on(conn, run.id)
            return await self._loaded(conn, altered(run, version=run.version + 1))

    async def _step(self, held: Held) -> str | None:
        """Do the next thing that is more than a pass; the passes before it share its transaction."""
        try:
            return await self._done(held)
        except Paused:
            return "paused"
        except Overtaken:
            held.intending = False
            return None

    async def _done(self, held: Held) -> str | None:
        if held.run.status is RunStatus.PAUSED:
            return await self._while_paused(held)
        passed, action = self._walk(held)
        match action:
            case Build():
                return await self._build(held)
            case Call():
                return await self._caller.call(held, passed, action)
            case Poll():
                return await self._caller.look(held)
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
            able = abilities(held.provider)
            action = next_action(run, held.docs, held.call, provider=able, now=self._services.db.now())
            if not isinstance(action, Pass):
                return passed, action
            passed.append(action)
            run = advanced(run)

    async def _while_paused(self, held: Held) -> str | None:
        """No step starts; but what its provider is at is looked at, so that the answer is kept."""
        if looked_at(held.call, abilities(held.provider)):
            return await self._caller.look(held)
        async with self._services.db.transaction(held.run.tenant) as conn:
            run = await runs.lock_held(conn, held.run.id, held.token)
            if run.status is RunStatus.PAUSED:
                await put_down(self._services, conn, run)
                return "paused"
        held.run = run  # resumed meanwhile: its worker goes on
        return None

    async def _build(self, held: Held) -> str | None:
        """Make the payload in memory; it is written with the first thing that comes of it."""
        about = await self._described(held)
        match about:
            case Unreachable():
                return await self._build_later(held, about)
            case Rejected():
                return await self._end(held, [], Fail("provider_rejected", about.problem, recoverable=False))
            case Description():
                pass
        description, built = prepared(held.docs.run_input, about)
        held.docs = replace(held.docs, description=description, payload=built)
        held.run = altered(held.run, payload_sha256=payload_sha256(built), estimated_usd=about.estimated_cost_usd)
        held.built = True
        return None

    async def _described(self, held: Held) -> Description | Unreachable | Rejected:
        try:
            async with asyncio.timeout(DESCRIBE_TIMEOUT_S):
                return await held.provider.describe(held.docs.tool_config)
        except TimeoutError:
            return Unreachable("the provider did not describe the tool in time")

    async def _build_later(self, held: Held, about: Unreachable) -> str:
        """What the provider knows of the tool is asked again later, at most as often as a call is tried."""
        after = After.nothing()
        async with self._services.db.transaction(held.run.tenant) as conn:
            run = await runs.lock_held(conn, held.run.id, held.token)
            if run.status is RunStatus.PAUSED:
                await put_down(self._services, conn, run)
                return "paused"
            tries = run.build_tries + 1
            if tries >= MAX_TRIES:
                await runs.count_build(conn, run.id, 0)  # whoever resumes the run begins to count anew
                await self._fail_in(conn, run, [], Fail("provider_unavailable", about.problem, recoverable=True), after)
            else:
                await runs.count_build(conn, run.id, tries)
                now = self._services.db.now()
                wait = backoff(tries, retry_after_s=about.retry_after_s, jitter=random.random())  # noqa: S311
                later = woken(run, now=now, due_at=now + wait, released_at=now)
                await runs.save(conn, altered(later, armed=True), [queued(later, "retry")], now=now)
                after.wake.append(later)
                after.changed.append(run.id)
        await carry_out(self._services, after)
        return "failed" if tries >= MAX_TRIES else "retry_later"

    async def _ask(self, held: Held, passed: Sequence[Pass], action: Ask) -> str:
        after = After.nothing()

        def made(before: Run, _: Sequence[Fact]) -> Change:
            now = self._services.db.now()
            run, facts, parts = walked(held, before, passed, now=now)
            question = opened(run, held.docs, held.call, action, now=now)
            armed = question.expires_at <= now + timedelta(seconds=self._services.horizon_s)
            told = Fact(EventType.APPROVAL_REQUESTED, "system", _about(question, held.docs.config.policy))
            run = released(run, RunStatus.AWAITING_HUMAN, now=now)
            return Change.of(before, run, [*facts, told], now=now, more=Asked(altered(question, armed=armed)), **parts)

        watched = action.checkpoint is Checkpoint.OUTCOME_UNKNOWN
        change = await put(self._services, held, made, after, watched=watched)
        assert isinstance(change.more, Asked)
        run, question = change.run, change.more.approval
        after.changed.append(question.id)
        log.info(
            "approval.requested", run_id=str(run.id), approval_id=str(question.id), tenant=run.tenant,
            step=run.step, checkpoint=question.checkpoint_type, reasons=list(action.reasons),
        )  # fmt: skip
        log_steps(run, passed)
        await carry_out(self._services, after)
        if question.armed:
            await self._services.queue.arm_timer(question.id, question.timer_no, question.expires_at)
        if question.remind_at is not None:
            await self._services.queue.arm_reminder(question.id, question.remind_at)
        return "awaiting_human"

    async def _suspend(self, held: Held, action: Suspend) -> str:
        after = After.nothing()

        def made(before: Run, _: Sequence[Fact]) -> Change:
            now = self._services.db.now()
            return Change.of(before, awaiting(self._services, before, action.until, now=now), [], now=now)

        change = await put(self._services, held, made, after, watched=True)
        await carry_out(self._services, after.waking(change.run))
        return "awaiting_provider"

    async def _finish(self, held: Held, passed: Sequence[Pass]) -> str:
        after = After.nothing()

        def made(before: Run, closed: Sequence[Fact]) -> Change:
            now = self._services.db.now()
            run, facts, parts = walked(held, before, passed, now=now)
            run, told, more = completed(run, held.docs, now=now)
            return Change.of(before, run, [*closed, *facts, told], now=now, **parts, **more)

        change = await put(self._services, held, made, after)
        after.ended.append((change.run, "system"))
        log_steps(change.run, passed)
        await carry_out(self._services, after)
        return "completed"

    def _through(self, held: Held) -> Sequence[Pass] | None:
        """The steps that a run passes whose answer is being written, if nothing stops it any more."""
        passed, action = self._walk(held)
        return passed if isinstance(action, Finish) else None

    async def _end(self, held: Held, passed: Sequence[Pass], action: Fail) -> str:
        after = After.nothing()
        async with self._services.db.transaction(held.run.tenant) as conn:
            begun = await locked(self._services, conn, held, passed)
            if begun is None:
                return "paused"
            run, facts = begun
            await self._fail_in(conn, run, facts, action, after)
        await carry_out(self._services, after)
        return "failed"

    async def _fail(self, run_id: UUID, token: int) -> None:
        """A fault of our own: the run says so and may be resumed, instead of coming back for ever."""
        after = After.nothing()
        try:
            async with self._services.db.transaction(EVERY) as conn:
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
        await runs.record_steps(conn, ended, [runs.StepRecord(run.step, "failed", now, "system", action.code)])

    async def _stop(self, run_id: UUID, token: int) -> None:
        """Hand over what was cut off, with what its provider still has to say about it where that comes soon."""
        await self._caller.leftovers.of(run_id, timeout_s=LEFT_OVER_S)
        await self._hand_over(run_id, token)

    async def _give_back(self, run_id: UUID) -> None:
        """Hand over what was taken at the moment in which its worker was told to stop."""
        if run_id in self._live:
            return
        try:
            async with self._services.db.connection(EVERY) as conn:
                run = await runs.claim_mine(conn, run_id, worker_id=self._worker_id, lease_s=self._lease_s)
        except Unavailable:
            return
        if run is not None:
            await self._hand_over(run_id, run.fencing_token)

    async def _hand_over(self, run_id: UUID, token: int) -> None:
        """Give the run back under a new token, for another worker to go on at once."""
        after = After.nothing()

        async def give_back() -> None:
            async with self._services.db.transaction(EVERY) as conn:
                run = await runs.lock_held(conn, run_id, token)
                if run.status is RunStatus.PAUSED:
                    await put_down(self._services, conn, run)
                    return
                now = self._services.db.now()
                ready = woken(run, now=now, released_at=now)
                await runs.save(conn, ready, [queued(ready, "handed_over")], now=now)
            after.wake.append(ready)
            after.changed.append(run_id)

        try:
            async with asyncio.timeout(HAND_OVER_TIMEOUT_S):
                await outlast(give_back, for_s=HAND_OVER_TIMEOUT_S)
        except (LeaseLost, HitlError, TimeoutError):
            return
        if after.wake:
            log.info("run.handed_over", run_id=str(run_id))
        await carry_out(self._services, after)


def _about(question: Approval, policy: str) -> dict[str, Any]:
    """What the event says of a question."""
    return {
        "approval_id": str(question.id),
        "checkpoint_type": question.checkpoint_type,
        "reasons": list(question.reasons),
        "payload_sha256": question.payload_sha256,
        **asked(question, policy=policy),
    }


def _origin(run: Run) -> dict[str, str]:
    """The ids of the request that started the run, and its tenant, for this job's log lines."""
    trace_id = run.traceparent.split("-")[1] if run.traceparent else None
    found = {"request_id": run.request_id, "trace_id": trace_id, "tenant": run.tenant}
    return {name: value for name, value in found.items() if value}
