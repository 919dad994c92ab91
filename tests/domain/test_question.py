"""What reviewers are shown: where each value came from, what changed, and what silence will mean."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from service.domain import silence
from service.domain.approval import Order, judge
from service.domain.call import CallStatus, Description
from service.domain.patch import diff
from service.domain.plan import Ask, Documents, Fail, information
from service.domain.policy import Checkpoint, EscalateTo, HitlConfig
from service.domain.question import counted, opened, prepared, redrawn, revised
from tests.domain.make import NOW, a_call, a_run, an_approval, documents, who

EXAMPLE = {"prompt": "x", "image": "https://s.example/s.png", "seed": 7, "style": "pop", "size": "1:1"}
SCHEMA = {
    "type": "object",
    "required": ["prompt", "image", "voice"],
    "properties": {
        "prompt": {"type": "string"},
        "image": {"type": "string", "format": "uri"},
        "voice": {"type": "string"},
        "seed": {"type": "integer"},
        "style": {"enum": ["pop", "noir"]},
        "size": {"enum": ["1:1", "16:9"]},
        "steps": {"type": "integer", "default": 4, "maximum": 8},
    },
}


def prepared_documents(schema: Any = SCHEMA, **given: Any) -> Documents:
    run_input = {"prompt": "a red fox", "conversation": [{"role": "user", "content": "size: 16:9"}], **given}
    description, built = prepared(run_input, Description(schema=schema, example=EXAMPLE))
    return documents(HitlConfig(policy="auto"), payload=built, about=description, run_input=run_input)


def shown(docs: Documents, checkpoint: Checkpoint = Checkpoint.PAYLOAD_REVIEW, call: Any = None) -> dict[str, Any]:
    return dict(opened(a_run(), docs, call, Ask(checkpoint, ["requested"]), now=NOW).context)


def origins(context: dict[str, Any]) -> dict[str, tuple[str | None, str | None]]:
    return {row["name"]: (row["origin"], row["edited_by"]) for row in context["form"]["fields"]}


def test_each_field_says_where_its_value_came_from() -> None:
    docs = prepared_documents(attachments=[{"url": "https://x.example/a.png"}])

    assert origins(shown(docs)) == {
        "prompt": ("prompt", None),
        "image": ("attachment", None),
        "voice": (None, None),
        "seed": ("example", None),
        "style": ("example", None),
        "size": ("conversation", None),
        "steps": ("schema_default", None),
    }
    assert shown(docs)["revision_diff"] is None


def test_an_edit_is_known_by_its_editor_in_this_question_and_in_later_ones() -> None:
    docs = prepared_documents()
    first = opened(a_run(), docs, None, Ask(Checkpoint.INFORMATION_REVIEW, ["missing.image"]), now=NOW)
    edits = {"image": "https://x.example/b.png", "voice": "low", "seed": None}
    answered = judge(first, Order("edit", edits), who("ann"), now=NOW, channel="http").approval

    later = revised(docs, answered.decisions)
    redone = redrawn(answered, later)

    for context in (redone.context, shown(later), shown(later, Checkpoint.RESPONSE_REVIEW)):
        told = origins(context)
        assert told["image"] == told["voice"] == ("edited", "ann")
        assert told["prompt"] == ("prompt", None)
        assert told["seed"] == (None, None)
        values = {row["name"]: row["current_value"] for row in context["form"]["fields"]}
        assert values["voice"] == "low"
        assert context["revision_diff"] == diff(docs.payload, later.payload)
    assert redone.context["validation_issues"] == []
    assert redone.context["diff"] == diff(docs.description["baseline"], later.payload)


def test_the_second_revision_is_compared_with_the_first_and_with_the_example() -> None:
    docs = prepared_documents()
    first = judge(an_approval(schema=None), Order("edit", {"voice": "low"}), who("ann"), now=NOW, channel="http")
    second = judge(an_approval(schema=None), Order("edit", {"voice": "high"}), who("bob"), now=NOW, channel="http")
    once = revised(docs, first.approval.decisions)
    twice = revised(once, second.approval.decisions)

    assert origins(shown(twice))["voice"] == ("edited", "bob")
    assert shown(twice)["revision_diff"] == [{"op": "replace", "path": "/voice", "from": "low", "value": "high"}]
    assert {"op": "add", "path": "/voice", "value": "high"} in shown(twice)["diff"]
    assert twice.description is not None
    assert twice.description["built"] == docs.payload


def test_an_edit_that_changes_nothing_is_no_revision() -> None:
    docs = prepared_documents()
    same = judge(an_approval(schema=None), Order("edit", {"seed": 7}), who("ann"), now=NOW, channel="http")

    assert revised(docs, same.approval.decisions) == docs


small = st.integers(-(2**53) + 1, 2**53 - 1)


@given(st.dictionaries(st.sampled_from(["seed", "style", "voice", "new"]), small | st.text() | st.booleans()))
def test_edits_keep_their_json_types_and_each_touched_field_its_editor(edits: dict[str, Any]) -> None:
    docs = prepared_documents()
    verdict = judge(an_approval(schema=None), Order("edit", edits), who("ann"), now=NOW, channel="http")

    after = revised(docs, verdict.approval.decisions)

    for name, value in edits.items():
        assert type(after.payload[name]) is type(value)
        assert after.payload[name] == value
    assert after.description is not None
    assert (after.description.get("editors") or {}).keys() <= edits.keys()


def test_a_response_review_shows_the_real_output_and_no_other_does() -> None:
    docs = replace(prepared_documents(), output={"url": "u"}, raw_response={"raw": 1})

    review = shown(docs, Checkpoint.RESPONSE_REVIEW)
    assert (review["output"], review["response"]) == ({"url": "u"}, {"raw": 1})
    assert shown(docs)["output"] is None


def test_error_recovery_shows_the_faulty_fields_first_with_current_and_allowed_values() -> None:
    issues = [
        {"field": "style", "issue": "no", "severity": "error", "suggested_fix": None, "auto_fixable": False},
        {"field": "steps", "issue": "no", "severity": "error", "suggested_fix": None, "auto_fixable": False},
    ]

    context = shown(prepared_documents(), Checkpoint.ERROR_RECOVERY, a_call(CallStatus.INVALID, issues=issues))

    assert [row["name"] for row in context["form"]["fields"]][:2] == ["style", "steps"]
    assert context["form"]["fields"][0]["allowed"] == ["pop", "noir"]
    style, steps = context["validation_issues"]
    assert (style["current_value"], style["allowed_values"]) == ("pop", ["pop", "noir"])
    assert (steps["current_value"], steps["suggested_fix"]) == (4, "Allowed: at most 8.")


def test_every_checkpoint_has_its_form_and_schema() -> None:
    for checkpoint in Checkpoint:
        context = shown(prepared_documents(), checkpoint)
        assert context["schema"]["properties"].keys() == SCHEMA["properties"].keys()
        assert context["form"]["title"]
        assert len(context["form"]["fields"]) == len(SCHEMA["properties"])


def test_what_raised_a_flag_is_named_with_its_field_and_not_with_its_content() -> None:
    docs = prepared_documents(prompt="write to ann@example.com")

    assert shown(docs)["findings"] == [{"flag": "pii", "detector": "mail", "field": "prompt"}]


# -- rounds --------------------------------------------------------------------------------------------


def _rounds(docs: Documents) -> Any:
    return information(a_run(), docs)


def test_what_is_still_missing_is_asked_again_at_most_as_often_as_configured() -> None:
    config = HitlConfig(policy="auto", max_information_rounds=2)
    docs = replace(prepared_documents(), config=config)
    assert _rounds(docs) == Ask(Checkpoint.INFORMATION_REVIEW, ["missing.image", "missing.voice"])
    assert shown(docs, Checkpoint.INFORMATION_REVIEW)["round"] == {"asked": 1, "most": 2}

    docs = replace(docs, payload={**docs.payload, "voice": "low"})
    docs = replace(docs, description=counted(docs))
    assert _rounds(docs) == Ask(Checkpoint.INFORMATION_REVIEW, ["missing.image"])
    assert shown(docs, Checkpoint.INFORMATION_REVIEW)["round"] == {"asked": 2, "most": 2}

    docs = replace(docs, description=counted(docs))
    match _rounds(docs):
        case Fail(code=code, recoverable=recoverable):
            assert (code, recoverable) == ("information_incomplete", False)
        case other:
            raise AssertionError(other)


def test_a_whole_answer_uses_no_round_up() -> None:
    docs = prepared_documents()
    docs = replace(docs, payload={**docs.payload, "voice": "low", "image": "https://x.example/a.png"})

    assert "rounds" not in counted(docs)


# -- silence -------------------------------------------------------------------------------------------


def test_every_open_approval_says_what_silence_will_mean() -> None:
    at = "at 2026-11-24T12:01:00.000000Z"
    boss = EscalateTo(users=["boss"], groups=["legal"])

    def words(**changes: Any) -> str | None:
        return silence.in_words(an_approval(**changes))

    assert words() == f"rejected {at}"
    assert words(on_timeout="approve") == f"approved {at}"
    assert words(on_timeout="approve", reasons=["missing.image"]) == f"rejected {at}"
    assert words(on_timeout="approve", checkpoint_type="outcome_unknown") == f"rejected {at}"
    escalating = words(on_timeout="escalate", escalate_to=boss)
    assert escalating == f"boss, legal will be asked {at}; rejected after the same time again"
    assert words(on_timeout="escalate", escalate_to=boss, escalated_at=NOW) == f"rejected {at}"
    assert words(clock_stopped_at=NOW) == "the run is paused: the clock stands still"
    decided = judge(an_approval(), Order("approve"), who("ann"), now=NOW + timedelta(seconds=1), channel="http")
    assert silence.in_words(decided.approval) is None
