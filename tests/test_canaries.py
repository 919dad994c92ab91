"""Contract, section 11: "No content of a request (payload, prompt, reason, mail address, key, token, link) is ever
logged, at any level". A canary goes into every field of every door; then all output of every process is searched, and
events, metrics, the queue, and what other callers are told.

The requests are made from the models: a new field is planted without a line here.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncpg
import httpx2
import orjson
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from websockets.asyncio.server import ServerConnection, serve

from service.api.frames import CLIENT
from service.api.models import AskRequest, RunInput, StartRunRequest
from service.api.routes import TABLE
from service.commands.keys import NewKey, create_key, revoke_key
from service.embedded import Servers
from service.logs import CATALOGUE
from service.runtime import Runtime
from service.store.database import EVERY
from tests.conftest import WORKER, Provider, at, base_env, eventually, own_runtime, process, settled, web
from tests.following import socket
from tests.planting import NOTHING, Given, Planted

ALWAYS: Final = {"policy": "require_human"}
KEPT_BACK: Final = "write-only"


@dataclass
class Site:
    """A whole service of its own, at LOG_LEVEL=DEBUG, and everything outside of it that it speaks to."""

    url: str
    runtime: Runtime
    folder: Path
    planted: Planted
    outside: Provider
    mine: httpx2.AsyncClient
    others: httpx2.AsyncClient
    key: str
    relay: list[ServerConnection]
    told_me: list[str] = field(default_factory=list)

    def given(self, tool: Any) -> Given:
        """What the fields hold that cannot hold just anything."""
        return {
            ("RunInput", "tenant"): NOTHING,
            ("RunInput", "agent_tool_config"): tool,
            ("StartRunRequest", "hitl_config"): ALWAYS,
            ("StartRunRequest", "callback_url"): self.callback_url,
            ("AskRequest", "callback_url"): self.callback_url,
            ("AskRequest", "schema_"): lambda: {
                "type": "object",
                "description": self.planted.word("AskRequest.schema"),
            },
            ("AskRequest", "reviewers"): NOTHING,
            ("AskRequest", "escalate_to"): NOTHING,
        }

    def callback_url(self) -> str:
        user, password, path, query = (self.planted.word(f"callback_url.{part}") for part in ("u", "p", "path", "q"))
        host = self.outside.url.removeprefix("http://").partition("/")[0]
        return f"http://{user}:{password}@{host}/hook/{path}?token={query}"

    def tool(self, **more: Any) -> dict[str, Any]:
        word = self.planted.word
        example = {"prompt": "sample", "style": word("tool.example"), "n": 1}
        headers = {"X-Secret": word(f"tool.headers {KEPT_BACK}")}
        data = {"url": f"{self.outside.url}/{word('tool.url')}", "example_input": example, "headers": headers, **more}
        return {"http-agent-tool": {"data": data, "unknown": word("tool.unknown")}}

    async def start(self, tool: Any, **more: Any) -> str:
        body = {**self.planted.model(StartRunRequest, self.given(tool)), **more}
        answer = await self.ask("POST", "/hitl/run", json=body, headers={"Idempotency-Key": self.planted.word("key")})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["run_id"])

    async def ask(self, method: str, path: str, **more: Any) -> httpx2.Response:
        answer = await self.mine.request(method, path, **more)
        self.told_me.append(answer.text)
        return answer

    async def decide(self, run_id: str, checkpoint: str, action: str, **more: Any) -> None:
        approval = await at(self.mine, run_id, checkpoint)
        body = {"action": action, "reason": self.planted.word("decision.reason"), **more}
        answer = await self.ask("POST", f"/hitl/approvals/{approval['approval_id']}/decision", json=body)
        assert answer.status_code == 200, answer.text

    def logs(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.folder.glob("*.log")}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def site(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    folder, planted = tmp_path_factory.mktemp("canaries"), Planted()
    outside, relay = Provider(), []

    async def relayed(connection: ServerConnection) -> None:
        relay.append(connection)
        async for _ in connection:
            pass

    async with AsyncExitStack() as opened:
        listening = await asyncio.start_server(outside.serve, "127.0.0.1", 0)
        opened.callback(listening.close)
        outside.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        relays = await opened.enter_async_context(serve(relayed, "127.0.0.1", 0))
        port = next(iter(relays.sockets)).getsockname()[1]
        runtime = await opened.enter_async_context(own_runtime(servers, "canaries", redis_db=10))
        services = runtime.services
        env = base_env(
            servers, LOG_LEVEL="DEBUG", HITL_AUTH="required", HITL_HTTP_ALLOW="loopback",
            DATABASE_URL=str(runtime.settings.database_url), REDIS_URL=str(runtime.settings.redis_url),
            HITL_FILES=str(folder / "files"), HITL_POLL_DELAY="0.1",
            WEBSOCKET_URL=f"ws://127.0.0.1:{port}/{planted.word('relay.url')}?token={planted.word('relay.query')}",
            WEBSOCKET_API_KEY=planted.word("WEBSOCKET_API_KEY"), OPENAI_API_KEY=planted.word("OPENAI_API_KEY"),
            OPENAI_BASE_URL=f"{outside.url}/v1", REPLICATE_API_TOKEN=planted.word("REPLICATE_API_TOKEN"),
            REPLICATE_BASE_URL=outside.url,
        )  # fmt: skip
        planted.secret("HITL_SECRET_KEY", env["HITL_SECRET_KEY"])
        url = opened.enter_context(web(env, folder, "web"))
        opened.enter_context(process(*WORKER, env=env, log=folder / "worker.log"))
        keys = []
        for tenant in ("mine", "others"):
            _, key = await create_key(services.db, services.keyring, NewKey("k", "service", tenant, "somebody"))
            keys.append(planted.secret(f"key of {tenant}", key))
        clients = [
            await opened.enter_async_context(
                httpx2.AsyncClient(
                    base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=70, trust_env=False
                )
            )
            for key in keys
        ]
        yield Site(url, runtime, folder, planted, outside, clients[0], clients[1], keys[0], relay)


# What is done: one after the other on one site, then one look at everything


async def every_operation_of_the_table(site: Site) -> None:
    """Path, query, body and headers planted, as a caller who may, with a bad key, and as no JSON at all."""
    word = site.planted.word
    bad = {
        "Authorization": f"Bearer {word('bad key')}",
        "Cookie": word("cookie"),
        "X-HITL-Actor": word("actor, bad key"),
    }
    for op in TABLE:
        path = op.path.format_map({name: word(f"path of {op.path}") for name in _names(op.path)})
        query = site.planted.model(op.query, {}, at="query.") | {"access_token": word("query.unknown")}
        body = site.planted.model(op.body, site.given(site.tool())) if op.body else {"x": word(f"body of {op.path}")}
        headers = {"Idempotency-Key": word("idempotency key"), "Last-Event-ID": word("last event id")}
        for more in ({"json": body}, {"json": body, "headers": headers | bad}, {"content": word("no json").encode()}):
            async with asyncio.timeout(20):
                async with site.mine.stream(op.method, path, params=query, **({"headers": headers} | more)) as answer:
                    assert answer.status_code != 500, (op.path, await answer.aread())
                    if answer.status_code >= 400:
                        site.told_me.append((await answer.aread()).decode())
    for path in (f"/nowhere/{word('path')}", f"/docs/static/{word('path')}", f"/hitl/links/{word('link token')}"):
        await site.ask("GET", path)
        await site.ask("POST", path, data={"nonce": word("nonce"), "reason": word("link.reason"), "action": "approve"})


def _names(path: str) -> list[str]:
    return [part.strip("{}") for part in path.split("/") if part.startswith("{")]


async def every_frame(site: Site) -> None:
    word = site.planted.word
    tickets = [(await site.ask("POST", "/hitl/ws/ticket")).json()["ticket"] for _ in range(2)]
    for ticket in tickets:
        site.planted.secret("ticket", ticket)
    site.told_me.clear()
    async with socket(site.url, "hitl.v1", f"hitl.ticket.{tickets[0]}") as live:
        for name, kind in CLIENT.items():
            data = site.planted.model(kind, {}) | ({word("ping"): word("ping")} if name == "ping" else {})
            for sent in (data, {"session_id": word("session")}, {"user_id": word("user")}, {"x": word("unknown")}):
                await live.ask(name, sent)
                await site.ask("POST", "/hitl/websocket/message", json={"type": name, "data": sent})
        for text in (word("no json"), f'{{"type": "{word("no type")}"}}'):
            await live.connection.send(text)
            await live.hear()
    for protocol in (f"hitl.ticket.{word('bad ticket')}", word("protocol")):
        with pytest.raises(Exception, match="401"):
            async with socket(site.url, "hitl.v1", protocol):
                pass


async def a_run_through_all_its_checkpoints(site: Site) -> None:
    word = site.planted.word
    site.outside.answer = lambda seen: (200, {"text": word("provider.answer")}, {"x-secret": word("provider.header")})
    run_id = await site.start(site.tool())
    await site.decide(run_id, "information_review", "edit", edits={"style": word("edits")})
    await site.decide(run_id, "payload_review", "approve")
    await site.decide(run_id, "response_review", "edit", edits={"response": {"text": word("edits.response")}})
    assert (await settled(site.mine, run_id, "completed"))["status"] == "completed"
    for ended in ("reject", "cancel"):
        run_id = await site.start(site.tool())
        if ended == "reject":
            await site.decide(run_id, "information_review", "reject")
        await at_rest(site, run_id)
        await site.ask("DELETE", f"/hitl/run/{run_id}", params={"reason": word("cancel.reason")})


async def at_rest(site: Site, run_id: str) -> Any:
    return await settled(site.mine, run_id)


async def providers_that_fail(site: Site) -> None:
    """Everything a provider may say that is not what was asked for, with canaries in it."""
    word = site.planted.word
    auto = {"hitl_config": {"policy": "auto"}}
    said: list[Any] = [
        (200, word("garbage").encode() + b"\xff\x00{"),
        (200, b'{"a": "' + word("cut json").encode()),
        (400, {"error": word("provider.400")}),
        (422, {"detail": [{"loc": ["body", "style"], "msg": word("provider.422")}]}),
        (302, word("provider.302").encode(), {"location": f"http://127.0.0.1/{word('location')}"}),
        (503, word("provider.503").encode(), {"retry-after": word("retry-after")}),
        "cut",
        (200, word("length").encode(), {"content-length": "9999"}),
        (200, word("encoding").encode(), {"content-encoding": "gzip"}),
    ]
    for entry in said:
        site.outside.answer = None
        site.outside.script = [entry]
        await at_rest(site, await site.start(site.tool(), **auto))
    site.outside.script = []
    for tool in (
        {"openai-agent-tool": {"data": {"model": word("model"), "system": word("system")}}},
        {"replicate-agent-tool": {"data": {"name": "a/b", "description": word("description")}}},
    ):
        for status in (200, 400, 401):
            site.outside.answer = lambda _, status=status: (status, word(f"provider {status}").encode())
            await at_rest(site, await site.start(tool, **auto))
    nowhere = {"http-agent-tool": {"data": {"url": f"http://{word('host')}.invalid/{word('path')}"}}}
    await site.ask("POST", "/hitl/run", json=site.planted.model(StartRunRequest, site.given(nowhere)) | auto)


async def answers_that_come_late(site: Site) -> None:
    word = site.planted.word
    site.outside.seen.clear()
    site.outside.answer = lambda seen: (202, {"later": word("provider.202")})
    run_id = await site.start(site.tool(), hitl_config={"policy": "auto"})
    await settled(site.mine, run_id, "awaiting_provider")
    calls = [seen for seen in site.outside.seen if "x-hitl-callback-url" in seen.headers]
    callback = calls[-1].headers["x-hitl-callback-url"]
    site.planted.secret("callback signature", callback.partition("signature=")[2])
    path = callback.partition("/hitl/")[2]
    forged = path.partition("signature=")[0] + f"signature={word('forged signature')}"
    for sent in (forged, path, path):
        await site.ask("POST", f"/hitl/{sent}", json={"text": word("late answer")})
    site.outside.answer = None
    await settled(site.mine, run_id, "completed")


async def questions_and_links(site: Site) -> None:
    word, services = site.planted.word, site.runtime.services
    _, admin = await create_key(services.db, services.keyring, NewKey("a", "admin", "mine", "root"))
    site.planted.secret("admin key", admin)
    asked = []
    for _ in range(4):
        body = site.planted.model(AskRequest, site.given(None))
        asked.append(await site.ask("POST", "/hitl/approvals", json=body))
    assert [answer.status_code for answer in asked] == [201] * 4, asked[0].text
    ids = [answer.json()["approval_id"] for answer in asked]
    link = await site.mine.post(
        f"/hitl/approvals/{ids[0]}/link", json={"reviewer": "zoe"}, headers={"Authorization": f"Bearer {admin}"}
    )
    token = site.planted.secret("link", link.json()["url"].rpartition("/")[2])
    page = (await site.mine.get(f"/hitl/links/{token}")).text
    nonce = site.planted.secret("nonce", page.partition('name="nonce" value="')[2].partition('"')[0])
    assert len(nonce) > 20
    form = {"action": "reject", "reason": word("link.reason"), "nonce": nonce}
    assert (await site.mine.post(f"/hitl/links/{token}", data=form)).status_code == 200
    async with socket(site.url, additional_headers={"Authorization": f"Bearer {site.key}"}) as live:
        answer = {"approval_id": ids[1], "action": "reject", "reason": word("socket.reason")}
        assert (await live.ask("hitl_approval_response", answer))["data"]["success"]
        cancel = {"approval_id": ids[2], "reason": word("socket.cancel")}
        assert (await live.ask("hitl_cancel_approval", cancel))["data"]["success"]
    delegated = {"user": "zoe", "reason": word("delegate.reason")}
    assert (await site.ask("POST", f"/hitl/approvals/{ids[3]}/delegate", json=delegated)).status_code == 200


async def what_the_relay_says(site: Site) -> None:
    word = site.planted.word
    run_id = await site.start(site.tool())
    approval = await at(site.mine, run_id, "information_review")

    async def connected() -> bool:
        return bool(site.relay)

    await eventually(connected, "the relay's connection")
    answer = {"approval_id": approval["approval_id"], "action": "reject", "reason": word("relay.reason")}
    frames: list[Any] = [
        word("relay.garbage"), {"type": word("relay.type")}, {"type": "hitl_approval_response", "data": word("data")},
        {"type": "hitl_approval_response", "data": {**answer, word("relay.field"): 1}},
        {"type": "hitl_approval_response", "data": {**answer, "approval_id": word("relay.approval_id")}},
        {"type": "hitl_approval_response", "data": answer},
    ]  # fmt: skip
    for told in frames:
        await site.relay[-1].send(told if isinstance(told, str) else orjson.dumps(told).decode())
    assert (await settled(site.mine, run_id, "cancelled"))["status"] == "cancelled"


async def crashes_inside(site: Site) -> None:
    """Postgres raises an error that quotes what it was given: in the web process, over a socket, in the worker."""
    word = site.planted.word
    db = await asyncpg.connect(site.runtime.settings.database_url)
    await db.execute(
        f"create function boom() returns trigger language plpgsql as $$ begin"
        f" raise exception '{word('crash')} %', new::text using detail = '{word('crash.detail')}'; end $$"
    )

    async def breaks(table: str, what: Any) -> None:
        await db.execute(f"create trigger boom before insert on {table} for each row execute function boom()")
        try:
            await what
        finally:
            await db.execute(f"drop trigger boom on {table}")

    async def starts() -> None:
        body = site.planted.model(StartRunRequest, site.given(site.tool()))
        answer = await site.ask("POST", "/hitl/run", json=body)
        assert (answer.status_code, site.planted.found(answer.text)) == (500, set())

    async def decides(approval_id: str) -> None:
        sent = {"approval_id": approval_id, "action": "reject", "reason": word("crash.reason")}
        async with socket(site.url, additional_headers={"Authorization": f"Bearer {site.key}"}) as live:
            answer = await live.ask("hitl_approval_response", sent)
            assert answer["data"]["code"] == "internal_error"
        faults = site.logs()["worker.log"].count('"event": "http.error"')
        await site.relay[-1].send(orjson.dumps({"type": "hitl_approval_response", "data": sent}).decode())
        await eventually(lambda: _more(site, '"event": "http.error"', faults), "the relay's crash")

    async def works() -> None:
        failed = site.logs()["worker.log"].count('"level": "error"')
        await site.start(site.tool())
        await eventually(lambda: _more(site, '"level": "error"', failed), "the worker's crash")

    await breaks("runs", starts())
    run_id = await site.start(site.tool())
    approval = await at(site.mine, run_id, "information_review")
    await breaks("decisions", decides(approval["approval_id"]))
    await breaks("approvals", works())
    await db.close()


async def _more(site: Site, line: str, before: int) -> bool:
    return site.logs()["worker.log"].count(line) > before


async def keys_that_are_over(site: Site) -> None:
    services = site.runtime.services
    made, key = await create_key(services.db, services.keyring, NewKey("gone", "admin", "mine"))
    site.planted.secret("revoked key", key)
    await revoke_key(services.db, made.id)
    await site.ask("GET", "/hitl/runs", headers={"Authorization": f"Bearer {key}"})


REACHED: Final = {
    "http.request", "http.error", "live.frame_failed", "socket.closed", "run.created", "run.finished", "job.finished",
    "step.finished", "approval.requested", "approval.decided", "approval.delegated", "provider.call",
    "webhook.delivered", "relay.connected", "relay.delivered", "relay.answered",
}  # fmt: skip
ALL: Final = (
    every_operation_of_the_table, every_frame, a_run_through_all_its_checkpoints, answers_that_come_late,
    providers_that_fail, questions_and_links, what_the_relay_says, crashes_inside, keys_that_are_over,
)  # fmt: skip


@pytest.mark.timeout(300)
async def test_nothing_of_a_request_comes_out_anywhere_else(site: Site) -> None:
    for act in ALL:
        await act(site)

    everywhere = {f"{kind.__name__}.{name}" for kind in (RunInput, StartRunRequest) for name in kind.model_fields}
    plain = {"priority", "on_active_run", "tenant", "agent_tool_config", "run_input", "hitl_config", "callback_url",
             "attachments"}  # fmt: skip
    unplanted = everywhere - site.planted.by_field.keys()
    assert {name.partition(".")[2] for name in unplanted} <= plain, "a field of the start holds no canary"
    assert {"Attachment.url", "Attachment.name", "callback_url.q", "tool.example"} <= site.planted.by_field.keys()

    for name, text in site.logs().items():
        assert site.planted.found(text) == set(), name
        lines = [orjson.loads(line) for line in text.splitlines()]  # each is JSON
        assert {line["event"] for line in lines} <= CATALOGUE.keys()
        assert {"timestamp", "level", "event", "logger", "service", "process", "version"} <= set.intersection(
            *(set(line) for line in lines)
        )
    assert {name for name, text in site.logs().items() if '"level": "error"' in text} == {"web.log", "worker.log"}
    logged = {orjson.loads(line)["event"] for text in site.logs().values() for line in text.splitlines()}
    assert logged >= REACHED, "not all that was to be tried was tried"
    for text in site.told_me:
        assert site.planted.found(text, of=KEPT_BACK) == set()
        assert site.planted.found(text, of="key") - {"Idempotency-Key"} == set()

    await nothing_is_told_to_others(site)
    await nothing_is_in_events_or_the_queue(site)


async def nothing_is_told_to_others(site: Site) -> None:
    async with site.runtime.services.db.connection(EVERY) as conn:
        runs = [str(row["id"]) for row in await conn.fetch("select id from runs where tenant = 'mine'")]
        asked = [str(row["id"]) for row in await conn.fetch("select id from approvals where tenant = 'mine'")]
    assert runs and asked
    known = {"run_id": runs, "approval_id": asked, "job_id": [f"run:{run}:1" for run in runs], "session_id": ["s"]}
    paths = ["/metrics", "/openapi.json", "/readyz"]
    for op in TABLE:
        if op.method == "GET" and op.path != "/hitl/events":
            names = _names(op.path)
            values = known.get(names[0], ["x"]) if names else [""]
            paths += [op.path.format(**{names[0]: value}) if names else op.path for value in values[:10]]
    for path in paths:
        answer = await site.others.get(path)
        assert site.planted.found(answer.text) == set(), path
    for run in runs[:10]:
        for method, path in (("POST", f"/hitl/run/{run}/pause"), ("DELETE", f"/hitl/run/{run}")):
            answer = await site.others.request(method, path)
            assert (answer.status_code, site.planted.found(answer.text)) == (404, set())


async def nothing_is_in_events_or_the_queue(site: Site) -> None:
    async with site.runtime.services.db.connection(EVERY) as conn:
        told = [str(row["row"]) for row in await conn.fetch("select e::text as row from events e")]
        kept = [str(row["row"]) for row in await conn.fetch("select k::text as row from api_keys k")]
        calls = [str(row["row"]) for row in await conn.fetch("select d::text as row from run_documents d")]
    assert len(told) > 50
    names = {where for where in site.planted.found("\n".join(told)) if not where.endswith(("user_id", "session_id"))}
    assert names == set()  # `run.created` says for whom
    assert site.planted.found("\n".join(kept)) == set()
    assert site.planted.found("\n".join(calls), of=KEPT_BACK) == set()
    redis = Redis.from_url(str(site.runtime.settings.redis_url))
    async for key in redis.scan_iter():
        whole = repr(key) + repr(await redis.dump(key))
        assert site.planted.found(whole) == set(), key
    await redis.aclose()


def test_a_canary_that_comes_out_is_found() -> None:
    planted = Planted()
    word = planted.word("here")

    assert planted.found(f'{{"x": "a{word}b"}}') == planted.found(word.upper()) == {"here"}
    assert planted.model(AskRequest, {("AskRequest", "schema_"): NOTHING})["context"]
