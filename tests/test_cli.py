"""The command `hitl` as a user runs it: real processes, exit statuses, what stands on which stream."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.conftest import echo, run_body

HITL = Path(sys.executable).parent / "hitl"
NOBODY = "00000000-0000-7000-8000-000000000000"
COMMANDS = [
    "", "up", "demo", "migrate", "web", "worker", "openapi", "doctor", "queue", "keys", "keys create", "keys list",
    "keys revoke", "runs", "runs list", "runs show", "runs tail", "runs cancel", "runs requeue",
    "approvals", "approvals list", "approvals show", "approvals decide", "audit", "audit verify", "audit export",
    "audit key",
    "payload", "payload explain", "policy", "policy try", "purge", "erase", "webhooks", "webhooks list",
    "webhooks redeliver",
    "webhooks secret",
    "tenants", "tenants list", "tenants set", "completion",
]  # fmt: skip


def environment(data_dir: Path, **more: str) -> dict[str, str]:
    """Nothing of the developer's settings, embedded servers in `data_dir`."""
    ours = ("HITL_", "DATABASE_", "REDIS_", "LOG_", "FLY_", "OTEL_", "SENTRY_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "HITL_DATA_DIR": str(data_dir), "HITL_DRAIN_SECONDS": "2", **more}


@pytest.fixture(scope="module")
def data_dir() -> Iterator[Path]:
    """One for all tests of this module: making a cluster takes a second."""
    folder = Path(tempfile.mkdtemp(prefix="hitl-cli-"))
    yield folder
    eventually(lambda: not processes_of(folder))
    shutil.rmtree(folder, ignore_errors=True)


def hitl(data_dir: Path, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [HITL, *arguments],
        env=environment(data_dir, **more),
        cwd=data_dir,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def printed(data_dir: Path, *arguments: str) -> str:
    """Standard output of a command that must succeed and say nothing else."""
    done = hitl(data_dir, *arguments)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def rows(data_dir: Path, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(printed(data_dir, *arguments, "--json"))
    return found


def one_line(text: str) -> bool:
    return text.count("\n") == 1 and "Traceback" not in text


@contextmanager
def up(data_dir: Path, *arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A running `hitl up` on a free port, and its URL once it says that it is ready."""
    command = [HITL, "up", "--port", "0", *arguments]
    with subprocess.Popen(
        command, env=environment(data_dir), cwd=data_dir, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            line = next(line for line in process.stdout if line.startswith("ready "))
            yield process, line.removeprefix("ready ").strip()
        finally:
            process.terminate()
            process.wait(30)


def children(process: "subprocess.Popen[str]", word: str) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.Error):
            if any(word in argument for argument in child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


def processes_of(data_dir: Path) -> list[psutil.Process]:
    """Every process that was started for this data directory."""
    mine = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            named = any(str(data_dir) in argument for argument in process.cmdline())
            if (named or process.environ().get("HITL_DATA_DIR") == str(data_dir)) and (
                process.status() != psutil.STATUS_ZOMBIE
            ):
                mine.append(process)
    return mine


def eventually(check: Callable[[], Any], *, within_s: float = 15.0) -> None:
    deadline = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def answers(url: str) -> bool:
    with suppress(httpx2.HTTPError):
        return httpx2.get(f"{url}/readyz").status_code == 200
    return False


# --- usage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(data_dir: Path, command: str) -> None:
    assert printed(data_dir, *command.split(), "--help").startswith("Usage: hitl")


@pytest.mark.parametrize(
    "command",
    ["", "nope", "keys", "tenants set a --live-runs -1", "tenants set a --live-runs many", "tenants set",
     "tenants set a --retention-days 0", "up --port x", "up --workers 0", "keys create --name a", "runs show x",
     "runs cancel", "erase", "erase --user u --run x", "completion", "completion tcsh",
     f"approvals decide {NOBODY} maybe", f"approvals decide {NOBODY} edit --edits {{", "runs list --status gone"],
)  # fmt: skip
def test_wrong_usage_is_one_line_and_status_2(data_dir: Path, command: str) -> None:
    done = hitl(data_dir, *command.split())

    assert done.returncode == 2
    assert one_line(done.stderr)


@pytest.mark.parametrize("command", ["up", "web", "worker", "doctor", "keys list", "migrate"])
def test_a_bad_setting_is_one_line_that_names_it_and_status_2(data_dir: Path, command: str) -> None:
    done = hitl(data_dir, *command.split(), HITL_MAX_JOBS="many")

    assert done.returncode == 2
    assert one_line(done.stderr)
    assert "HITL_MAX_JOBS" in done.stderr
    assert "many" in done.stderr


@pytest.mark.parametrize("command", ["up", "demo", "migrate", "keys list"])
def test_servers_are_never_embedded_on_fly(data_dir: Path, command: str) -> None:
    done = hitl(data_dir, *command.split(), FLY_APP_NAME="app")

    assert done.returncode == 2
    assert one_line(done.stderr)
    assert "DATABASE_URL" in done.stderr


@pytest.mark.parametrize("command", [f"runs show {NOBODY}", f"runs tail {NOBODY}", f"keys revoke {NOBODY}",
                                     f"approvals show {NOBODY}", f"approvals decide {NOBODY} approve"])  # fmt: skip
def test_a_failed_operation_is_one_line_and_status_1(data_dir: Path, command: str) -> None:
    done = hitl(data_dir, *command.split())

    assert (done.returncode, done.stdout) == (1, "")
    assert one_line(done.stderr)


def test_a_database_that_is_away_is_one_line_and_status_1(data_dir: Path) -> None:
    away = {
        "DATABASE_URL": "postgresql://127.0.0.1:1/x",
        "REDIS_URL": "redis://127.0.0.1:1",
        "HITL_SECRET_KEY": "k" * 32,
    }

    for command in ("keys list", "migrate", "up"):
        done = hitl(data_dir, *command.split(), **away)
        assert done.returncode == 1
        assert one_line(done.stderr)


# --- operating ----------------------------------------------------------------------------------------------


def test_migrating_twice_does_nothing_the_second_time(tmp_path: Path) -> None:
    first, second = printed(tmp_path, "migrate"), printed(tmp_path, "migrate")

    assert first.startswith("applied 0001_")
    assert second == "nothing to do\n"
    eventually(lambda: not processes_of(tmp_path))


def test_limits_of_a_tenant_are_set_one_by_one_and_taken_away(data_dir: Path) -> None:
    printed(data_dir, "tenants", "set", "acme", "--starts-per-minute", "10", "--live-runs", "5")
    printed(data_dir, "tenants", "set", "acme", "--live-runs", "none", "--retention-days", "30")
    printed(data_dir, "tenants", "set", "acme", "--stored-bytes", "5000000000")

    acme = next(row for row in rows(data_dir, "tenants", "list") if row["id"] == "acme")
    limits = {"starts_per_minute": 10, "live_runs": None, "retention_days": 30, "stored_bytes": 5_000_000_000}
    limits |= {"stored_bytes_now": 0}
    assert acme == {"id": "acme", "name": "acme", **limits}
    assert "acme  10" in printed(data_dir, "tenants", "list")
    assert rows(data_dir, "tenants", "set", "acme")[0] == acme


def test_a_key_is_printed_once_listed_without_itself_and_revoked(data_dir: Path) -> None:
    made = printed(data_dir, "keys", "create", "--name", "ci", "--role", "reviewer", "--group", "a", "--group", "b")
    key = next(row for row in rows(data_dir, "keys", "list") if row["name"] == "ci")
    printed(data_dir, "keys", "revoke", key["id"])
    after = next(row for row in rows(data_dir, "keys", "list") if row["name"] == "ci")

    assert made.count("\n") == 1
    assert len(made.strip()) > 32
    assert made.strip() not in json.dumps(key)
    assert (key["role"], key["groups"], key["tenant"], key["revoked_at"]) == ("reviewer", ["a", "b"], "default", None)
    assert after["revoked_at"].endswith("Z")
    assert key["id"] in printed(data_dir, "keys", "list")


def test_the_doctor_is_content_with_embedded_servers(data_dir: Path) -> None:
    checks = {row["id"]: row["result"] for row in rows(data_dir, "doctor")}

    assert "fail" not in checks.values()
    assert {"settings", "postgres", "migrations", "clock", "redis", "redis_eviction", "workers"} <= checks.keys()


def test_the_doctor_says_what_is_wrong(data_dir: Path) -> None:
    done = hitl(data_dir, "doctor", REDIS_URL="redis://127.0.0.1:1")

    assert done.returncode == 1
    assert "fail  redis: no connection" in done.stdout
    assert one_line(done.stderr)


def test_the_catalogue_of_log_events_is_printed(data_dir: Path) -> None:
    assert {"http.request", "approval.decided"} <= {row["id"] for row in rows(data_dir, "doctor", "--events")}


def test_openapi_is_the_document_of_the_api(data_dir: Path) -> None:
    assert "/hitl/run" in json.loads(printed(data_dir, "openapi"))["paths"]


# --- the processes ------------------------------------------------------------------------------------------


def test_an_operator_looks_decides_and_cancels_beside_a_running_up(data_dir: Path) -> None:
    with up(data_dir) as (_, url):
        body = run_body(echo(), policy="require_human")
        decided, cancelled = (httpx2.post(f"{url}/hitl/run", json=body).json()["run_id"] for _ in range(2))
        eventually(lambda: len(rows(data_dir, "approvals", "list")) == 2)
        for checkpoint in ("information_review", "payload_review", "response_review"):
            eventually(lambda: rows(data_dir, "approvals", "list", "--run", decided))
            [approval] = rows(data_dir, "approvals", "list", "--run", decided)
            assert approval["checkpoint_type"] == checkpoint
            [row] = rows(data_dir, "approvals", "decide", approval["id"], "approve", "--as", "olga")
            assert row["status"] == "approved"
        tail = rows(data_dir, "runs", "tail", decided)
        [shown] = rows(data_dir, "approvals", "show", approval["id"])
        again = hitl(data_dir, "approvals", "decide", approval["id"], "reject", "--reason", "late")
        ended = rows(data_dir, "runs", "cancel", cancelled, cancelled)
        mixed = hitl(data_dir, "runs", "cancel", cancelled, decided, NOBODY, "--json")
        listed = {row["id"]: row["status"] for row in rows(data_dir, "runs", "list", "--limit", "2")}
        [run] = rows(data_dir, "runs", "show", decided)
        waits = rows(data_dir, "queue")

    assert [event["seq"] for event in tail] == list(range(1, len(tail) + 1))
    assert tail[-1]["type"] == "run.completed"
    assert [(d["actor"], d["channel"]) for d in shown["decisions"]] == [("olga", "cli")]
    assert (again.returncode, one_line(again.stderr)) == (1, True)
    assert [row["status"] for row in ended] == ["cancelled", "cancelled"]
    assert (mixed.returncode, [row["error"] is None for row in json.loads(mixed.stdout)]) == (1, [True, False, False])
    assert listed == {decided: "completed", cancelled: "cancelled"}
    assert (run["id"], run["status"]) == (decided, "completed")
    assert all(row["awaiting_human"] == 0 for row in waits)


def test_a_failed_run_is_requeued_from_its_last_durable_step(data_dir: Path) -> None:
    broken = {"echo-agent-tool": {"data": {"fail": [{"status": 400}]}}}
    away = {"echo-agent-tool": {"data": {"fail": [{"status": 503}] * 5}}}
    with up(data_dir) as (_, url):
        refused, given_up = (
            httpx2.post(f"{url}/hitl/run", json=run_body(tool, policy="auto")).json()["run_id"]
            for tool in (broken, away)
        )
        eventually(lambda: len(rows(data_dir, "runs", "list", "--status", "failed")) == 2)
        mixed = hitl(data_dir, "runs", "requeue", given_up, refused, NOBODY, "--json")
        ended = httpx2.get(f"{url}/hitl/runs/{given_up}", params={"wait": 20}, timeout=30).json()

    assert (mixed.returncode, one_line(mixed.stderr)) == (1, True)
    assert [row["error"] is None for row in json.loads(mixed.stdout)] == [True, False, False]
    assert (ended["status"], ended["error"]) == ("completed", None)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_of_up_and_leaves_no_process(data_dir: Path, how: signal.Signals) -> None:
    with up(data_dir, "--workers", "2") as (process, url):
        assert answers(url)
        assert len(children(process, "arq")) == 2
        process.send_signal(how)
        status = process.wait(30)

    assert status == 0
    assert not processes_of(data_dir)
    assert not answers(url)


def test_a_signal_during_the_start_is_a_stop(data_dir: Path) -> None:
    command = [HITL, "up", "--port", "0"]
    with subprocess.Popen(command, env=environment(data_dir), cwd=data_dir, stdout=subprocess.DEVNULL) as process:
        eventually(lambda: psutil.Process(process.pid).children())
        process.terminate()

        assert process.wait(30) == 0
    eventually(lambda: not processes_of(data_dir))


@pytest.mark.parametrize("word", ["uvicorn", "arq"])
def test_a_process_that_dies_is_started_again(data_dir: Path, word: str) -> None:
    with up(data_dir) as (process, url):
        [before] = children(process, word)
        before.kill()
        eventually(lambda: [child.pid for child in children(process, word)] not in ([], [before.pid]))
        eventually(lambda: answers(url))


def test_no_child_outlives_an_up_that_is_killed(data_dir: Path) -> None:
    with up(data_dir) as (process, _):
        process.kill()
        process.wait(10)

        eventually(lambda: not processes_of(data_dir))


def test_a_port_in_use_is_one_line_and_status_1(data_dir: Path) -> None:
    with up(data_dir) as (_, url):
        done = hitl(data_dir, "up", "--port", url.rpartition(":")[2])

    assert done.returncode == 1
    assert one_line(done.stderr)


@pytest.mark.parametrize("command", ["web", "worker"])
def test_a_single_process_stops_with_status_0(data_dir: Path, command: str) -> None:
    ready = "worker.started" if command == "worker" else None
    with (
        up(data_dir) as (_, url),
        subprocess.Popen(
            [HITL, command], env=environment(data_dir, HITL_PORT="0"), cwd=data_dir, stdout=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdout
        assert answers(url)
        if ready:
            assert any(ready in line for line in process.stdout)
        else:
            eventually(lambda: children(process, "uvicorn"))
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.parametrize(("provider", "part"), [("http", "body"), ("replicate", "input")])
def test_the_demo_shows_that_what_was_approved_is_what_was_sent(data_dir: Path, provider: str, part: str) -> None:
    out = printed(data_dir, "demo", "--provider", provider)

    lines = [line.strip() for line in out.splitlines()]
    [received] = [line.partition(": ")[2] for line in lines if line.startswith(f"sha256 of the {part}: ")]
    [approved] = [line.partition(": ")[2] for line in lines if line.startswith("payload_sha256: ")]
    assert received == approved
    assert len(received) == 64
    for expected in (
        "information_review",
        "payload_review",
        "response_review",
        "run.completed",
        '+  "num_outputs": 2',
    ):
        assert expected in out
    assert out.count("copied file: ") == (2 if provider == "replicate" else 0)
    assert "\x1b" not in out
