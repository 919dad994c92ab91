"""Contract, sections 9 and 10: the replicate provider and its webhooks, the whole service against the stand-in."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from hashlib import sha256
from typing import Any

import httpx2
import orjson
import pytest
import pytest_asyncio

from service.domain.canonical import canonical
from service.domain.standard_webhooks import sign
from service.embedded import Servers
from service.standins.replicate import SECRET, TOKEN, Fault, Prediction, Replicate, throttled
from service.standins.replicate_models import FLUX, PNG, Model
from service.standins.replicate_server import replicate_standin
from service.store.migrate import migrate
from tests.conftest import (
    DEADLINE_S,
    WORKER,
    at,
    base_env,
    decide,
    eventually,
    free_port,
    new_database,
    process,
    run_body,
    settled,
    start,
    until_ready,
)

WORDS = Model(
    "acme/words",
    {"type": "object", "required": ["prompt"], "properties": {"prompt": {"type": "string"}, "n": {"type": "integer"}}},
    version="w1",
    example={"prompt": "sample", "n": 1},
    answer=lambda order, _: {"words": order["prompt"].upper()},
)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def served() -> AsyncIterator[Replicate]:
    async with replicate_standin() as standin:
        standin.models[WORDS.name] = WORDS
        yield standin


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def base_url(served: Replicate, servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """Web and worker with Replicate's token, on a database and a Redis database of their own."""
    database_url = await new_database(servers, "replicate")
    await migrate(database_url)
    url = f"http://127.0.0.1:{(port := free_port())}"
    env = base_env(
        servers, DATABASE_URL=database_url, REDIS_URL=f"{servers.redis_url}?db=7", HITL_PORT=str(port),
        HITL_PUBLIC_URL=url, REPLICATE_API_TOKEN=TOKEN, REPLICATE_BASE_URL=served.url, REPLICATE_WEBHOOK_SECRET="",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("replicate")
    env["HITL_FILES"] = str(folder / "files")
    args = ("uvicorn", "--factory", "service.app:create_app", "--port", str(port), "--no-access-log")
    log = folder / "web.log"
    with (
        process(*args, "--log-level", "warning", env=env, log=log) as child,
        process(*WORKER, env=env, log=folder / "worker.log"),
    ):
        await asyncio.to_thread(until_ready, url, child, log)
        yield url


@pytest.fixture
def logs(base_url: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """Everything that web and worker have written so far."""
    folder = next(tmp_path_factory.getbasetemp().glob("replicate*"))
    return lambda: "".join(path.read_text() for path in folder.glob("*.log"))


@pytest_asyncio.fixture(loop_scope="session")
async def client(base_url: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=base_url, timeout=70, trust_env=False) as found:
        yield found


@pytest.fixture
def standin(served: Replicate) -> Iterator[Replicate]:
    served.reset()
    yield served
    served.reset()


def tool(name: str = WORDS.name, **config: Any) -> dict[str, Any]:
    return {"replicate-agent-tool": {"data": {"name": name, **config}}}


async def begun(client: httpx2.AsyncClient, standin: Replicate, **config: Any) -> tuple[str, Prediction]:
    """A run that waits for its prediction."""
    known = set(standin.predictions)
    run_id = await start(client, run_body(tool(**config)))

    async def made() -> list[Prediction]:
        return [one for ref, one in standin.predictions.items() if ref not in known]

    found: list[Prediction] = await eventually(made, "the prediction")
    return run_id, found[0]


async def run_once(client: httpx2.AsyncClient, **config: Any) -> dict[str, Any]:
    return await settled(client, await start(client, run_body(tool(**config))))


async def types(client: httpx2.AsyncClient, run_id: str) -> list[str]:
    events = (await client.get(f"/hitl/runs/{run_id}/events?limit=200")).json()["events"]
    return [event["type"] for event in events]


# success


async def test_what_is_approved_is_the_input_of_one_prediction(client: httpx2.AsyncClient, standin: Replicate) -> None:
    run = await run_once(client, cost_per_second_usd=0.5)

    (seen,) = standin.seen("create")
    assert run["status"] == "completed", run["error"]
    assert run["payload"] == seen.json["input"] == {"prompt": "a red fox", "n": 1}
    assert sha256(canonical(seen.json["input"])).hexdigest() == run["payload_sha256"]
    assert run["result"] == {"words": "A RED FOX"}
    raw = run["raw_response"]
    assert raw["status"] == "succeeded" and raw["metrics"]["predict_time"] > 0
    assert run["cost"]["actual_usd"] == pytest.approx(0.5 * raw["metrics"]["predict_time"])
    found = await types(client, run["run_id"])
    assert [found.count(f"provider.{what}") for what in ("submitted", "completed", "failed")] == [1, 1, 0]


async def test_output_files_are_served_by_us_before_the_run_completes(
    client: httpx2.AsyncClient, standin: Replicate
) -> None:
    run = await run_once(client, name=FLUX.name, example_input={"prompt": "x", "num_outputs": 2})

    assert run["status"] == "completed", run["error"]
    originals = run["raw_response"]["output"]
    assert len(run["result"]) == 2 and all(url.startswith(standin.url) for url in originals)
    standin.reset()  # Replicate has deleted them
    for path in run["result"]:
        assert path.startswith("/hitl/files/")
        answer = await client.get(path)
        assert (answer.status_code, answer.content) == (200, PNG)
        assert answer.headers["content-type"] == "image/png"


async def test_a_slow_prediction_is_waited_for_without_a_slot(client: httpx2.AsyncClient, standin: Replicate) -> None:
    standin.runs_by_itself = standin.webhooks = False
    run_id, prediction = await begun(client, standin)
    await settled(client, run_id, "awaiting_provider")

    async def looked_twice() -> bool:
        return len(standin.seen("get")) >= 2

    await eventually(looked_twice, "the second look")
    await settled(client, run_id, "awaiting_provider")
    standin.finish(prediction)
    assert (await settled(client, run_id, "completed"))["result"] == {"words": "A RED FOX"}
    assert len(standin.predictions) == 1


async def test_the_schema_of_the_model_is_the_form_of_the_checkpoint(
    client: httpx2.AsyncClient, standin: Replicate
) -> None:
    body = run_body(tool(FLUX.name), policy="require_human", allowed_steps=["payload_review"])
    approval = await at(client, await start(client, body), "payload_review")

    fields = approval["context"]["schema"]["properties"]
    assert fields["aspect_ratio"]["enum"] == ["1:1", "16:9", "9:16"] and fields["num_outputs"]["maximum"] == 4
    assert approval["context"]["payload"] == {"prompt": "a red fox", "aspect_ratio": "1:1", "num_outputs": 1}
    refused = await decide(client, approval["approval_id"], "edit", edits={"num_outputs": 9, "aspect_ratio": "2:1"})
    assert refused.status_code == 422
    named = {error["pointer"].rsplit("/", 1)[-1] for error in refused.json()["errors"]}
    assert named == {"num_outputs", "aspect_ratio"}
    assert not standin.seen("create")


async def test_two_users_at_once_share_one_fetch_of_the_schema(client: httpx2.AsyncClient, standin: Replicate) -> None:
    fresh = Model("acme/fresh", WORDS.input_schema, version="f1", answer=WORDS.answer)
    standin.models[fresh.name] = fresh
    standin.faults["model"] = [Fault(0, effect=True, after_s=0.3)]
    bodies = [{**run_body(tool(fresh.name)), "user_id": user} for user in ("ana", "ben")]
    runs = [await settled(client, run_id) for run_id in [await start(client, body) for body in bodies]]
    later = await run_once(client, name=fresh.name)

    assert [run["status"] for run in (*runs, later)] == ["completed"] * 3
    assert len([one for one in standin.seen("model") if one.path.endswith("/fresh")]) == 1


# webhooks


async def test_a_webhook_brings_the_answer_before_the_next_look(client: httpx2.AsyncClient, standin: Replicate) -> None:
    standin.runs_by_itself = False
    run_id, prediction = await begun(client, standin)
    await settled(client, run_id, "awaiting_provider")
    standin.finish(prediction)
    run = await settled(client, run_id, "completed")

    assert run["result"] == {"words": "A RED FOX"}

    async def both() -> bool:
        return standin.delivered == [200, 200]

    await eventually(both, "the webhooks")


async def test_a_webhook_after_the_run_is_over_changes_nothing(client: httpx2.AsyncClient, standin: Replicate) -> None:
    standin.webhooks = False
    run_id, prediction = await begun(client, standin)
    before = await settled(client, run_id, "completed")
    answer = await post_webhook(client, standin, f"/hitl/webhooks/replicate/{run_id}?call=1", prediction.wire())

    assert answer.status_code == 200
    assert (await client.get(f"/hitl/runs/{run_id}")).json()["version"] == before["version"]
    assert len(standin.seen("cancel")) == 0


async def test_a_webhook_before_the_answer_to_the_create(client: httpx2.AsyncClient, standin: Replicate) -> None:
    standin.before_answer = True
    run = await run_once(client)
    assert (run["status"], run["result"]) == ("completed", {"words": "A RED FOX"})
    assert len(standin.predictions) == 1 and not standin.seen("cancel")


@pytest.mark.parametrize("trouble", ["duplicated", "reordered", "both"])
async def test_duplicated_and_reordered_webhooks_are_one_answer(
    client: httpx2.AsyncClient, standin: Replicate, trouble: str
) -> None:
    standin.copies = 1 if trouble == "reordered" else 3
    standin.reversed_order = trouble != "duplicated"
    run = await run_once(client)

    async def all_came() -> bool:
        return len(standin.delivered) >= 2 * standin.copies

    await eventually(all_came, "all the webhooks")
    assert set(standin.delivered) == {200}
    found = await types(client, run["run_id"])
    assert found.count("provider.completed") == found.count("run.completed") == 1
    assert (run["status"], run["result"]) == ("completed", {"words": "A RED FOX"})
    assert len(standin.seen("create")) == 1


async def test_no_webhook_at_all_is_only_slower(client: httpx2.AsyncClient, standin: Replicate) -> None:
    standin.webhooks = False
    run = await run_once(client)
    assert run["status"] == "completed" and standin.seen("get")


# the door


async def post_webhook(
    client: httpx2.AsyncClient, standin: Replicate, path: str, body: Any, **headers: str
) -> httpx2.Response:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return await client.post(path, content=raw, headers={**standin.signed("msg_1", raw), **headers})


UNKNOWN = "0198c0de-0000-7000-8000-000000000000"


async def test_a_signed_webhook_of_an_unknown_run_is_taken(client: httpx2.AsyncClient, standin: Replicate) -> None:
    for run_id in (UNKNOWN, "not-a-run"):
        answer = await post_webhook(client, standin, f"/hitl/webhooks/replicate/{run_id}", {"id": "p1"})
        assert answer.status_code == 200, answer.text


async def test_a_webhook_without_our_query_is_about_the_current_call(
    client: httpx2.AsyncClient, standin: Replicate
) -> None:
    standin.runs_by_itself = standin.webhooks = False
    run_id, prediction = await begun(client, standin)
    await settled(client, run_id, "awaiting_provider")
    standin.finish(prediction)
    answer = await post_webhook(client, standin, f"/hitl/webhooks/replicate/{run_id}", prediction.wire())
    assert answer.status_code == 200
    assert (await settled(client, run_id, "completed"))["result"] == {"words": "A RED FOX"}


@pytest.mark.parametrize(
    "headers",
    [
        {"webhook-signature": "v1,AAAA"},
        {"webhook-signature": ""},
        {"webhook-signature": "\xff\xfe ,,v1,"},
        {"webhook-timestamp": str(int(time.time()) - 301)},
        {"webhook-timestamp": "NaN"},
        {"webhook-timestamp": "9" * 400},
        {"webhook-id": "msg_2"},
        {"webhook-id": ""},
    ],
)
async def test_a_webhook_that_replicate_did_not_sign_is_401(
    client: httpx2.AsyncClient, standin: Replicate, headers: dict[str, str]
) -> None:
    standin.runs_by_itself = standin.webhooks = False
    _, prediction = await begun(client, standin)
    raw = orjson.dumps(prediction.wire())
    given = {k: v.encode("latin-1") for k, v in {**standin.signed("msg_1", raw), **headers}.items()}
    url = prediction.webhook or ""
    answer = await client.post(url, content=raw, headers=given)  # the URL's own signature is right
    assert (answer.status_code, answer.json()["code"]) == (401, "bad_signature")
    assert (await client.post(url, content=raw)).status_code == 401
    other = await post_webhook(client, standin, url, raw + b" ", **standin.signed("m", raw))
    assert other.status_code == 401


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[]", b"{}", b'{"id": 7}', b'{"id": "../x"}', b"\xff"])
async def test_a_signed_body_that_names_nothing_is_refused(
    client: httpx2.AsyncClient, standin: Replicate, body: bytes
) -> None:
    answer = await post_webhook(client, standin, f"/hitl/webhooks/replicate/{UNKNOWN}", body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_json")


async def test_a_callback_url_is_good_for_its_own_door_only(client: httpx2.AsyncClient, standin: Replicate) -> None:
    standin.runs_by_itself = standin.webhooks = False
    _, prediction = await begun(client, standin)
    forged = (prediction.webhook or "").replace("/webhooks/replicate/", "/webhooks/http/")
    assert (await client.post(forged, json={"paid": True})).status_code == 401


async def test_another_secret_signs_nothing(client: httpx2.AsyncClient, standin: Replicate) -> None:
    raw, now = b'{"id": "p1"}', int(time.time())
    for secret, status in (("whsec_b3RoZXI=", 401), (SECRET, 200)):
        headers = {"webhook-id": "m", "webhook-timestamp": str(now)}
        signed = {**headers, "webhook-signature": f"v1a,x {sign(secret, 'm', now, raw)}"}
        answer = await client.post(f"/hitl/webhooks/replicate/{UNKNOWN}", content=raw, headers=signed)
        assert answer.status_code == status


# refusals, limits, faults


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize("kind", ["model", "create"])
async def test_a_refusal_fails_the_run_after_one_try(
    client: httpx2.AsyncClient, standin: Replicate, kind: str, status: int
) -> None:
    standin.models["acme/twin"] = Model("acme/twin", WORDS.input_schema, version=f"t{kind}{status}")
    standin.faults[kind] = [Fault(status, {"detail": "no"})]
    version = {"latest_version": f"v-{status}"} if kind == "model" else {}  # one that is not on the shelf
    run = await run_once(client, **version)

    assert run["status"] == "failed"
    assert (run["error"]["code"], run["error"]["recoverable"]) == ("provider_rejected", False)
    assert str(status) in run["error"]["message"]
    assert len(standin.seen("create")) == (0 if kind == "model" else 1) and not standin.predictions


TWO_FAULTS = {
    "title": "Input validation failed",
    "status": 422,
    "detail": "- input.prompt: Must be longer\n- input.n: Must be less than or equal to 4\n",
}


async def test_a_422_asks_with_both_fields_and_the_edit_is_a_new_prediction(
    client: httpx2.AsyncClient, standin: Replicate
) -> None:
    standin.faults["create"] = [Fault(422, TWO_FAULTS)]
    run_id = await start(client, run_body(tool()))
    approval = await at(client, run_id, "error_recovery")

    issues = {issue["field"]: issue for issue in approval["context"]["validation_issues"]}
    assert {field: issue["issue"] for field, issue in issues.items()} == {
        "prompt": "Must be longer",
        "n": "Must be less than or equal to 4",
    }
    assert issues["n"]["suggested_fix"] == "at most 4"
    edited = await decide(client, approval["approval_id"], "edit", edits={"prompt": "a very long fox", "n": 2})
    assert edited.status_code == 200
    run = await settled(client, run_id)
    assert (run["status"], run["result"]) == ("completed", {"words": "A VERY LONG FOX"})
    assert [seen.json["input"]["n"] for seen in standin.seen("create")] == [1, 2]


async def test_a_429_waits_for_the_reset_that_its_text_names(client: httpx2.AsyncClient, standin: Replicate) -> None:
    standin.faults["create"] = [throttled(2)]
    run = await run_once(client)

    assert run["status"] == "completed"
    first, second = (seen.at for seen in standin.seen("create"))
    assert second - first >= 2
    assert len(standin.predictions) == 1


async def test_500_three_times_then_success_is_one_prediction(client: httpx2.AsyncClient, standin: Replicate) -> None:
    standin.faults["create"] = [Fault(500), Fault(500), Fault(500)]
    run = await run_once(client)

    assert (run["status"], run["result"]) == ("completed", {"words": "A RED FOX"})
    times = [seen.at for seen in standin.seen("create")]
    assert len(times) == 4 and len(standin.predictions) == 1
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert all(gap >= least for gap, least in zip(gaps, (0.25, 0.75, 1.75), strict=True)), gaps  # clocks differ


async def test_a_5xx_whose_prediction_stands_is_adopted_by_its_webhook(
    client: httpx2.AsyncClient, standin: Replicate
) -> None:
    standin.faults["create"] = [Fault(502, "bad gateway", effect=True)]
    run = await run_once(client)
    assert (run["status"], run["result"]) == ("completed", {"words": "A RED FOX"})
    assert len(standin.seen("create")) == 1 and len(standin.predictions) == 1


async def test_a_create_cut_in_the_middle_is_adopted_by_its_webhook(
    client: httpx2.AsyncClient, standin: Replicate
) -> None:
    standin.faults["create"] = [Fault(None, effect=True)]
    run = await run_once(client)
    assert (run["status"], run["result"]) == ("completed", {"words": "A RED FOX"})
    assert len(standin.seen("create")) == 1 and not standin.seen("cancel")


async def test_no_end_in_time_asks_what_became_of_it(client: httpx2.AsyncClient, standin: Replicate) -> None:
    standin.runs_by_itself = False
    run_id = await start(client, run_body(tool(timeout_seconds=1)))
    approval = await at(client, run_id, "outcome_unknown")
    assert approval["reasons"] == ["provider.outcome_unknown"]
    assert len(standin.seen("create")) == 1


@pytest.mark.parametrize("end", ["failed", "canceled", "aborted"])
async def test_a_prediction_that_ends_badly_fails_the_run(
    client: httpx2.AsyncClient, standin: Replicate, end: str
) -> None:
    standin.runs_by_itself = False
    run_id, prediction = await begun(client, standin)
    standin.end(prediction, end, error="out of memory")
    run = await settled(client, run_id)
    assert (run["status"], run["error"]["code"]) == ("failed", "provider_failed")
    assert "out of memory" in run["error"]["message"] and len(standin.seen("create")) == 1


async def test_cancelling_the_run_ends_the_prediction(client: httpx2.AsyncClient, standin: Replicate) -> None:
    standin.runs_by_itself = False
    run_id, prediction = await begun(client, standin)
    assert (await client.delete(f"/hitl/run/{run_id}")).status_code == 200

    async def ended() -> bool:
        return prediction.status == "canceled"

    await eventually(ended, "the cancel at the provider")
    assert (await settled(client, run_id))["status"] == "cancelled"


async def test_the_run_s_deadline_is_the_prediction_s(client: httpx2.AsyncClient, standin: Replicate) -> None:
    run = await settled(client, await start(client, run_body(tool(), run_timeout_seconds=300)))
    assert run["status"] == "completed"
    given = standin.seen("create")[0].headers["cancel-after"]
    assert given.endswith("s") and 300 - DEADLINE_S <= int(given[:-1]) <= 300


async def test_an_output_over_the_limit_fails_the_run(client: httpx2.AsyncClient, standin: Replicate) -> None:
    huge = Model("acme/huge", WORDS.input_schema, version="h1", answer=lambda *_: "x" * 9_000_000)
    standin.models[huge.name] = huge
    run = await run_once(client, name=huge.name)
    assert (run["status"], run["error"]["code"]) == ("failed", "provider_rejected")
    assert "larger than" in run["error"]["message"] and len(standin.seen("create")) == 1


async def test_what_a_safety_checker_said_asks_at_the_response(client: httpx2.AsyncClient, standin: Replicate) -> None:
    standin.runs_by_itself = False
    run_id, prediction = await begun(client, standin)
    prediction.logs = "NSFW content detected"
    standin.finish(prediction)
    approval = await at(client, run_id, "response_review")
    assert approval["reasons"] == ["safety.nsfw"]


async def test_the_provider_is_listed(client: httpx2.AsyncClient) -> None:
    found = {one["name"]: one for one in (await client.get("/hitl/providers")).json()["providers"]}
    assert found["replicate"]["tools"] == ["replicate-agent-tool"]


async def test_neither_content_nor_secret_reaches_a_log(
    client: httpx2.AsyncClient, standin: Replicate, logs: Callable[[], str]
) -> None:
    standin.fails_with = "no foxes like vulpes-lagopus here"
    body = run_body(tool(description="vulpes-zerda"), prompt="vulpes-vulpes runs")
    run = await settled(client, await start(client, body))
    assert run["error"]["code"] == "provider_failed"

    written = logs()
    signature = (next(iter(standin.predictions.values())).webhook or "").rpartition("signature=")[2]
    assert len(signature) > 20 and "provider.call" in written
    for secret in ("vulpes", TOKEN, SECRET, signature, "signature="):
        assert secret not in written
