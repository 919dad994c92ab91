"""Floor 5: the provider call of a run that a worker holds: intend, send, look, settle.

Never inside a transaction, never sent twice in silence. What a try has begun at a provider is not forgotten
because its worker was told to stop: its reference is kept, and with it the call is adopted or ended.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from service import tracing
from service.commands.callbacks import callback_url
from service.commands.context import After, Services, carry_out, closed_of, next_turn, queued
from service.commands.files import Copies, copied, discard
from service.commands.outage import outlast
from service.domain import payload
from service.domain.altered import altered
from service.domain.call import (
    Answered,
    CallStatus,
    Outcome,
    ProviderCall,
    Unreachable,
    backoff,
    look_after,
    looked,
    strays,
    tried,
)
from service.domain.canonical import canonical, sha256_hex
from service.domain.event import EventType, Fact
from service.domain.plan import Call, Documents, Pass, adoptable_until, looked_at
from service.domain.record import content_sha256
from service.domain.run import Run, RunStatus, woken
from service.errors import LeaseLost
from service.holding import (
    Held,
    abilities,
    answered,
    awaiting,
    completed,
    log_steps,
    passed_by,
    put,
    walked,
    write_locked,
)
from service.leftovers import Leftovers
from service.logs import get_logger
from service.progress import Data, Progress
from service.providers.protocol import Request
from service.store import calls, cancels, events, files, runs
from service.store.changes import Called, Change
from service.store.database import EVERY

LOOK_TIMEOUT_S: Final = 30.0
TELLING: Final = 4  # progress of a hundred streams must not keep the heartbeat from a connection

Through = Callable[[Held], Sequence[Pass] | None]

log = get_logger("orchestrator")


@dataclass(frozen=True, slots=True)
class End:
    """How a try or a look ended: what the provider said, what was copied of it, and what it told last."""

    given: Outcome
    copies: Copies
    took_ms: int
    untold: Data | None
    looking: bool


@dataclass(frozen=True, slots=True)
class Settled:
    """What a try or a look has made of the run. `outcome`: what became of it if its worker lets go of it now."""

    change: Change
    call: ProviderCall
    docs: Documents
    strays: Sequence[str]
    outcome: str | None
    passed: Sequence[Pass]
    after: After


class Caller:
    """`drop` is called with run and token when a write was refused while the call was under way. What was
    received is written when Postgres is back, for the length of a lease. `through` ends a run in the transaction
    that writes its answer, where nothing stops it any more."""

    def __init__(
        self, services: Services, *, lease_s: float, drop: Callable[[UUID, int], None], through: Through
    ) -> None:
        self._services = services
        self._through = through
        self._lease_s = lease_s
        self._drop = drop
        self.leftovers = Leftovers(services)
        self._telling = asyncio.Semaphore(TELLING)

    async def call(self, held: Held, passed: Sequence[Pass], action: Call) -> str | None:
        """One try. Returns what became of the run if its worker lets go of it now."""
        held.intending = True
        request = await self._intend(held, passed, action)
        held.intending = False
        progress = self._progress(held)
        request = replace(request, progress=progress.tell)
        progress.begin()
        started = time.monotonic()
        with _span("call", held):
            try:
                outcome = await self.leftovers.sent(held.provider, request)
            except BaseException:
                progress.cancel()
                raise
            took_ms = max(1, round((time.monotonic() - started) * 1000))
            self._log_call(held, outcome, took_ms)
        try:
            await progress.stop()
            return await self._settle(held, outcome, took_ms, progress, looking=False)
        except BaseException:  # whatever it is: what was begun is not forgotten
            self.leftovers.keep(held.provider, request, outcome)
            raise

    async def look(self, held: Held) -> str | None:
        """One look at a call that the provider has accepted. Returns as `call`."""
        assert held.call is not None
        assert held.call.provider_ref is not None
        progress = self._progress(held)
        request = replace(self._request(held, held.call, held.call.tries - 1), progress=progress.tell)
        request = replace(request, timeout_s=min(LOOK_TIMEOUT_S, max(10.0, request.timeout_s)))
        started = time.monotonic()
        outcome: Outcome
        with _span("look", held):
            try:
                async with asyncio.timeout(request.timeout_s):
                    outcome = await held.provider.poll(request, held.call.provider_ref)
            except TimeoutError:
                outcome = Unreachable("no answer in time")
            took_ms = max(1, round((time.monotonic() - started) * 1000))
            self._log_call(held, outcome, took_ms)
        return await self._settle(held, outcome, took_ms, progress, looking=True)

    async def _intend(self, held: Held, passed: Sequence[Pass], action: Call) -> Request:
        """Write that the call is about to be made; only then may it be made."""
        after, body, sent_before = After.nothing(), canonical(held.docs.payload), held.tries

        def made(before: Run, _: Sequence[Fact]) -> Change:
            now = self._services.db.now()
            run, facts, parts = walked(held, before, passed, now=now)
            schema = (held.docs.description or {}).get("schema")
            if sha256_hex(body) != run.payload_sha256 or payload.missing(held.docs.payload, schema):
                raise RuntimeError("the payload is not the one that was let through")
            until = now + timedelta(seconds=held.provider.timeout_s(held.docs.tool_config))
            call = _again(action.again, now, until) if action.again else _first(run, now, until)
            data = {"call": call.number, "try": call.tries, "payload_sha256": call.payload_sha256}
            told = Fact(EventType.PROVIDER_SUBMITTED, f"provider:{run.provider}", data)
            return Change.of(before, run, [*facts, told], now=now, more=Called(call), **parts)

        change = await put(self._services, held, made, after, watched=action.again is not None)
        assert isinstance(change.more, Called)
        held.call = change.more.call  # after the commit: while it is not heard of, it stands as it was
        held.tries += 1
        log_steps(held.run, passed)
        await carry_out(self._services, after)
        return self._request(held, held.call, sent_before)

    def _request(self, held: Held, call: ProviderCall, sent_before: int) -> Request:
        run, now = held.run, self._services.db.now()
        assert call.deadline_at is not None
        return Request(
            run_id=run.id,
            number=call.number,
            sent_before=sent_before,
            idempotency_key=call.idempotency_key,
            body=canonical(held.docs.payload),
            payload_sha256=call.payload_sha256,
            config=held.docs.tool_config,
            secrets=self._services.keyring.unseal(held.docs.sealed),
            callback_url=callback_url(self._services, run.provider, run.id, call.number),
            timeout_s=max(0.001, (call.deadline_at - now).total_seconds()),
            run_left_s=max(0.001, (run.deadline_at - now).total_seconds()) if run.deadline_at else None,
        )

    def _progress(self, held: Held) -> Progress:
        run_id, tenant, token = held.run.id, held.run.tenant, held.token

        async def write(data: Data) -> None:
            async with self._telling, self._services.db.transaction(tenant) as conn:
                run = await runs.lock_held(conn, run_id, token)
                await runs.save(conn, run, [_progressed(run, data)], now=self._services.db.now())
            await self._services.notifier.notify(run_id)

        return Progress(write, lambda: self._drop(run_id, token))

    async def _settle(
        self, held: Held, outcome: Outcome, took_ms: int, progress: Progress, *, looking: bool
    ) -> str | None:
        """Write what came of one try or look, and what it means for the run."""
        assert held.call is not None
        polls = held.provider.poll_s is not None
        copies = await copied(self._services, held.run, held.call, outcome, polls=polls)
        end = End(outcome, copies, took_ms, progress.untold, looking)
        tries = 0

        async def write() -> Settled:
            nonlocal tries
            tries += 1
            return await self._write(held, end, again=tries > 1)

        try:
            settled = await outlast(write, for_s=self._lease_s)
        except LeaseLost:
            if tries == 1:  # and nothing else: a commit that was cut off may have happened
                self.leftovers.add(held.run.id, discard(self._services, copies.files))
            raise
        held.tries += settled.call.tries - held.call.tries
        held.run, held.call, held.docs = settled.change.run, settled.call, settled.docs
        log_steps(held.run, settled.passed)
        await carry_out(self._services, settled.after)
        return settled.outcome

    async def _write(self, held: Held, end: "End", *, again: bool) -> "Settled":
        """First without a lock and in company, unless there is more to be written than a `Change`, or to be looked
        at: an earlier try of this write may have happened, though we did not hear of it."""
        assert held.call is not None
        settled = self._settled(held, held.run, held.call, end)
        if not (again or end.looking or end.copies.files or settled.strays):
            follows = await self._services.together.write(settled.change, EVERY)
            if follows:
                await next_turn(self._services, settled.change.run, settled.after)
            if follows is not None:
                return settled
        return await self._write_locked(held, end)

    async def _write_locked(self, held: Held, end: "End") -> "Settled":
        assert held.call is not None
        async with self._services.db.transaction(held.run.tenant) as conn:
            run = await runs.lock_held(conn, held.run.id, held.token)
            before = await calls.lock(conn, run.id, held.call.number)
            assert before is not None
            if end.looking and end.untold is not None:
                told = await events.last_data(conn, run.id, EventType.PROVIDER_PROGRESS)
                end = replace(end, untold=None if told == end.untold else end.untold)
            settled = self._settled(held, run, before, end)
            if settled.change.run.final:
                now, after = settled.change.run.updated_at, settled.after
                closed = await closed_of(conn, run, now=now, actor="system", after=after)
                settled = replace(self._settled(held, run, before, end, closed), after=after)
            await write_locked(conn, settled.change, settled.after)
            for ref in settled.strays:
                await cancels.add(conn, settled.call, ref)
                settled.after.cancelling.append(run.id)
            if settled.call.status is CallStatus.ANSWERED is not before.status:
                await files.insert(conn, end.copies.files)
        return settled

    def _settled(
        self, held: Held, run: Run, before: ProviderCall, end: "End", closed: Sequence[Fact] = ()
    ) -> "Settled":
        """What a try or a look makes of the run and of its call, as they stand in Postgres."""
        now, parts, outcome = self._services.db.now(), dict[str, Any](), end.copies.outcome
        adopts = adoptable_until(before, abilities(held.provider)) is not None
        call = looked(before, outcome, now=now) if end.looking else tried(before, outcome, now=now, adopts=adopts)
        call = _with_copies(call, end.given, end.copies)
        written = run.provider_ms != held.run.provider_ms  # before, and only Postgres's answer was lost
        on = run if written else altered(run, provider_ms=run.provider_ms + end.took_ms)
        facts = [*closed, *([_progressed(run, end.untold)] if end.untold is not None and not written else [])]
        if call.status is not before.status:
            facts += _told(run, call, end.took_ms)
            if call.status in (CallStatus.ANSWERED, CallStatus.FAILED):
                parts["answer"] = {"output": call.output, "raw_response": call.raw}
            if call.cost_usd is not None:
                on = altered(on, actual_usd=(on.actual_usd or 0) + call.cost_usd)
        on, more, became = self._after_call(held, on, call, outcome, now)
        facts += more
        docs = answered(held.docs, call)
        passed = self._through(replace(held, run=on, call=call, docs=docs)) if became is None else None
        if passed is not None:
            on, more, parts["steps"] = passed_by(held, on, passed, now=now)
            on, told, result = completed(on, docs, now=now)
            facts, parts, became = [*facts, *more, told], {**parts, **result}, "completed"
        change = Change.of(run, on, facts, now=now, more=Called(call) if call != before else None, **parts)
        return Settled(change, call, docs, strays(before, call, outcome), became, passed or (), _after(change.run))

    def _after_call(
        self, held: Held, run: Run, call: ProviderCall, outcome: Outcome, now: datetime
    ) -> tuple[Run, list[Fact], str | None]:
        """The run, further facts, and what became of it if its worker lets go of it now."""
        paused = run.status is RunStatus.PAUSED
        hint = outcome.retry_after_s if isinstance(outcome, Unreachable) else None
        if looked_at(call, abilities(held.provider)):
            assert held.provider.poll_s is not None
            looks, jitter = max(call.looks, 2 * call.copy_tries), random.random()  # noqa: S311  spread, not secrecy
            wait = look_after(looks, poll_s=held.provider.poll_s, retry_after_s=hint, jitter=jitter)
            until = min(now + wait, call.deadline_at or now + wait)
            run = awaiting(self._services, run, until, now=now)
            return run, [], "paused" if paused else "awaiting_provider"
        if paused:
            return altered(run, lease_until=None, worker_id=None, released_at=now), [], "paused"
        match call.status:
            case CallStatus.RETRY:
                wait = backoff(call.tries, retry_after_s=hint, jitter=random.random())  # noqa: S311  spread, not secrecy
                later = woken(run, now=now, due_at=now + wait, released_at=now)
                return altered(later, armed=True), [queued(later, "retry")], "retry_later"
            case CallStatus.ACCEPTED:
                return awaiting(self._services, run, call.deadline_at, now=now), [], "awaiting_provider"
            case CallStatus.INTENT:
                until = adoptable_until(call, abilities(held.provider)) or now
                return awaiting(self._services, run, until, now=now), [], "awaiting_provider"
            case _:
                return run, [], None

    def _log_call(self, held: Held, outcome: Outcome, took_ms: int) -> None:
        assert held.call is not None
        log.info(
            "provider.call", run_id=str(held.run.id), tenant=held.run.tenant, provider=held.provider.name,
            step=held.run.step, outcome=type(outcome).__name__.lower(), duration_ms=took_ms, call=held.call.number,
            tries=held.call.tries,
            cost_usd=outcome.cost_usd if isinstance(outcome, Answered) else None,
        )  # fmt: skip


def _after(run: Run) -> After:
    after = After.nothing().waking(run)
    after.changed.append(run.id)
    if run.final:
        after.ended.append((run, "system"))
    return after


def _span(doing: str, held: Held) -> AbstractContextManager[None]:
    run = held.run
    about = {"run_id": str(run.id), "tenant": run.tenant, "provider": held.provider.name, "step": run.step.value}
    return tracing.span(f"{doing} {held.provider.name}", kind="client", **about)


def _first(run: Run, now: datetime, deadline_at: datetime) -> ProviderCall:
    assert run.payload_sha256 is not None
    return ProviderCall(
        run_id=run.id, number=run.call_no, tenant=run.tenant, idempotency_key=f"{run.id}-{run.call_no}",
        payload_sha256=run.payload_sha256, status=CallStatus.INTENT, tries=1, provider_ref=None,
        started_at=now, finished_at=None, deadline_at=deadline_at, output=None, raw=None, issues=None,
        problem=None, quality=None, safety_flags=(), cost_usd=None,
    )  # fmt: skip


def _again(call: ProviderCall, now: datetime, deadline_at: datetime) -> ProviderCall:
    """The next try of the same call, under the same idempotency key.

    A try that had no effect is over, and the next has its own time; one that nobody knows of goes on.
    """
    anew = call.status is CallStatus.RETRY
    return altered(
        call, status=CallStatus.INTENT, tries=call.tries + 1, finished_at=None, problem=None,
        started_at=now if anew else call.started_at, deadline_at=deadline_at if anew else call.deadline_at,
    )  # fmt: skip


def _with_copies(call: ProviderCall, given: Outcome, copies: Copies) -> ProviderCall:
    """What was paid for is counted, though its files could not be copied."""
    if copies.again:
        return altered(call, copy_tries=call.copy_tries + 1)
    if call.status is CallStatus.FAILED and isinstance(given, Answered):
        return altered(call, cost_usd=given.cost_usd)
    return call


def _progressed(run: Run, data: Data) -> Fact:
    return Fact(EventType.PROVIDER_PROGRESS, f"provider:{run.provider}", dict(data))


def _told(run: Run, call: ProviderCall, took_ms: int) -> list[Fact]:
    """The event of a try that ended. One that goes on, or will be tried again, has none yet."""
    data: dict[str, Any] = {"call": call.number, "try": call.tries, "ms": took_ms}
    actor = f"provider:{run.provider}"
    match call.status:
        case CallStatus.ANSWERED:
            told = {"provider_ref": call.provider_ref, "response_sha256": content_sha256(call.raw)}
            return [Fact(EventType.PROVIDER_COMPLETED, actor, {**data, **told})]
        case CallStatus.ACCEPTED | CallStatus.INTENT:
            return []
        case _:
            return [Fact(EventType.PROVIDER_FAILED, actor, {**data, "code": call.status})]
