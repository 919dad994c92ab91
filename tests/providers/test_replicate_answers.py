"""Replicate's answers in our terms, as tables: predictions, faults of a 422, schemas, resets."""

from typing import Any

import pytest

from service.domain import schema as schemas
from service.domain.call import Accepted, Answered, OutcomeUnknown, ProviderFailed
from service.providers.replicate_api import Reply, Silence, _reset_s, refusal
from service.providers.replicate_prediction import is_file, outcome
from service.providers.replicate_schema import example_input, faults, input_schema
from service.standins.replicate_models import FLUX

HOST = "api.replicate.com"


def prediction(status: str, **more: Any) -> dict[str, Any]:
    return {"id": "p1", "status": status, "output": None, "error": None, "logs": "", "metrics": {}, **more}


# predictions


@pytest.mark.parametrize("status", ["starting", "processing", "a-status-of-next-year", None])
def test_what_is_not_over_goes_on(status: Any) -> None:
    assert outcome(prediction(status), {}, host=HOST) == Accepted("p1")


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ("failed", "the prediction failed: out of memory"),
        ("canceled", "the prediction was canceled: out of memory"),
        ("aborted", "the prediction was aborted before it started: out of memory"),
    ],
)
def test_each_bad_end_is_a_failure_that_says_which(status: str, told: str) -> None:
    found = outcome(prediction(status, error=" out of\n memory "), {}, host=HOST)
    assert isinstance(found, ProviderFailed) and found.problem == told


def test_a_long_error_is_clipped_and_none_is_needed() -> None:
    long = outcome(prediction("failed", error="x" * 5000), {}, host=HOST)
    assert isinstance(long, ProviderFailed) and len(long.problem) < 400
    none = outcome(prediction("failed", error={"odd": 1}), {}, host=HOST)
    assert isinstance(none, ProviderFailed) and none.problem == "the prediction failed"


def test_an_answer_is_kept_whole_with_its_files() -> None:
    url = "https://replicate.delivery/xezq/abc/out-0.webp"
    whole = prediction("succeeded", output=[url, "https://example.com/a.png", url])
    found = outcome(whole, {}, host=HOST)
    assert isinstance(found, Answered)
    assert found.output == [url, "https://example.com/a.png", url] and found.raw == whole
    assert found.files == (url,) and found.provider_ref == "p1"
    assert found.cost_usd is None and found.safety_flags == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://replicate.delivery/a/b.png", True),
        ("https://pbxt.replicate.delivery/a/b.png", True),
        ("https://api.replicate.com/v1/files/f1/download", True),
        ("http://127.0.0.1:9/files/a.png", False),
        ("https://replicate.delivery.evil.example/a.png", False),
        ("https://evil.example/replicate.delivery/a.png", False),
        ("https://evilreplicate.delivery/a.png", False),
        ("https://user@replicate.delivery:443/a.png", True),
        ("see https://replicate.delivery/a.png", False),
        ("https://replicate.delivery/a.png and more", False),
        ("data:image/png;base64,AAAA", True),
        ("data: none yet", False),
        ("https://[broken", False),
        ("", False),
    ],
)
def test_only_what_replicate_serves_is_a_file(text: str, expected: bool) -> None:
    assert is_file(text, HOST) is expected


def test_files_are_found_anywhere_in_the_output() -> None:
    at = "https://replicate.delivery/"
    output = {"a": {"b": [f"{at}1", [f"{at}2"]]}, "c": f"{at}3", "n": 1, "none": None}
    found = outcome(prediction("succeeded", output=output), {}, host=HOST)
    assert isinstance(found, Answered) and found.files == (f"{at}1", f"{at}2", f"{at}3")


@pytest.mark.parametrize(
    ("more", "flags"),
    [
        ({"logs": "NSFW content detected in image 0"}, ("nsfw",)),
        ({"logs": "Potential NSFW content was detected in one or more images."}, ("nsfw",)),
        ({"logs": "checking for nsfw content: none"}, ()),
        ({"output": {"image": "x", "nsfw_content_detected": True}}, ("nsfw",)),
        ({"output": {"image": "x", "has_nsfw_concepts": [False, True]}}, ("nsfw",)),
        ({"output": {"image": "x", "has_nsfw_concepts": [False, False]}}, ()),
        ({"output": {"image": "x", "nsfw_content_detected": False}}, ()),
    ],
)
def test_what_a_safety_checker_says_is_a_flag(more: dict[str, Any], flags: tuple[str, ...]) -> None:
    found = outcome(prediction("succeeded", **{"output": "x", **more}), {}, host=HOST)
    assert isinstance(found, Answered) and found.safety_flags == flags


@pytest.mark.parametrize(
    ("config", "metrics", "cost"),
    [
        ({}, {"predict_time": 2.0}, None),
        ({"cost_per_second_usd": 0.5}, {"predict_time": 2.5}, 1.25),
        ({"cost_per_second_usd": 0.5, "estimated_cost_usd": 3}, {"predict_time": 2}, 1.0),
        ({"cost_per_second_usd": 0.5}, {}, None),
        ({"estimated_cost_usd": 3}, {"predict_time": 2}, 3.0),
    ],
)
def test_cost_follows_the_known_price(config: dict[str, Any], metrics: dict[str, Any], cost: float | None) -> None:
    found = outcome(prediction("succeeded", output="x", metrics=metrics), config, host=HOST)
    assert isinstance(found, Answered) and found.cost_usd == cost


def test_an_output_that_is_gone_is_no_answer() -> None:
    assert isinstance(outcome(prediction("succeeded", data_removed=True), {}, host=HOST), ProviderFailed)
    assert isinstance(outcome(prediction("succeeded"), {}, host=HOST), Answered)


@pytest.mark.parametrize("broken", [{}, {"id": ""}, {"id": 7, "status": "succeeded"}])
def test_an_answer_without_an_id_is_an_unknown_outcome(broken: dict[str, Any]) -> None:
    assert isinstance(outcome(broken, {}, host=HOST), OutcomeUnknown)


# faults


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            {
                "title": "Input validation failed",
                "detail": "- input: prompt is required\n- input.steps: Must be less than or equal to 4\n",
                "invalid_fields": [
                    {"type": "required", "field": "input", "description": "prompt is required"},
                    {"type": "number_lte", "field": "input.steps", "description": "Must be less than or equal to 4"},
                ],
            },
            [("prompt", None), ("steps", "at most 4")],
        ),
        (
            {"detail": "- input.prompt: is required\n- input.n: must be one of: 1, 2\n"},
            [("prompt", None), ("n", "1, 2")],
        ),
        (
            {"detail": '- input.fmt: fmt must be one of the following: "jpg", "png"\n'},
            [("fmt", "jpg, png")],
        ),
        (
            {"detail": "- input.seed: Invalid type. Expected: integer, given: null"},
            [("seed", "a value of type integer")],
        ),
        ({"detail": "- input.images[0].url: Must be a URL"}, [("images.0.url", None)]),
        (
            {"detail": [{"loc": ["body", "input", "prompt"], "msg": "field required"}, {"loc": ["a"], "msg": "b"}]},
            [("prompt", None), ("a", None)],
        ),
        ({"errors": {"prompt": ["too short", "too dull"], "n": "odd"}}, [("prompt", None), ("n", None)]),
        ({"title": "Invalid version or not permitted", "detail": "The version does not exist"}, [("", None)]),
        ("words only", [("", None)]),
        ({}, [("", None)]),
        (None, [("", None)]),
        ([], [("", None)]),
        (7, [("", None)]),
    ],
)
def test_a_422_names_every_field(answer: Any, expected: list[tuple[str, str | None]]) -> None:
    found = faults(answer)
    assert [(fault["field"], fault["suggested_fix"]) for fault in found] == expected
    assert all(isinstance(fault["issue"], str) and fault["issue"] for fault in found)


# schemas


def test_the_input_of_a_model_is_a_schema_of_its_own() -> None:
    found = input_schema(FLUX.wire_version())
    assert found is not None
    assert list(found["properties"]) == ["prompt", "aspect_ratio", "num_outputs", "seed"]
    assert found["properties"]["aspect_ratio"]["enum"] == ["1:1", "16:9", "9:16"]
    assert found["required"] == ["prompt"]
    assert not schemas.violations(found, {"prompt": "x", "aspect_ratio": "16:9", "num_outputs": 4})
    told = schemas.violations(found, {"aspect_ratio": "2:1", "num_outputs": 5, "seed": "x"})
    assert {one.pointer for one in told} == {"/prompt", "/aspect_ratio", "/num_outputs", "/seed"}


def openapi(**named: Any) -> dict[str, Any]:
    return {"openapi_schema": {"components": {"schemas": named}}}


def test_openapi_words_become_json_schema_s() -> None:
    found = input_schema(
        openapi(
            size={"type": "string", "enum": ["s", "l"]},
            Input={
                "type": "object",
                "properties": {
                    "size": {"allOf": [{"$ref": "#/components/schemas/size"}], "nullable": True, "default": "s"},
                    "a": {"type": "number", "minimum": 0, "exclusiveMinimum": True, "maximum": 1},
                    "b": {"type": "number", "maximum": 1, "exclusiveMaximum": False},
                    "sizes": {"type": "array", "items": {"$ref": "#/components/schemas/size"}},
                    "default": {"type": "string", "default": {"$ref": "no reference"}},
                    "x-ray": {"type": "string"},
                },
            },
        )
    )
    assert found is not None
    parts = found["properties"]
    assert parts["size"] == {"type": ["string", "null"], "enum": ["s", "l", None], "default": "s"}
    assert parts["a"] == {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    assert parts["b"] == {"type": "number", "maximum": 1}
    assert parts["sizes"]["items"]["enum"] == ["s", "l"]
    assert parts["default"]["default"] == {"$ref": "no reference"} and "x-ray" in parts


def _many_twins() -> dict[str, Any]:
    levels = {
        f"l{n}": {"properties": {k: {"$ref": f"#/components/schemas/l{n + 1}"} for k in "abcd"}} for n in range(15)
    }
    return openapi(**levels, Input={"type": "object", "properties": {"q": {"$ref": "#/components/schemas/l0"}}})


@pytest.mark.parametrize(
    "version",
    [
        {},
        {"openapi_schema": None},
        {"openapi_schema": {"components": {"schemas": {}}}},
        openapi(Input=[]),
        openapi(Input={"type": "nonsense"}),
        openapi(Input={"type": "object", "properties": {"q": {"$ref": "#/components/schemas/Input"}}}),
        _many_twins(),
    ],
)
def test_a_schema_that_cannot_be_taken_is_none(version: dict[str, Any]) -> None:
    assert input_schema(version) is None


def test_the_model_s_example_is_kept_as_far_as_the_schema_goes() -> None:
    schema = input_schema(FLUX.wire_version())
    model = {"default_example": {"input": {"prompt": "x", "unknown": 1}}}
    assert example_input(model, schema) == {"prompt": "x"}
    assert example_input(model, None) == {"prompt": "x", "unknown": 1}
    for odd in ({}, {"default_example": None}, {"default_example": {}}, {"default_example": {"input": []}}):
        assert example_input(odd, schema) is None


# resets, and what is no answer


@pytest.mark.parametrize(
    ("answer", "header", "seconds"),
    [
        ({"detail": "Request was throttled. Your rate limit resets in ~30s."}, None, 30),
        ({"detail": "Request was throttled. Your rate limit resets in ~1m30s."}, "5", 90),
        ({"detail": "Request was throttled. Expected available in 1 second."}, None, 1),
        ({"detail": "Your rate limit for prediction creation resets in ~0.5s."}, None, 0.5),
        ({"detail": "Your rate limit resets in ~250ms."}, None, 0.25),
        ({"detail": "Request was throttled."}, "7", 7),
        ({"detail": "Request was throttled."}, None, None),
        ("throttled: resets in 2 minutes", None, 120),
        ({"detail": ["odd"]}, None, None),
        (None, "soon", None),
    ],
)
def test_a_429_says_when_to_come_back(answer: Any, header: str | None, seconds: float | None) -> None:
    assert _reset_s(answer, header) == seconds


@pytest.mark.parametrize(
    ("answer", "kind", "told"),
    [
        (Reply(401, {"detail": "no"}), "Rejected", "REPLICATE_API_TOKEN is not valid"),
        (Reply(402, {"title": "Insufficient credit"}), "Rejected", "402: Insufficient credit"),
        (Reply(403, None), "Rejected", "403"),
        (Reply(404, {"detail": "The requested resource could not be found."}), "Rejected", "404"),
        (Reply(302, ""), "Rejected", "302"),
        (Reply(429, {}, 30.0), "Unreachable", "429"),
        (Reply(500, ""), "Unreachable", "500"),
        (Reply(503, ""), "Unreachable", "503"),
        (Reply(200, "<html>"), "Unreachable", "not understood"),
        (Reply(200, None, too_large=True), "Rejected", "larger than"),
        (Silence("gone", sent=True), "Unreachable", "gone"),
    ],
)
def test_what_an_unwanted_answer_means(answer: Reply | Silence, kind: str, told: str) -> None:
    found = refusal(answer)
    assert type(found).__name__ == kind and told in found.problem
