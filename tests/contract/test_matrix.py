"""Who may do what: every route of the table, tried by everybody. The expected answer of each cell stands in MATRIX.

A route that is in no row fails here until somebody says who may use it.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import httpx2
import pytest
import pytest_asyncio

from service.api.routes import TABLE, routes
from service.commands.keys import NewKey, create_key, revoke_key
from service.commands.links import make_link, open_link
from service.commands.runs import StartRun, pause_run, start_run
from service.domain.file import StoredFile, location_of
from service.domain.ids import uuid7
from service.domain.policy import HitlConfig
from service.domain.principal import Principal
from service.embedded import Servers
from service.filestore import FolderStore
from service.runtime import Runtime
from service.store import approvals, files
from service.store.database import EVERY
from tests.acting import worker
from tests.conftest import base_env, echo, own_runtime, run_body, web

MINE, OTHER = "matrix-mine", "matrix-other"
SUBMITTER, REVIEWER = "sue", "rob"
EVERYBODY: Final = "none bad over revk  subm revw admn serv  nogr self  othr"
"""No key, one that nobody made, an expired and a revoked one; each role, in the group that the approval asks; a
reviewer without the group; who started the run, with the role `service`; the admin of another tenant."""


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


OPEN = "200 200 200 200  200 200 200 200  200 200  200"
READS = "401 401 401 401  200 200 200 200  200 200  404"
LISTS = "401 401 401 401  200 200 200 200  200 200  200"
STARTS = "401 401 401 401  202 403 202 202  403 202  202"
STEERS = "401 401 401 401  200 403 200 200  403 200  404"
DECIDES = "401 401 401 401  403 200 200 200  403 403  404"
MANAGES = "401 401 401 401  403 403 200 403  403 403  404"

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
        "401 401 401 401  403 403 201 201  403 201  201",
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
    ("POST", "/hitl/webhooks/replicate/{run_id}"): Row(
        "401 401 401 401  401 401 401 401  401 401  401", lambda _: {"id": "p1"}
    ),
    ("POST", "/hitl/webhooks/http/{run_id}"): Row(
        "401 401 401 401  401 401 401 401  401 401  401", lambda _: {}, query={"call": "1", "signature": "forged"}
    ),
    ("GET", "/healthz"): Row(OPEN),
    ("GET", "/readyz"): Row(OPEN),
    ("GET", "/openapi.json"): Row(OPEN),
    ("GET", "/asyncapi.json"): Row(OPEN),
    ("GET", "/docs"): Row(OPEN),
}
OF_THE_APP: Final = {("GET", "/openapi.json"), ("GET", "/asyncapi.json"), ("GET", "/docs")}


def served() -> set[tuple[str, str]]:
    """Every method and path over HTTP; sockets have a matrix of their own."""
    pages = {
        (method, route.path)
        for route in routes()
        for method in getattr(route, "methods", None) or ()
        if method != "HEAD" and not any(op.path == route.path for op in TABLE)
    }
    return {(op.method, op.path) for op in TABLE} | pages | OF_THE_APP


def test_every_route_stands_in_the_matrix() -> None:
    for method, path in sorted(served() - MATRIX.keys()):
        pytest.fail(f"{method} {path} is in no row of MATRIX in {Path(__file__).name}: say there who may use it")
    for method, path in sorted(MATRIX.keys() - served()):
        pytest.fail(f"{method} {path} is not served any more: take its row out of MATRIX")
    assert {len(row.cells.split()) for row in MATRIX.values()} == {len(EVERYBODY.split())}


@dataclass
class World:
    """A web process with a database of its own that no worker looks at, and everybody's clients."""

    runtime: Runtime
    clients: Mapping[str, httpx2.AsyncClient]
    files: Path

    async def ids(self, path: str, row: Row) -> dict[str, str]:
        """A fresh run that waits for its reviewers, and whatever else the request speaks of."""
        services = self.runtime.services
        sue, config = (
            Principal(SUBMITTER, MINE, "submitter"),
            HitlConfig.model_validate(
                {
                    "policy": "require_human",
                    "allowed_steps": ["payload_review"],
                    "reviewers": {"groups": ["legal"], "allow_self_approval": False},
                }
            ),
        )
        session = f"s-{uuid4().hex[:8]}"
        run_input = {"prompt": "a red fox", "agent_tool_config": echo()}
        run_id = (await start_run(services, StartRun(run_input, config, session_id=session), sue)).run_id
        await worker(self.runtime).advance(run_id)
        async with services.db.connection(EVERY) as conn:
            approval = (await approvals.open_of_run(conn, run_id))[0]
        ids = {
            "run_id": str(run_id),
            "approval_id": str(approval.id),
            "session_id": session,
            "job_id": f"run:{run_id}:1",
        }
        if "{token}" in path:
            admin = Principal("root", MINE, "admin")
            url, _ = await make_link(services, approval.id, REVIEWER, admin, expires_in_s=None)
            ids["token"] = url.rpartition("/")[2]
            ids["nonce"] = (await open_link(services, ids["token"])).nonce
        if "{file_id}" in path:
            ids["file_id"] = await self.file(run_id)
        if row.paused:
            await pause_run(services, run_id, sue)
        return ids

    async def file(self, run_id: UUID) -> str:
        file_id = uuid7()
        content, location = b"a picture", location_of(file_id)

        async def pieces() -> AsyncIterator[bytes]:
            yield content

        await FolderStore(self.files).put(location, pieces())
        stored = StoredFile(
            file_id, MINE, run_id, "a.png", "image/png", len(content), sha256(content).hexdigest(), location,
            self.runtime.services.db.now(),
        )  # fmt: skip
        async with self.runtime.services.db.transaction(EVERY) as conn:
            await files.insert(conn, [stored])
        return str(file_id)

    async def versions(self, ids: Mapping[str, str]) -> Any:
        """What changes with every change of the run or its approval."""
        async with self.runtime.services.db.connection(EVERY) as conn:
            return await conn.fetchrow(
                "select r.version, a.version, a.status from runs r join approvals a on a.run_id = r.id where r.id = $1",
                UUID(ids["run_id"]),
            )


async def keys(runtime: Runtime) -> dict[str, str | None]:
    """Everybody's key by their name in EVERYBODY."""
    services = runtime.services

    async def key(role: Any, subject: str, *groups: str, tenant: str = MINE) -> tuple[UUID, str]:
        wanted = NewKey(f"{role}-{subject}", role, tenant, subject, groups)
        made, secret = await create_key(services.db, services.keyring, wanted)
        return made.id, secret

    async def over() -> str:
        key_id, secret = await key("admin", "old", "legal")
        async with services.db.connection(EVERY) as conn:
            await conn.execute("update api_keys set expires_at = now() where id = $1", key_id)
        return secret

    async def revoked() -> str:
        key_id, secret = await key("admin", "gone", "legal")
        await revoke_key(services.db, key_id)
        return secret

    return {
        "none": None,
        "bad": "hitl_" + "x" * 43,
        "over": await over(),
        "revk": await revoked(),
        "subm": (await key("submitter", "sam", "legal"))[1],
        "revw": (await key("reviewer", REVIEWER, "legal"))[1],
        "admn": (await key("admin", "root", "legal"))[1],
        "serv": (await key("service", "bot", "legal"))[1],
        "nogr": (await key("reviewer", "nob", "ops"))[1],
        "self": (await key("service", SUBMITTER, "legal"))[1],
        "othr": (await key("admin", "root", "legal", tenant=OTHER))[1],
    }


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def world(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("matrix")
    async with AsyncExitStack() as opened:
        runtime = await opened.enter_async_context(own_runtime(servers, "matrix", redis_db=9))
        assert runtime.settings.database_url and runtime.settings.redis_url
        env = base_env(
            servers, HITL_AUTH="required", DATABASE_URL=runtime.settings.database_url,
            REDIS_URL=runtime.settings.redis_url, HITL_FILES=str(folder / "files"),
        )  # fmt: skip
        url = opened.enter_context(web(env, folder))
        clients = {}
        for name, key in (await keys(runtime)).items():
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            client = httpx2.AsyncClient(base_url=url, headers=headers, timeout=70, trust_env=False)
            clients[name] = await opened.enter_async_context(client)
        yield World(runtime, clients, folder / "files")


@pytest.mark.parametrize(("method", "path"), sorted(MATRIX), ids=" ".join)
async def test_everybody_is_answered_as_the_matrix_says(world: World, method: str, path: str) -> None:
    row = MATRIX[method, path]
    told = {name: await cell(world, name, method, path, row) for name in EVERYBODY.split()}

    assert told == dict(zip(EVERYBODY.split(), map(int, row.cells.split()), strict=True))


async def cell(world: World, name: str, method: str, path: str, row: Row) -> int:
    """The status that this one is answered. A refusal changes nothing and tells another tenant nothing."""
    ids = await world.ids(path, row) if "{" in path or row.json else {}
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
    ids = await world.ids("", Row(""))
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
