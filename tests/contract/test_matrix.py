"""Who may do what: every route of the table, tried by everybody. The expected answer of each cell stands in MATRIX.

A route that is in no row fails here until somebody says who may use it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from starlette.routing import Route

from service.api.routes import TABLE, routes
from tests.conftest import echo, run_body
from tests.contract.everybody import EVERYBODY, REVIEWER, World


@dataclass(frozen=True)
class Row:
    """What each of EVERYBODY is answered, and what makes the request one that would be taken."""

    cells: str
    json: Callable[[Mapping[str, str]], Any] | None = None
    form: Callable[[Mapping[str, str]], Any] | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    paused: bool = False
    stream: bool = False  # it goes on for ever: only its beginning is looked at
    names_it: bool = False  # the request's own body holds the id, so the answer may


OPEN = "200 200 200 200  200 200 200 200  200 200  200  200 200"
READS = "401 401 401 401  200 200 200 200  200 200  404  200 401"
LISTS = "401 401 401 401  200 200 200 200  200 200  200  200 401"
STARTS = "401 401 401 401  202 403 202 202  403 202  202  403 401"
STEERS = "401 401 401 401  200 403 200 200  403 200  404  403 401"
DECIDES = "401 401 401 401  403 200 200 200  403 403  404  200 401"
FORGED = "401 401 401 401  401 401 401 401  401 401  401  401 401"
MANAGES = "401 401 401 401  403 403 200 403  403 403  404  403 401"

MATRIX: Final[Mapping[tuple[str, str], Row]] = {
    ("POST", "/hitl/run"): Row(STARTS, lambda _: run_body(echo())),
    ("POST", "/teams/run"): Row(STARTS, lambda _: run_body(echo())["run_input"]),
    ("POST", "/teams/run-hitl"): Row(STARTS, lambda _: {"run_input": run_body(echo())["run_input"]}),
    ("GET", "/hitl/runs"): Row(LISTS),
    ("GET", "/hitl/runs/active"): Row(LISTS),
    ("GET", "/hitl/sessions/{session_id}/active"): Row(LISTS),
    ("GET", "/hitl/runs/{run_id}"): Row(READS),
    ("GET", "/hitl/run/{run_id}/status"): Row(READS),
    ("GET", "/hitl/runs/{run_id}/state"): Row(READS),
    ("GET", "/hitl/runs/{run_id}/events"): Row(READS),
    ("POST", "/hitl/run/{run_id}/pause"): Row(STEERS),
    ("POST", "/hitl/run/{run_id}/resume"): Row(STEERS.replace("200", "202"), paused=True),
    ("DELETE", "/hitl/run/{run_id}"): Row(STEERS),
    ("GET", "/hitl/jobs/{job_id}"): Row(READS),
    ("GET", "/hitl/approvals/pending"): Row(LISTS),
    ("GET", "/hitl/approvals/{approval_id}"): Row(READS),
    ("POST", "/hitl/approvals"): Row(
        "401 401 401 401  403 403 201 201  403 201  201  403 401",
        lambda _: {"checkpoint_type": "deploy", "message": "May I?", "context": {}},
    ),
    ("POST", "/hitl/approvals/{approval_id}/decision"): Row(DECIDES, lambda _: {"action": "approve"}),
    ("POST", "/hitl/run/{run_id}/approve"): Row(DECIDES, lambda _: {"action": "approve"}),
    ("POST", "/hitl/approvals/decisions"): Row(  # each item has a status of its own: that is what stands here
        DECIDES, lambda ids: {"decisions": [{"approval_id": ids["approval_id"], "action": "approve"}]}, names_it=True
    ),
    ("POST", "/hitl/approvals/{approval_id}/claim"): Row(DECIDES),
    ("POST", "/hitl/approvals/{approval_id}/release"): Row(DECIDES),
    ("POST", "/hitl/approvals/{approval_id}/delegate"): Row(DECIDES, lambda _: {"user": "zoe"}),
    ("POST", "/hitl/approvals/{approval_id}/link"): Row(MANAGES, lambda _: {"reviewer": REVIEWER}),
    ("GET", "/hitl/links/{token}"): Row(OPEN),
    ("POST", "/hitl/links/{token}"): Row(OPEN, form=lambda ids: {"action": "approve", "nonce": ids["nonce"]}),
    ("GET", "/hitl/files/{file_id}"): Row(READS),
    ("GET", "/hitl/events"): Row(LISTS, query={"session_id": "s-of-nobody"}, stream=True),
    ("POST", "/hitl/ws/ticket"): Row(LISTS.replace("200", "201")),
    ("POST", "/hitl/websocket/message"): Row(LISTS, lambda _: {"type": "ping", "data": {}}),
    ("GET", "/hitl/queue"): Row(LISTS),
    ("GET", "/hitl/providers"): Row(LISTS),
    ("GET", "/metrics"): Row(LISTS),
    ("GET", "/hitl/webhooks/secret"): Row(MANAGES.replace("404", "200")),
    ("POST", "/hitl/webhooks/replicate/{run_id}"): Row(FORGED, lambda _: {"id": "p1"}),
    ("POST", "/hitl/webhooks/http/{run_id}"): Row(
        "401 401 401 401  401 401 401 401  401 401  401  401 401",
        lambda _: {},
        query={"call": "1", "signature": "forged"},
    ),
    ("GET", "/healthz"): Row(OPEN),
    ("GET", "/readyz"): Row(OPEN),
    ("GET", "/openapi.json"): Row(OPEN),
    ("GET", "/asyncapi.json"): Row(OPEN),
    ("GET", "/docs"): Row(OPEN),
}
OF_THE_APP: Final = {("GET", "/openapi.json"), ("GET", "/asyncapi.json"), ("GET", "/docs")}


def served() -> set[tuple[str, str]]:
    """Every method and path over HTTP; frames have a matrix of their own, in test_matrix_frames.py."""
    pages = {
        (method, route.path)
        for route in routes()
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD" and not any(op.path == route.path for op in TABLE)
    }
    return {(op.method, op.path) for op in TABLE} | pages | OF_THE_APP


def test_every_route_stands_in_the_matrix() -> None:
    for method, path in sorted(served() - MATRIX.keys()):
        pytest.fail(f"{method} {path} is in no row of MATRIX in {Path(__file__).name}: say there who may use it")
    for method, path in sorted(MATRIX.keys() - served()):
        pytest.fail(f"{method} {path} is not served any more: take its row out of MATRIX")
    assert {len(row.cells.split()) for row in MATRIX.values()} == {len(EVERYBODY.split())}


@pytest.mark.parametrize(("method", "path"), sorted(MATRIX), ids=" ".join)
async def test_everybody_is_answered_as_the_matrix_says(world: World, method: str, path: str) -> None:
    row = MATRIX[method, path]
    told = {name: await cell(world, name, method, path, row) for name in EVERYBODY.split()}

    assert told == dict(zip(EVERYBODY.split(), map(int, row.cells.split()), strict=True))


async def cell(world: World, name: str, method: str, path: str, row: Row) -> int:
    """The status that this one is answered. A refusal changes nothing and tells another tenant nothing."""
    ids = await world.ids(path, paused=row.paused) if "{" in path or row.json else {}
    before = await world.versions(ids) if ids else None
    if row.stream:
        async with world.clients[name].stream(method, path, params=dict(row.query)) as beginning:
            return beginning.status_code
    answer = await world.clients[name].request(
        method, path.format(**ids), params=dict(row.query), json=row.json(ids) if row.json else None,
        data=row.form(ids) if row.form else None,
    )  # fmt: skip
    status = answer.status_code
    if path.endswith("/decisions") and status == 200:
        status = answer.json()["results"][0]["status_code"]
    if status >= 400 and ids:
        assert await world.versions(ids) == before, f"{name} was refused and changed something"
    if name == "othr" and "token" not in ids and not row.names_it:
        assert not [value for value in ids.values() if value in answer.text], "it told another tenant of an id"
    if status == 401:
        assert "www-authenticate" in answer.headers
    return status


async def test_lists_of_another_tenant_know_nothing_of_mine(world: World) -> None:
    ids = await world.ids()
    lists = [
        path for (method, path), row in MATRIX.items() if method == "GET" and row.cells == LISTS and not row.stream
    ]
    assert {"/hitl/runs", "/hitl/runs/active", "/hitl/approvals/pending"} <= set(lists)

    for path in lists:
        narrowed = {"session_id": ids["session_id"]}  # or the runs of other tests would fill the page
        mine = (await world.clients["admn"].get(path.format(**ids), params=narrowed)).text
        theirs = (await world.clients["othr"].get(path.format(**ids), params={"limit": 200})).text
        assert not [value for value in ids.values() if value in theirs], path
        if "runs" in path or "approvals" in path or "sessions" in path:
            assert ids["run_id"] in mine, path
