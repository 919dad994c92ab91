"""Traces: the spans of a whole run, as a collector that speaks OTLP over HTTP receives them; nothing of its content."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
import pytest_asyncio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from service import tracing
from service.embedded import Servers
from service.settings import Settings, SettingsError, load_settings, require
from service.store.migrate import migrate
from tests.conftest import (
    WORKER,
    Provider,
    at,
    base_env,
    echo,
    eventually,
    http_tool,
    new_database,
    process,
    run_body,
    settled,
    start,
    web,
)
from tests.following import socket

CANARY = "kanarie"
OURS = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{OURS}-00f067aa0ba902b7-01"
DECIDERS = "af7651916cd43dd8448eb211c80319c0"
DECIDING = f"00-{DECIDERS}-b7ad6b7169203331-01"


@dataclass
class Span:
    """One span as it was exported: ids in hex, attributes in one dict."""

    name: str
    trace: str
    id: str
    parent: str
    process: str
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    events: list[str]
    failed: bool


def spans_of(collector: Provider) -> list[Span]:
    found = []
    for seen in collector.seen:
        assert seen.path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(seen.body).resource_spans:
            about = _plain(resource.resource.attributes)
            assert about["service.name"] == "hitl"
            for scope in resource.scope_spans:
                found += [_span(span, about["process.role"]) for span in scope.spans]
    return found


def _span(span: Any, role: str) -> Span:
    links = [(link.trace_id.hex(), link.span_id.hex()) for link in span.links]
    return Span(
        span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), role, _plain(span.attributes),
        links, [event.name for event in span.events], span.status.code == 2,
    )  # fmt: skip


def _plain(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@dataclass
class Traced:
    """What came of one run with an approval, traced from its POST to its webhooks."""

    run_id: str
    over_socket: str  # another run, decided over a WebSocket, whose first call failed
    spans: list[Span]
    raw: bytes
    provider: Provider
    hook: Provider
    logs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def one(self, name: str, **attributes: Any) -> Span:
        return self.all(name, **attributes)[0]

    def all(self, name: str, **attributes: Any) -> list[Span]:
        wanted = attributes.items()
        return [span for span in self.spans if span.name == name and wanted <= span.attributes.items()]


async def _listening(stack: ExitStack) -> Provider:

    scripted = Provider()
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0)
    stack.callback(server.close)
    scripted.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    return scripted


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def traced(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Traced]:
    folder = tmp_path_factory.mktemp("tracing")
    url = await new_database(servers, "tracing")
    await migrate(url)
    with ExitStack() as stack:
        collector, provider, hook = [await _listening(stack) for _ in range(3)]
        env = base_env(
            servers, DATABASE_URL=url, REDIS_URL=f"{servers.redis_url}?db=7", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url
        )
        with ExitStack() as processes:
            base = processes.enter_context(web(env, folder))
            processes.enter_context(process(*WORKER, env=env, log=folder / "worker.log"))
            async with httpx2.AsyncClient(base_url=base, timeout=30, trust_env=False) as client:
                run_id = await _run(client, provider, hook)
                over_socket = await _run_over_socket(client, base)
            # in a thread: what they have left at their end is taken by a collector on this loop
            await asyncio.to_thread(processes.close)
    raw = b"".join(seen.body for seen in collector.seen)
    logs = {
        name: [orjson.loads(line) for line in (folder / f"{name}.log").read_text().splitlines()]
        for name in ("web", "worker")
    }
    yield Traced(run_id, over_socket, spans_of(collector), raw, provider, hook, logs)


async def _run(client: httpx2.AsyncClient, provider: Provider, hook: Provider) -> str:
    tool = http_tool(f"{provider.url}/{CANARY}?token={CANARY}")
    body = run_body(tool, prompt=CANARY, policy="require_human", allowed_steps=["payload_review"])
    body |= {"callback_url": f"{hook.url}/{CANARY}", "user_id": CANARY}
    run_id = await start(client, body, traceparent=PARENT)
    approval = await at(client, run_id, "payload_review")
    given = {"action": "approve", "reason": CANARY}
    path = f"/hitl/approvals/{approval['approval_id']}/decision"
    answer = await client.post(path, json=given, headers={"traceparent": DECIDING})
    assert answer.status_code == 200
    assert answer.headers["traceparent"] == DECIDING
    await settled(client, run_id, "completed")

    async def told() -> bool:
        return any(seen.json["type"] == "run.completed" for seen in hook.seen)

    await eventually(told, "the last webhook")
    return run_id


async def _run_over_socket(client: httpx2.AsyncClient, base: str) -> str:
    tool = echo(fail=[{"status": 503, "message": CANARY}])
    run_id = await start(client, run_body(tool, policy="require_human", allowed_steps=["payload_review"]))
    approval = await at(client, run_id, "payload_review")
    async with socket(base, additional_headers={"traceparent": DECIDING}) as live:
        answer = {"approval_id": approval["approval_id"], "action": "approve", "reason": CANARY}
        await live.ask("hitl_approval_response", answer)
    await settled(client, run_id, "completed")
    return run_id


def test_one_trace_goes_from_the_post_over_jobs_and_call_to_the_webhooks(traced: Traced) -> None:
    posted = traced.one("POST /hitl/run")
    jobs = traced.all("advance_run", run_id=traced.run_id)
    call = traced.one("call http")
    hooks = traced.all("webhook")

    assert (posted.trace, posted.parent, posted.process) == (OURS, PARENT.split("-")[2], "web")
    assert {job.parent for job in jobs} == {posted.id}
    assert [job.attributes["outcome"] for job in jobs] == ["awaiting_human", "completed"]
    assert call.parent == jobs[1].id
    assert {hook.parent for hook in hooks} == {posted.id}
    assert {span.trace for span in (*jobs, call, *hooks)} == {OURS}
    assert {span.process for span in (*jobs, call, *hooks)} == {"worker"}


def test_a_decision_has_its_own_trace_and_the_job_after_it_a_link_to_it(traced: Traced) -> None:
    door = traced.one("POST /hitl/approvals/{approval_id}/decision")
    decided = traced.one("decide")
    first, second = traced.all("advance_run", run_id=traced.run_id)

    assert (door.trace, door.parent) == (DECIDERS, DECIDING.split("-")[2])
    assert (decided.trace, decided.parent) == (DECIDERS, door.id)
    assert first.links == []
    assert second.links == [(DECIDERS, decided.id)]


def test_a_decision_over_a_socket_goes_on_with_the_sockets_trace(traced: Traced) -> None:
    (decided,) = traced.all("decide", run_id=traced.over_socket)
    jobs = traced.all("advance_run", run_id=traced.over_socket)

    assert (decided.trace, decided.parent) == (DECIDERS, DECIDING.split("-")[2])
    assert jobs[1].links == [(DECIDERS, decided.id)]


def test_a_retry_goes_back_to_the_job_that_failed(traced: Traced) -> None:
    (posted,) = traced.all("POST /hitl/run", run_id=traced.over_socket)
    _, failed, retry = traced.all("advance_run", run_id=traced.over_socket)

    assert posted.parent == ""  # nobody sent a traceparent: a trace of our own
    assert (failed.attributes["outcome"], retry.attributes["outcome"]) == ("retry_later", "completed")
    assert retry.links == [(posted.trace, failed.id)]
    assert {retry.trace, failed.trace} == {posted.trace}


def test_spans_say_what_they_are_about(traced: Traced) -> None:
    about = {"run_id": traced.run_id, "tenant": "default"}
    host = int(traced.provider.url.rpartition(":")[2])

    posted = traced.one("POST /hitl/run").attributes
    assert posted.items() >= (about | {"provider": "http", "http.route": "/hitl/run"}).items()
    assert (posted["http.request.method"], posted["http.response.status_code"]) == ("POST", 202)
    assert traced.one("decide", action="approve", channel="http", checkpoint="payload_review", **about)
    assert traced.one("call http", step="api_call", outcome="answered", provider="http", **about)
    assert traced.one("call http", **{"server.address": "127.0.0.1", "server.port": host})
    assert all(hook.attributes["http.response.status_code"] == 200 for hook in traced.all("webhook", **about))
    assert "step.finished" in traced.all("advance_run")[1].events
    assert not any(span.failed for span in traced.spans)


def test_what_only_probes_ask_for_has_no_span(traced: Traced) -> None:
    assert not [span.name for span in traced.spans if "readyz" in span.name]


def test_the_log_bears_the_spans_trace(traced: Traced) -> None:
    of_run = [line for lines in traced.logs.values() for line in lines if line.get("run_id") == traced.run_id]
    traces = {line["event"]: line.get("trace_id") for line in of_run if line.get("trace_id")}

    assert traces["run.created"] == traces["provider.call"] == traces["run.finished"] == OURS
    assert traces["approval.decided"] == DECIDERS
    assert traces["webhook.delivered"] == OURS


def test_whoever_is_called_goes_on_with_the_trace(traced: Traced) -> None:
    call = traced.one("call http")
    hooks = {hook.id for hook in traced.all("webhook")}

    assert [seen.headers["traceparent"] for seen in traced.provider.seen] == [f"00-{OURS}-{call.id}-01"]
    assert {seen.headers["traceparent"].split("-")[2] for seen in traced.hook.seen} == hooks


def test_nothing_of_the_content_is_in_a_span(traced: Traced) -> None:
    assert traced.spans
    assert CANARY.encode() not in traced.raw


async def test_a_collector_that_is_away_costs_nothing_but_spans(servers: Servers, tmp_path: Path) -> None:
    url = await new_database(servers, "untraced")
    await migrate(url)
    env = base_env(
        servers,
        DATABASE_URL=url,
        REDIS_URL=f"{servers.redis_url}?db=8",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
    )
    with web(env, tmp_path) as base, process(*WORKER, env=env, log=tmp_path / "worker.log") as worker:
        async with httpx2.AsyncClient(base_url=base, timeout=30, trust_env=False) as client:
            run_id = await start(client, run_body({"echo-agent-tool": {}}))
            ended = await settled(client, run_id)
        worker.terminate()
        status = worker.wait(15)

    assert ended["status"] == "completed"
    assert status == 0


async def test_without_the_setting_nothing_is_made() -> None:
    async with tracing.exporting(None, process="test", version="0"):
        with tracing.span("anything", run_id="x"), tracing.serving("GET", PARENT, path="/"):
            assert (tracing.on(), tracing.traceparent(), tracing.headers(), tracing.ids()) == (False, None, {}, {})


@pytest.mark.parametrize(
    ("name", "value", "package", "extra"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318", "opentelemetry", "otel"),
        ("SENTRY_DSN", "http://key@127.0.0.1/1", "sentry_sdk", "sentry"),
    ],
)
def test_a_missing_extra_is_one_line(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, package: str, extra: str
) -> None:
    for loaded in [each for each in sys.modules if each == package or each.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    servers = {"database_url": "postgresql://x", "redis_url": "redis://x", "hitl_secret_key": "k" * 32}

    with pytest.raises(SettingsError, match=f"^{name}: got a value; allowed: .* `{extra}`") as caught:
        require(Settings(**{name.lower(): value}, **servers, _env_file=None))

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4317"), ("SENTRY_DSN", "https://no-key.example.com/1")],
)
def test_a_bad_address_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError, match=f"^{name}: got ") as caught:
        load_settings()

    assert ("no-key" in str(caught.value)) is False
