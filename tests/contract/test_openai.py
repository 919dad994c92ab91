"""The `openai` provider against a chat server on a real socket: alone, and in runs that a worker advances."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args
from uuid import UUID

import httpx2
import orjson
import pytest
import pytest_asyncio
from openai.types.shared.reasoning_effort import ReasoningEffort

from service.commands.approvals import decide
from service.domain.approval import Order
from service.domain.call import (
    Answered,
    Description,
    InvalidInput,
    Outcome,
    OutcomeUnknown,
    ProviderFailed,
    Rejected,
    Unreachable,
)
from service.domain.canonical import JSON, canonical, sha256_hex
from service.domain.ids import uuid7
from service.domain.policy import HitlConfig, ReviewThresholds
from service.embedded import Servers
from service.errors import Invalid, InvalidPayload
from service.providers import openai_chat
from service.providers.http import MAX_ANSWER_BYTES
from service.providers.openai import NO_KEY, OpenAIProvider
from service.providers.openai_schema import SCHEMA
from service.providers.protocol import Request
from service.runtime import Runtime, open_runtime
from service.standins.openai import Answers, ChatServer, Says, chat_server, error
from service.store import approvals, events
from service.store.database import EVERY
from service.store.migrate import migrate
from tests.acting import AUTO, begin, docs_of, look, sql, story, within, worker
from tests.conftest import (
    DEV,
    WORKER,
    Stack,
    base_env,
    eventually,
    free_port,
    new_database,
    process,
    run_body,
    settled,
    start,
    web,
)

CONFIG = {"model": "gpt-standin"}
PRICES = {"input_per_million_usd": 1000.0, "output_per_million_usd": 2000.0}
FOX = Says(["A ", "red ", "fox."], usage=(12, 3))


def spelled(*data: str | bytes) -> Answers:
    """A stream of events that a script spells out."""
    lines = (b"data: " + (one if isinstance(one, bytes) else one.encode()) + b"\n\n" for one in data)
    return Answers(200, b"".join(lines), {"content-type": "text/event-stream"})


@dataclass
class Told:
    """A request to the provider, and the progress that it told."""

    texts: list[str] = field(default_factory=list)

    def request(
        self, payload: Mapping[str, JSON], config: Mapping[str, Any], *, timeout_s: float = 20, number: int = 1
    ) -> Request:
        body = canonical(payload)
        run_id = uuid7()
        return Request(
            run_id=run_id, number=number, sent_before=0, idempotency_key=f"{run_id}-{number}", body=body,
            payload_sha256=sha256_hex(body), config=config, secrets={}, callback_url="", timeout_s=timeout_s,
            progress=lambda data: self.texts.append(data["text"]),
        )  # fmt: skip


@pytest_asyncio.fixture(loop_scope="session")
async def server() -> AsyncIterator[ChatServer]:
    async with chat_server() as found:
        yield found


@pytest_asyncio.fixture(loop_scope="session")
async def chat(server: ChatServer) -> AsyncIterator[OpenAIProvider]:
    provider = OpenAIProvider(server.api_key, server.url)
    yield provider
    await provider.aclose()


async def ask(provider: OpenAIProvider, payload: Mapping[str, JSON] | None = None, **more: Any) -> Outcome:
    config = {**CONFIG, **more.pop("config", {})}
    told = more.pop("told", Told())
    return await provider.call(told.request({"prompt": "a red fox", **(payload or {})}, config, **more))


def test_a_process_that_calls_nobody_does_not_load_the_sdk() -> None:
    code = "import sys, service.app, service.worker; sys.exit('openai' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# what is sent


async def test_the_approved_payload_is_sent_as_one_message_after_the_system_and_its_settings_unchanged(
    server: ChatServer, chat: OpenAIProvider
) -> None:
    settings = {
        "temperature": 0,
        "top_p": 0.25,
        "max_tokens": 40,
        "seed": 2**53 - 1,
        "stop": ["END", "\u00e9"],
        "n": 1,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
        "logit_bias": {"50256": -100},
        "reasoning_effort": "low",
    }
    server.script = [FOX]

    await ask(chat, settings, config={"system": "Be brief.", "unknown": 1})

    assert server.seen[0].json == {
        "model": "gpt-standin",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a red fox"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        **settings,
    }
    sent = server.seen[0].json
    assert all(type(sent[name]) is type(value) for name, value in settings.items())


async def test_a_request_goes_to_the_base_url_with_the_key_and_the_calls_own_idempotency_key(
    server: ChatServer, chat: OpenAIProvider
) -> None:
    request = Told().request({"prompt": "x"}, CONFIG)
    await chat.call(request)
    await chat.call(request)

    assert {seen.path for seen in server.seen} == {"/v1/chat/completions"}
    assert {seen.headers["authorization"] for seen in server.seen} == {f"Bearer {server.api_key}"}
    assert {seen.headers["idempotency-key"] for seen in server.seen} == {request.idempotency_key}


async def test_without_a_system_there_is_one_message(server: ChatServer, chat: OpenAIProvider) -> None:
    await ask(chat)

    assert server.seen[0].json["messages"] == [{"role": "user", "content": "a red fox"}]


@pytest.mark.parametrize(
    ("payload", "field"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": []}, "functions"),
        ({"stream": False}, "stream"),
        ({"model": "gpt-dearer"}, "model"),
        ({"messages": []}, "messages"),
        ({"temperature": 3}, "temperature"),
        ({"n": 2}, "n"),
        ({"prompt": ""}, "prompt"),
    ],
)
async def test_a_payload_that_the_schema_refuses_is_not_sent(
    server: ChatServer, chat: OpenAIProvider, payload: dict[str, Any], field: str
) -> None:
    found = await ask(chat, payload)

    assert isinstance(found, InvalidInput)
    assert [issue["field"] for issue in found.issues] == [field]
    assert server.seen == []


async def test_a_redirect_is_not_followed(server: ChatServer, chat: OpenAIProvider) -> None:
    async with chat_server() as elsewhere:
        server.script = [Answers(307, b"", {"location": f"{elsewhere.url}/chat/completions"})]

        assert isinstance(await ask(chat), Rejected)

        assert elsewhere.seen == []


async def test_neither_a_proxy_nor_an_address_of_the_environment_gets_the_key(
    server: ChatServer, chat: OpenAIProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with chat_server() as elsewhere:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "OPENAI_BASE_URL"):
            monkeypatch.setenv(name, elsewhere.url)

        assert isinstance(await ask(chat), Answered)

        assert elsewhere.seen == []


# what comes back


async def test_an_answer_is_its_text_and_the_whole_completion_with_usage_and_cost(
    server: ChatServer, chat: OpenAIProvider
) -> None:
    server.script = [FOX]

    found = await ask(chat, config={"prices": PRICES})

    assert isinstance(found, Answered)
    assert (found.output, found.provider_ref, found.safety_flags) == ("A red fox.", "chatcmpl-standin", [])
    assert found.cost_usd == pytest.approx(0.018)
    assert found.raw["usage"] == {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    assert found.raw["choices"][0]["message"]["content"] == "A red fox."
    assert found.raw["choices"][0]["finish_reason"] == "stop"


async def test_progress_tells_the_growing_text_in_order_and_at_last_all_of_it(
    server: ChatServer, chat: OpenAIProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_chat, "TELL_EVERY_S", 0)
    told = Told()
    server.script = [Says(["A ", "red ", "fox."], pause_s=0.01)]

    await ask(chat, told=told)

    assert told.texts == ["A ", "A red ", "A red fox.", "A red fox."]


async def test_progress_is_thinned_but_for_the_last_of_it(server: ChatServer, chat: OpenAIProvider) -> None:
    told = Told()
    server.script = [Says(["x"] * 2000)]

    await ask(chat, told=told)

    assert len(told.texts) < 1000
    assert told.texts[-1] == "x" * 2000


async def test_a_refusal_is_an_answer_with_a_flag(server: ChatServer, chat: OpenAIProvider) -> None:
    server.script = [Says(refusal=["I cannot ", "help."])]

    found = await ask(chat)

    assert isinstance(found, Answered)
    assert (found.output, found.safety_flags) == ("I cannot help.", ["refusal"])


@pytest.mark.parametrize(
    ("entry", "output"),
    [
        (Says(["half"], finish="content_filter"), "half"),
        (Says(["half"], then={"code": "content_filter", "message": "x"}), "half"),
        (Answers(400, error("filtered", code="content_filter", param="prompt")), ""),
    ],
)
async def test_what_the_filter_stopped_is_an_answer_with_a_flag(
    server: ChatServer, chat: OpenAIProvider, entry: Any, output: str
) -> None:
    server.script = [entry]

    found = await ask(chat)

    assert isinstance(found, Answered)
    assert (found.output, found.safety_flags) == (output, ["content_filter"])


async def test_a_server_that_does_not_stream_is_understood(server: ChatServer, chat: OpenAIProvider) -> None:
    body = {
        "id": "c",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "whole"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    }
    server.script = [Answers(200, body)]

    found = await ask(chat, config={"prices": PRICES})

    assert isinstance(found, Answered)
    assert (found.output, found.raw) == ("whole", body)
    assert found.cost_usd == pytest.approx(0.003)


async def test_a_server_that_cannot_count_in_a_stream_is_asked_without(chat: OpenAIProvider) -> None:
    async with chat_server(counts_in_streams=False) as older:
        provider = OpenAIProvider(older.api_key, older.url)

        found = [await ask(provider), await ask(provider)]

        assert all(isinstance(one, Answered) and one.output == "a red fox" for one in found)
        assert ["stream_options" in seen.json for seen in older.seen] == [True, False, False]
        await provider.aclose()


async def test_a_character_that_comes_in_two_halves_is_put_together(server: ChatServer, chat: OpenAIProvider) -> None:
    said = (
        r'{"choices": [{"delta": {"content": "\ud83e"}}]}',
        r'{"choices": [{"delta": {"content": "\udd8a\u0000"}}]}',
    )
    server.script = [spelled(*said, '{"choices": [{"delta": {}, "finish_reason": "stop"}]}', "[DONE]")]

    found = await ask(chat)

    assert isinstance(found, Answered)
    assert found.output == "\U0001f98a\0"


@pytest.mark.parametrize("says", [Says(["x"], then="end"), Says(["x"], finish=None)])
async def test_a_stream_is_whole_by_its_last_mark_or_by_its_reason_to_end(
    server: ChatServer, chat: OpenAIProvider, says: Says
) -> None:
    server.script = [says]

    found = await ask(chat)

    assert isinstance(found, Answered)
    assert found.output == "x"


# what goes wrong


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        (Answers(401, error("no", code="invalid_api_key")), Rejected),
        (Answers(403, error("no")), Rejected),
        (Answers(404, error("no", code="model_not_found")), Rejected),
        (Answers(400, error("no")), Rejected),
        (Answers(429, error("slow down")), Unreachable),
        (Answers(500, b"oops", {"content-type": "text/html"}), Unreachable),
        (Answers(503, error("overloaded")), Unreachable),
        (Answers(200, b"<html>", {"content-type": "text/html"}), ProviderFailed),
        (spelled("{broken"), OutcomeUnknown),
        (spelled(b"\xff"), OutcomeUnknown),
        (spelled("[" * 100_000), OutcomeUnknown),
        (spelled("[1]", "7", "null"), OutcomeUnknown),
        (spelled(), OutcomeUnknown),
        (spelled('{"choices": "x"}', '{"choices": [{"delta": 5}]}', '{"usage": []}'), OutcomeUnknown),
        (Says(["half"], then={"code": "server_error", "message": "x"}), ProviderFailed),
        (Says(["half"], then="cut"), OutcomeUnknown),
        (Says(then="cut"), OutcomeUnknown),
        (Says(["half"], finish=None, then="end"), OutcomeUnknown),
        (Says(["data: [DONE]\ndata: [DONE]\n"], finish=None, then="end"), OutcomeUnknown),
        ("cut", OutcomeUnknown),
    ],
)
async def test_each_failure_has_its_outcome_and_is_not_tried_again_here(
    server: ChatServer, chat: OpenAIProvider, entry: Any, kind: type[Outcome]
) -> None:
    server.script = [entry]

    assert isinstance(await ask(chat), kind)
    assert len(server.seen) == 1


async def test_a_refused_connection_had_no_effect() -> None:
    provider = OpenAIProvider("sk", f"http://127.0.0.1:{free_port()}/v1")

    assert isinstance(await ask(provider), Unreachable)
    await provider.aclose()


async def test_two_faulty_fields_are_both_named(server: ChatServer, chat: OpenAIProvider) -> None:
    faults = [{"loc": ["body", name], "msg": f"bad {name}"} for name in ("temperature", "max_tokens")]
    server.script = [Answers(422, {"detail": faults})]

    found = await ask(chat, {"temperature": 1, "max_tokens": 5})

    assert isinstance(found, InvalidInput)
    assert [(issue["field"], issue["issue"]) for issue in found.issues] == [
        ("temperature", "bad temperature"),
        ("max_tokens", "bad max_tokens"),
    ]


async def test_a_limit_is_waited_for_as_its_headers_say(server: ChatServer, chat: OpenAIProvider) -> None:
    server.script = [
        Answers(429, error("slow"), {"retry-after": "3"}),
        Answers(429, error("slow"), {"x-ratelimit-reset-requests": "1m30s", "x-ratelimit-reset-tokens": "20ms"}),
    ]

    found = [await ask(chat), await ask(chat)]

    assert [one.retry_after_s for one in found if isinstance(one, Unreachable)] == [3, 90]


@pytest.mark.parametrize("entry", ["hang", Says(["half"], then="hang")])
async def test_past_its_time_nobody_knows_and_the_connection_is_closed(
    server: ChatServer, chat: OpenAIProvider, entry: Any
) -> None:
    server.script = [entry]

    assert isinstance(await ask(chat, timeout_s=1), OutcomeUnknown)
    await within(server.hung_up)


async def test_a_cancelled_call_closes_its_stream(server: ChatServer, chat: OpenAIProvider) -> None:
    server.script = [Says(["half"], then="hang")]
    call = asyncio.create_task(ask(chat))
    await within(server.arrived)

    call.cancel()

    with pytest.raises(asyncio.CancelledError):
        await call
    await within(server.hung_up)


@pytest.mark.parametrize(
    "entry",
    [
        Says(["x" * (1 << 20)] * 9),
        Answers(200, b"data: " + b"x" * (MAX_ANSWER_BYTES + 1), {"content-type": "text/event-stream"}),
        Answers(200, {"choices": [{"message": {"content": "x" * MAX_ANSWER_BYTES}}]}),
        Answers(400, b"\n" * (MAX_ANSWER_BYTES + 1), {"content-type": "text/event-stream"}),
    ],
    ids=["text", "line", "whole", "error"],
)
async def test_an_answer_over_the_limit_fails_and_says_so(server: ChatServer, chat: OpenAIProvider, entry: Any) -> None:
    server.script = [entry]

    found = await ask(chat)

    assert isinstance(found, ProviderFailed)
    assert str(MAX_ANSWER_BYTES) in found.problem


async def test_calls_at_once_share_one_client(server: ChatServer, chat: OpenAIProvider) -> None:
    found = await asyncio.gather(*(ask(chat, {"prompt": f"p{n}"}) for n in range(20)))

    assert [one.output for one in found if isinstance(one, Answered)] == [f"p{n}" for n in range(20)]


async def test_no_key_and_no_content_reach_a_log_or_a_repr(
    server: ChatServer, chat: OpenAIProvider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.script = [Answers(401, error(f"Incorrect API key provided: {server.api_key}"))]

    found = [await ask(chat), await ask(chat)]

    logged = "".join(str(record.__dict__) for record in caplog.records)
    assert isinstance(found[1], Answered)
    assert server.api_key not in logged + repr(chat) + repr(found)
    assert "a red fox" not in logged


# what is known before


async def test_without_a_key_nothing_is_described_or_sent() -> None:
    provider = OpenAIProvider(None, "http://127.0.0.1:1/v1")

    assert await provider.describe(CONFIG) == Rejected(NO_KEY)
    assert await ask(provider) == Rejected(NO_KEY)
    await provider.aclose()


async def test_the_example_lends_its_settings_but_not_what_the_call_is_made_of(chat: OpenAIProvider) -> None:
    example = {"prompt": "x", "temperature": 0.5, "top_k": 4, "model": "m", "messages": [], "stream": True, "tools": []}

    found = await chat.describe({**CONFIG, "example_input": example})

    assert isinstance(found, Description)
    assert found.example == {"prompt": "x", "temperature": 0.5, "top_k": 4}


@pytest.mark.parametrize(
    ("config", "estimate"),
    [
        ({}, None),
        ({"estimated_cost_usd": 0.5, "prices": PRICES}, 0.5),
        ({"prices": PRICES}, None),
        ({"prices": PRICES, "example_input": {"max_tokens": 500}}, 1.0),
        ({"prices": PRICES, "example_input": {"max_tokens": 500, "max_completion_tokens": 250}}, 0.5),
        ({"example_input": {"max_tokens": 500}}, None),
    ],
)
async def test_the_estimate_is_the_configured_one_or_what_the_answer_may_cost_at_most(
    chat: OpenAIProvider, config: dict[str, Any], estimate: float | None
) -> None:
    found = await chat.describe({**CONFIG, **config})

    assert isinstance(found, Description)
    assert found.estimated_cost_usd == estimate


@pytest.mark.parametrize(
    ("config", "at"),
    [
        ({}, "/model"),
        ({"model": ""}, "/model"),
        ({"model": 5}, "/model"),
        ({**CONFIG, "system": []}, "/system"),
        ({**CONFIG, "timeout_seconds": 0}, "/timeout_seconds"),
        ({**CONFIG, "prices": {"input_per_million_usd": 1}}, "/prices/output_per_million_usd"),
        ({**CONFIG, "prices": {**PRICES, "input_per_million_usd": -1}}, "/prices/input_per_million_usd"),
        ({**CONFIG, "example_input": {"tools": [{}]}}, "/example_input/tools"),
    ],
)
def test_a_config_that_is_not_valid_is_refused_with_its_pointer(config: dict[str, Any], at: str) -> None:
    with pytest.raises(Invalid) as caught:
        OpenAIProvider("sk", "http://here/v1").check(config)

    assert caught.value.errors[0]["pointer"] == f"/run_input/agent_tool_config/openai-agent-tool{at}"


def test_a_config_is_kept_with_what_is_not_known_of_it() -> None:
    config = {**CONFIG, "category": "text", "example_input": {"stream": True, "tools": []}}
    provider = OpenAIProvider("sk", "http://here/v1")

    assert provider.check(config) == config
    assert (provider.timeout_s(config), provider.timeout_s({**config, "timeout_seconds": 5})) == (600, 5)


def test_the_schema_knows_every_effort_that_the_sdk_knows() -> None:
    known = get_args(get_args(ReasoningEffort)[0])

    assert SCHEMA["properties"]["reasoning_effort"]["enum"] == list(known)


# runs


@pytest_asyncio.fixture(loop_scope="session")
async def chatting(empty: Runtime, server: ChatServer) -> AsyncIterator[Runtime]:
    """A runtime as the settings wire it, with nobody at work."""
    about = {"openai_api_key": server.api_key, "openai_base_url": server.url}
    settings = empty.settings.model_copy(update=about)
    async with open_runtime(settings, process="test", redis=empty.redis) as runtime:
        yield runtime


def openai(example: dict[str, Any] | None = None, **config: Any) -> dict[str, Any]:
    return {"openai-agent-tool": {"data": {**CONFIG, "example_input": example or {"prompt": "sample"}, **config}}}


async def goes(runtime: Runtime, tool: Mapping[str, Any] | None = None, config: HitlConfig = AUTO) -> tuple[UUID, str]:
    """A run that a worker took as far as it goes at once, and what became of it."""
    run_id = await begin(runtime, tool or openai(), config)
    return run_id, await worker(runtime).advance(run_id)


async def again(runtime: Runtime, run_id: UUID) -> str:
    """The next try, as though its time had come."""
    await sql(runtime, "update runs set due_at = now() where id = $1", run_id)
    return await worker(runtime).advance(run_id)


async def asked(runtime: Runtime, run_id: UUID) -> tuple[str, list[str], Mapping[str, Any]]:
    async with runtime.services.db.connection(EVERY) as conn:
        (found,) = await approvals.open_of_run(conn, run_id)
    return found.checkpoint_type, list(found.reasons), found.context


async def kept(runtime: Runtime, run_id: UUID, column: str) -> Any:
    return getattr(await docs_of(runtime, run_id), column)


async def test_a_run_is_answered_and_counts_what_it_cost(chatting: Runtime, server: ChatServer) -> None:
    server.script = [Says(["A ", "fox."], usage=(12, 3), pause_s=0.02)]
    tool = openai({"prompt": "sample", "temperature": 0.5, "max_tokens": 100}, prices=PRICES, system="Be brief.")

    run_id, became = await goes(chatting, tool)

    run = await look(chatting, run_id)
    assert (became, run.status) == ("completed", "completed")
    assert run.actual_usd == pytest.approx(0.018)
    assert run.estimated_usd == pytest.approx(0.2)
    assert await kept(chatting, run_id, "output") == "A fox."
    assert (await kept(chatting, run_id, "raw_response"))["usage"]["total_tokens"] == 15
    sent = server.seen[0].json
    assert (sent["temperature"], sent["max_tokens"], sent["messages"][-1]["content"]) == (0.5, 100, "a red fox")


async def test_a_run_tells_its_text_while_it_grows_and_ends_with_all_of_it(
    chatting: Runtime, server: ChatServer
) -> None:
    server.script = [Says(["A ", "red ", "fox."], pause_s=0.05)]

    run_id, _ = await goes(chatting)

    async with chatting.services.db.connection(EVERY) as conn:
        found = await events.after(conn, "default", run_id, 0, limit=100)
    texts = [event.data["text"] for event in found if event.type == "provider.progress"]
    assert texts[-1] == "A red fox."
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))


async def test_a_run_without_a_key_is_rejected_and_says_why(empty: Runtime) -> None:
    settings = empty.settings.model_copy(update={"openai_api_key": None})
    async with open_runtime(settings, process="test", redis=empty.redis) as runtime:
        run_id, became = await goes(runtime)

        run = await look(runtime, run_id)
    assert became == "failed"
    assert run.error is not None
    assert (run.error["code"], run.error["message"]) == ("provider_rejected", NO_KEY)


@pytest.mark.parametrize(
    ("entry", "code", "recoverable"),
    [
        (Answers(401, error("no")), "provider_rejected", False),
        (Answers(404, error("no", code="model_not_found")), "provider_rejected", False),
        (Says(["x"], then={"code": "server_error"}), "provider_failed", False),
        (Says(["x" * (1 << 20)] * 9), "provider_failed", False),
    ],
)
async def test_a_run_ends_by_what_the_provider_says_for_good(
    chatting: Runtime, server: ChatServer, entry: Any, code: str, recoverable: bool
) -> None:
    server.script = [entry]

    run_id, became = await goes(chatting)

    run = await look(chatting, run_id)
    assert became == "failed"
    assert run.error is not None
    assert (run.error["code"], run.error["recoverable"], len(server.seen)) == (code, recoverable, 1)


async def test_a_run_goes_on_after_three_failures_that_had_no_effect(chatting: Runtime, server: ChatServer) -> None:
    server.script = [*[Answers(500, error("oops"))] * 3, FOX]

    run_id, became = await goes(chatting)
    later = [await again(chatting, run_id) for _ in range(3)]

    assert [became, *later] == ["retry_later"] * 3 + ["completed"]
    assert len({seen.headers["idempotency-key"] for seen in server.seen}) == 1
    assert (await story(chatting, run_id)).count("provider.submitted") == 4


async def test_a_run_waits_for_the_reset_of_a_limit(chatting: Runtime, server: ChatServer) -> None:
    server.script = [Answers(429, error("slow"), {"x-ratelimit-reset-requests": "2m"}), FOX]

    run_id, became = await goes(chatting)

    run = await look(chatting, run_id)
    assert became == "retry_later"
    assert run.due_at is not None
    assert (run.due_at - run.updated_at).total_seconds() >= 119
    assert await again(chatting, run_id) == "completed"


async def test_a_run_fails_recoverably_when_nobody_is_there(empty: Runtime) -> None:
    about = {"openai_api_key": "sk", "openai_base_url": f"http://127.0.0.1:{free_port()}/v1"}
    settings = empty.settings.model_copy(update=about)
    async with open_runtime(settings, process="test", redis=empty.redis) as runtime:
        run_id, became = await goes(runtime)
        later = [await again(runtime, run_id) for _ in range(4)]

        run = await look(runtime, run_id)
    assert [became, *later] == ["retry_later"] * 4 + ["failed"]
    assert run.error is not None
    assert (run.error["code"], run.error["recoverable"]) == ("provider_unavailable", True)


@pytest.mark.parametrize(
    ("entry", "timeout_s"), [(Says(["half"], then="cut"), 20), (Says(["half"], then="hang"), 1), ("hang", 1)]
)
async def test_a_stream_that_is_cut_or_late_asks_and_is_not_sent_again(
    chatting: Runtime, server: ChatServer, entry: Any, timeout_s: float
) -> None:
    server.script = [entry]

    run_id, became = await goes(chatting, openai(timeout_seconds=timeout_s))

    assert became == "awaiting_human"
    assert (await asked(chatting, run_id))[:2] == ("outcome_unknown", ["provider.outcome_unknown"])
    assert len(server.seen) == 1


async def test_faulty_fields_are_put_to_a_human_by_their_payload_names(chatting: Runtime, server: ChatServer) -> None:
    server.script = [Answers(400, error("two faults", param=["temperature", "messages"]))]

    run_id, _ = await goes(chatting, openai({"prompt": "x", "temperature": 1}))

    checkpoint, _, context = await asked(chatting, run_id)
    assert checkpoint == "error_recovery"
    issues = {issue["field"]: issue["suggested_fix"] for issue in context["validation_issues"]}
    assert issues["temperature"] == "Allowed: at least 0, at most 2."
    assert "prompt" in issues


async def test_the_form_asks_for_settings_but_not_for_what_may_not_be_given(
    chatting: Runtime, server: ChatServer
) -> None:
    config = HitlConfig(policy="require_human")

    run_id, _ = await goes(chatting, openai({"prompt": "x", "stop": ["END"], "stream": True}), config)

    names = {row["name"] for row in (await asked(chatting, run_id))[2]["form"]["fields"]}
    assert {"prompt", "temperature", "max_tokens", "stop"} <= names
    assert not names & {"tools", "functions", "stream", "model", "messages"}


@pytest.mark.parametrize("edits", [{"tools": [{"type": "function"}]}, {"stream": False}, {"temperature": 3}])
async def test_an_edit_that_the_schema_refuses_is_not_taken(
    chatting: Runtime, server: ChatServer, edits: dict[str, Any]
) -> None:
    config = HitlConfig(policy="require_human", allowed_steps=["payload_review"])
    run_id, _ = await goes(chatting, openai({"prompt": "x"}), config)
    async with chatting.services.db.connection(EVERY) as conn:
        (found,) = await approvals.open_of_run(conn, run_id)

    with pytest.raises(InvalidPayload) as caught:
        await decide(chatting.services, found.id, Order("edit", edits=edits), DEV)

    assert [one["pointer"].split("/")[-1] for one in caught.value.errors] == list(edits)


@pytest.mark.parametrize(
    ("entry", "flag"),
    [
        (Says(refusal=["No."]), "refusal"),
        (Says(["half"], finish="content_filter"), "content_filter"),
        (Answers(400, error("filtered", code="content_filter")), "content_filter"),
    ],
)
async def test_a_flag_of_the_answer_asks_whatever_the_policy(
    chatting: Runtime, server: ChatServer, entry: Any, flag: str
) -> None:
    server.script = [entry]

    run_id, became = await goes(chatting, config=HitlConfig(policy="auto", allowed_steps=[]))

    assert became == "awaiting_human"
    assert (await asked(chatting, run_id))[:2] == ("response_review", [f"safety.{flag}"])


async def test_an_estimate_above_the_limit_asks_before_anything_is_sent(chatting: Runtime, server: ChatServer) -> None:
    limit = HitlConfig(policy="auto_with_thresholds", review_thresholds=ReviewThresholds(max_cost_usd=0.1))

    run_id, _ = await goes(chatting, openai({"prompt": "x", "max_tokens": 100}, prices=PRICES), limit)

    assert (await asked(chatting, run_id))[:2] == ("payload_review", ["cost.above"])
    assert server.seen == []


async def test_a_worker_that_drops_a_run_closes_its_stream(chatting: Runtime, server: ChatServer) -> None:
    server.script = [Says(["half"], then="hang")]
    hand = worker(chatting)
    run_id = await begin(chatting, openai())
    work = asyncio.create_task(hand.advance(run_id))
    await within(server.arrived)

    hand.drop(run_id)

    assert await work == "lease_lost"
    await within(server.hung_up)


async def test_a_stranger_may_speak_to_the_stand_in_as_to_the_real_one(server: ChatServer) -> None:
    headers = {"authorization": f"Bearer {server.api_key}"}
    body = {"model": "gpt-standin", "messages": [{"role": "user", "content": "hi there"}]}
    async with httpx2.AsyncClient(base_url=server.url, headers=headers, trust_env=False) as client:
        whole = (await client.post("chat/completions", json=body)).json()
        said = (await client.post("chat/completions", json={**body, "stream": True})).text.split("\n\n")
        wrong = [
            await client.post("chat/completions", json={**body, "temperature": 3}),
            await client.post("chat/completions", json={**body, "model": "x"}),
            await client.post("chat/completions", json={**body, "tools_": 1}),
            await client.get("models"),
            await client.post("chat/completions", json=body, headers={"authorization": "Bearer no"}),
        ]

    assert whole["choices"][0]["message"]["content"] == "hi there"
    assert orjson.loads(said[0].removeprefix("data: "))["object"] == "chat.completion.chunk"
    assert said[-2] == "data: [DONE]"
    assert [answer.status_code for answer in wrong] == [400, 404, 400, 404, 401]
    assert wrong[0].json()["error"]["param"] == "temperature"


async def test_the_whole_service_streams_tells_and_leaves_a_cancelled_call(
    servers: Servers, server: ChatServer, tmp_path: Path
) -> None:
    database = await new_database(servers, f"chats_{uuid7().hex}")
    await migrate(database)
    about = {"DATABASE_URL": database, "REDIS_URL": f"{servers.redis_url}?db=3"}
    env = base_env(servers, **about, OPENAI_API_KEY=server.api_key, OPENAI_BASE_URL=server.url)
    server.script = [Says(["A ", "fox."], usage=(12, 3)), Says(["half"], then="hang")]

    with web(env, tmp_path) as url, process(*WORKER, env=env, log=tmp_path / "worker.log"):
        async with httpx2.AsyncClient(base_url=url, timeout=70, trust_env=False) as client:
            listed = (await client.get("/hitl/providers")).json()["providers"]
            run = await settled(client, await start(client, run_body(openai(prices=PRICES))))
            told = (await client.get(f"/hitl/runs/{run['run_id']}/events")).json()["events"]
            hanging = await start(client, run_body(openai()))
            await eventually(lambda: asyncio.sleep(0, len(server.seen) == 2), "the second call")
            cancelled = await client.delete(f"/hitl/run/{hanging}")
            await within(server.hung_up)

    assert ("openai", ["openai-agent-tool"]) in [(one["name"], one["tools"]) for one in listed]
    assert (run["status"], run["result"]) == ("completed", "A fox.")
    assert run["cost"]["actual_usd"] == pytest.approx(0.018)
    assert run["raw_response"]["usage"]["total_tokens"] == 15
    assert [event["data"]["text"] for event in told if event["type"] == "provider.progress"][-1] == "A fox."
    assert cancelled.json()["status"] == "cancelled"
    logs = "".join(Stack(url, env, tmp_path).log(name) for name in ("web", "worker"))
    assert server.api_key not in logs and "fox" not in logs and "half" not in logs
