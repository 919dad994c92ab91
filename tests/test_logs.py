"""The log: the catalogue is what the code writes, the docs are what the catalogue says, and five questions that an
operator asks are answered by one line of jq each, as the API answers them."""

import ast
import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
import structlog

from service import logs
from service.catalogue import COMMON, CONTEXT, EVENTS
from service.embedded import Servers
from service.logs import CATALOGUE, _Sample
from tests.conftest import (
    WORKER,
    at,
    base_env,
    echo,
    eventually,
    own_runtime,
    process,
    run_body,
    settled,
    start,
    web,
)
from tests.docs import DOCS, MADE, with_table

ROOT = Path(__file__).resolve().parents[1]
HITL = Path(sys.executable).parent / "hitl"
LEVELS = {"debug", "info", "warning", "error", "critical"}
# what is put together at run time: the drill below looks at the lines themselves
LOOSE = {
    "http.request": {"actor", "code", "skipped", "tenant", "run_id", "approval_id"},
    "approval.decided": {"late_ms"},
    "sweep.finished": set(EVENTS["sweep.finished"].fields),
    "purge.finished": set(EVENTS["purge.finished"].fields),
    "content.erased": set(EVENTS["content.erased"].fields),
}
OF_LOGGER = {"sample"}  # for the logger, not for the line


# ---- the code


def written() -> dict[str, set[str]]:
    """Every event that the code writes, with the fields that it is given."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in (ROOT / "service").rglob("*.py"):
        if path.name == "embedded.py":  # its keeper writes a log file of its own
            continue
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for call in calls_of_log(function):
                    event, fields = what(call, function)
                    found[event] |= fields
    return found


def calls_of_log(function: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(function):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name("log"), attr=attr)) if attr in LEVELS or attr == "log":
                yield node


def what(call: ast.Call, function: ast.AST) -> tuple[str, set[str]]:
    names = [arg.value for arg in call.args if isinstance(arg, ast.Constant)]
    assert len(names) == 1, f"an event is a name that stands there: {ast.unparse(call)}"
    fields: set[str] = set()
    for keyword in call.keywords:
        if keyword.arg is not None:
            fields.add(keyword.arg)
        elif isinstance(keyword.value, ast.Name):
            fields |= members(keyword.value.id, function)
    return names[0], fields - OF_LOGGER


def members(name: str, function: ast.AST) -> set[str]:
    """The keys of the dict that the function calls so."""
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[ast.Name(id)], value=ast.Dict() as made) if id == name:
                pass
            case ast.AnnAssign(target=ast.Name(id), value=ast.Dict() as made) if id == name:
                pass
            case _:
                continue
        return {key.value for key in made.keys if isinstance(key, ast.Constant)}
    return set()


def test_the_code_writes_what_is_in_the_catalogue_and_nothing_else() -> None:
    assert written().keys() == EVENTS.keys() == CATALOGUE.keys()


@pytest.mark.parametrize("event", EVENTS)
def test_a_line_carries_the_fields_that_its_row_names(event: str) -> None:
    given = written()[event] | LOOSE.get(event, set())
    assert given - set(CONTEXT) == set(EVENTS[event].fields)


def test_the_table_of_the_docs_is_made_of_the_catalogue() -> None:
    for (file, name), make in MADE.items():
        text = (DOCS / file).read_text()
        assert text == with_table(text, name, make()), "python -m tests.docs writes it anew"


def test_a_sampled_line_says_how_many_were_left_out_and_an_error_is_never_one() -> None:
    sample = _Sample(every_s=3600)

    def told(route: str, **more: Any) -> dict[str, Any] | None:
        try:
            return dict(sample(None, "info", {"event": "http.request", "route": route, **more}))
        except structlog.DropEvent:
            return None

    assert told("/healthz", sample=True) == {"event": "http.request", "route": "/healthz"}
    assert [told("/healthz", sample=True) for _ in range(3)] == [None] * 3
    assert told("/readyz", sample=True) is not None, "each route has its own turn"
    assert told("/healthz", sample=False, status=503) == {"event": "http.request", "route": "/healthz", "status": 503}
    sample._every_s = 0
    assert told("/healthz", sample=True) == {"event": "http.request", "route": "/healthz", "skipped": 3}


# ---- a run that completes, one that fails, one that waits


@dataclass
class Drill:
    """What happened on a stack of its own, and all that its processes wrote."""

    client: httpx2.AsyncClient
    folder: Path
    runs: dict[str, str]

    def text(self) -> str:
        return "".join((self.folder / f"{name}.log").read_text() for name in ("web", "worker"))

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]

    async def ask(self, question: str) -> list[Any]:
        """The answers of the docs' line of jq to the question that begins so."""
        (self.folder / "hitl.log").write_text("ready http://127.0.0.1:8811\n" + self.text())
        return await asyncio.to_thread(answers, questions()[question], self.folder)


def questions() -> dict[str, str]:
    """The lines of jq in docs/logs.md, by the question before each."""
    found = re.findall(r"^(What[^?\n]*\?|Who[^?\n]*\?)[^`]*?```sh\n(jq .*)\n```", strip_code(), re.MULTILINE)
    return dict(found)


def strip_code() -> str:
    """The page without its inline code, so that a question's text has no back-ticks before its line."""
    return re.sub(r"(?<!`)`[^`\n]+`(?!`)", "", (DOCS / "logs.md").read_text())


def answers(line: str, folder: Path) -> list[Any]:
    assert shutil.which("jq"), "jq is missing: apt-get install jq (CI's .ci/run does)"
    done = subprocess.run(["sh", "-c", line], cwd=folder, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(answer) for answer in done.stdout.splitlines()]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def drill(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Drill]:
    folder = tmp_path_factory.mktemp("drill")
    async with own_runtime(servers, "explained", redis_db=11) as runtime:
        urls = {"DATABASE_URL": str(runtime.settings.database_url), "REDIS_URL": str(runtime.settings.redis_url)}
        env = base_env(servers, **urls)
        with ExitStack() as stack:
            url = stack.enter_context(web(env, folder))
            stack.enter_context(process(*WORKER, env=env, log=folder / "worker.log"))
            client = await asyncio.to_thread(lambda: httpx2.AsyncClient(base_url=url, timeout=70, trust_env=False))
            async with client:
                found = Drill(client, folder, {})
                await happen(found)
                yield found


async def happen(drill: Drill) -> None:
    client, runs = drill.client, drill.runs
    asked = {"policy": "require_human", "allowed_steps": ["payload_review"]}
    bodies = {
        "paid": run_body(echo(cost_usd=0.25), **asked),
        "slow": run_body(echo(cost_usd=0.5, latency_seconds=1.5)),
        "failed": run_body(echo(fail=[{"status": 400}])),
        "rejected": run_body(echo(), **asked),
        "silent": run_body(echo(), **asked, timeout_seconds=1),
        "stuck": run_body(echo(), **asked),
    }
    for name, body in bodies.items():
        runs[name] = await start(client, body, **{"X-Request-Id": f"req-{name}", "X-HITL-Actor": "sam"})
    for name, action, actor in (("paid", "approve", "ana"), ("rejected", "reject", "ben")):
        approval = await at(client, runs[name], "payload_review")
        answer = await client.post(
            f"/hitl/approvals/{approval['approval_id']}/decision",
            json={"action": action, "reason": "because"},
            headers={"X-HITL-Actor": actor},
        )
        assert answer.status_code == 200, answer.text
    await at(client, runs["stuck"], "payload_review")
    for name, status in (("paid", "completed"), ("slow", "completed"), ("failed", "failed"), ("silent", "cancelled")):
        await settled(client, runs[name], status)
    over = set(runs.values()) - {runs["stuck"]}

    async def told() -> bool:
        return over <= {line["run_id"] for line in drill.lines() if line["event"] == "run.finished"}

    await eventually(told, "the end of each run in the log")


async def test_what_is_stuck(drill: Drill) -> None:
    active = (await drill.client.get("/hitl/runs/active")).json()["runs"]
    (found,) = await drill.ask("What is stuck?")
    assert found["run_id"] == drill.runs["stuck"] == active[0]["run_id"] and len(active) == 1
    assert (found["event"], found["outcome"]) == ("job.finished", active[0]["status"])
    since, known = datetime.fromisoformat(found["since"]), datetime.fromisoformat(active[0]["updated_at"])
    assert abs((since - known).total_seconds()) < 5


async def test_what_is_slow(drill: Drill) -> None:
    found = {(row["event"], row["of"]): row for row in await drill.ask("What is slow?")}
    assert {("http.request", "/hitl/run"), ("job.finished", "advance_run")} <= found.keys()
    call = found["provider.call", "echo"]
    assert call["slowest"] == drill.runs["slow"] and call["max_ms"] >= 1500
    job = found["job.finished", "advance_run"]
    assert job["slowest"] == drill.runs["slow"] and job["max_ms"] >= call["max_ms"]


async def test_who_decided(drill: Drill) -> None:
    found = {row["run_id"]: row for row in await drill.ask("Who decided?")}
    assert found.keys() == {drill.runs[name] for name in ("paid", "rejected", "silent")}
    for run_id, row in found.items():
        events = (await drill.client.get(f"/hitl/runs/{run_id}/events?limit=200")).json()["events"]
        (known,) = (event for event in events if event["type"] in ("approval.decided", "approval.expired"))
        assert (row["actor"], row["approval_id"]) == (known["actor"], known["data"]["approval_id"])
        assert row["status"] == (await drill.client.get(f"/hitl/approvals/{row['approval_id']}")).json()["status"]


async def test_what_failed(drill: Drill) -> None:
    known = (await drill.client.get("/hitl/runs?status=failed")).json()["runs"]
    found = await drill.ask("What failed?")
    assert [(row["run_id"], row["code"], row["step"]) for row in found] == [
        (run["run_id"], run["error"]["code"], run["error"]["step"]) for run in known
    ]
    assert found[0]["run_id"] == drill.runs["failed"]


async def test_what_it_cost(drill: Drill) -> None:
    known = (await drill.client.get("/hitl/runs")).json()["runs"]
    (found,) = await drill.ask("What did it cost?")
    priced = [run["cost"]["actual_usd"] for run in known if run["cost"]["actual_usd"]]
    assert found == {
        "tenant": "default", "provider": "echo", "calls": 2, "runs": len(priced), "usd": pytest.approx(sum(priced)),
    }  # fmt: skip
    assert found["usd"] == pytest.approx(0.75)


async def test_a_runs_lines_are_joined_by_its_id_and_by_its_request(drill: Drill) -> None:
    lines = [line for line in drill.lines() if line.get("run_id") == drill.runs["paid"]]
    seen = {(line["process"], line["event"]) for line in lines}
    assert {
        ("web", "http.request"), ("web", "run.created"), ("web", "approval.decided"),
        ("worker", "job.finished"), ("worker", "provider.call"), ("worker", "run.finished"),
    } <= seen  # fmt: skip
    of_request = [line for line in lines if line.get("request_id") == "req-paid"]
    assert {"http.request", "run.created", "job.finished", "provider.call"} <= {line["event"] for line in of_request}
    (ended,) = (line for line in lines if line["event"] == "run.finished")
    run = (await drill.client.get(f"/hitl/runs/{drill.runs['paid']}")).json()
    timings = run["timings"]
    assert (ended["status"], ended["provider"], ended["cost_usd"]) == ("completed", "echo", 0.25)
    assert [ended[name] for name in ("queue_ms", "human_ms", "duration_ms")] == [
        timings[name] for name in ("queue_ms", "human_ms", "total_ms")
    ]


async def test_a_requests_line_says_who_asked_and_why_it_was_refused(drill: Drill) -> None:
    refused = await drill.client.post(f"/hitl/run/{drill.runs['paid']}/pause", headers={"X-Request-Id": "req-refused"})
    assert refused.status_code == 409

    async def line() -> Any:
        return next((each for each in drill.lines() if each.get("request_id") == "req-refused"), None)

    found = await eventually(line, "the line of the request")
    assert (found["route"], found["status"]) == ("/hitl/run/{run_id}/pause", 409)
    assert (found["run_id"], found["actor"], found["tenant"]) == (drill.runs["paid"], "dev", "default")
    assert found["code"] == refused.json()["code"]


async def test_probes_are_sampled_and_whoever_brings_an_id_finds_it(drill: Drill) -> None:
    for _ in range(20):
        assert (await drill.client.get("/healthz")).status_code == 200
    assert (await drill.client.get("/healthz", headers={"X-Request-Id": "req-probe"})).status_code == 200

    async def there() -> bool:
        return any(line.get("request_id") == "req-probe" for line in drill.lines())

    await eventually(there, "the line of the probe")
    assert len([line for line in drill.lines() if line.get("route") == "/healthz"]) < 20


def check(lines: Sequence[dict[str, Any]]) -> None:
    for line in lines:
        assert line["event"] in EVENTS, line
        assert set(COMMON) <= line.keys(), line
        assert line.keys() <= {*COMMON, *CONTEXT, *EVENTS[line["event"]].fields}, line


async def test_each_line_carries_what_its_row_names(drill: Drill) -> None:
    check(drill.lines())


def test_the_log_of_a_demo_is_json_line_by_line_and_answers_too(tmp_path: Path) -> None:
    log = tmp_path / "hitl.log"
    done = subprocess.run([HITL, "demo", "--log", log], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    check(lines)
    seen = {line["event"] for line in lines}
    canonical = {name for name, event in EVENTS.items() if event.canonical}
    assert canonical | {"worker.started", "worker.stopped"} <= seen
    found = {question: answers(line, tmp_path) for question, line in questions().items()}
    assert len(found) == 5 and found["What is stuck?"] == found["What failed?"] == found["What did it cost?"] == []
    assert [row["action"] for row in found["Who decided?"]] == ["approve", "edit", "approve"]


def test_an_actor_that_is_a_mail_address_is_told_apart_and_not_named() -> None:
    given = ("ana@example.com", "ben@example.com", "ana@example.com", "ana")
    told = [logs._guard(None, "info", {"actor": actor})["actor"] for actor in given]
    assert told[0] == told[2] != told[1] and told[3] == "ana"
    assert not any("@" in actor or "example" in actor for actor in told)
