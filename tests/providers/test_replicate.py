"""The Replicate provider against its stand-in on a real socket: what is asked, and what each answer means."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import orjson
import pytest
import pytest_asyncio

from service.domain.call import (
    Accepted,
    Answered,
    Description,
    InvalidInput,
    Outcome,
    OutcomeUnknown,
    ProviderFailed,
    Rejected,
    Unreachable,
)
from service.domain.canonical import canonical, sha256_hex
from service.errors import Invalid
from service.providers.protocol import Request
from service.providers.replicate import ReplicateProvider
from service.providers.replicate_api import ReplicateApi
from service.standins.replicate import SECRET, TOKEN, Fault, Replicate, late, throttled
from service.standins.replicate_models import FLUX, FLUX_VERSION
from service.standins.replicate_server import replicate_standin
from tests.conftest import DEADLINE_S, free_port

CONFIG = {"name": FLUX.name}
PAYLOAD = {"prompt": "a red fox é", "num_outputs": 2}


@pytest_asyncio.fixture(loop_scope="session")
async def standin() -> AsyncIterator[Replicate]:
    async with replicate_standin() as served:
        yield served


@pytest_asyncio.fixture(loop_scope="session")
async def provider(standin: Replicate) -> AsyncIterator[ReplicateProvider]:
    made = ReplicateProvider(ReplicateApi(TOKEN, standin.url), create_timeout_s=5)
    yield made
    await made.aclose()


def request(config: dict[str, Any] | None = None, payload: Any = None, **more: Any) -> Request:
    body = canonical(PAYLOAD if payload is None else payload)
    about = {
        "run_id": UUID(int=1), "number": 1, "sent_before": 0, "idempotency_key": "k", "body": body,
        "payload_sha256": sha256_hex(body), "config": config or CONFIG, "secrets": {},
        "callback_url": "http://127.0.0.1:9/hitl/webhooks/replicate/x?call=1&signature=s", "timeout_s": 30.0,
    }  # fmt: skip
    return Request(**{**about, **more})


async def over(provider: ReplicateProvider, outcome: Outcome, config: dict[str, Any] | None = None) -> Outcome:
    """The last outcome of an accepted call."""
    assert isinstance(outcome, Accepted) and outcome.provider_ref
    found: Outcome = outcome
    async with asyncio.timeout(DEADLINE_S):
        while isinstance(found, Accepted):
            await asyncio.sleep(0.01)
            found = await provider.poll(request(config), outcome.provider_ref)
    return found


# the config


@pytest.mark.parametrize(
    "config",
    [
        {"name": "a/b"},
        {"name": "a/b:v1", "unknown": {"x": 1}, "description": None, "operation_type": "image"},
        {"name": "a/b", "latest_version": {"id": "v1", "openapi_schema": {}}},
        {"name": "a/b", "latest_version": None, "example_input": None},
        {"deployment": "a/b"},
    ],
)
def test_whole_catalogue_entries_are_taken_as_they_are(config: dict[str, Any]) -> None:
    assert ReplicateProvider(ReplicateApi(None)).check(config) == config


@pytest.mark.parametrize(
    ("config", "pointer"),
    [
        ({}, "/name"),
        ({"name": "flux"}, "/name"),
        ({"name": "../secrets"}, "/name"),
        ({"name": "a/b/c"}, "/name"),
        ({"name": "a/b?x"}, "/name"),
        ({"name": "a/b\n"}, "/name"),
        ({"name": "a/b", "latest_version": "../x"}, "/latest_version"),
        ({"deployment": "a"}, "/deployment"),
        ({"name": "a/b", "cost_per_second_usd": -1}, "/cost_per_second_usd"),
    ],
)
def test_a_config_that_names_nothing_is_refused_with_its_place(config: dict[str, Any], pointer: str) -> None:
    with pytest.raises(Invalid) as refused:
        ReplicateProvider(ReplicateApi(None)).check(config)
    assert [error["pointer"] for error in refused.value.errors] == [
        f"/run_input/agent_tool_config/replicate-agent-tool{pointer}"
    ]


# describe


async def test_a_model_is_described_by_its_own_schema_and_example(provider: ReplicateProvider) -> None:
    found = await provider.describe(CONFIG)
    assert isinstance(found, Description)
    assert found.schema["properties"]["aspect_ratio"]["enum"] == ["1:1", "16:9", "9:16"]
    assert found.example == FLUX.example and found.estimated_cost_usd is None

    own = await provider.describe({**CONFIG, "example_input": {"prompt": "mine"}, "estimated_cost_usd": 0.003})
    assert isinstance(own, Description)
    assert own.example == {"prompt": "mine"} and own.estimated_cost_usd == 0.003


async def test_many_at_once_share_one_fetch_and_later_ones_need_none(
    provider: ReplicateProvider, standin: Replicate
) -> None:
    standin.faults["model"] = [late(0.1)]
    found = await asyncio.gather(*(provider.describe(CONFIG) for _ in range(20)))
    assert all(isinstance(one, Description) for one in found)
    assert isinstance(await provider.describe({**CONFIG, "description": "another run"}), Description)
    assert len(standin.seen("model")) == 1


async def test_who_stops_waiting_for_the_fetch_does_not_stop_the_others(
    provider: ReplicateProvider, standin: Replicate
) -> None:
    standin.faults["model"] = [late(0.2)]
    first = asyncio.ensure_future(provider.describe(CONFIG))
    second = asyncio.ensure_future(provider.describe(CONFIG))
    await asyncio.sleep(0)
    first.cancel()
    assert isinstance(await second, Description)
    assert len(standin.seen("model")) == 1


async def test_a_failed_fetch_is_not_remembered(provider: ReplicateProvider, standin: Replicate) -> None:
    standin.faults["model"] = [Fault(500)]
    assert isinstance(await provider.describe(CONFIG), Unreachable)
    assert isinstance(await provider.describe(CONFIG), Description)


async def test_a_version_of_its_own_is_looked_up(provider: ReplicateProvider, standin: Replicate) -> None:
    current = await provider.describe({**CONFIG, "latest_version": FLUX_VERSION})
    assert isinstance(current, Description) and len(standin.seen("model")) == 1
    gone = await provider.describe({"name": f"{FLUX.name}:older"})
    assert isinstance(gone, Rejected) and "404" in gone.problem
    assert standin.seen("model")[-1].path.endswith("/versions/older")


async def test_a_deployment_is_described_by_the_model_it_runs(provider: ReplicateProvider, standin: Replicate) -> None:
    standin.deployments["acme/foxes"] = FLUX.name
    found = await provider.describe({"deployment": "acme/foxes"})
    assert isinstance(found, Description) and "prompt" in found.schema["properties"]


async def test_a_model_without_a_schema_falls_back_to_the_example(
    provider: ReplicateProvider, standin: Replicate
) -> None:
    body = {"owner": "a", "name": "b", "latest_version": None, "default_example": {"input": {"text": "x"}}}
    standin.faults["model"] = [Fault(200, body)]
    assert await provider.describe({"name": "a/b"}) == Description(schema=None, example={"text": "x"})


@pytest.mark.parametrize(
    ("fault", "kind", "after_s"),
    [
        (Fault(401), Rejected, None),
        (Fault(403), Rejected, None),
        (Fault(404), Rejected, None),
        (throttled(30), Unreachable, 30),
        (Fault(429, {}, {"retry-after": "7"}), Unreachable, 7),
        (Fault(500), Unreachable, None),
        (Fault(503, {}, {"retry-after": "7"}), Unreachable, 7),
        (Fault(503, {}, {"retry-after": "inf"}), Unreachable, None),
        (Fault(503, {}, {"retry-after": "nan"}), Unreachable, None),
        (Fault(None), Unreachable, None),
        (Fault(200, "html"), Unreachable, None),
        (Fault(302, None, {"location": "/v1/account"}), Rejected, None),
    ],
)
async def test_what_a_failing_look_at_the_model_means(
    provider: ReplicateProvider, standin: Replicate, fault: Fault, kind: type, after_s: float | None
) -> None:
    standin.faults["model"] = [fault]
    found = await provider.describe(CONFIG)
    assert isinstance(found, kind)
    assert getattr(found, "retry_after_s", None) == after_s


async def test_without_a_token_nothing_is_asked_and_it_is_said(standin: Replicate) -> None:
    provider = ReplicateProvider(ReplicateApi(None, standin.url))
    for found in (await provider.describe(CONFIG), await provider.call(request())):
        assert isinstance(found, Rejected) and "REPLICATE_API_TOKEN" in found.problem
    assert await provider.webhook_secrets() == ()
    assert not standin.received


# the create


@pytest.mark.parametrize(
    ("config", "path", "version"),
    [
        (CONFIG, f"/v1/models/{FLUX.name}/predictions", None),
        ({**CONFIG, "latest_version": FLUX_VERSION}, "/v1/predictions", FLUX_VERSION),
        ({"name": f"{FLUX.name}:{FLUX_VERSION}"}, "/v1/predictions", FLUX_VERSION),
        ({"name": "acme/community"}, "/v1/predictions", "v2"),
        ({"deployment": "acme/foxes", "name": FLUX.name}, "/v1/deployments/acme/foxes/predictions", None),
    ],
)
async def test_each_kind_of_model_has_its_create_with_exactly_the_approved_bytes(
    provider: ReplicateProvider, standin: Replicate, config: dict[str, Any], path: str, version: str | None
) -> None:
    standin.deployments["acme/foxes"] = FLUX.name
    standin.models["acme/community"] = replace(FLUX, name="acme/community", version="v2", official=False)
    sent = request(config)
    outcome = await provider.call(sent)

    (seen,) = standin.seen("create")
    assert isinstance(outcome, Accepted) and outcome.provider_ref in standin.predictions
    assert seen.path == path and seen.json.get("version") == version
    assert b'{"input":' + sent.body + b"," in seen.body
    assert seen.json["webhook"] == sent.callback_url and seen.json["webhook_events_filter"] == ["start", "completed"]
    assert seen.headers["authorization"] == f"Bearer {TOKEN}" and "cancel-after" not in seen.headers


async def test_the_whole_prediction_comes_back_with_its_files(provider: ReplicateProvider, standin: Replicate) -> None:
    config = {**CONFIG, "cost_per_second_usd": 0.1}
    found = await over(provider, await provider.call(request(config)), config)
    assert isinstance(found, Answered)
    assert len(found.output) == 2 and list(found.files) == found.output
    assert found.output[0].startswith(standin.url) and found.raw["id"] == found.provider_ref
    assert found.cost_usd == pytest.approx(0.1 * found.raw["metrics"]["predict_time"])


async def test_a_prediction_that_is_over_at_once_is_the_answer(provider: ReplicateProvider, standin: Replicate) -> None:
    whole = {"id": "p1", "status": "succeeded", "output": "text"}
    standin.faults["create"] = [Fault(201, whole), Fault(201, {**whole, "status": "failed", "error": "no"})]
    assert await provider.call(request()) == Answered(output="text", raw=whole, provider_ref="p1", files=())
    assert isinstance(await provider.call(request()), ProviderFailed)


@pytest.mark.parametrize(("left_s", "header"), [(90.7, "90s"), (5.2, "5s"), (1, "5s"), (0, "5s")])
async def test_what_is_left_of_the_run_ends_the_prediction(
    provider: ReplicateProvider, standin: Replicate, left_s: float, header: str
) -> None:
    assert isinstance(await provider.call(request(run_left_s=left_s)), Accepted)
    assert standin.seen("create")[0].headers["cancel-after"] == header


async def test_other_bytes_than_the_approved_ones_are_never_sent(
    provider: ReplicateProvider, standin: Replicate
) -> None:
    with pytest.raises(RuntimeError):
        await provider.call(request(payload_sha256="0" * 64))
    assert not standin.seen("create")


@pytest.mark.parametrize(
    ("base", "callback", "there"),
    [
        ("https://api.replicate.com", "https://hitl.example/x", True),
        ("https://api.replicate.com/v1/", "http://127.0.0.1:8811/x", False),
        ("http://127.0.0.1:1", "http://127.0.0.1:8811/x", True),
    ],
)
def test_a_webhook_is_asked_for_only_where_it_would_be_taken(base: str, callback: str, there: bool) -> None:
    api = ReplicateApi(None, base)
    assert not api.base_url.endswith(("/", "/v1"))
    from service.providers.replicate import Place

    order = ReplicateProvider(api)._order(request(callback_url=callback), Place("/v1/predictions", None))
    assert ("webhook" in orjson.loads(order)) is there
    assert orjson.loads(order)["input"] == PAYLOAD


@pytest.mark.parametrize(
    ("fault", "kind", "after_s", "told"),
    [
        (Fault(400, {"detail": "bad"}), Rejected, None, "400"),
        (Fault(401, {}), Rejected, None, "REPLICATE_API_TOKEN is not valid"),
        (Fault(402, {"title": "Insufficient credit"}), Rejected, None, "Insufficient credit"),
        (Fault(404, {}), Rejected, None, "404"),
        (Fault(302, None, {"location": "/"}), Rejected, None, "302"),
        (throttled(30), Unreachable, 30, "429"),
        (Fault(500, "x"), Unreachable, None, "500"),
        (Fault(502, "x"), Unreachable, 5, "502"),
        (Fault(503, {}, {"retry-after": "2"}), Unreachable, 2, "503"),
        (Fault(504, "x"), Unreachable, 5, "504"),
        (Fault(None), OutcomeUnknown, None, "broke"),
        (Fault(201, "no json object"), OutcomeUnknown, None, "names no prediction"),
        (Fault(201, {"status": "starting"}), OutcomeUnknown, None, "names no prediction"),
    ],
)
async def test_what_each_answer_to_a_create_means(
    provider: ReplicateProvider, standin: Replicate, fault: Fault, kind: type, after_s: float | None, told: str
) -> None:
    standin.faults["create"] = [fault]
    found: Any = await provider.call(request())
    assert isinstance(found, kind) and told in found.problem
    assert getattr(found, "retry_after_s", None) == after_s
    assert len(standin.seen("create")) == 1


async def test_a_422_names_each_faulty_field_with_what_is_allowed(
    provider: ReplicateProvider, standin: Replicate
) -> None:
    found = await provider.call(request(payload={"num_outputs": 9, "aspect_ratio": "2:1"}))
    assert isinstance(found, InvalidInput)
    told = {issue["field"]: issue["suggested_fix"] for issue in found.issues}
    assert told == {"prompt": None, "num_outputs": "at most 4", "aspect_ratio": "1:1, 16:9, 9:16"}
    assert found.raw["title"] == "Input validation failed"


async def test_a_create_that_is_not_answered_in_time_is_an_unknown_outcome(standin: Replicate) -> None:
    provider = ReplicateProvider(ReplicateApi(TOKEN, standin.url), create_timeout_s=0.2)
    standin.faults["create"] = [late(30)]
    found = await provider.call(request({**CONFIG, "latest_version": FLUX_VERSION}))
    assert isinstance(found, OutcomeUnknown) and len(standin.predictions) == 1
    await provider.aclose()


async def test_nobody_listens_means_unreachable_everywhere() -> None:
    provider = ReplicateProvider(ReplicateApi(TOKEN, f"http://127.0.0.1:{free_port()}"))
    assert isinstance(await provider.describe(CONFIG), Unreachable)
    assert isinstance(await provider.call(request({**CONFIG, "latest_version": "v1"})), Unreachable)
    assert isinstance(await provider.poll(request(), "p1"), Unreachable)
    assert await provider.cancel(CONFIG, {}, "p1") is False
    await provider.aclose()


async def test_after_a_429_nobody_creates_until_the_reset(provider: ReplicateProvider, standin: Replicate) -> None:
    standin.faults["create"] = [throttled(60)]
    config = {**CONFIG, "latest_version": FLUX_VERSION}
    await provider.call(request(config))
    later = [await provider.call(request(config)) for _ in range(3)]

    waits = [one.retry_after_s for one in later if isinstance(one, Unreachable) and one.retry_after_s]
    assert len(waits) == 3 and waits == sorted(set(waits)) and waits[0] > 55 and waits[-1] < 62
    assert len(standin.seen("create")) == 1
    assert isinstance(await provider.describe(CONFIG), Description)  # looks have a limit of their own


# looks and cancels


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(404), ProviderFailed),
        (Fault(410), ProviderFailed),
        (Fault(401), Rejected),
        (throttled(3), Unreachable),
        (Fault(500), Unreachable),
        (Fault(None), Unreachable),
        (Fault(200, {"status": "succeeded"}), Unreachable),
        (Fault(200, {"id": "p1", "status": "starting"}), Accepted),
        (Fault(200, {"id": "p1", "status": "processing"}), Accepted),
        (Fault(200, {"id": "p1", "status": "succeeded", "output": 1}), Answered),
        (Fault(200, {"id": "p1", "status": "failed", "error": "x"}), ProviderFailed),
        (Fault(200, {"id": "p1", "status": "canceled"}), ProviderFailed),
        (Fault(200, {"id": "p1", "status": "aborted"}), ProviderFailed),
        (Fault(200, {"id": "p1", "status": "succeeded", "output": "x" * 9_000_000}), Rejected),
    ],
)
async def test_what_each_look_means(provider: ReplicateProvider, standin: Replicate, fault: Fault, kind: type) -> None:
    standin.faults["get"] = [fault]
    assert isinstance(await provider.poll(request(), "p1"), kind)


async def test_a_reference_stays_inside_its_place_in_the_address(
    provider: ReplicateProvider, standin: Replicate
) -> None:
    await provider.poll(request(), "../models/a?x=1")
    assert [one.kind for one in standin.received] in (["get"], [])


@pytest.mark.parametrize(
    ("fault", "done"),
    [
        (Fault(200, {}), True),
        (Fault(404), True),
        (Fault(409), True),
        (Fault(401), True),
        (throttled(1), False),
        (Fault(500), False),
        (Fault(None), False),
    ],
)
async def test_a_cancel_is_done_unless_it_could_not_be_said(
    provider: ReplicateProvider, standin: Replicate, fault: Fault, done: bool
) -> None:
    standin.faults["cancel"] = [fault]
    assert await provider.cancel(CONFIG, {}, "p1") is done


async def test_a_cancel_ends_the_prediction(provider: ReplicateProvider, standin: Replicate) -> None:
    standin.runs_by_itself = False
    outcome = await provider.call(request())
    assert isinstance(outcome, Accepted) and outcome.provider_ref
    assert await provider.cancel(CONFIG, {}, outcome.provider_ref) is True
    assert standin.predictions[outcome.provider_ref].status == "canceled"
    assert isinstance(await provider.poll(request(), outcome.provider_ref), ProviderFailed)


# the secret of its webhooks


async def test_the_account_s_secret_is_fetched_once(provider: ReplicateProvider, standin: Replicate) -> None:
    assert await provider.webhook_secrets() == (SECRET,)
    assert await provider.webhook_secrets() == (SECRET,)
    assert len(standin.seen("secret")) == 1


async def test_a_secret_of_the_settings_needs_no_fetch(standin: Replicate) -> None:
    provider = ReplicateProvider(ReplicateApi(TOKEN, standin.url), webhook_secrets=("whsec_YQ==",))
    assert await provider.webhook_secrets() == ("whsec_YQ==",)
    assert not standin.received
    await provider.aclose()


@pytest.mark.parametrize(
    "fault", [Fault(404), Fault(500), Fault(None), Fault(200, {"key": "odd"}), Fault(200, {"key": 1})]
)
async def test_no_secret_to_be_had_is_none(provider: ReplicateProvider, standin: Replicate, fault: Fault) -> None:
    standin.faults["secret"] = [fault]
    assert await provider.webhook_secrets() == ()
    assert await provider.webhook_secrets() == ()
    assert len(standin.seen("secret")) == 1
