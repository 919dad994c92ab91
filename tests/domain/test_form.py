from typing import Any

from service.domain.form import form, issues, with_allowed
from service.domain.payload import Material, build

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["prompt", "image"],
    "properties": {
        "prompt": {"type": "string", "title": "The prompt", "description": "What to paint."},
        "image": {"type": "string", "format": "uri"},
        "num_outputs": {"type": "integer", "minimum": 1, "maximum": 4, "default": 1},
        "aspect_ratio": {"enum": ["1:1", "16:9"], "default": "1:1"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "negative_prompt": {"type": "string"},
        "options": {"type": "object", "properties": {"steps": {"type": "integer"}}},
    },
}
KEYS = {
    *("name", "label", "type", "category", "required", "current_value", "default", "prompt", "collection"),
    *("hint", "allowed", "origin", "edited_by"),
}


def _rows(payload: dict[str, Any], schema: Any = SCHEMA, origins: Any = None) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in form(payload, schema, origins or {}, title="t")["fields"]}


def test_every_field_of_schema_and_payload_has_a_row_of_the_contracts_shape() -> None:
    rows = _rows({"prompt": "a fox", "extra": 1})

    assert list(rows) == [*SCHEMA["properties"], "extra"]
    assert all(row.keys() == KEYS for row in rows.values())


def test_a_field_that_a_closed_schema_does_not_name_is_shown_too() -> None:
    assert "extra" in _rows({"extra": 1}, {**SCHEMA, "additionalProperties": False})


def test_types_and_categories_follow_schema_and_names() -> None:
    rows = _rows({"guidance": 3.5, "fast": True})

    assert {name: (row["type"], row["category"]) for name, row in rows.items()} == {
        "prompt": ("string", "content"),
        "image": ("string", "content"),
        "num_outputs": ("integer", "setting"),
        "aspect_ratio": ("enum", "setting"),
        "tags": ("array", "setting"),
        "negative_prompt": ("string", "hybrid"),
        "options": ("object", "hybrid"),
        "guidance": ("number", "setting"),
        "fast": ("boolean", "setting"),
    }
    assert [name for name, row in rows.items() if row["collection"]] == ["tags"]
    assert [name for name, row in rows.items() if row["required"]] == ["prompt", "image"]


def test_a_row_asks_a_question_and_hints_at_what_is_allowed() -> None:
    rows = _rows({})

    assert rows["prompt"]["label"] == "The prompt"
    assert rows["num_outputs"]["label"] == "Num outputs"
    assert rows["image"]["prompt"] == "Which image should be used?"
    assert rows["prompt"]["hint"] == "What to paint."
    assert rows["num_outputs"]["hint"] == "Allowed: at least 1, at most 4."
    assert rows["aspect_ratio"]["hint"] == "One of: 1:1, 16:9."
    assert all(row["prompt"].endswith("?") for row in rows.values())


def test_a_row_says_what_stands_there_and_where_it_came_from() -> None:
    row = _rows({"num_outputs": 2}, origins={"num_outputs": "conversation"})["num_outputs"]

    assert (row["current_value"], row["default"], row["origin"]) == (2, 1, "conversation")
    assert _rows({})["image"]["origin"] is None


def test_missing_fields_and_violations_are_issues_with_what_would_be_allowed() -> None:
    payload = {"prompt": " ", "num_outputs": 9, "aspect_ratio": "2:1", "options": {"steps": "x"}}

    found = {issue["field"]: issue for issue in issues(payload, SCHEMA)}

    assert list(found)[:2] == ["prompt", "image"]
    assert found["image"] == {
        "field": "image",
        "issue": "is required",
        "severity": "error",
        "suggested_fix": "Give image a value.",
        "auto_fixable": False,
    }
    assert found["num_outputs"]["suggested_fix"] == "Allowed: at least 1, at most 4."
    assert found["num_outputs"]["auto_fixable"] is True
    assert found["aspect_ratio"]["suggested_fix"] == "One of: 1:1, 16:9."
    assert found["options.steps"]["issue"] == "must be of type integer"
    assert len(found) == 5


def test_a_built_payload_without_faults_has_no_issues() -> None:
    files = Material("a fox", conversation=({"role": "user", "content": "image: https://x.example/a.png"},))
    built = build(files, schema=SCHEMA, example=None)

    assert issues(built.payload, SCHEMA) == []
    assert issues({}, None)[0]["field"] == "prompt"


def test_a_complaint_shows_what_stands_there_and_what_is_allowed_inside_objects_and_arrays_too() -> None:
    deep: dict[str, Any] = {
        "properties": {
            "n": {"type": "integer", "minimum": 1, "maximum": 4},
            "options": {"properties": {"mode": {"enum": ["a", "b"]}}},
            "parts": {"items": {"properties": {"size": {"enum": [1, 2]}}}},
        }
    }
    payload = {"n": 9, "options": {"mode": "c"}, "parts": [{"size": 1}, {"size": 3}]}

    def told(field: str, **more: Any) -> tuple[Any, Any, Any]:
        issue = with_allowed({"field": field, "issue": "refused", **more}, payload, deep)
        return issue["current_value"], issue["allowed_values"], issue["suggested_fix"]

    assert told("n") == (9, None, "Allowed: at least 1, at most 4.")
    assert told("options.mode") == ("c", ["a", "b"], "One of: a, b.")
    assert told("parts.1.size") == (3, [1, 2], "One of: 1, 2.")
    assert told("parts.7.size") == (None, [1, 2], "One of: 1, 2.")
    assert told("unheard.of") == (None, None, None)
    assert told("n", suggested_fix="take 2")[2] == "take 2"


def test_faulty_fields_come_first_in_the_form() -> None:
    rows = form({"prompt": "x"}, SCHEMA, {}, title="t", first=["options.steps", "image", "unheard.of"])["fields"]

    assert [row["name"] for row in rows][:3] == ["options", "image", "prompt"]
    assert len(rows) == len(SCHEMA["properties"])
