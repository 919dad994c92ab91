"""Use cases of a provider that speaks later: the answer to a callback URL, or only a word to look again."""

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from service.commands.context import After, Services, carry_out, close_approval, queued
from service.domain.altered import altered
from service.domain.call import Answered, CallStatus, Notice, Outcome, ProviderCall, ProviderFailed, noticed, settled
from service.domain.event import EventType, Fact
from service.domain.policy import Checkpoint
from service.domain.record import content_sha256
from service.domain.run import Run, RunStatus, ms_between, woken
from service.errors import BadSignature
from service.store import approvals, calls, cancels, runs
from service.store.database import EVERY, Conn

MAX_TOLD: Final = 200


async def take_callback(services: Services, run_id: UUID, number: int, signature: str, body: Any) -> None:
    """Keep a provider's late answer. Repeats, and answers to unknown or finished runs, change nothing.

    It may come before our side has stored the 202: the answer then waits on the call's row.
    Raises `BadSignature`, and nothing happens.
    """
    if not services.keyring.verify("callback", f"{run_id}:{number}", signature):
        raise BadSignature("the signature of the callback URL is not valid")
    after = After.nothing()
    async with services.db.transaction(EVERY) as conn:
        run = await runs.lock_any(conn, run_id)
        call = await calls.lock(conn, run_id, number) if run else None
        if run is None or call is None or run.final or run.call_no != number:
            return
        if call.status not in (CallStatus.INTENT, CallStatus.ACCEPTED, CallStatus.RETRY):
            return
        now = services.db.now()
        answered = settled(call, _outcome(body), now=now)
        await calls.save(conn, answered)
        took: dict[str, Any] = {"call": number, "ms": ms_between(call.started_at, now)}
        if answered.status is CallStatus.ANSWERED:
            await runs.set_answer(conn, run.id, output=answered.output, raw=answered.raw)
            took |= {"response_sha256": content_sha256(answered.raw)}
            facts = [Fact(EventType.PROVIDER_COMPLETED, f"provider:{run.provider}", took)]
        else:
            await runs.set_answer(conn, run.id, output=None, raw=answered.raw)
            facts = [Fact(EventType.PROVIDER_FAILED, f"provider:{run.provider}", {**took, "code": "provider_failed"})]
        if run.status is RunStatus.AWAITING_PROVIDER:
            run = woken(run, now=now)
            facts.append(queued(run, "answered"))
            after.wake.append(run)
        await runs.save(conn, run, facts, now=now)
        after.changed.append(run.id)
    await carry_out(services, after)


async def take_notice(services: Services, run_id: UUID, number: int, provider_ref: str) -> None:
    """The provider says that something happened to its prediction `provider_ref`, begun for this call.

    Whoever calls has checked that it is the provider who says so. It may come before our side has stored the
    reference, long after, twice, or about a run that is over. Nothing of an answer is taken from it: the call
    is looked at.
    """
    after = After.nothing()
    async with services.db.transaction(EVERY) as conn:
        run = await runs.lock_any(conn, run_id)
        call = await calls.lock(conn, run_id, number) if run else None
        if run is None or call is None:
            return
        now = services.db.now()
        over = run.final and not (run.error or {}).get("recoverable")
        match noticed(call, provider_ref, wanted=not over and run.call_no == number):
            case Notice.NOTHING:
                return
            case Notice.STRAY:
                if call.provider_ref is None:
                    await calls.save(conn, altered(call, provider_ref=provider_ref))
                    await runs.move_on(conn, run.id)
                await cancels.add(conn, call, provider_ref)
                after.cancelling.append(run.id)
            case Notice.ADOPT | Notice.LOOK:
                await calls.save(conn, _adopted(call, provider_ref))
                await _look_now(conn, run, call, now, after)
    await carry_out(services, after)


def _adopted(call: ProviderCall, provider_ref: str) -> ProviderCall:
    """Looks begin anew: one that is under way may have seen what was before the notice, and the next comes soon."""
    return altered(call, status=CallStatus.ACCEPTED, provider_ref=provider_ref, finished_at=None, problem=None, looks=0)


async def _look_now(conn: Conn, run: Run, call: ProviderCall, now: datetime, after: After) -> None:
    """Make the run due, if it waits for its provider, or for a human to say what became of the call."""
    closed: list[Fact] = []
    for waiting in await approvals.open_of_run(conn, run.id):
        if waiting.checkpoint_type == Checkpoint.OUTCOME_UNKNOWN:
            closed.append(await close_approval(conn, waiting, now=now, actor=f"provider:{run.provider}"))
            after.changed.append(waiting.id)
    waits = run.status is RunStatus.AWAITING_PROVIDER
    tries_later = run.status is RunStatus.QUEUED and call.status is CallStatus.RETRY
    asked = run.status is RunStatus.AWAITING_HUMAN and bool(closed)
    if waits or tries_later or asked:
        run = woken(run, now=now)
        closed.append(queued(run, "notice"))
        after.wake.append(run)
    elif run.status is RunStatus.PAUSED and not run.leased:  # it stays paused; its call is looked at
        run = altered(run, due_at=now, armed=True, fencing_token=run.fencing_token + 1, woken_at=now)
        after.wake.append(run)
    elif not closed:
        await runs.move_on(conn, run.id)
        return
    await runs.save(conn, run, closed, now=now)
    after.changed.append(run.id)


def callback_url(services: Services, provider: str, run_id: UUID, number: int) -> str:
    """Where a provider answers a call; its signature is good for this provider's door and this call only."""
    signature = services.keyring.sign(purpose(provider), f"{run_id}:{number}")
    return f"{services.public_url}/hitl/webhooks/{provider}/{run_id}?call={number}&signature={signature}"


def purpose(provider: str) -> str:
    return "callback" if provider == "http" else f"callback:{provider}"


def _outcome(body: Any) -> Outcome:
    """The body is the output as a 2xx body would be; a failure is `{"error": {"message"}}`."""
    if isinstance(body, dict) and set(body) == {"error"} and isinstance(body["error"], dict):
        message = body["error"].get("message")
        told = f": {' '.join(message.split())[:MAX_TOLD]}" if isinstance(message, str) and message.strip() else ""
        return ProviderFailed(f"the provider reported a failure{told}", raw=body)
    return Answered(output=body, raw=body)
