"""Runs with the Replicate provider when nothing comes back: the test is the worker."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from uuid import UUID

import pytest
import pytest_asyncio

from service.commands.callbacks import callback_url
from service.commands.context import Services
from service.commands.notices import Webhook, take_webhook
from service.domain.call import MAX_TRIES
from service.errors import BadSignature
from service.providers.replicate import ReplicateProvider
from service.providers.replicate_api import ReplicateApi
from service.runtime import Runtime
from service.standins.replicate import TOKEN, Fault, Replicate, throttled
from service.standins.replicate_models import FLUX, FLUX_VERSION
from service.standins.replicate_server import replicate_standin
from service.store import approvals
from service.store.database import EVERY
from tests.acting import begin, look, sql, story, worker
from tests.conftest import free_port
from tests.scripting import serving

TOOL = {"replicate-agent-tool": {"data": {"name": FLUX.name, "latest_version": FLUX_VERSION}}}


@pytest_asyncio.fixture(loop_scope="session")
async def standin() -> AsyncIterator[Replicate]:
    async with replicate_standin() as served:
        yield served


def of(url: str) -> ReplicateProvider:
    return ReplicateProvider(ReplicateApi(TOKEN, url))


async def make_due(runtime: Runtime, run_id: UUID) -> None:
    await sql(runtime, "update runs set due_at = now() where id = $1 and due_at is not null", run_id)


async def test_nobody_listens_is_tried_five_times_and_may_be_resumed(empty: Runtime, standin: Replicate) -> None:
    provider = of(f"http://127.0.0.1:{free_port()}")
    services = serving(empty, provider)
    run_id = await begin(empty, TOOL, services=services)
    hand = worker(empty, services=services)
    for _ in range(10):
        await make_due(empty, run_id)
        await hand.advance(run_id)
    run = await look(empty, run_id)
    assert run.error is not None
    assert (run.status, run.error["code"], run.error["recoverable"]) == ("failed", "provider_unavailable", True)
    await provider.aclose()


async def test_a_create_that_is_cut_and_never_claimed_asks_a_human_and_is_not_sent_again(
    empty: Runtime, standin: Replicate
) -> None:
    standin.faults["create"] = [Fault(None)]
    provider = of(standin.url)
    services = serving(empty, provider)
    run_id = await begin(empty, TOOL, services=services)
    hand = worker(empty, services=services)

    assert await hand.advance(run_id) == "awaiting_provider"
    await sql(empty, "update provider_calls set started_at = started_at - interval '31 s' where run_id = $1", run_id)
    await make_due(empty, run_id)
    assert await hand.advance(run_id) == "awaiting_human"

    async with empty.services.db.connection(EVERY) as conn:
        (question,) = await approvals.open_of_run(conn, run_id)
    assert question.checkpoint_type == "outcome_unknown"
    assert len(standin.seen("create")) == 1
    assert (await story(empty, run_id)).count("provider.submitted") == 1
    await provider.aclose()


async def test_without_a_token_the_run_is_told_so_and_nothing_is_asked(empty: Runtime, standin: Replicate) -> None:
    run_id = await begin(empty, TOOL)
    await worker(empty).advance(run_id)
    error: Any = (await look(empty, run_id)).error
    assert error["code"] == "provider_rejected" and "REPLICATE_API_TOKEN" in error["message"]
    assert not standin.received


async def test_runs_that_wait_for_another_one_s_reset_lose_no_try(empty: Runtime, standin: Replicate) -> None:
    standin.faults["create"] = [throttled(60)]
    provider = of(standin.url)
    services = serving(empty, provider)
    first, second = [await begin(empty, TOOL, services=services) for _ in range(2)]
    hand = worker(empty, services=services)
    assert await hand.advance(first) == "retry_later"
    for _ in range(2 * MAX_TRIES):
        await make_due(empty, second)
        assert await hand.advance(second) == "retry_later"

    assert len(standin.seen("create")) == 1
    waits = (await look(empty, second)).due_at
    assert waits is not None and waits > (await look(empty, first)).created_at + timedelta(seconds=50)
    assert await sql(empty, "select tries from provider_calls where run_id = $1", second) == 0
    assert await sql(empty, "select tries from provider_calls where run_id = $1", first) == 1
    await provider.aclose()


def signed_url(services: Services, run_id: UUID, number: int = 1) -> Webhook:
    url = urlsplit(callback_url(services, "replicate", run_id, number))
    query = dict(parse_qsl(url.query))
    return Webhook(str(run_id), query["call"], query["signature"], {}, b'{"id": "p7"}')


async def test_where_no_secret_can_be_had_the_url_s_own_signature_counts(empty: Runtime, standin: Replicate) -> None:
    standin.faults["create"], standin.faults["secret"] = [Fault(None)], [Fault(404)]
    provider = of(standin.url)
    services = serving(empty, provider)
    run_id = await begin(empty, TOOL, services=services)
    assert await worker(empty, services=services).advance(run_id) == "awaiting_provider"

    mine = signed_url(services, run_id)
    for forged in (
        replace(mine, signature="x"),
        replace(mine, call="2"),
        replace(mine, call=""),
        replace(mine, run_id=""),
    ):
        with pytest.raises(BadSignature):
            await take_webhook(services, provider.tool, forged)
    assert await sql(empty, "select provider_ref from provider_calls where run_id = $1", run_id) is None

    await take_webhook(services, provider.tool, mine)
    assert await sql(empty, "select provider_ref from provider_calls where run_id = $1", run_id) == "p7"
    await provider.aclose()


async def test_a_call_number_is_believed_only_with_our_own_signature(empty: Runtime, standin: Replicate) -> None:
    standin.faults["create"] = [Fault(None)]
    provider = of(standin.url)
    services = serving(empty, provider)
    run_id = await begin(empty, TOOL, services=services)
    assert await worker(empty, services=services).advance(run_id) == "awaiting_provider"

    body = b'{"id": "p8"}'
    forged = Webhook(str(run_id), "7", "x", standin.signed("m", body), body)
    await take_webhook(services, provider.tool, forged)  # Replicate's signature is enough: it is the current call's
    assert await sql(empty, "select provider_ref from provider_calls where run_id = $1 and number = 1", run_id) == "p8"
    await provider.aclose()
