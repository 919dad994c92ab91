"""Two tenants at one service, their traffic interleaved as hypothesis likes: neither ever sees an id of the other.

Both use the same names for everything that a client names: users, sessions, idempotency keys. Each acts on what the
two of them have, its own and the other's; what is not one's own is 404, over a socket an `error`. Live readers of both
are open all the while. Whatever the service says is searched for every id that the other was ever given.
"""

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID, uuid4

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import connect

from service.commands.context import Services
from service.domain.file import StoredFile, location_of
from service.domain.ids import uuid7
from service.domain.principal import Role
from service.store import files
from tests.conftest import echo, run_body
from tests.contract.conftest import Secured, secured

__all__ = ["secured"]
pytestmark = pytest.mark.timeout(600)

SEARCH: Final = os.environ.get("HYPOTHESIS_PROFILE") == "search"
EXAMPLES, STEPS = (200, 40) if SEARCH else (12, 25)
ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\b[0-9a-f]{64}\b")
ASKS: Final = {"policy": "require_human", "allowed_steps": ["payload_review"]}
USER, SESSION = "the-user", "the-session"


@dataclass
class Tenant:
    """One tenant's clients, and every id that the service gave it. `heard` is all that it was told."""

    name: str
    services: Services
    clients: Mapping[str, httpx2.AsyncClient]
    key_ids: set[str]
    runs: list[str] = field(default_factory=list)
    approvals: list[str] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)

    def ids(self) -> set[str]:
        """Its own, and the hashes that hang on them: what a stranger must not be told."""
        return (
            self.key_ids | set(self.runs) | set(self.approvals) | set(self.files) | {j.split(":")[1] for j in self.jobs}
        )


Act = tuple[str, int, bool]


async def told(tenant: Tenant, role: str, method: str, path: str, **more: Any) -> httpx2.Response:
    answer = await tenant.clients[role].request(method, path, **more)
    assert answer.status_code < 500, (method, path, answer.text)
    tenant.heard.append(f"{answer.text} {dict(answer.headers)}")
    return answer


def one(ids: list[str], n: int) -> str:
    return ids[n % len(ids)] if ids else str(uuid4())


async def do_start(me: Tenant, whose: Tenant, n: int) -> None:
    body = run_body(echo(), **(ASKS if n % 2 else {"policy": "auto"}))
    headers = {"Idempotency-Key": f"k{n % 5}"} if n % 3 == 0 else {}
    body = {**body, "user_id": USER, "session_id": SESSION}
    if "Idempotency-Key" in headers:  # the same body under the same key, and the same from both
        body = {**run_body(echo(), **ASKS), "user_id": USER, "session_id": SESSION}
    answer = await told(me, "service", "POST", "/hitl/run", json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    me.runs.append(answer.json()["run_id"])
    me.jobs.append(answer.json()["job_id"])


async def do_ask(me: Tenant, whose: Tenant, n: int) -> None:
    body = {"checkpoint_type": "purchase", "message": "may I?", "context": {"payload": {"n": n}}, "user_id": USER}
    answer = await told(
        me, "service", "POST", "/hitl/approvals", json=body, headers={"Idempotency-Key": f"a{n % 4}-{n}"}
    )
    assert answer.status_code == 201, answer.text
    me.approvals.append(answer.json()["approval_id"])


async def do_lists(me: Tenant, whose: Tenant, n: int) -> None:
    paths = (
        "/hitl/runs?limit=200", "/hitl/runs/active", f"/hitl/runs?session_id={SESSION}&user_id={USER}",
        f"/hitl/sessions/{SESSION}/active", "/hitl/approvals/pending?limit=200",
        f"/hitl/approvals/pending?user_id={USER}", "/hitl/queue", "/hitl/providers",
        "/hitl/runs?status=completed", "/metrics",
    )  # fmt: skip
    answer = await told(me, "admin", "GET", paths[n % len(paths)])
    assert answer.status_code == 200
    for found in answer.json().get("approvals", []) if "json" in answer.headers["content-type"] else []:
        if found["approval_id"] not in me.approvals:
            me.approvals.append(found["approval_id"])


async def do_get(me: Tenant, whose: Tenant, n: int) -> None:
    """Read a thing of one's own, or of the other's."""
    run, approval = one(whose.runs, n), one(whose.approvals, n)
    paths = (
        f"/hitl/runs/{run}", f"/hitl/run/{run}/status", f"/hitl/runs/{run}/state", f"/hitl/runs/{run}/events",
        f"/hitl/jobs/{one(whose.jobs, n)}", f"/hitl/approvals/{approval}", f"/hitl/files/{one(whose.files, n)}",
    )  # fmt: skip
    answer = await told(me, "admin", "GET", paths[n % len(paths)])
    foreign(me, whose, answer)


async def do_change(me: Tenant, whose: Tenant, n: int) -> None:
    """Change a thing of one's own, or try to change the other's."""
    run, approval = one(whose.runs, n), one(whose.approvals, n)
    reject = {"action": "reject", "reason": "no"}
    wanted: tuple[tuple[str, str, Any], ...] = (
        ("POST", f"/hitl/run/{run}/pause", None), ("POST", f"/hitl/run/{run}/resume", None),
        ("DELETE", f"/hitl/run/{run}", None), ("POST", f"/hitl/run/{run}/approve", {"action": "approve"}),
        ("POST", f"/hitl/approvals/{approval}/decision", {"action": "approve"} if n % 2 else reject),
        ("POST", f"/hitl/approvals/{approval}/claim", None), ("POST", f"/hitl/approvals/{approval}/release", None),
        ("POST", f"/hitl/approvals/{approval}/delegate", {"user": "somebody"}),
        ("POST", f"/hitl/approvals/{approval}/link", {"reviewer": "ana"}),
    )  # fmt: skip
    method, path, body = wanted[n % len(wanted)]
    answer = await told(me, "admin", method, path, **({"json": body} if body is not None else {}))
    foreign(me, whose, answer)


async def do_many(me: Tenant, whose: Tenant, n: int) -> None:
    """Decide one of each tenant's in one request."""
    items = [{"approval_id": one(each.approvals, n), "action": "approve"} for each in (me, whose)]
    answer = await told(me, "admin", "POST", "/hitl/approvals/decisions", json={"decisions": items})
    assert answer.status_code == 200
    if me is not whose:
        assert answer.json()["results"][1]["status_code"] == 404
    me.heard[-1] = me.heard[-1].replace(items[1]["approval_id"], "")  # what was asked is said again


async def do_frame(me: Tenant, whose: Tenant, n: int) -> None:
    """A frame over HTTP about a thing of one's own, or of the other's."""
    approval = one(whose.approvals, n)
    frames = (
        {"type": "hitl_list_pending", "data": {"user_id": USER}},
        {"type": "hitl_approval_response", "data": {"approval_id": approval, "action": "approve"}},
        {"type": "hitl_cancel_approval", "data": {"approval_id": approval, "reason": "no"}},
    )
    frame: Any = frames[n % len(frames)]
    answer = await told(me, "admin", "POST", "/hitl/websocket/message", json=frame)
    if me is not whose and frame["type"] != "hitl_list_pending":
        assert answer.json()["data"].get("success") is not True, answer.text
        me.heard[-1] = me.heard[-1].replace(approval, "")  # what was asked is said again


async def do_socket(me: Tenant, whose: Tenant, n: int) -> None:
    """Subscribe to a run from its first event; to the other's is an error."""
    run = one(whose.runs, n)
    client = me.clients["admin"]
    url = "ws" + str(client.base_url).removeprefix("http").rstrip("/") + "/hitl/ws"
    key = {"Authorization": client.headers["authorization"]}
    async with connect(url, subprotocols=["hitl.v1"], additional_headers=key, proxy=None) as socket:  # type: ignore[list-item]
        await socket.send(json.dumps({"type": "subscribe", "data": {"run_id": run, "after": {run: 0}}}))
        first = json.loads(await asyncio.wait_for(socket.recv(), 20))
        assert first["type"] == ("subscribed" if run in me.runs else "error"), first
        me.heard.append(json.dumps(first).replace(run, ""))
        if run in me.runs:
            me.heard.append(str(await asyncio.wait_for(socket.recv(), 20)))


async def do_file(me: Tenant, whose: Tenant, n: int) -> None:
    """A copied output of a run of one's own; its bytes need not be there."""
    if not me.runs:
        return
    file_id = uuid7()
    stored = StoredFile(
        file_id, me.name, UUID(one(me.runs, n)), "a.png", "image/png", 3, "0" * 64,
        location_of(file_id), me.services.db.now(),
    )  # fmt: skip
    async with me.services.db.transaction(me.name) as conn:
        await files.insert(conn, [stored])
    me.files.append(str(file_id))


def foreign(me: Tenant, whose: Tenant, answer: httpx2.Response) -> None:
    if me is not whose:
        assert answer.status_code == 404, (answer.request.method, str(answer.request.url), answer.text)
        me.heard[-1] = ""  # it says the path again that was asked for


DOES: Final[Mapping[str, Callable[[Tenant, Tenant, int], Awaitable[None]]]] = {
    name.removeprefix("do_"): act for name, act in dict(globals()).items() if name.startswith("do_")
}


async def listening(tenant: Tenant, url: str, ready: asyncio.Event) -> None:
    """A follower of the session, the user and the inbox, whose names both tenants share, until it is cancelled."""
    client = tenant.clients["admin"]
    key = {"Authorization": client.headers["authorization"]}
    async with connect(url, subprotocols=["hitl.v1"], additional_headers=key, proxy=None) as socket:  # type: ignore[list-item]
        for wanted in ({"session_id": SESSION, "after": {}}, {"user_id": USER, "after": {}}, {"inbox": True}):
            await socket.send(json.dumps({"type": "subscribe", "data": wanted}))
        seen = 0
        async for frame in socket:
            tenant.heard.append(str(frame))
            seen += '"subscribed"' in str(frame)
            if seen == 3:
                ready.set()


async def streaming(tenant: Tenant) -> None:
    """The same as a stream of events."""
    path = f"/hitl/events?session_id={SESSION}"
    async with tenant.clients["admin"].stream("GET", path, headers={"Accept": "text/event-stream"}) as answer:
        async for line in answer.aiter_lines():
            tenant.heard.append(line)


async def tenant_of(secured: Secured) -> Tenant:
    name = f"t-{uuid4().hex[:10]}"
    roles: tuple[Role, ...] = ("service", "admin")
    made = {role: await secured.key(role, tenant=name, subject=role) for role in roles}
    clients = {role: await secured.bearing(key) for role, (_, key) in made.items()}
    return Tenant(name, secured.services, clients, {str(key_id) for key_id, _ in made.values()})


async def interleave(secured: Secured, acts: list[Act]) -> None:
    one_, other = await tenant_of(secured), await tenant_of(secured)
    url = "ws" + secured.url.removeprefix("http") + "/hitl/ws"
    async with asyncio.TaskGroup() as group:
        open_: list[asyncio.Task[None]] = []
        for tenant in (one_, other):
            ready = asyncio.Event()
            open_ += [group.create_task(listening(tenant, url, ready)), group.create_task(streaming(tenant))]
            await asyncio.wait_for(ready.wait(), 20)
        for n, (name, number, own) in enumerate(acts):
            me, them = (one_, other) if n % 2 == number % 2 else (other, one_)
            await DOES[name](me, me if own else them, number)
        for follower in open_:
            follower.cancel()
    for me, them in ((one_, other), (other, one_)):
        theirs = them.ids()
        for said in me.heard:
            assert not theirs.intersection(ID.findall(said)), said
            assert them.name not in said, said


@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=not SEARCH, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(DOES)), st.integers(0, 100), st.booleans()), min_size=STEPS, max_size=STEPS
    )
)
async def test_two_tenants_side_by_side_never_see_an_id_of_the_other(secured: Secured, acts: list[Act]) -> None:
    begun: list[Act] = [("start", 1, True), ("start", 2, True), ("ask", 0, True), ("ask", 1, True)]
    await interleave(secured, [*begun, *acts])
