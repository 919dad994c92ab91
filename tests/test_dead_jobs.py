"""A job that cannot be read or run neither ends nor blocks a worker, and is listed with its cause."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix

from service import queue, signals
from service.runtime import Runtime
from service.store import dead_jobs
from service.store.database import EVERY
from tests.conftest import Stack, echo, eventually, run_body, settled, start

HITL = Path(sys.executable).parent / "hitl"


def hitl(stack: Stack, *arguments: str) -> str:
    """What the command prints, run beside the service."""
    done = subprocess.run([HITL, *arguments], env=stack.env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def job(function: Any = "advance_run", arguments: Any = ("x", 1), **more: Any) -> bytes:
    return orjson.dumps({"t": None, "f": function, "a": arguments, "k": {}, "et": 0, **more})


POISON: dict[str, tuple[bytes | list[bytes], str]] = {
    "garbage": (b"\x80\x04 nothing that was ever JSON", "not JSON"),
    "list": (b"[1, 2, 3]", "not a job"),
    "no-function": (b"{}", "not a job"),
    "function-list": (job(function=["advance_run"]), "not a job"),
    "unknown": (job(function="drop_everything"), "unknown function"),
    "too-few": (job(arguments=["x"]), "wrong arguments"),
    "no-list": (job(arguments="xy"), "wrong arguments"),
    "wrong-type": (job(arguments=[5, "x"]), "wrong arguments"),
    "keywords": (job(k={"surprise": 1}), "wrong arguments"),
    "bad-time": (job(et="yesterday"), "not a job"),
    "bad-try": (job(t="three"), "not a job"),
    "no-uuid": (job(arguments=["not a uuid", 1]), "ValueError"),
    "wrong-kind": ([b"a", b"list"], "not a job's key"),
}


async def test_poisonous_jobs_neither_end_nor_block_a_worker(stack: Stack, client: httpx2.AsyncClient) -> None:
    redis = queue.connect(stack.env["REDIS_URL"])
    names = [name.encode() for name in POISON] + [b"\xff\xfe not text"]
    for name, (data, _) in POISON.items():
        if isinstance(data, list):
            await redis.rpush(job_key_prefix + name, *data)
        else:
            await redis.set(job_key_prefix + name, data)
    # before everything that waits, so that it is met first
    await redis.zadd(signals.QUEUE_NAME, dict.fromkeys(names, 1.0))
    await redis.zadd(signals.QUEUE_NAME, {"infinite": float("-inf")})
    await redis.publish(signals.WAKE_CHANNEL, b"1")
    run_id = await start(client, run_body(echo()))
    assert (await settled(client, run_id, "completed"))["status"] == "completed"

    async def gone() -> bool:
        scores: Any = await redis.zmscore(signals.QUEUE_NAME, [*names, b"infinite"])
        return not any(score is not None for score in scores)

    await eventually(gone, "an empty queue")
    for name in POISON:
        keys = [prefix + name for prefix in (job_key_prefix, in_progress_key_prefix, retry_key_prefix)]
        assert await redis.exists(*keys) == 0, name
    await redis.aclose(close_connection_pool=True)

    async def listed() -> dict[str, str]:
        rows = orjson.loads(hitl(stack, "queue", "--json"))
        found = {row["id"]: row["cause"] for row in rows if row.get("status") == "dead"}
        return found if len(found) >= len(POISON) + 1 else {}

    causes = await eventually(listed, "the list")
    assert {name: causes.get(name) for name in POISON} == {name: cause for name, (_, cause) in POISON.items()}
    assert causes["\\xff\\xfe not text"] == "UnicodeDecodeError"
    table = hitl(stack, "queue")
    assert "jobs that no worker could run" in table
    assert "unknown function" in table
    assert "worker.stopped" not in stack.log("worker")
    assert "was ever JSON" not in stack.log("worker")


async def test_only_the_newest_dead_jobs_are_kept(empty: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_jobs, "KEPT", 3)
    async with empty.services.db.transaction(EVERY) as conn:
        await conn.execute("delete from dead_jobs")
        for n in range(5):
            await dead_jobs.bury(conn, f"job {n}", "not JSON", "w1")
        assert [job.job_id for job in await dead_jobs.recent(conn, limit=9)] == ["job 4", "job 3", "job 2"]


async def test_failed_runs_are_listed_with_their_code_and_requeued_together(
    stack: Stack, client: httpx2.AsyncClient
) -> None:
    """Their provider was away for all tries; requeued, they go on from the call."""
    fails = [{"status": 503}] * 5
    ids = [await start(client, run_body(echo(fail=fails)) | {"session_id": "dead"}) for _ in range(3)]
    for run_id in ids:
        assert (await settled(client, run_id, "failed"))["error"]["code"] == "provider_unavailable"
    found = orjson.loads(hitl(stack, "runs", "list", "--status", "failed", "--session", "dead", "--json"))
    assert {row["id"]: row["error_code"] for row in found} == dict.fromkeys(ids, "provider_unavailable")
    table = hitl(stack, "runs", "list", "--status", "failed", "--session", "dead")
    assert table.count("provider_unavailable") == 3
    requeued = orjson.loads(hitl(stack, "runs", "requeue", *ids, "--json"))
    assert {row["id"] for row in requeued} == set(ids)
    for run_id in ids:
        run = await settled(client, run_id, "completed")
        steps = [step["step"] for step in run["progress"]["step_history"] if step["status"] == "completed"]
        assert len(steps) == len(set(steps))  # no step that was done is done again
