"""Use case of a provider that answers later: the POST to the callback URL of a call."""

from typing import Any
from uuid import UUID

from service.commands.context import After, Services, carry_out, queued
from service.domain.call import Answered, CallStatus, Outcome, ProviderFailed, settled
from service.domain.event import EventType, Fact
from service.domain.run import RunStatus, ms_between, woken
from service.errors import BadSignature
from service.store import calls, runs


async def take_callback(services: Services, run_id: UUID, number: int, signature: str, body: Any) -> None:
    """Keep a provider's late answer. Repeats, and answers to unknown or finished runs, change nothing.

    It may come before our side has stored the 202: the answer then waits on the call's row.
    Raises `BadSignature`, and nothing happens.
    """
    if not services.keyring.verify("callback", f"{run_id}:{number}", signature):
        raise BadSignature("the signature of the callback URL is not valid")
    after = After.nothing()
    async with services.db.transaction() as conn:
        run = await runs.lock_any(conn, run_id)
        call = await calls.lock(conn, run_id, number) if run else None
        if run is None or call is None or run.final or run.call_no != number:
            return
        if call.status not in (CallStatus.INTENT, CallStatus.ACCEPTED, CallStatus.RETRY):
            return
        now = services.db.now()
        answered = settled(call, _outcome(body), now=now)
        await calls.save(conn, answered)
        took = {"call": number, "ms": ms_between(call.started_at, now)}
        if answered.status is CallStatus.ANSWERED:
            await runs.set_answer(conn, run.id, output=answered.output, raw=answered.raw)
            facts = [Fact(EventType.PROVIDER_COMPLETED, f"provider:{run.provider}", took)]
        else:
            facts = [Fact(EventType.PROVIDER_FAILED, f"provider:{run.provider}", {**took, "code": "provider_failed"})]
        if run.status is RunStatus.AWAITING_PROVIDER:
            run = woken(run, now=now)
            facts.append(queued(run, "answered"))
            after.wake.append(run)
        await runs.save(conn, run, facts, now=now)
        after.changed.append(run.id)
    await carry_out(services, after)


def callback_url(services: Services, run_id: UUID, number: int) -> str:
    signature = services.keyring.sign("callback", f"{run_id}:{number}")
    return f"{services.public_url}/hitl/webhooks/http/{run_id}?call={number}&signature={signature}"


def _outcome(body: Any) -> Outcome:
    """The body is the output as a 2xx body would be; a failure is `{"error": {"message"}}`."""
    if isinstance(body, dict) and set(body) == {"error"} and isinstance(body["error"], dict):
        return ProviderFailed("the provider reported a failure", raw=body)
    return Answered(output=body, raw=body)
