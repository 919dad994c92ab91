"""Faults of ours reach Sentry with their tags, and nothing of a request, a payload or an exception's text does."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx2
import orjson
import pytest
import pytest_asyncio

from service import faults
from service.embedded import Servers
from service.errors import HitlError, Unavailable
from service.store.migrate import migrate
from tests.conftest import (
    WORKER,
    Provider,
    base_env,
    echo,
    eventually,
    new_database,
    process,
    run_body,
    settled,
    start,
    web,
)
from tests.following import socket

CANARY = "kanarie"
# Postgres quotes what it was given: the text of these exceptions is content
BROKEN = """
create function quoting() returns trigger language plpgsql as
    $$ declare of runs;
    begin
        if TG_TABLE_NAME = 'runs' then raise exception 'cannot keep %', to_jsonb(new); end if;
        select * into of from runs where id = new.run_id;
        if of.user_id like 'break-the-worker%' then raise exception 'cannot keep %', to_jsonb(of); end if;
        return new;
    end $$;
create trigger web before insert on runs for each row when (new.user_id like 'break-the-web%')
    execute function quoting();
create trigger worker before update on run_documents for each row
    when (new.payload is not null and old.payload is null) execute function quoting();
"""


def events_of(sentry: Provider) -> list[dict[str, Any]]:
    found = []
    for seen in sentry.seen:
        assert seen.path == "/api/7/envelope/"
        body = gzip.decompress(seen.body) if seen.headers.get("content-encoding") == "gzip" else seen.body
        lines = body.split(b"\n")
        found += [
            orjson.loads(lines[n + 1])
            for n, line in enumerate(lines[1:], 1)
            if line.startswith(b'{"type":"event"') or orjson.loads(line or b"{}").get("type") == "event"
        ]
    return found


@dataclass
class Reported:
    """What two processes reported of one fault each, and of what was none."""

    events: list[dict[str, Any]]
    run_id: str
    request_id: str

    def of(self, process: str) -> dict[str, Any]:
        (event,) = [event for event in self.events if event["tags"]["process"] == process]
        return event


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def reported(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Reported]:
    folder = tmp_path_factory.mktemp("faults")
    url = await new_database(servers, "faults")
    await migrate(url)
    admin = await asyncpg.connect(url)
    await admin.execute(BROKEN)
    await admin.close()
    sentry = Provider()
    server = await asyncio.start_server(sentry.serve, "127.0.0.1", 0)
    dsn = f"http://key@127.0.0.1:{server.sockets[0].getsockname()[1]}/7"
    env = base_env(servers, DATABASE_URL=url, REDIS_URL=f"{servers.redis_url}?db=9", SENTRY_DSN=dsn)
    with ExitStack() as processes:
        base = processes.enter_context(web(env, folder))
        processes.enter_context(process(*WORKER, env=env, log=folder / "worker.log"))
        headers = {"X-Request-Id": "asked-1", "Cookie": CANARY, "X-Secret": CANARY}
        async with httpx2.AsyncClient(base_url=base, timeout=30, trust_env=False, headers=headers) as client:
            run_id = await _break(client)

        async def both() -> bool:
            return len(events_of(sentry)) >= 2

        await eventually(both, "a report of each process")
        await asyncio.to_thread(processes.close)
    server.close()
    yield Reported(events_of(sentry), run_id, "asked-1")


def broken(process: str) -> dict[str, Any]:
    return {**run_body(echo(), prompt=f"a {CANARY}"), "user_id": f"break-the-{process}-{CANARY}"}


async def _break(client: httpx2.AsyncClient) -> str:
    answer = await client.post(f"/hitl/run?q={CANARY}", json=broken("web"))
    assert answer.status_code == 500
    refused = await client.post("/hitl/run", json={"run_input": {"prompt": CANARY}})
    assert refused.status_code == 422
    async with socket(str(client.base_url).rstrip("/")) as live:  # Sentry's middleware stands before ours
        assert (await live.ask("ping"))["type"] == "pong"
    run_id = await start(client, broken("worker"))
    ended = await settled(client, run_id)
    assert (ended["status"], ended["error"]["code"]) == ("failed", "internal_error")
    return run_id


def test_a_fault_of_the_web_process_arrives_with_its_tags(reported: Reported) -> None:
    event = reported.of("web")

    assert event["tags"].items() >= {"tenant": "default", "route": "/hitl/run", "event": "http.error"}.items()
    assert event["tags"]["request_id"] == reported.request_id
    assert event["transaction"] == "/hitl/run"
    assert event["release"].startswith("hitl-service@")


def test_a_fault_of_a_worker_arrives_with_tenant_and_run(reported: Reported) -> None:
    tags = reported.of("worker")["tags"]

    assert tags.items() >= {"tenant": "default", "run_id": reported.run_id, "event": "http.error"}.items()
    assert tags["job_id"].startswith(f"run:{reported.run_id}:")


def test_a_report_shows_where_in_the_code(reported: Reported) -> None:
    for event in reported.events:
        error = event["exception"]["values"][-1]
        assert error["type"] == "RaiseError"
        assert any(frame["module"].startswith("service.") for frame in error["stacktrace"]["frames"])


def test_nothing_of_the_content_is_in_a_report(reported: Reported) -> None:
    assert len(reported.events) == 2
    for event in reported.events:
        text = orjson.dumps(event).decode()
        assert CANARY not in text
        assert "cannot keep" not in text
        assert not {"request", "user", "breadcrumbs", "extra", "contexts"} & event.keys()
        assert '"vars"' not in text


def test_a_refusal_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults._here, "expected", (HitlError,))
    refusal, fault = Unavailable(), ValueError(CANARY)

    assert faults.scrubbed({}, {"exc_info": (Unavailable, refusal, None)}) is None
    several = ExceptionGroup("tasks", [refusal, ExceptionGroup("more", [refusal])])
    assert faults.scrubbed({}, {"exc_info": (ExceptionGroup, several, None)}) is None
    assert faults.scrubbed({"message": CANARY}, {}) is None
    kept = faults.scrubbed({"request": {"url": CANARY}, "level": "error"}, {"exc_info": (ValueError, fault, None)})
    assert kept is not None
    assert CANARY not in str(kept)


def test_a_job_that_arq_reports_bears_the_runs_id(monkeypatch: pytest.MonkeyPatch) -> None:
    event = {"tags": {"arq_task_id": "run:1:2", "arq_task_retry": False}, "extra": {"arq-job": {"args": [CANARY]}}}

    kept = faults.scrubbed(event, {"exc_info": (ValueError, ValueError(CANARY), None)})

    assert kept is not None
    assert kept["tags"]["job_id"] == "run:1:2"
    assert CANARY not in str(kept)
