"""fly.toml is what Fly's schema allows, and what docs/deploy.md says of settings is what the code has."""

import json
import re
import tomllib
from pathlib import Path

import jsonschema

from service.commands import purge
from service.settings import Settings
from service.store.database import Database
from tests.test_observability import bare, instruments
from tests.test_packaging import toml

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = json.loads((ROOT / "tests" / "fixtures" / "fly.schema.json").read_text())
DEPLOY = (ROOT / "docs" / "deploy.md").read_text()


def problems(text: str) -> list[str]:
    return [error.message for error in jsonschema.Draft7Validator(SCHEMA).iter_errors(tomllib.loads(text))]


def test_fly_toml_is_what_the_schema_allows() -> None:
    text = (ROOT / "fly.toml").read_text()
    assert problems(text) == []
    assert problems(text.replace('kill_signal = "SIGTERM"', 'kill_signal = "SIGNOPE"')) != []


def test_each_group_has_a_machine_a_restart_and_its_metrics() -> None:
    fly = toml("fly.toml")
    groups = set(fly["processes"])
    assert {name for vm in fly["vm"] for name in vm["processes"]} == groups
    assert {name for each in fly["restart"] for name in each["processes"]} == groups
    port = int(fly["env"]["HITL_METRICS_PORT"])
    assert {(each["processes"][0], each["port"], each["path"]) for each in fly["metrics"]} == {
        (name, port, "/metrics") for name in groups
    }
    (check,) = fly["checks"].values()
    assert (check["processes"], check["port"], check["path"]) == (["worker"], port, "/healthz")
    assert fly["deploy"]["strategy"] == "rolling"
    assert {name for name in fly["env"] if name.startswith("HITL_")} <= {name.upper() for name in Settings.model_fields}


def test_what_the_page_names_is_there() -> None:
    known = {name.upper() for name in Settings.model_fields}
    assert set(re.findall(r"\bHITL_[A-Z_]+\b", DEPLOY)) <= known
    assert {bare(name) for name in re.findall(r"\bhitl_[a-z_]+\b", DEPLOY)} <= instruments().keys()
    for link in re.findall(r"\]\(([^)#]+)", DEPLOY):
        assert (ROOT / "docs" / link).exists(), link


def test_the_numbers_of_the_page_are_the_codes() -> None:
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert f"| `{defaults['hitl_poll_delay']}` (default) |" in DEPLOY
    assert f"runs at once ({defaults['hitl_max_jobs']})" in DEPLOY
    assert f"batches\nof {purge.BATCH} runs" in DEPLOY and purge.PURGE_EVERY_S == 3600
    assert f"at most {Database('postgresql://')._max_size} connections" in DEPLOY
