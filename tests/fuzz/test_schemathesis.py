"""The document and the service, held against each other by schemathesis with all of its checks.

Each operation is sent requests that keep to the document and requests that break it in one way; ids in paths are
those of real things half of the time. What no document can say stands in UNSAID, with the reason.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, Final

import pytest
import pytest_asyncio
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import GenerationMode
from schemathesis.generation.feedback import FeedbackSources
from schemathesis.pytest._test_builder import build_operation_test
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from service.api.routes import TABLE
from service.domain.ids import parse_id
from tests.conftest import echo, run_body, settled, start
from tests.contract.conftest import Secured, secured

__all__ = ["secured"]
pytestmark = pytest.mark.timeout(600)

LABELS: Final = sorted(f"{op.method} {op.path}" for op in TABLE)
SEARCH: Final = os.environ.get("HYPOTHESIS_PROFILE") == "search"
DRAWN: Final = 500 if SEARCH else 60  # beside the examples and the systematic cases, which do not depend on it
FLOOR: Final = 65
FEW: Final[Mapping[str, int]] = {
    "GET /healthz": 10,  # neither parameters nor a key
    "GET /readyz": 10,
    "POST /hitl/ws/ticket": 20,
    "POST /hitl/websocket/message": 20,
    "POST /hitl/approvals/{approval_id}/delegate": 30,
    "POST /hitl/approvals/{approval_id}/link": 30,
}
LEAST: Final = 2000
NOBODY_THERE: Final = "http://127.0.0.1:9/"

# Operations that may refuse, by 422 and not otherwise, what fits the document: `positive_data_acceptance` is left out
# for that answer alone, and every other check stands.
_CURSOR: Final = "a cursor is opaque: only one that we gave out is one; nor is a year beyond Postgres's a time"
_TOOL: Final = "exactly one known tool, configured as its provider wants it; no integer beyond 2^53"
_ONE: Final = "exactly one of several members that exclude each other; no integer beyond 2^53"
_NUL: Final = "no query holds NUL, which Postgres cannot"
UNSAID: Final[Mapping[str, str]] = {
    "GET /hitl/runs": _CURSOR,
    "GET /hitl/runs/active": _CURSOR,
    "GET /hitl/sessions/{session_id}/active": _CURSOR,
    "GET /hitl/approvals/pending": _CURSOR,
    "GET /hitl/events": "exactly one of session_id and user_id; a Last-Event-ID is opaque",
    "GET /hitl/runs/{run_id}/events": "a Last-Event-ID is a seq, where a stream is asked for",
    "POST /hitl/run": _TOOL,
    "POST /teams/run": _TOOL,
    "POST /teams/run-hitl": _TOOL,
    "POST /hitl/approvals": "a URL by http or https, a JSON Schema that is one, a target for escalate",
    "POST /hitl/approvals/decisions": "no integer beyond 2^53, also where the schema lets anything in",
    "POST /hitl/approvals/{approval_id}/decision": _ONE,
    "POST /hitl/run/{run_id}/approve": _ONE,
    "POST /hitl/approvals/{approval_id}/delegate": _ONE,
    "POST /hitl/approvals/{approval_id}/link": "the reviewer must be one of the approval's; no blank names",
    "POST /hitl/websocket/message": "a frame's data depends on its type",
    "POST /hitl/webhooks/http/{run_id}": _NUL,
    "POST /hitl/webhooks/replicate/{run_id}": _NUL,
    "DELETE /hitl/run/{run_id}": _NUL,
}


@dataclass
class Door:
    """The live service, its document, everybody's keys and the ids of real things."""

    url: str
    schema: Any
    keys: Iterator[str]
    ids: Mapping[str, str]
    sent: dict[str, int] = field(default_factory=dict)

    def try_case(self, case: schemathesis.Case[Any]) -> None:
        label = case.operation.label
        number = self.sent[label] = self.sent.get(label, 0) + 1
        if isinstance(case.body, dict) and str(case.body.get("callback_url")).lower().startswith("http"):
            case.body["callback_url"] = NOBODY_THERE
        if number % 2:
            self.make_real(case)
        headers = {"Authorization": f"Bearer {next(self.keys)}"}
        options: dict[str, Any] = {"base_url": self.url, "timeout": 0.3 if label == "GET /hitl/events" else 60}
        answer = case.call(headers=headers, **options)
        left_out: list[Any] = [positive_data_acceptance] if unsaid(case, answer) else []
        if case.method in ("GET", "DELETE") and answer.status_code == 200:
            left_out.append(negative_data_rejection)  # unknown query parameters are ignored, and the key is always sent
        case.validate_response(
            answer, headers=headers, excluded_checks=left_out, transport_kwargs={**options, "headers": headers}
        )

    def make_real(self, case: schemathesis.Case[Any]) -> None:
        """What is drawn names nothing that is there, and no tool."""
        for name, value in dict(case.path_parameters or {}).items():
            if name in self.ids and parse_id(str(value)) is not None:
                case.path_parameters[name] = self.ids[name]
        if "wait" in (case.query or {}) and str(case.query["wait"]).isdigit():
            case.query["wait"] = 0
        if isinstance(case.body, dict):
            run_input = case.body.get("run_input", case.body)
            if isinstance(run_input, dict) and isinstance(run_input.get("agent_tool_config"), dict):
                run_input["agent_tool_config"] = echo()


def unsaid(case: schemathesis.Case[Any], answer: schemathesis.Response) -> bool:
    """Whether a request that fits the document was refused for what the document cannot say."""
    if answer.status_code != 422 or case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return False
    return case.operation.label in UNSAID


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def door(secured: Secured) -> Door:
    keys = [(await secured.key(role))[1] for role in ("admin", "service", "admin", "reviewer", "admin", "submitter")]
    client = await secured.bearing(keys[0])
    run_id = await start(client, run_body(echo(), policy="require_human"))
    approval = (await settled(client, run_id))["pending_actions"][0]
    ids = {"run_id": run_id, "approval_id": approval["approval_id"]}
    schema = schemathesis.openapi.from_url(f"{secured.url}/openapi.json")
    return Door(secured.url, schema, cycle(keys), ids)


@pytest.mark.parametrize("label", LABELS)
def test_the_service_keeps_to_its_document(door: Door, label: str) -> None:
    operation = door.schema.find_operation_by_label(label)

    @settings(max_examples=DRAWN, suppress_health_check=list(HealthCheck))
    def keeps_to_it(case: schemathesis.Case[Any]) -> None:
        door.try_case(case)

    run: Callable[[], None] = build_operation_test(
        config=door.schema.config, operation=operation, test_func=keeps_to_it, given_kwargs={},
        feedback=FeedbackSources(),
    )  # fmt: skip
    run()
    assert door.sent[label] >= FEW.get(label, FLOOR)


def test_it_is_asked_often_enough() -> None:
    assert sum(FEW.get(label, FLOOR) for label in LABELS) >= LEAST
