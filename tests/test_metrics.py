"""Metrics: what is counted is what is logged, at every log level; state is read when it is asked for."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx2
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from service import logs, metrics
from service.embedded import Servers
from tests.conftest import (
    WORKER,
    at,
    base_env,
    decide,
    echo,
    eventually,
    own_runtime,
    process,
    run_body,
    settled,
    start,
    web,
)

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """The sum over what is not named."""
    return sum(found for (this, given), found in samples.items() if this == name and labels.items() <= set(given))


@dataclass
class Watched:
    """A stack of its own that logs errors only; the ports of its metrics are free ones, told in its log."""

    client: httpx2.AsyncClient
    worker_url: str

    async def of_web(self) -> Samples:
        answer = await self.client.get("/metrics")
        assert answer.headers["content-type"] == metrics.CONTENT_TYPE
        return parsed(answer.text)

    async def of_worker(self) -> Samples:
        return parsed((await self.client.get(f"{self.worker_url}/metrics")).text)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def watched(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    async with own_runtime(servers, f"watched_{uuid4().hex[:6]}", redis_db=4) as runtime:
        urls = {"DATABASE_URL": str(runtime.settings.database_url), "REDIS_URL": str(runtime.settings.redis_url)}
        env = base_env(servers, **urls, HITL_METRICS_PORT="0")
        with ExitStack() as stack:
            url = stack.enter_context(web({**env, "LOG_LEVEL": "ERROR"}, folder))
            stack.enter_context(process(*WORKER, env=env, log=folder / "worker.log"))
            port = await eventually(lambda: served(folder / "worker.log"), "the worker's metrics")
            client = await asyncio.to_thread(lambda: httpx2.AsyncClient(base_url=url, timeout=70, trust_env=False))
            async with client:
                yield Watched(client, f"http://127.0.0.1:{port}")


async def served(log: Path) -> int:
    lines = [json.loads(line) for line in _text(log).splitlines()]
    return next((line["port"] for line in lines if line["event"] == "metrics.served"), 0)


def _text(log: Path) -> str:
    return log.read_text() if log.exists() else ""


async def test_a_run_moves_the_instruments_of_both_processes(watched: Watched) -> None:
    before, worked = await watched.of_web(), await watched.of_worker()
    run_id = await start(watched.client, run_body(echo(cost_usd=0.25), policy="require_human"))
    for checkpoint in ("information_review", "payload_review"):
        await decide(watched.client, (await at(watched.client, run_id, checkpoint))["approval_id"], "approve")
    approval = await at(watched.client, run_id, "response_review")
    waiting = await watched.of_web()
    assert value(waiting, "hitl_runs", status="awaiting_human") == value(waiting, "hitl_approvals_open") == 1
    assert value(waiting, "hitl_workers") == 1 and value(waiting, "hitl_jobs_max") == 100
    assert value(waiting, "hitl_dependency_up") == 2
    await decide(watched.client, approval["approval_id"], "approve")
    assert (await settled(watched.client, run_id, "completed"))["status"] == "completed"

    after, done = await watched.of_web(), await watched.of_worker()

    def moved(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    def worked_on(name: str, **labels: str) -> float:
        return value(done, name, **labels) - value(worked, name, **labels)

    assert moved("hitl_runs_started_total", provider="echo") == 1
    assert moved("hitl_decisions_total", action="approve", checkpoint="payload_review") == 1
    assert moved("hitl_decision_wait_seconds_count") == 3
    assert moved("hitl_http_request_seconds_count", method="POST", route="/hitl/run", status="202") == 1
    assert value(after, "hitl_approvals_open") == 0
    assert worked_on("hitl_approvals_requested_total", reason="policy.require_human") == 3
    assert worked_on("hitl_provider_call_seconds_count", provider="echo", outcome="answered") == 1
    assert worked_on("hitl_provider_cost_usd_total", provider="echo") == pytest.approx(0.25)
    assert worked_on("hitl_runs_finished_total", status="completed") == 1
    assert worked_on("hitl_resume_seconds_count") >= 4


async def test_a_timer_tells_how_late_it_was(watched: Watched) -> None:
    before = await watched.of_worker()
    body = run_body(echo(), policy="require_human", timeout_seconds=1)
    run = await settled(watched.client, await start(watched.client, body), "cancelled")
    assert run["error"]["code"] == "approval_expired"
    after = await watched.of_worker()
    for name in ("hitl_approvals_expired_total", "hitl_timer_lateness_seconds_count"):
        assert value(after, name) - value(before, name) == 1


async def test_a_port_of_its_own_answers_two_paths_and_survives_nonsense(watched: Watched) -> None:
    client = watched.client
    assert (await client.get(f"{watched.worker_url}/healthz")).json() == {"status": "ok"}
    assert (await client.get(f"{watched.worker_url}/metrics?x=1")).headers["content-type"] == metrics.CONTENT_TYPE
    assert (await client.get(f"{watched.worker_url}/else")).status_code == 404
    assert (await client.post(f"{watched.worker_url}/metrics")).status_code == 405
    host, port = "127.0.0.1", int(watched.worker_url.rpartition(":")[2])
    for nonsense in (b"\r\n\r\n", b"\x00\xff\r\n\r\n", b"GET\r\n\r\n", b"x" * 20_000, b""):
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(nonsense)
        writer.write_eof()
        await reader.read()
        writer.close()
    assert (await client.get(f"{watched.worker_url}/healthz")).status_code == 200


async def test_every_line_of_the_catalogue_can_be_counted_whatever_it_lacks() -> None:
    for event in logs.CATALOGUE:
        metrics.observe({"event": event, "level": "info"})


def test_no_label_is_made_of_a_name_that_a_client_chose() -> None:
    assert metrics.reason_class("missing.my_secret_field") == "missing"
    assert metrics.reason_class("safety.whatever") == "safety"
    assert metrics.reason_class("policy.require_human") == "policy.require_human"
