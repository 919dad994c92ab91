"""The table of real-world tool configs, through the same doors as a request."""

import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.domain.call import Description
from service.domain.form import issues
from service.domain.question import prepared
from service.providers.config import config_of
from tests.domain.tool_configs import CONFIGS, FOX, Config, S

NAMES = sorted(CONFIGS)
SAMPLES = "SAMPLE-CONTENT"


def made(case: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    (entry,) = case.tool.values()
    about = Description(schema=case.schema, example=config_of(entry).get("example_input"))
    return prepared({"prompt": FOX, **case.input, "agent_tool_config": case.tool}, about)


def test_the_table_has_at_least_forty_configs() -> None:
    assert len(CONFIGS) >= 40


@pytest.mark.parametrize("name", NAMES)
def test_a_tool_config_of_the_world_gives_its_payload(name: str) -> None:
    case = CONFIGS[name]

    description, payload = made(case)

    assert payload == case.expected
    assert json.dumps(payload, sort_keys=True) == json.dumps(case.expected, sort_keys=True)
    assert tuple(description["missing"]) == case.absent
    assert description["origins"].keys() == payload.keys()


@pytest.mark.parametrize("name", NAMES)
def test_no_sample_content_is_in_any_of_the_payloads(name: str) -> None:
    _, payload = made(CONFIGS[name])

    assert S not in json.dumps(payload)
    assert '"sample"' not in json.dumps(payload)


@pytest.mark.parametrize("name", NAMES)
def test_a_payload_validates_or_each_fault_is_told(name: str) -> None:
    description, payload = made(CONFIGS[name])

    faulty = {issue["field"].partition(".")[0] for issue in issues(payload, description["schema"])}
    told = {"size", "n"} if name == "http, an example outside its own schema" else set()
    assert faulty == {*description["missing"], *told}


def _marked(value: Any) -> Any:
    """The sample with every text replaced by one that would be recognised."""
    if isinstance(value, str):
        return f"https://s.example/{SAMPLES}" if value.startswith(("http", "s3:")) else SAMPLES
    if isinstance(value, list):
        return [_marked(one) for one in value]
    return {name: _marked(one) for name, one in value.items()} if isinstance(value, dict) else value


CONTENT = {
    *(
        "prompt",
        "text",
        "image",
        "img",
        "input_image",
        "swap_image",
        "source_image",
        "start_image",
        "face_image",
        "mask",
    ),
    *("driven_audio", "audio", "audio_file", "ref_audio", "ref_text", "gen_text", "input_audio", "driving_video", "q"),
    *(
        "prompt_a",
        "prompt_b",
        "a_prompt",
        "n_prompt",
        "negative_prompt",
        "initial_prompt",
        "instruction",
        "image_input",
    ),
    *("images", "history", "messages", "video", "file", "document", "inputText", "sourceImageUrl", "negativePrompt"),
    *("human_img", "garm_img", "pose_image", "first_frame_image", "last_image", "webhook", "callback_url", "dataset"),
}


@given(st.sampled_from(NAMES), st.data())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_no_content_of_any_sample_ever_reaches_a_payload(name: str, data: st.DataObject) -> None:
    case = copy.deepcopy(CONFIGS[name])
    (entry,) = case.tool.values()
    example = config_of(entry).get("example_input") or {}
    for field in data.draw(st.sets(st.sampled_from(sorted(example.keys() & CONTENT) or [""]))):
        if field:
            example[field] = _marked(example[field])

    _, payload = made(case)

    assert SAMPLES not in json.dumps(payload)


@given(st.sampled_from(NAMES))
def test_building_is_deterministic_and_changes_nothing_it_was_given(name: str) -> None:
    case = copy.deepcopy(CONFIGS[name])

    assert made(case) == made(CONFIGS[name])
    assert case == CONFIGS[name]
