import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.attachments import Attachment, from_prompt, kind
from service.domain.fields import effective_schema, json_type
from service.domain.form import issues
from service.domain.payload import (
    Material,
    build,
    changes,
    missing,
    prompt_field,
)
from service.domain.schema import check, violations

FOX = "a red fox"
PNG, PNG2 = "https://x.example/a.png", "https://x.example/b.png"
MP3, MP4, PDF = "https://x.example/a.mp3", "https://x.example/a.mp4", "https://x.example/a.pdf"
BARE = "https://x.example/download"


def _object(required: list[str], /, **parts: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": parts}


def _user(*texts: str) -> tuple[dict[str, Any], ...]:
    return tuple({"role": "user", "content": text} for text in texts)


URI = {"type": "string", "format": "uri"}
TEXT = {"type": "string"}
FLUX = {
    "type": "object",
    "title": "Input",
    "required": ["prompt"],
    "definitions": {"ratio": {"type": "string", "enum": ["1:1", "16:9"]}},
    "properties": {
        "prompt": {"type": "string", "x-order": 0},
        "aspect_ratio": {"allOf": [{"$ref": "#/definitions/ratio"}], "default": "1:1"},
        "num_outputs": {"type": "integer", "minimum": 1, "maximum": 4, "default": 1},
        "seed": {"type": "integer"},
        "go_fast": {"type": "boolean", "default": True},
        "image_prompt": URI,
    },
}

# name → (example, schema, what was given, expected payload, expected missing)
CONFIGS: dict[str, tuple[Any, Any, Material, dict[str, Any], tuple[str, ...]]] = {
    "flux schnell": (
        {"prompt": "x", "num_outputs": 1, "aspect_ratio": "16:9", "output_format": "png", "go_fast": True},
        None,
        Material(FOX),
        {"prompt": FOX, "num_outputs": 1, "aspect_ratio": "16:9", "output_format": "png", "go_fast": True},
        (),
    ),
    "no example, no schema": (None, None, Material(FOX), {"prompt": FOX}, ()),
    "empty example": ({}, None, Material(FOX), {"prompt": FOX}, ()),
    "blank prompt": ({"prompt": "x"}, None, Material("  "), {}, ("prompt",)),
    "schema defaults": (
        None,
        FLUX,
        Material(FOX),
        {"prompt": FOX, "aspect_ratio": "1:1", "num_outputs": 1, "go_fast": True},
        (),
    ),
    "example before defaults": (
        {"prompt": "x", "num_outputs": 3, "seed": 7},
        FLUX,
        Material(FOX),
        {"prompt": FOX, "aspect_ratio": "1:1", "num_outputs": 3, "seed": 7, "go_fast": True},
        (),
    ),
    "image prompt by uri": (
        {"prompt": "x", "image_prompt": "https://sample.example/s.png"},
        FLUX,
        Material(FOX, (Attachment(PNG),)),
        {
            "prompt": FOX,
            "aspect_ratio": "1:1",
            "num_outputs": 1,
            "go_fast": True,
            "image_prompt": PNG,
        },
        (),
    ),
    "sdxl with negative prompt": (
        {
            "prompt": "x",
            "negative_prompt": "ugly",
            "scheduler": "K_EULER",
            "guidance_scale": 7.5,
            "width": 1024,
        },
        None,
        Material(FOX),
        {"prompt": FOX, "negative_prompt": "", "scheduler": "K_EULER", "guidance_scale": 7.5, "width": 1024},
        (),
    ),
    "negative prompt required": (
        None,
        _object(["prompt", "negative_prompt"], prompt=TEXT, negative_prompt=TEXT),
        Material(FOX),
        {"prompt": FOX, "negative_prompt": ""},
        (),
    ),
    "negative prompt default is not filled": (
        None,
        _object(["prompt"], prompt=TEXT, negative_prompt={"type": "string", "default": "ugly"}),
        Material(FOX),
        {"prompt": FOX},
        (),
    ),
    "names that only contain a word": (
        {
            "prompt": "x",
            "prompt_upsampling": True,
            "context": "photo studio",
            "interface": "web",
            "text_guidance_scale": 3.0,
            "image_size": "landscape_4_3",
            "num_images": 2,
            "prompt_strength": 0.8,
            "audio_format": "wav",
            "video_length": "5s",
            "file_type": "jpg",
        },
        None,
        Material(FOX),
        {
            "prompt": FOX,
            "prompt_upsampling": True,
            "context": "photo studio",
            "interface": "web",
            "text_guidance_scale": 3.0,
            "image_size": "landscape_4_3",
            "num_images": 2,
            "prompt_strength": 0.8,
            "audio_format": "wav",
            "video_length": "5s",
            "file_type": "jpg",
        },
        (),
    ),
    "image to image": (
        {"prompt": "x", "image": "https://sample.example/s.png", "strength": 0.5},
        None,
        Material(FOX, (Attachment(PNG),)),
        {"prompt": FOX, "image": PNG, "strength": 0.5},
        (),
    ),
    "image not given": (
        {"prompt": "x", "image": "https://sample.example/s.png"},
        None,
        Material(FOX),
        {"prompt": FOX},
        (),
    ),
    "image required, not given": (
        {"image": "https://sample.example/s.png"},
        _object(["image"], image=URI, prompt=TEXT),
        Material(FOX),
        {"prompt": FOX},
        ("image",),
    ),
    "alias input_image": (
        {"prompt": "x", "input_image": "s.png"},
        None,
        Material(FOX, (Attachment(PNG),)),
        {"prompt": FOX, "input_image": PNG},
        (),
    ),
    "alias image_url": (
        {"prompt": "x", "image_url": "s"},
        None,
        Material(FOX, (Attachment(PNG),)),
        {"prompt": FOX, "image_url": PNG},
        (),
    ),
    "alias source_image": (
        {"prompt": "x", "source_image": "s"},
        None,
        Material(FOX, (Attachment(PNG),)),
        {"prompt": FOX, "source_image": PNG},
        (),
    ),
    "alias init_image": (
        {"prompt": "x", "init_image": "s"},
        None,
        Material(FOX, (Attachment(PNG),)),
        {"prompt": FOX, "init_image": PNG},
        (),
    ),
    "camel case": (
        {"prompt": "x", "inputImage": "s", "negativePrompt": "ugly", "outputFormat": "png"},
        None,
        Material(FOX, (Attachment(PNG),)),
        {"prompt": FOX, "inputImage": PNG, "negativePrompt": "", "outputFormat": "png"},
        (),
    ),
    "upscaler without a prompt": (
        {"image": "https://sample.example/s.png", "scale": 4},
        _object(["image"], image=URI, scale={"type": "number"}, face_enhance={"type": "boolean", "default": False}),
        Material(f"make it large {PNG}"),
        {"image": PNG, "scale": 4, "face_enhance": False},
        (),
    ),
    "image array takes all": (
        {"prompt": "x", "images": ["https://sample.example/s.png"]},
        None,
        Material(FOX, (Attachment(PNG), Attachment(PNG2))),
        {"prompt": FOX, "images": [PNG, PNG2]},
        (),
    ),
    "scalar takes the first": (
        {"prompt": "x", "image": "s"},
        None,
        Material(FOX, (Attachment(PNG), Attachment(PNG2))),
        {"prompt": FOX, "image": PNG},
        (),
    ),
    "image before mask": (
        {"prompt": "x", "mask": "https://sample.example/m.png", "image": "https://sample.example/s.png"},
        None,
        Material(FOX, (Attachment(PNG),)),
        {"prompt": FOX, "image": PNG},
        (),
    ),
    "face swap": (
        None,
        _object(["swap_image", "input_image"], swap_image=URI, input_image=URI),
        Material(FOX, (Attachment(PNG), Attachment(PNG2))),
        {"swap_image": PNG, "input_image": PNG2},
        (),
    ),
    "talking head": (
        {
            "source_image": "https://sample.example/s.png",
            "driven_audio": "https://sample.example/s.wav",
            "still": True,
        },
        _object(["source_image", "driven_audio"], source_image=URI, driven_audio=URI, still={"type": "boolean"}),
        Material(FOX, (Attachment(MP3), Attachment(PNG))),
        {"source_image": PNG, "driven_audio": MP3, "still": True},
        (),
    ),
    "whisper": (
        {"audio": "https://sample.example/s.mp3", "task": "transcribe", "language": "en", "batch_size": 24},
        _object(["audio"], audio=URI, task={"enum": ["transcribe", "translate"]}, language=TEXT, batch_size={}),
        Material("write this down", (Attachment(MP3),)),
        {"audio": MP3, "task": "transcribe", "language": "en", "batch_size": 24},
        (),
    ),
    "audio_url and video": (
        {"prompt": "x", "audio_url": "https://s.example/s", "video": "https://s.example/s"},
        None,
        Material(FOX, (Attachment(MP4), Attachment(MP3))),
        {"prompt": FOX, "audio_url": MP3, "video": MP4},
        (),
    ),
    "speech from text": (
        {"text": "Hello world", "voice": "af_bella", "speed": 1.1},
        None,
        Material("say hi"),
        {"text": "say hi", "voice": "af_bella", "speed": 1.1},
        (),
    ),
    "instruction": (
        {"instruction": "x", "image": "https://s.example/s.png", "text_cfg_scale": 7.5},
        None,
        Material("make it night", (Attachment(PNG),)),
        {"instruction": "make it night", "image": PNG, "text_cfg_scale": 7.5},
        (),
    ),
    "input": ({"input": "x", "top_k": 50}, None, Material(FOX), {"input": FOX, "top_k": 50}, ()),
    "input that is a picture": (
        {"input": "https://s.example/s.png", "prompt": "x"},
        None,
        Material(FOX, (Attachment(PNG),)),
        {"input": PNG, "prompt": FOX},
        (),
    ),
    "both prompt and text": (
        {"text": "sample", "prompt": "sample", "style": "noir"},
        None,
        Material(FOX),
        {"prompt": FOX, "style": "noir"},
        (),
    ),
    "chat": (
        {"prompt": "x", "system_prompt": "Be brief.", "temperature": 0.7, "max_tokens": 512, "stop": None},
        None,
        Material(FOX),
        {"prompt": FOX, "system_prompt": "Be brief.", "temperature": 0.7, "max_tokens": 512, "stop": None},
        (),
    ),
    "query": ({"query": "x", "max_results": 5}, None, Material(FOX), {"query": FOX, "max_results": 5}, ()),
    "list of prompts": ({"prompts": ["x", "y"], "n": 1}, None, Material(FOX), {"prompts": [FOX], "n": 1}, ()),
    "setting arrays are emptied": (
        {"prompt": "x", "tags": ["a"], "loras": ["https://s.example/l.safetensors"], "sizes": [1, 2]},
        None,
        Material(FOX),
        {"prompt": FOX, "tags": [], "loras": [], "sizes": []},
        (),
    ),
    "nested settings": (
        {
            "prompt": "x",
            "options": {"image": "https://s.example/s.png", "steps": 4, "tags": ["a"], "deep": {"text": "s"}},
        },
        None,
        Material(FOX),
        {"prompt": FOX, "options": {"steps": 4, "tags": [], "deep": {}}},
        (),
    ),
    "nested input": (
        {"input": {"prompt": "x", "image": "https://s.example/s.png", "steps": 4}, "priority": "low"},
        None,
        Material(FOX),
        {"input": {"prompt": FOX, "steps": 4}, "priority": "low"},
        (),
    ),
    "any URL is content": (
        {
            "prompt": "x",
            "webhook": "https://s.example/hook",
            "hf_lora": "https://s.example/l",
            "scheduler": "DDIM",
        },
        None,
        Material(FOX, (Attachment(BARE), Attachment(PNG))),
        {"prompt": FOX, "scheduler": "DDIM"},
        (),
    ),
    "a number is a setting whatever its name": (
        {"prompt": "x", "image": 3, "audio": False},
        None,
        Material(FOX, (Attachment(PNG),)),
        {"prompt": FOX, "image": 3, "audio": False},
        (),
    ),
    "an enum is a setting whatever its name": (
        {"prompt": "x", "text": "bold"},
        _object(["prompt"], prompt=TEXT, text={"enum": ["bold", "plain"]}),
        Material(FOX),
        {"prompt": FOX, "text": "bold"},
        (),
    ),
    "document": (
        {"prompt": "x", "document": "https://s.example/s.pdf"},
        None,
        Material(FOX, document_url=PDF),
        {"prompt": FOX, "document": PDF},
        (),
    ),
    "a general file field": (
        {"prompt": "x", "file": "s"},
        None,
        Material(FOX, (Attachment(MP3),)),
        {"prompt": FOX, "file": MP3},
        (),
    ),
    "a file of unknown kind": (
        {"prompt": "x", "image": "s"},
        None,
        Material(FOX, (Attachment(BARE),)),
        {"prompt": FOX, "image": BARE},
        (),
    ),
    "media type before extension": (
        {"prompt": "x", "image": "s", "audio": "s"},
        None,
        Material(FOX, (Attachment(BARE, "audio/mpeg"), Attachment("https://x.example/y", name="y.PNG"))),
        {"prompt": FOX, "audio": BARE, "image": "https://x.example/y"},
        (),
    ),
    "attachment block": (
        {"prompt": "x", "image": "s"},
        None,
        Material(f"{FOX}\n---BEGIN_ATTACHMENTS---\n{PNG}\n---END_ATTACHMENTS---"),
        {"prompt": FOX, "image": PNG},
        (),
    ),
    "URL in the prompt stays": (
        {"prompt": "x", "image": "s"},
        None,
        Material(f"paint ({PNG})."),
        {"prompt": f"paint ({PNG}).", "image": PNG},
        (),
    ),
    "conversation URL": (
        {"prompt": "x", "image": "s"},
        None,
        Material(FOX, conversation=_user(f"use {PNG}, please")),
        {"prompt": FOX, "image": PNG},
        (),
    ),
    "attachment before conversation": (
        {"prompt": "x", "image": "s"},
        None,
        Material(FOX, (Attachment(PNG2),), conversation=_user(f"image: {PNG}")),
        {"prompt": FOX, "image": PNG2},
        (),
    ),
    "conversation answers": (
        {
            "prompt": "x",
            "num_outputs": 1,
            "guidance": 3.5,
            "fast": False,
            "aspect_ratio": "1:1",
            "sizes": [1],
        },
        None,
        Material(
            FOX,
            conversation=_user(
                "num_outputs: 2\nguidance=4, fast=yes", "Aspect ratio: 16:9\nnum_outputs = 3\nsizes: 4, 5"
            ),
        ),
        {
            "prompt": FOX,
            "num_outputs": 3,
            "guidance": 4.0,
            "fast": True,
            "aspect_ratio": "16:9",
            "sizes": [4, 5],
        },
        (),
    ),
    "answers that do not convert": (
        {"prompt": "x", "num_outputs": 1, "fast": False, "image": "s"},
        FLUX,
        Material(FOX, conversation=_user("num_outputs: many\naspect_ratio: 3:1\ngo_fast: maybe\nprompt: evil")),
        {"prompt": FOX, "aspect_ratio": "1:1", "num_outputs": 1, "go_fast": True, "fast": False},
        (),
    ),
    "enum answers": (
        None,
        _object(["prompt"], prompt=TEXT, steps={"enum": [1, 4, 8]}, style={"enum": ["Noir", "Pop"]}),
        Material(FOX, conversation=_user("steps: 4", 'style = "noir"')),
        {"prompt": FOX, "steps": 4, "style": "Noir"},
        (),
    ),
    "a closed schema drops what it does not name": (
        {"prompt": "x", "seed": 1, "old_setting": True},
        {**_object(["prompt"], prompt=TEXT, seed={"type": "integer"}), "additionalProperties": False},
        Material(FOX),
        {"prompt": FOX, "seed": 1},
        (),
    ),
    "nullable schema": (
        {"prompt": "x", "seed": None},
        _object(["prompt"], prompt=TEXT, seed={"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        Material(FOX, conversation=_user("seed: 42")),
        {"prompt": FOX, "seed": 42},
        (),
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_tool_config_of_the_world_maps_to_its_payload(name: str) -> None:
    example, schema, material, payload, absent = CONFIGS[name]

    built = build(material, schema=schema, example=example)

    assert built.payload == payload
    assert json.dumps(built.payload, sort_keys=True) == json.dumps(payload, sort_keys=True)
    assert built.missing == absent
    assert built.origins.keys() == payload.keys()
    check(effective_schema(schema, example))
    assert bool(violations(effective_schema(schema, example), payload)) == bool(absent)


def test_at_least_forty_configs_are_in_the_table() -> None:
    assert len(CONFIGS) >= 40


# -- properties ----------------------------------------------------------------------------------------

CONTENT = (
    *("prompt", "text", "instruction", "input", "query", "message", "image", "input_image", "image_url"),
    *("source_image", "init_image", "images", "image_2", "audio", "driven_audio", "audio_url", "video"),
    *("video_url", "file", "input_file", "mask", "negative_prompt", "negative_prompt_2", "lyrics", "url"),
)
SETTINGS = ("context", "interface", "aspect_ratio", "scheduler", "image_size", "style", "num_images", "seed")
SECRET = "SAMPLE-CONTENT"
secrets = st.text("abc /.", max_size=5).map(lambda tail: SECRET + tail)
urls = secrets.map(lambda text: "https://s.example/" + text.replace(" ", ""))
plain = st.booleans() | st.integers(-(2**31), 2**31) | st.floats(-10, 10) | st.sampled_from(["16:9", "K_EULER", ""])
content = st.dictionaries(st.sampled_from(CONTENT), secrets | urls | st.lists(secrets | urls, max_size=2))
settings = st.dictionaries(st.sampled_from(SETTINGS), plain | urls | st.lists(secrets, max_size=2), max_size=5)
flat = st.tuples(content, settings).map(lambda pair: {**pair[0], **pair[1]})
examples = st.tuples(flat, st.dictionaries(st.sampled_from(["options", "config"]), flat, max_size=2)).map(
    lambda pair: {**pair[0], **pair[1]}
)
materials = st.builds(
    Material,
    prompt=st.text(min_size=1, max_size=20).filter(str.strip),
    attachments=st.lists(st.sampled_from([PNG, PNG2, MP3, MP4, PDF, BARE]).map(Attachment), max_size=3).map(tuple),
    document_url=st.none() | st.just(PDF),
    conversation=st.lists(
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["user", "assistant"]),
                "content": st.sampled_from(["seed: 5", "hello", f"see {PNG}", "style=noir, seed=x", "image: no"]),
            }
        ),
        max_size=3,
    ).map(tuple),
)


@given(materials, examples)
def test_no_sample_content_ever_reaches_a_payload(material: Material, example: dict[str, Any]) -> None:
    built = build(material, schema=None, example=example)

    assert SECRET not in json.dumps(built.payload)


@given(materials, examples)
def test_no_sample_content_passes_where_a_schema_was_given(material: Material, example: dict[str, Any]) -> None:
    schema = effective_schema(None, example)

    assert SECRET not in json.dumps(build(material, schema=schema, example=example).payload)


@given(materials, examples)
def test_building_changes_and_shares_nothing_of_what_it_was_given(material: Material, example: dict[str, Any]) -> None:
    schema = effective_schema(None, example)
    before = copy.deepcopy((material, example, schema))

    built = build(material, schema=schema, example=example)
    for value in (*built.payload.values(), *built.baseline.values()):
        if isinstance(value, dict | list):
            value.clear()

    assert (material, example, schema) == before


@given(materials, examples)
def test_settings_keep_their_json_types(material: Material, example: dict[str, Any]) -> None:
    payload = build(material, schema=None, example=example).payload
    kept = [name for name in payload if name in SETTINGS and name in example]

    assert all(json_type(payload[name]) == json_type(example[name]) for name in kept)
    assert all(name in payload for name in example if isinstance(example[name], bool | int | float))


@given(materials, examples)
def test_every_built_payload_validates_once_nothing_is_missing(material: Material, example: dict[str, Any]) -> None:
    built = build(material, schema=None, example=example)

    assert built.missing or not violations(effective_schema(None, example), built.payload)


@given(materials, examples)
def test_building_is_repeatable_and_confidence_stays_in_its_range(material: Material, example: dict[str, Any]) -> None:
    built = build(material, schema=None, example=example)

    assert built == build(material, schema=None, example=example)
    assert 0.0 <= built.confidence <= 1.0


ANY_TYPE = st.sampled_from(
    [
        TEXT,
        URI,
        {},
        {"type": "integer", "maximum": 9},
        {"type": "boolean", "default": True},
        {"type": ["string", "null"], "minLength": 3},
        {"anyOf": [{"type": "number"}, {"type": "null"}]},
        {"type": "array", "items": URI, "minItems": 2},
        {"type": "array", "items": TEXT},
        {"enum": ["bold", 4]},
        {"type": "object", "properties": {"prompt": TEXT, "image": URI, "n": {"type": "integer"}}, "required": ["n"]},
        {"type": "object", "additionalProperties": False},
    ]
)
schema_parts = st.dictionaries(st.sampled_from((*CONTENT, *SETTINGS, "options", "config")), ANY_TYPE, max_size=8)
any_schema = st.builds(
    lambda parts, required, closed: {**_object(sorted(required), **parts), "additionalProperties": not closed},
    schema_parts,
    st.sets(st.sampled_from(CONTENT), max_size=3),
    st.booleans(),
)


@given(materials, examples, any_schema)
def test_under_any_schema_no_sample_leaks_and_every_fault_is_told(
    material: Material, example: dict[str, Any], schema: dict[str, Any]
) -> None:
    built = build(material, schema=schema, example=example)

    told = {issue["field"].partition(".")[0] for issue in issues(built.payload, schema)}
    faulty = {fault.pointer.split("/")[1] for fault in violations(schema, built.payload)}
    assert SECRET not in json.dumps(built.payload)
    assert faulty | set(built.missing) <= told
    assert built == build(material, schema=schema, example=example)


@pytest.mark.parametrize("kind", [{"type": "integer"}, {"enum": ["bold", 4]}, {"type": "array", "items": TEXT}])
def test_a_sample_of_what_is_not_wanted_stays_behind_whatever_its_type(kind: dict[str, Any]) -> None:
    built = build(
        Material(FOX), schema=_object([], prompt=TEXT, negative_prompt=kind), example={"negative_prompt": "x"}
    )

    assert built.payload == {"prompt": FOX}


def test_a_sample_of_another_shape_than_the_schemas_array_is_no_reason_to_fall_over() -> None:
    schema = _object([], texts={"type": "array", "items": TEXT})

    assert build(Material(FOX), schema=schema, example={"texts": 0.5}).payload == {"texts": [FOX]}


# -- origins, confidence, changes ----------------------------------------------------------------------


def test_each_field_says_where_it_came_from() -> None:
    material = Material(FOX, (Attachment(PNG),), conversation=_user("seed: 4"))
    built = build(material, schema=FLUX, example={"prompt": "x", "num_outputs": 2})

    assert built.origins == {
        "prompt": "prompt",
        "aspect_ratio": "schema_default",
        "num_outputs": "example",
        "seed": "conversation",
        "go_fast": "schema_default",
        "image_prompt": "attachment",
    }


@pytest.mark.parametrize(
    ("schema", "files", "expected"),
    [
        (_object(["prompt"], prompt=TEXT), (), 1.0),
        (_object([], prompt=TEXT), (), 1.0),
        (_object(["prompt", "image"], prompt=TEXT, image=URI), (PNG,), 1.0),
        (_object(["prompt", "image"], prompt=TEXT, image=URI), (BARE,), 0.75),
        (_object(["prompt", "image"], prompt=TEXT, image=URI), (), 0.25),
        (
            _object(["prompt", "a_image", "b_image"], prompt=TEXT, a_image=URI, b_image=URI),
            (PNG, PNG2),
            0.6667,
        ),
        (_object(["prompt", "n"], prompt=TEXT, n={"type": "integer", "default": 1}), (), 1.0),
        (_object(["prompt"], prompt={"type": "string", "maxLength": 2}), (), 0.5),
    ],
)
def test_confidence_is_the_share_of_required_content_given_explicitly(
    schema: Any, files: tuple[str, ...], expected: float
) -> None:
    built = build(Material(FOX, tuple(map(Attachment, files))), schema=schema, example=None)

    assert built.confidence == expected


def test_changes_count_top_level_fields_that_differ_the_prompt_included() -> None:
    assert changes({"prompt": "x", "a": 1, "b": {"c": 1}}, {"prompt": "y", "a": 1.0, "b": {"c": 2}}) == 2
    assert changes({"a": 1}, {"a": True}) == 1
    assert changes({"gone": 1}, {"new": 1}) == 2
    assert changes({}, {}) == 0


def test_a_default_that_nobody_touched_is_no_change() -> None:
    example = {"prompt": "x", "num_outputs": 1}
    built = build(Material(FOX), schema=FLUX, example=example)

    assert built.baseline == {**example, "aspect_ratio": "1:1", "go_fast": True}
    assert changes(built.baseline, built.payload) == 1


def test_a_required_field_is_missing_when_absent_null_blank_or_an_empty_array() -> None:
    schema = _object(["a", "b", "c", "d", "e", "f", "negative_prompt"])

    assert missing({"b": None, "c": " ", "d": [], "e": 0, "f": False}, schema) == ("a", "b", "c", "d")


def test_without_a_schema_only_the_prompt_is_required() -> None:
    assert missing({"image": ""}, None) == ("prompt",)
    assert missing({"text": "hi"}, None) == ()


def test_a_derived_schema_has_the_types_of_its_samples_and_lets_more_through() -> None:
    derived = effective_schema(None, {"prompt": "x", "n": 1, "g": 0.5, "on": True, "any": None})

    assert derived["properties"] == {
        "prompt": {"type": "string", "minLength": 1},
        "n": {"type": "integer"},
        "g": {"type": "number"},
        "on": {"type": "boolean"},
        "any": {},
    }
    assert derived["required"] == ["prompt"]
    assert violations(derived, {"prompt": "y", "more": 1, "any": "x"}) == ()
    assert [fault.pointer for fault in violations(derived, {"prompt": "", "n": "4"})] == ["/prompt", "/n"]


@pytest.mark.parametrize(
    ("schema", "example", "expected"),
    [
        (None, None, "prompt"),
        (None, {"instructions": "x"}, "instructions"),
        (None, {"message": "x", "prompt": "y"}, "prompt"),
        (_object([], text=TEXT), {"prompt": "x"}, "text"),
        (None, {"input": {"text": "x"}}, "input"),
        (None, {"prompt": 3, "text": "x"}, "text"),
    ],
)
def test_the_prompt_goes_to_the_first_known_alias(schema: Any, example: Any, expected: str) -> None:
    assert prompt_field(schema, example) == expected


# -- the conversation ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 42", 42),
        ("please use seed=42, thanks", 42),
        ("- **Seed**: 42.", 42),
        ('"seed": 42', 42),
        ("seed=1\nseed=2", 2),
        ("seed: 5 and style: noir", 5),
        ("seed: -3", -3),
        ("seed: 4.5", 7),
        ("my_seed: 42", 7),
        ("https://x.example/?seed=42", 7),
        ("seedling: 42", 7),
        ("seed:", 7),
    ],
)
def test_an_answer_sets_a_known_field_in_its_type(text: str, expected: int) -> None:
    built = build(Material(FOX, conversation=_user(text)), schema=None, example={"seed": 7, "style": "pop"})

    assert built.payload["seed"] == expected


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "user", "text": "seed: 1"},
        {"role": "user", "message": "seed: 1"},
        {"role": "user", "content": [{"type": "text", "text": "seed: 1"}]},
    ],
)
def test_a_turn_may_have_any_of_the_usual_shapes(turn: dict[str, Any]) -> None:
    assert build(Material(FOX, conversation=(turn,)), schema=None, example={"seed": 7}).payload["seed"] == 1


@pytest.mark.parametrize("turn", [{"role": "assistant", "content": "seed: 1"}, {}, {"role": "user", "content": 3}])
def test_only_the_users_turns_answer(turn: dict[str, Any]) -> None:
    assert build(Material(FOX, conversation=(turn,)), schema=None, example={"seed": 7}).payload["seed"] == 7


def test_files_are_taken_from_the_last_ten_turns_only() -> None:
    example = {"prompt": "x", "image": "s"}
    turns = _user(f"see {PNG}", *["hm"] * 9)

    assert build(Material(FOX, conversation=turns), schema=None, example=example).payload["image"] == PNG
    late = Material(FOX, conversation=(*turns, *_user("hm")))
    assert "image" not in build(late, schema=None, example=example).payload


def test_a_url_that_answers_one_field_is_not_put_in_another() -> None:
    material = Material(FOX, conversation=_user(f"mask: {PNG}"))
    payload = build(material, schema=None, example={"prompt": "x", "image": "s", "mask": "s"}).payload

    assert payload == {"prompt": FOX, "mask": PNG}


# -- attachments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "text", "urls"),
    [
        (FOX, FOX, []),
        (f"{FOX}\n---BEGIN_ATTACHMENTS---\n{PNG}\n{MP3}\n---END_ATTACHMENTS---\n", FOX, [PNG, MP3]),
        (f"a\n---BEGIN_ATTACHMENTS---\n{PNG}\n---END_ATTACHMENTS---\nb", "a\nb", [PNG]),
        (f"see {MP3} ---BEGIN_ATTACHMENTS---\n{PNG}\n---END_ATTACHMENTS---", f"see {MP3}", [PNG, MP3]),
        (f"{PNG}, {PNG} and ({PNG2}).", f"{PNG}, {PNG} and ({PNG2}).", [PNG, PNG2]),
        (f'"{PNG}"; [x]({PNG2})!', f'"{PNG}"; [x]({PNG2})!', [PNG, PNG2]),
        (f"{PNG},{PNG2}", f"{PNG},{PNG2}", [PNG, PNG2]),
        (f"---BEGIN_ATTACHMENTS---\n{PNG}", f"---BEGIN_ATTACHMENTS---\n{PNG}", [PNG]),
        ("ftp://x.example/a.png http://", "ftp://x.example/a.png http://", []),
    ],
)
def test_the_block_leaves_the_prompt_and_other_urls_stay(prompt: str, text: str, urls: list[str]) -> None:
    assert from_prompt(prompt) == (text, tuple(map(Attachment, urls)))


@pytest.mark.parametrize(
    ("attachment", "expected"),
    [
        (Attachment(PNG + "?x=1.mp3#a"), "image"),
        (Attachment("https://x.example/A.JPEG"), "image"),
        (Attachment(MP3), "audio"),
        (Attachment(MP4), "video"),
        (Attachment("https://x.example/notes.md"), "text"),
        (Attachment(PDF), "file"),
        (Attachment(BARE), "file"),
        (Attachment(BARE, "image/png"), "image"),
        (Attachment(BARE, "application/octet-stream", "a.wav"), "audio"),
        (Attachment("data:image/png;base64,AAAA"), "image"),
        (Attachment("https://[broken/a.png"), "file"),
    ],
)
def test_a_file_is_told_apart_by_media_type_then_extension(attachment: Attachment, expected: str) -> None:
    assert kind(attachment) == expected
