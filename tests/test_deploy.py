"""The other homes in deploy/: what they name is what the code has."""

import configparser
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings
from tests.test_packaging import toml

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
BIN = Path(sys.executable).parent
KNOWN = {name.upper() for name in Settings.model_fields}
WORKER = "arq worker_settings.WorkerSettings --custom-log-dict service.logs.ARQ_LOG_CONFIG"


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return found


def procfile() -> dict[str, str]:
    lines = (DEPLOY / "dokku" / "Procfile").read_text().splitlines()
    return dict(line.split(": ", 1) for line in lines)


def unit(name: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(DEPLOY / "systemd" / name)
    return parser


def commands() -> dict[str, list[str]]:
    ours = {name: service["command"] for name, service in compose()["services"].items() if "profiles" not in service}
    dokku = {f"dokku {name}": shlex.split(command) for name, command in procfile().items()}
    units = {
        f"systemd {name}": [Path(word).name, *words]
        for name in ("hitl-web.service", "hitl-worker@.service")
        for key, line in unit(name).items("Service")
        if key.startswith("ExecStart")
        for word, *words in [shlex.split(line)]
    }
    return {**ours, **dokku, **units}


@pytest.mark.parametrize("home", sorted(commands()))
def test_each_homes_commands_are_there(home: str) -> None:
    program, *words = commands()[home]
    helped = subprocess.run([BIN / program, *words, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert helped.returncode == 0, helped.stderr


def test_every_home_runs_the_worker_by_the_arq_cli() -> None:
    found = commands()
    assert {" ".join(found[name]) for name in ("worker", "dokku worker", "systemd hitl-worker@.service")} == {WORKER}


def test_every_variable_is_a_setting() -> None:
    of_compose = {
        name
        for service in compose()["services"].values()
        if "profiles" not in service
        for name in service["environment"]
    }
    of_dokku = set(json.loads((DEPLOY / "dokku" / "app.json").read_text())["env"])
    assert of_compose | of_dokku <= KNOWN
    for home in (of_compose, of_dokku):
        assert {"DATABASE_URL", "REDIS_URL", "HITL_SECRET_KEY", "HITL_PUBLIC_URL"} <= home


def test_compose_publishes_the_images_port_and_waits_for_what_it_needs() -> None:
    services = compose()["services"]
    port = re.search(r"HITL_PORT=(\d+)", (ROOT / "Dockerfile").read_text())
    assert port is not None
    assert [published.rpartition(":")[2] for published in services["web"]["ports"]] == [port[1]]
    for name in ("web", "worker"):
        needs = services[name]["depends_on"]
        assert needs["migrate"]["condition"] == "service_completed_successfully"
        assert needs["redis"] == {"condition": "service_healthy", "required": False}
    assert services["migrate"]["depends_on"]["postgres"] == {"condition": "service_healthy", "required": False}
    assert {name for name, service in services.items() if service.get("profiles") == ["all"]} == {"postgres", "redis"}
    assert "noeviction" in services["redis"]["command"] and "--appendonly" in services["redis"]["command"]
    volumes = {line.split(":")[0] for service in services.values() for line in service["volumes"]}
    assert volumes == set(compose()["volumes"])


def test_every_home_gives_a_worker_longer_than_its_drain() -> None:
    drain_s = Settings.model_fields["hitl_drain_seconds"].default
    worker = compose()["services"]["worker"]
    assert int(worker["stop_grace_period"].removesuffix("s")) > int(worker["environment"]["HITL_DRAIN_SECONDS"])
    assert int(unit("hitl-worker@.service")["Service"]["TimeoutStopSec"]) > drain_s
    app = json.loads((DEPLOY / "dokku" / "app.json").read_text())
    assert int(app["env"]["HITL_DRAIN_SECONDS"]["value"]) < 60


def test_dokku_starts_what_the_procfile_names() -> None:
    app = json.loads((DEPLOY / "dokku" / "app.json").read_text())
    assert set(app["formation"]) == set(procfile()) - {"release"}
    assert procfile()["release"] == toml("fly.toml")["deploy"]["release_command"]
    assert app["healthchecks"]["web"][0]["path"] == "/readyz"
