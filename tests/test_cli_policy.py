"""`hitl payload explain` and `hitl policy try` as a user runs them."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest

from service.commands.policies import try_policy
from service.domain.policy import HitlConfig
from service.runtime import Runtime
from service.store.database import EVERY
from tests.acting import begin, sql, worker
from tests.conftest import Stack, at, decide, echo, run_body, settled, start

HITL = Path(sys.executable).parent / "hitl"
PNG = "https://x.example/a.png"
SCHEMA = {
    "type": "object",
    "required": ["prompt", "image"],
    "properties": {
        "prompt": {"type": "string"},
        "image": {"type": "string", "format": "uri"},
        "seed": {"type": "integer", "maximum": 2**63},
        "fast": {"type": "boolean", "default": True},
    },
}


def hitl(*arguments: str, env: dict[str, str], folder: Path, given: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [HITL, *arguments], env=env, cwd=folder, input=given, capture_output=True, text=True, timeout=60, check=False
    )


# -- payload explain -----------------------------------------------------------------------------------


def explain(folder: Path, document: Any, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Without any server: nothing in the environment, nothing may appear in the folder."""
    ours = ("HITL_", "DATABASE_", "REDIS_", "LOG_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = hitl("payload", "explain", "-", *arguments, env=env, folder=folder, given=json.dumps(document))
    assert not (folder / ".data").exists()
    return done


def start_request(tool: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"run_input": {"prompt": "a red fox", "agent_tool_config": tool, **more}}


def test_explain_prints_each_field_with_its_kind_and_origin(tmp_path: Path) -> None:
    tool = echo({"prompt": "x", "seed": 7, "image": "s.png"}, schema={**SCHEMA, "properties": {
        **SCHEMA["properties"], "seed": {"type": "integer"}}})  # fmt: skip
    done = explain(tmp_path, start_request(tool, attachments=[{"url": PNG}]))

    assert (done.returncode, done.stderr) == (0, "")
    summary, head, *lines = done.stdout.splitlines()
    assert summary == "echo-agent-tool: confidence 1.0, 2 fields differ from the example"
    assert head.split() == ["field", "kind", "type", "required", "origin", "value"]
    cells = {line.split()[0]: line.split() for line in lines}
    assert cells["prompt"][1:6] == ["content:", "text", "string", "True", "prompt"]
    assert cells["image"][1:] == ["content:", "image", "string", "True", "attachment", PNG]
    assert cells["seed"][-2:] == ["example", "7"]
    assert cells["fast"][-2:] == ["schema_default", "True"]


def test_explain_takes_a_models_schema_from_a_file_and_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    tool = {"replicate-agent-tool": {"data": {"name": "a/b", "example_input": {"prompt": "x", "image": "s.png"}}}}
    done = explain(tmp_path, start_request(tool)["run_input"], "--schema", "schema.json", "--json")

    told = json.loads(done.stdout)
    assert told["payload"] == {"prompt": "a red fox", "fast": True}
    assert told["missing"] == ["image"]
    assert told["confidence"] == 0.25
    assert [issue["field"] for issue in told["validation_issues"]] == ["image"]
    assert {row["name"]: row["origin"] for row in told["fields"]} == {
        "prompt": "prompt", "image": None, "seed": None, "fast": "schema_default",
    }  # fmt: skip


def test_explain_tells_the_payload_that_a_run_gets(tmp_path: Path) -> None:
    body = run_body(echo({"prompt": "x", "n": 1}), policy="auto")
    done = explain(tmp_path, {**body, "priority": 1}, "--json")

    assert json.loads(done.stdout)["payload"] == {"prompt": "a red fox", "n": 1}


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"run_input": {"prompt": "x"}}, "agent_tool_config must name one of"),
        ({"run_input": {"prompt": ""}}, "/run_input/prompt"),
        ({"prompt": "x", "nonsense": 1}, "/nonsense"),
        (start_request({"echo-agent-tool": {"schema": {"type": "nonsense"}}}), "the schema"),
    ],
    ids=str,
)
def test_explain_refuses_in_one_line_what_the_service_would(tmp_path: Path, document: Any, says: str) -> None:
    done = explain(tmp_path, document)

    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr and done.stderr.count("\n") == 1


# -- policy try ----------------------------------------------------------------------------------------

EXAMPLE = {"prompt": "sample", "num_outputs": 1}


async def tried(runtime: Runtime, batch: int = 500, **config: Any) -> Any:
    told: list[int] = []
    trial = await try_policy(
        runtime.services, HitlConfig(**config), window=timedelta(days=7), tenant="default", progress=told.append,
        batch=batch,
    )  # fmt: skip
    return trial, told


async def made(runtime: Runtime, **tool: Any) -> None:
    run_id = await begin(runtime, echo(EXAMPLE, **tool))
    await worker(runtime).advance(run_id)


async def test_a_policy_is_tried_by_what_past_runs_left(empty: Runtime) -> None:
    await made(empty, cost_usd=0.5, quality=0.9)
    await made(empty, cost_usd=2.0, quality=0.2)
    await made(empty, confidence=0.3)
    await made(empty, flag_words={"fox": "copyright"})
    await made(empty, safety_flags=["nsfw"])
    await made(empty, schema={"type": "object", "required": ["voice"], "properties": {"voice": {"type": "string"}}})

    trial, _ = await tried(
        empty, policy="auto_with_thresholds", review_thresholds={"max_cost_usd": 1, "response_quality_min": 0.5}
    )

    assert trial.runs == 6
    assert {step: dict(stops.reasons) for step, stops in trial.would.items()} == {
        "information_review": {"confidence.below": 2, "missing.voice": 1},
        "payload_review": {"cost.above": 1, "safety.copyright": 1},
        "response_review": {"quality.below": 1, "safety.nsfw": 1},
    }
    assert (trial.stopped_would, trial.stopped_did) == (5, 3)
    assert trial.did["response_review"].reasons == {"safety.nsfw": 1}


async def test_batches_leave_no_run_out_and_count_none_twice(empty: Runtime) -> None:
    for _ in range(7):
        await made(empty)

    for batch in (1, 2, 7, 8):
        trial, told = await tried(empty, batch=batch, policy="require_human", allowed_steps=["payload_review"])
        assert (trial.runs, trial.would["payload_review"].runs) == (7, 7)
        assert told == list(range(batch, 8, batch))


async def test_a_trial_changes_nothing_and_could_not(empty: Runtime) -> None:
    await made(empty)
    before = await sql(empty, "select json_agg(r order by id)::text from runs r")

    await tried(empty, policy="require_human")

    assert await sql(empty, "select json_agg(r order by id)::text from runs r") == before
    with pytest.raises(Exception, match="read-only transaction"):
        async with empty.services.db.reading(EVERY) as conn:
            await conn.execute("delete from runs")


async def test_the_command_prints_would_beside_did(client: httpx2.AsyncClient, stack: Stack, tmp_path: Path) -> None:
    run_id = await start(client, run_body(echo(), policy="require_human", allowed_steps=["payload_review"]))
    approval = await at(client, run_id, "payload_review")
    await decide(client, approval["approval_id"], "approve")
    await settled(client, run_id)
    (tmp_path / "config.json").write_text(json.dumps({"policy": "require_human", "allowed_steps": ["response_review"]}))

    table = hitl("policy", "try", "config.json", "--since", "30m", env=stack.env, folder=tmp_path)
    document = hitl("policy", "try", "config.json", "--json", env=stack.env, folder=tmp_path)

    assert (table.returncode, document.returncode) == (0, 0), table.stderr + document.stderr
    assert "would have stopped" in table.stdout.splitlines()[0]
    told = json.loads(document.stdout)
    assert told["stopped"]["did"] >= 1
    assert told["checkpoints"]["payload_review"]["did"]["reasons"]["policy.require_human"] >= 1
    assert told["checkpoints"]["response_review"]["would"]["runs"] >= 1


@pytest.mark.parametrize(
    ("config", "arguments", "status"),
    [
        ({"polcy": "auto"}, [], 1),
        ({"policy": "auto"}, ["--since", "7"], 2),
        ({"policy": "auto"}, ["--since", "0d"], 2),
        ({"policy": "auto"}, ["--since", "999999d"], 2),
    ],
    ids=str,
)
def test_a_wrong_config_or_length_is_one_line(
    stack: Stack, tmp_path: Path, config: Any, arguments: list[str], status: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))

    done = hitl("policy", "try", "config.json", *arguments, env=stack.env, folder=tmp_path)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1)
