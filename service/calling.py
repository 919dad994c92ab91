"""Floor 5: the provider call of a run that a worker holds: intend, send, look, settle.

Never inside a transaction, never sent twice in silence. What a try has begun at a provider is not forgotten
because its worker was told to stop: its reference is kept, and with it the call is adopted or ended.
"""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from service.commands.callbacks import callback_url, take_notice
from service.commands.context import After, Services, carry_out, queued
from service.domain import payload
from service.domain.call import (
    CallStatus,
    Outcome,
    ProviderCall,
    Unreachable,
    backoff,
    look_after,
    looked,
    reference,
    strays,
    tried,
)
from service.domain.canonical import canonical, sha256_hex
from service.domain.event import EventType, Fact
from service.domain.plan import Call, Pass, adoptable_until, looked_at
from service.domain.run import Run, RunStatus, woken
from service.errors import LeaseLost, Unavailable
from service.holding import Held, abilities, awaiting, locked, log_steps
from service.logs import get_logger
from service.progress import Data, Progress
from service.providers.protocol import Provider, Request
from service.store import calls, cancels, events, runs

LOOK_TIMEOUT_S: Final = 30.0
LEFT_TIMEOUT_S: Final = 30.0  # how long a try whose worker was told to stop may still say what it has begun
KEEP_TRIES: Final = 10

log = get_logger("orchestrator")


class Caller:
    """`drop` is called with run and token when a write was refused while the call was under way."""

    def __init__(self, services: Services, *, drop: Callable[[UUID, int], None]) -> None:
        self._services = services
        self._drop = drop
        self._left: dict[asyncio.Task[None], UUID] = {}  # owned here until they are done; see `close`

    async def call(self, held: Held, passed: Sequence[Pass], action: Call) -> str | None:
        """One try. Returns what became of the run if its worker lets go of it now."""
        request = await self._intend(held, passed, action)
        if request is None:
            return "paused"
        progress = self._progress(held)
        request = replace(request, progress=progress.tell)
        writer = asyncio.get_running_loop().create_task(progress.run())  # owned here: it ends with the call
        started = time.monotonic()
        try:
            outcome = await self._sent(held.provider, request)
        except BaseException:
            writer.cancel()
            raise
        took_ms = round((time.monotonic() - started) * 1000)
        self._log_call(held, outcome, took_ms)
        try:
            await progress.stop(writer)
            return await self._settle(held, outcome, took_ms, progress, looking=False)
        except (LeaseLost, Unavailable, asyncio.CancelledError):
            self._leave(held.run.id, self._keep(held.run.id, request.number, reference(outcome)))
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
        try:
            async with asyncio.timeout(request.timeout_s):
                outcome = await held.provider.poll(request, held.call.provider_ref)
        except TimeoutError:
            outcome = Unreachable("no answer in time")
        took_ms = round((time.monotonic() - started) * 1000)
        self._log_call(held, outcome, took_ms)
        return await self._settle(held, outcome, took_ms, progress, looking=True)

    async def left_of(self, run_id: UUID, *, timeout_s: float) -> None:
        """Wait a moment for what a try of this run still has to say."""
        left = {task for task, about in self._left.items() if about == run_id}
        if left:
            await asyncio.wait(left, timeout=timeout_s)

    async def close(self, *, timeout_s: float) -> None:
        """Wait a moment for all that is left, and give up the rest."""
        if self._left:
            _, late = await asyncio.wait(set(self._left), timeout=timeout_s)
            for task in late:
                task.cancel()

    async def _intend(self, held: Held, passed: Sequence[Pass], action: Call) -> Request | None:
        """Write that the call is about to be made; only then may it be made."""
        body = canonical(held.docs.payload)
        after = After.nothing()
        async with self._services.db.transaction() as conn:
            begun = await locked(self._services, conn, held, passed)
            if begun is None:
                return None
            run, facts = begun
            now = self._services.db.now()
            schema = (held.docs.description or {}).get("schema")
            if sha256_hex(body) != run.payload_sha256 or payload.missing(held.docs.payload, schema):
                raise RuntimeError("the payload is not the one that was let through")
            sent_before = await calls.tries(conn, run.id)
            limit = timedelta(seconds=held.provider.timeout_s(held.docs.tool_config))
            call = _again(action.again, now, now + limit) if action.again else _first(run, now, now + limit)
            await calls.intend(conn, call)
            data = {"call": call.number, "try": call.tries, "payload_sha256": call.payload_sha256}
            facts.append(Fact(EventType.PROVIDER_SUBMITTED, f"provider:{run.provider}", data))
            held.run, _ = await runs.save(conn, run, facts, now=now)
            held.call = call
            after.changed.append(run.id)
        log_steps(held.run, passed)
        await carry_out(self._services, after)
        return self._request(held, call, sent_before)

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
            callback_url=callback_url(self._services, run.id, call.number),
            timeout_s=max(0.001, (call.deadline_at - now).total_seconds()),
            run_left_s=max(0.001, (run.deadline_at - now).total_seconds()) if run.deadline_at else None,
        )

    async def _sent(self, provider: Provider, request: Request) -> Outcome:
        """What the provider answers. A try that may leave something behind that only its answer names is not cut
        off with its worker; any other is hung up on."""
        if provider.repeatable or (provider.poll_s is None and not provider.adopt_s):
            return await provider.call(request)
        sending = asyncio.get_running_loop().create_task(provider.call(request))
        try:
            return await asyncio.shield(sending)
        except asyncio.CancelledError:
            self._leave(request.run_id, self._heard_out(request, sending))
            raise

    async def _heard_out(self, request: Request, sending: "asyncio.Task[Outcome]") -> None:
        try:
            await asyncio.wait({sending}, timeout=min(LEFT_TIMEOUT_S, request.timeout_s))
        finally:
            sending.cancel()
        if sending.cancelled() or not sending.done() or sending.exception() is not None:
            return
        await self._keep(request.run_id, request.number, reference(sending.result()))

    async def _keep(self, run_id: UUID, number: int, provider_ref: str | None) -> None:
        """Keep what a try has begun, though its worker may no longer write: as if the provider had told us of it."""
        for n in range(KEEP_TRIES if provider_ref else 0):
            try:
                assert provider_ref is not None
                await take_notice(self._services, run_id, number, provider_ref)
                return
            except Unavailable:
                await asyncio.sleep(min(10.0, 0.5 * 2**n))

    def _leave(self, run_id: UUID, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._left[task] = run_id
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._left.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("http.error", error=type(error).__name__)

    def _progress(self, held: Held) -> Progress:
        run_id, token = held.run.id, held.token

        async def write(data: Data) -> None:
            async with self._services.db.transaction() as conn:
                run = await runs.lock_held(conn, run_id, token)
                await runs.save(conn, run, [_progressed(run, data)], now=self._services.db.now())
            await self._services.notifier.notify(run_id)

        return Progress(write, lambda: self._drop(run_id, token))

    async def _settle(
        self, held: Held, outcome: Outcome, took_ms: int, progress: Progress, *, looking: bool
    ) -> str | None:
        """Write what came of one try or look, and what it means for the run."""
        assert held.call is not None
        after = After.nothing()
        async with self._services.db.transaction() as conn:
            run = await runs.lock_held(conn, held.run.id, held.token)
            now = self._services.db.now()
            before = await calls.lock(conn, run.id, held.call.number)
            assert before is not None
            adopts = adoptable_until(before, abilities(held.provider)) is not None
            stored = looked(before, outcome, now=now) if looking else tried(before, outcome, now=now, adopts=adopts)
            facts: list[Fact] = []
            if (last := progress.untold) is not None and (
                not looking or last != await events.last_data(conn, run.id, EventType.PROVIDER_PROGRESS)
            ):
                facts.append(_progressed(run, last))
            if stored != before:
                await calls.save(conn, stored)
            for ref in strays(before, stored, outcome):
                await cancels.add(conn, stored, ref)
                after.cancelling.append(run.id)
            if stored.status is not before.status:
                facts += _told(run, stored, took_ms)
                if stored.status is CallStatus.ANSWERED:
                    await runs.set_answer(conn, run.id, output=stored.output, raw=stored.raw)
                if stored.cost_usd is not None:
                    run = replace(run, actual_usd=(run.actual_usd or 0) + stored.cost_usd)
            run = replace(run, provider_ms=run.provider_ms + took_ms)
            run, more, result = self._after_call(held, run, stored, outcome, now, after)
            held.run, _ = await runs.save(conn, run, [*facts, *more], now=now)
            held.call = stored
            if stored.status is CallStatus.ANSWERED:
                held.docs = replace(held.docs, output=stored.output, raw_response=stored.raw)
            after.changed.append(run.id)
        await carry_out(self._services, after)
        return result

    def _after_call(
        self, held: Held, run: Run, call: ProviderCall, outcome: Outcome, now: datetime, after: After
    ) -> tuple[Run, list[Fact], str | None]:
        """The run, further facts, and what became of it if its worker lets go of it now."""
        paused = run.status is RunStatus.PAUSED
        hint = outcome.retry_after_s if isinstance(outcome, Unreachable) else None
        if looked_at(call, abilities(held.provider)):
            assert held.provider.poll_s is not None
            wait = look_after(call.looks, poll_s=held.provider.poll_s, retry_after_s=hint, jitter=random.random())  # noqa: S311
            until = min(now + wait, call.deadline_at or now + wait)
            run = awaiting(self._services, run, until, after, now=now)
            return run, [], "paused" if paused else "awaiting_provider"
        if paused:
            return replace(run, lease_until=None, worker_id=None, released_at=now), [], "paused"
        match call.status:
            case CallStatus.RETRY:
                wait = backoff(call.tries, retry_after_s=hint, jitter=random.random())  # noqa: S311  spread, not secrecy
                later = woken(run, now=now, due_at=now + wait, released_at=now)
                after.wake.append(later)
                return replace(later, armed=True), [queued(later, "retry")], "retry_later"
            case CallStatus.ACCEPTED:
                run = awaiting(self._services, run, call.deadline_at, after, now=now)
                return run, [], "awaiting_provider"
            case CallStatus.INTENT:
                until = adoptable_until(call, abilities(held.provider)) or now
                return awaiting(self._services, run, until, after, now=now), [], "awaiting_provider"
            case _:
                return run, [], None

    def _log_call(self, held: Held, outcome: Outcome, took_ms: int) -> None:
        assert held.call is not None
        log.info(
            "provider.call", run_id=str(held.run.id), tenant=held.run.tenant, provider=held.provider.name,
            outcome=type(outcome).__name__.lower(), duration_ms=took_ms, call=held.call.number,
        )  # fmt: skip


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
    return replace(
        call, status=CallStatus.INTENT, tries=call.tries + 1, finished_at=None, problem=None,
        started_at=now if anew else call.started_at, deadline_at=deadline_at if anew else call.deadline_at,
    )  # fmt: skip


def _progressed(run: Run, data: Data) -> Fact:
    return Fact(EventType.PROVIDER_PROGRESS, f"provider:{run.provider}", dict(data))


def _told(run: Run, call: ProviderCall, took_ms: int) -> list[Fact]:
    """The event of a try that ended. One that goes on, or will be tried again, has none yet."""
    data: dict[str, Any] = {"call": call.number, "try": call.tries, "ms": took_ms}
    actor = f"provider:{run.provider}"
    match call.status:
        case CallStatus.ANSWERED:
            return [Fact(EventType.PROVIDER_COMPLETED, actor, {**data, "provider_ref": call.provider_ref})]
        case CallStatus.ACCEPTED | CallStatus.INTENT:
            return []
        case _:
            return [Fact(EventType.PROVIDER_FAILED, actor, {**data, "code": call.status})]
