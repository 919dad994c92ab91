"""Contract, section 8: exactly one frame for each event, and the same one whenever it is told."""

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.event import Event, EventType, Fact, chain, rfc3339
from service.domain.frame import NeedsApproval, NeedsOutput, NeedsResult, frame, needs
from service.domain.run import RunStatus, Step
from tests.domain.make import NOW, a_run

APPROVAL = UUID(int=7)
OTHERS = {
    EventType.APPROVAL_REQUESTED: "hitl_approval_request",
    EventType.STEP_COMPLETED: "hitl_step_completion",
    EventType.PROVIDER_FAILED: "hitl_error",
    EventType.RUN_COMPLETED: "hitl_completion",
    EventType.RUN_FAILED: "hitl_completion",
    EventType.RUN_CANCELLED: "hitl_completion",
}
FIELDS = {
    "hitl_status_update": {"run_id", "status", "current_step", "message", "timestamp"},
    "hitl_step_completion": {"run_id", "step", "result", "timestamp"},
    "hitl_error": {"run_id", "error", "step", "timestamp"},
    "hitl_completion": {"run_id", "status", "result"},
}


def told(kind: EventType, **data: Any) -> Event:
    return chain(a_run(), [Fact(kind, "dev", data)], at=NOW)[1][0]


def any_event(kind: EventType) -> Event:
    return told(kind, step="payload_review", approval_id=str(APPROVAL), code="failed", call=1)


@pytest.mark.parametrize("kind", EventType)
def test_every_event_has_its_frame(kind: EventType) -> None:
    event = any_event(kind)
    found = frame(event, {"approval_id": str(APPROVAL)})

    assert found["type"] == OTHERS.get(kind, "hitl_status_update")
    assert (found["run_id"], found["seq"], found["event"]) == (str(event.run_id), 1, kind)
    assert FIELDS.get(found["type"], set()) <= found["data"].keys()
    assert found["data"].get("timestamp", rfc3339(event.at)) == rfc3339(event.at)


@given(st.sampled_from(EventType), st.integers(1, 9))
def test_a_frame_told_again_is_the_same(kind: EventType, found: int) -> None:
    assert frame(any_event(kind), found) == frame(any_event(kind), found)


def test_a_frame_asks_for_what_it_shows() -> None:
    assert needs(told(EventType.APPROVAL_REQUESTED, approval_id=str(APPROVAL))) == NeedsApproval(APPROVAL)
    assert needs(told(EventType.STEP_COMPLETED, step="api_call", call=2)) == NeedsOutput(2)
    assert needs(told(EventType.STEP_COMPLETED, step="response_review", call=2)) == NeedsResult()
    assert needs(told(EventType.RUN_COMPLETED)) == NeedsResult()
    assert needs(told(EventType.STEP_COMPLETED, step="payload_review", call=2)) is None
    assert needs(told(EventType.RUN_FAILED, code="x", step="api_call")) is None


def test_what_was_found_is_shown() -> None:
    assert frame(told(EventType.APPROVAL_REQUESTED, approval_id=str(APPROVAL)), {"a": 1})["data"] == {"a": 1}
    assert frame(told(EventType.STEP_COMPLETED, step="api_call", call=1), [1])["data"]["result"] == [1]
    assert frame(told(EventType.RUN_COMPLETED), "out")["data"]["result"] == "out"


def test_a_step_that_began_is_the_current_one_though_the_transaction_went_further() -> None:
    run = a_run(status=RunStatus.AWAITING_HUMAN, step=Step.RESPONSE_REVIEW)
    began, asked = chain(
        run, [Fact(EventType.STEP_STARTED, data={"step": "api_call"}), Fact(EventType.RUN_PAUSED)], at=NOW
    )[1]

    assert frame(began)["data"] | {"timestamp": ""} == {
        "run_id": str(run.id), "status": "running", "current_step": "api_call", "message": "the step began",
        "timestamp": "",
    }  # fmt: skip
    assert frame(asked)["data"]["status"] == "awaiting_human"
    assert frame(asked)["data"]["current_step"] == "response_review"


def test_progress_is_passed_on() -> None:
    found = frame(told(EventType.PROVIDER_PROGRESS, text="a red", call=1))

    assert found["data"]["progress"] == {"text": "a red", "call": 1}
