"""Reading a chat server: tables of chunks and errors, without a socket and without the SDK."""

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.call import (
    Answered,
    InvalidInput,
    Outcome,
    OutcomeUnknown,
    ProviderFailed,
    Rejected,
    Unreachable,
)
from service.domain.schema import check, violations
from service.providers.openai_answer import Answer, broken_off, cost_usd, read, refused, storable, wait_s
from service.providers.openai_schema import OURS, SCHEMA, TOOLS

PRICES = {"input_per_million_usd": 2.0, "output_per_million_usd": 8.0}
PAYLOAD = {"prompt": "a red fox", "temperature": 9, "max_tokens": 10, "reasoning_effort": "low"}


def chunk(delta: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": more.pop("finish", None), **more.pop("choice", {})}
    return {"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": [choice], **more}


def told(*chunks: dict[str, Any]) -> Answer:
    answer = Answer()
    for one in chunks:
        answer.add(one)
    return answer


def error(**more: Any) -> dict[str, Any]:
    return {"error": {"message": "no", "type": "invalid_request_error", "param": None, "code": None, **more}}


def meant(status: int, body: Any, **headers: str) -> Outcome:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return refused(status, named, body, payload=PAYLOAD, schema=SCHEMA)


# chunks


def test_chunks_become_the_completion_that_would_have_come_unstreamed() -> None:
    answer = told(
        chunk({"role": "assistant", "content": ""}, system_fingerprint="fp", usage=None),
        chunk({"content": "a "}),
        chunk({"content": "fox"}),
        chunk(finish="stop"),
        {"id": "c1", "choices": [], "usage": {"prompt_tokens": 1_000_000, "completion_tokens": 500_000}},
    )

    found = answer.answered(PRICES)

    assert answer.whole
    assert (found.output, found.provider_ref, found.cost_usd, found.safety_flags) == ("a fox", "c1", 6.0, [])
    assert found.raw == {
        "id": "c1",
        "object": "chat.completion",
        "model": "m",
        "system_fingerprint": "fp",
        "usage": {"prompt_tokens": 1_000_000, "completion_tokens": 500_000},
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "a fox", "refusal": None},
            }
        ],
    }


def test_the_text_grows_only_by_content() -> None:
    answer = Answer()
    grew = [
        answer.add(one)
        for one in (
            chunk({"role": "assistant", "content": ""}),
            chunk({"content": "a"}),
            chunk({"refusal": "no"}),
            chunk({"reasoning_content": "hm"}),
            chunk({"content": [{"type": "thinking", "thinking": "x"}, {"type": "text", "text": "b"}]}),
            chunk({"content": "other"}, choice={"index": 1}),
            {"choices": None},
            {"choices": [None, "x", {"delta": "x"}]},
        )
    ]

    assert grew == [False, True, False, False, True, False, False, False]
    assert answer.text == "ab"
    assert answer.completion()["choices"][0]["message"]["reasoning_content"] == "hm"


def test_what_only_a_refusal_says_is_the_output_and_a_flag() -> None:
    found = told(chunk({"refusal": "I can"}), chunk({"refusal": "not"}), chunk(finish="stop")).answered(None)

    assert (found.output, found.safety_flags, found.cost_usd) == ("I cannot", ["refusal"], None)


def test_a_filtered_answer_keeps_its_text_and_bears_the_flag() -> None:
    found = told(chunk({"content": "half"}), chunk(finish="content_filter")).answered(None)

    assert (found.output, found.safety_flags) == ("half", ["content_filter"])


def test_log_probabilities_are_kept() -> None:
    answer = told(
        chunk({"content": "a"}, choice={"logprobs": {"content": [{"token": "a"}], "refusal": None}}),
        chunk({"content": "b"}, choice={"logprobs": {"content": [{"token": "b"}]}}),
    )

    logprobs = answer.completion()["choices"][0]["logprobs"]
    assert logprobs == {"content": [{"token": "a"}, {"token": "b"}], "refusal": []}


def test_an_answer_can_be_stored_whatever_it_holds() -> None:
    answer = told(
        chunk({"content": "\ud83e"}, id="c\0"),
        chunk({"content": "\udd8a\0\ud83e"}),
        chunk(finish="stop", usage={"n": 2**70}),
    )

    found = answer.answered(None)

    assert found.output == "\U0001f98a\0\ufffd"
    assert orjson.dumps(found.raw)


def test_an_answer_may_be_nested_without_end() -> None:
    deep: Any = "x"
    for _ in range(900):
        deep = [{"inner": deep}]

    assert len(orjson.dumps(storable({"error": deep}))) < 2000


def test_a_stream_without_a_reason_for_its_end_is_not_whole() -> None:
    assert not told(chunk({"content": "a"})).whole


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"id": "c", "choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}]}, Answered),
        ({"choices": [{"message": {"content": "hi"}}]}, Answered),
        ({"choices": []}, ProviderFailed),
        ("<html>", ProviderFailed),
        ([], ProviderFailed),
        (None, ProviderFailed),
        (error(code="server_error"), ProviderFailed),
        (error(code="content_filter"), Answered),
    ],
)
def test_the_answer_of_a_server_that_does_not_stream(body: Any, kind: type[Outcome]) -> None:
    found = read(body, None)

    assert isinstance(found, kind)
    if body and "choices" in body and isinstance(found, Answered):
        assert (found.output, found.raw) == ("hi", body)


def test_an_error_after_the_answer_began_fails_and_keeps_what_came() -> None:
    found = broken_off({"code": "server_error", "message": "x"}, told(chunk({"content": "half"})), None)

    assert isinstance(found, ProviderFailed)
    assert found.problem == "the provider broke off its answer (server_error)"
    assert found.raw["choices"][0]["message"]["content"] == "half"
    assert found.raw["error"]["message"] == "x"


def test_an_error_of_the_filter_after_the_answer_began_is_an_answer_to_look_at() -> None:
    found = broken_off({"code": "content_filter"}, told(chunk({"content": "half"})), None)

    assert isinstance(found, Answered)
    assert (found.output, found.safety_flags) == ("half", ["content_filter"])


@pytest.mark.parametrize(
    ("usage", "prices", "cost"),
    [
        ({"prompt_tokens": 500_000, "completion_tokens": 250_000}, PRICES, 3.0),
        ({"prompt_tokens": 0, "completion_tokens": 0}, PRICES, 0.0),
        ({"prompt_tokens": 1}, PRICES, None),
        ({"prompt_tokens": 1, "completion_tokens": 1}, None, None),
        (None, PRICES, None),
    ],
)
def test_the_cost_is_counted_by_the_configured_prices(usage: Any, prices: Any, cost: float | None) -> None:
    assert cost_usd(usage, prices) == cost


# errors


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, error(code="invalid_api_key"), Rejected),
        (403, error(), Rejected),
        (404, error(code="model_not_found"), Rejected),
        (400, error(), Rejected),
        (400, error(param="model"), Rejected),
        (400, "<html>", Rejected),
        (413, None, Rejected),
        (302, "", Rejected),
        (422, error(), InvalidInput),
        (422, "<html>", InvalidInput),
        (400, error(param="temperature"), InvalidInput),
        (400, error(code="content_filter", param="prompt"), Answered),
        (400, error(code="content_policy_violation"), Answered),
        (408, error(), OutcomeUnknown),
        (429, error(), Unreachable),
        (429, error(code="insufficient_quota"), Unreachable),
        (500, "oops", Unreachable),
        (503, error(), Unreachable),
        (529, error(), Unreachable),
    ],
)
def test_what_each_error_means(status: int, body: Any, kind: type[Outcome]) -> None:
    assert isinstance(meant(status, body), kind)


def test_what_a_server_says_of_a_refused_key_is_not_kept() -> None:
    found = meant(401, error(message="Incorrect API key provided: sk-secret"))

    assert isinstance(found, Rejected)
    assert "sk-secret" not in repr(found)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (error(param="temperature"), ["temperature"]),
        (error(param="messages[0].content"), ["prompt"]),
        (error(param="messages", code="context_length_exceeded"), ["prompt"]),
        (error(param="response_format.json_schema[schema]"), ["response_format.json_schema.schema"]),
        (error(param=["temperature", "max_tokens"]), ["temperature", "max_tokens"]),
        (error(details=[{"field": "temperature"}, {"param": "max_tokens"}]), ["temperature", "max_tokens"]),
        (error(param="temperature", details=[{"field": "max_tokens"}]), ["temperature", "max_tokens"]),
        (
            {
                "detail": [
                    {"loc": ["body", "temperature"], "msg": "too high"},
                    {"loc": ["body", "max_tokens"], "msg": "x"},
                ]
            },
            ["temperature", "max_tokens"],
        ),
        ({"object": "error", "message": "too high", "param": "temperature", "code": 400}, ["temperature"]),
    ],
)
def test_every_faulty_field_is_named_as_in_the_payload(body: Any, fields: list[str]) -> None:
    found = meant(400, body)

    assert isinstance(found, InvalidInput)
    assert [issue["field"] for issue in found.issues] == fields
    assert found.raw == body


def test_an_issue_holds_what_the_server_said_and_what_is_allowed() -> None:
    found = meant(400, error(param="temperature", message="too hot"))

    assert isinstance(found, InvalidInput)
    assert found.issues[0]["issue"] == "too hot"
    assert found.issues[0]["suggested_fix"] == "Allowed: at least 0, at most 2."


@pytest.mark.parametrize(
    ("headers", "message", "seconds"),
    [
        ({"retry-after": "7", "x-ratelimit-reset-requests": "1s"}, "", 7),
        ({"x-ratelimit-reset-requests": "6m0s"}, "", 360),
        ({"x-ratelimit-reset-requests": "20ms", "x-ratelimit-reset-tokens": "1h2m3.5s"}, "", 3723.5),
        (
            {
                "x-ratelimit-reset-requests": "2s",
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-tokens": "6m0s",
                "x-ratelimit-remaining-tokens": "12",
            },
            "",
            2,
        ),
        ({"x-ratelimit-reset-tokens": "3"}, "", 3),
        ({"x-ratelimit-reset-tokens": "soon"}, "", None),
        ({}, "Rate limit reached. Please try again in 1m2.5s. Visit", 62.5),
        ({}, "Please try again in 345ms.", 0.345),
        ({"retry-after": "soon"}, "slow down", None),
        ({}, "", None),
    ],
)
def test_a_limit_says_when_to_come_back(headers: dict[str, str], message: str, seconds: float | None) -> None:
    assert wait_s(headers, {"message": message}) == (seconds if seconds is None else pytest.approx(seconds))


# the schema


def test_the_schema_is_one_that_we_would_take() -> None:
    check(dict(SCHEMA))


@pytest.mark.parametrize("name", [*OURS, *TOOLS])
def test_a_payload_may_not_say_what_the_call_is_made_of(name: str) -> None:
    found = violations(SCHEMA, {"prompt": "x", name: []})

    assert [(one.pointer, one.message) for one in found] == [(f"/{name}", "is not allowed")]


@pytest.mark.parametrize(
    ("setting", "taken"),
    [
        ({"temperature": 0}, True),
        ({"temperature": 2}, True),
        ({"temperature": 2.01}, False),
        ({"temperature": "1"}, False),
        ({"top_p": 1.1}, False),
        ({"max_tokens": 0}, False),
        ({"max_tokens": 1}, True),
        ({"max_completion_tokens": 1.5}, False),
        ({"presence_penalty": -2}, True),
        ({"frequency_penalty": 2.5}, False),
        ({"seed": -1}, True),
        ({"stop": "x"}, True),
        ({"stop": ["x", "y"]}, True),
        ({"stop": ["1", "2", "3", "4", "5"]}, False),
        ({"stop": 5}, False),
        ({"n": 1}, True),
        ({"n": 2}, False),
        ({"response_format": {"type": "json_object"}}, True),
        ({"response_format": {}}, False),
        ({"reasoning_effort": "high"}, True),
        ({"reasoning_effort": "very"}, False),
        ({"logit_bias": {"50256": -100}}, True),
        ({"top_k": 40}, True),
        ({"prompt": ""}, False),
    ],
)
def test_settings_have_their_real_types_and_ranges(setting: dict[str, Any], taken: bool) -> None:
    assert (violations(SCHEMA, {"prompt": "x", **setting}) == ()) is taken


# whatever comes

scalars = st.none() | st.booleans() | st.integers(-(2**80), 2**80) | st.floats() | st.text(st.characters(), max_size=5)
CHUNK = ("id", "choices", "usage", "error", "x")
CHOICE = ("index", "delta", "message", "logprobs", "finish_reason", "content", "refusal", "role", "text")
ERROR = ("error", "code", "type", "message", "param", "details", "errors", "detail", "loc", "msg", "field")
COUNTS = ("prompt_tokens", "completion_tokens")
names = st.sampled_from((*CHUNK, *CHOICE, *ERROR, *COUNTS))
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=5), max_leaves=20
)
choices = st.lists(st.dictionaries(st.sampled_from(CHOICE), anything, max_size=5), max_size=2)
chunks = st.fixed_dictionaries({}, optional={"choices": choices, "usage": anything, "id": anything, "x": anything})
faults = st.dictionaries(st.sampled_from(ERROR), anything, max_size=5)
bodies = anything | chunks | faults | st.fixed_dictionaries({"error": faults})


@given(chunks=st.lists(chunks, max_size=4), body=bodies)
def test_whatever_comes_has_an_outcome_that_can_be_stored(chunks: list[dict[str, Any]], body: Any) -> None:
    answer = told(*chunks)
    found = [
        answer.answered(PRICES),
        broken_off(body, answer, PRICES),
        read(body, PRICES),
        *(meant(status, body) for status in (400, 401, 404, 418, 422, 429, 500)),
    ]

    for outcome in found:
        assert orjson.dumps(outcome)


@given(text=st.text(), cuts=st.lists(st.integers(0, 50), max_size=5))
def test_a_text_is_the_same_however_it_was_cut(text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(text) + 50]

    answer = told(*(chunk({"content": text[low:high]}) for low, high in pairwise(edges)))

    assert answer.text == text
