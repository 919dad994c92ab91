"""What the worker leans on inside arq, and what arq reads of our settings."""

import inspect
import pickle
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import arq.worker
import orjson
import pytest
from arq.constants import in_progress_key_prefix, job_key_prefix, retry_key_prefix

from service import arq_worker, queue, signals
from service.domain.ids import job_id
from service.runtime import Runtime
from tests.acting import begin, look
from tests.conftest import Stack, echo, eventually, run_body, settled, start

# what get_kwargs takes of WorkerSettings, as text
SHOW = """
import asyncio, json, sys
import arq.worker
import worker_settings

async def main():
    asyncio.get_running_loop()
    kwargs = arq.worker.get_kwargs(worker_settings.WorkerSettings)
    ours = {name for name in vars(worker_settings.WorkerSettings) if not name.startswith("__")}
    pool = kwargs["redis_pool"]
    shown = {
        "lost": sorted(ours - set(kwargs)),
        "functions": [[f.name, f.timeout_s, f.max_tries] for f in kwargs["functions"]],
        "serializers": [
            f"{f.__module__}.{f.__name__}"
            for f in (kwargs["job_serializer"], kwargs["job_deserializer"], pool.job_serializer, pool.job_deserializer)
        ],
        "pool_queue": pool.default_queue_name,
        "pool_expires": pool.expires_extra_ms,
        "pool_connections": [type(pool.connection_pool).__name__, pool.connection_pool.max_connections],
        "hooks": sorted(name for name in kwargs if name.startswith(("on_", "after_"))),
        "installed": [arq.worker.Worker.__module__, arq.worker.poll.__module__],
        "plain": {name: value for name, value in kwargs.items() if isinstance(value, (int, float, str))},
    }
    print(json.dumps(shown))

asyncio.run(main())
"""


def settings_with(stack: Stack, **env: str) -> Any:
    done = subprocess.run([sys.executable, "-c", SHOW], env={**stack.env, **env}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return orjson.loads(done.stdout)


def test_arq_is_the_version_whose_inside_was_read() -> None:
    assert version("arq") == "0.28.0"
    assert version("redis").startswith("5.")


def test_arqs_worker_still_has_what_ours_leans_on() -> None:
    assert inspect.isasyncgenfunction(arq.worker.poll)
    worker = arq.worker.Worker
    for name in ("main", "_poll_iteration", "_sleep_until_tasks_complete", "close", "heart_beat"):
        assert inspect.iscoroutinefunction(getattr(worker, name)), name
    signature = inspect.signature(worker.handle_sig_wait_for_completion)
    assert list(signature.parameters) == ["self", "signum"]
    for name in ("max_jobs", "tasks", "allow_pick_jobs", "main_task", "queue_read_limit", "job_timeout_s"):
        assert f"self.{name}" in inspect.getsource(worker.__init__), name


def test_arq_reads_its_poll_and_its_worker_as_globals_at_call_time() -> None:
    main = arq_worker.Worker.__mro__[1].main
    assert "async for _ in poll(self.poll_delay_s):" in inspect.getsource(main)
    assert "await self._poll_iteration()" in inspect.getsource(main)
    assert "Worker(**" in inspect.getsource(arq.worker.create_worker)


def test_arq_starts_jobs_nowhere_but_in_the_turn_that_is_ours() -> None:
    source = inspect.getsource(arq.worker)
    assert source.count("self.start_jobs(") == source.count("self.run_job(") == 1
    assert "await self.start_jobs(job_ids)" in inspect.getsource(arq_worker.Worker.__mro__[1]._poll_iteration)
    assert "await self.heart_beat()" in inspect.getsource(arq_worker.Worker.__mro__[1]._poll_iteration)


def test_arq_drains_by_what_we_override() -> None:
    worker = arq_worker.Worker.__mro__[1]
    assert "self._sleep_until_tasks_complete()" in inspect.getsource(worker._wait_for_tasks_to_complete)
    assert "for t in self.tasks.values()" in inspect.getsource(worker._wait_for_tasks_to_complete)
    assert "self.loop.run_until_complete(self.close())" in inspect.getsource(worker.run)
    closing = inspect.getsource(worker.close)
    assert closing.index("self.tasks.values()") < closing.index("self.on_shutdown") < closing.index("self.pool.close")


def test_arqs_key_names_are_those_we_delete() -> None:
    assert (job_key_prefix, in_progress_key_prefix, retry_key_prefix) == ("arq:job:", "arq:in-progress:", "arq:retry:")


def test_every_setting_reaches_arq(stack: Stack) -> None:
    shown = settings_with(stack, HITL_MAX_JOBS="7", HITL_POLL_DELAY="0.25", HITL_DRAIN_SECONDS="9")
    assert shown["lost"] == []
    assert shown["functions"] == [
        ["advance_run", 691_200, 1],
        ["expire_approval", 691_200, 1],
        ["remind_approval", 691_200, 1],
        ["cancel_calls", 691_200, 1],
    ]
    assert shown["serializers"] == ["service.queue.serialize", "service.queue.deserialize"] * 2
    assert (shown["pool_queue"], shown["pool_expires"]) == ("hitl:queue", 30 * 86_400_000)
    assert shown["pool_connections"] == ["BlockingConnectionPool", 50]
    assert shown["hooks"] == ["on_shutdown", "on_startup"]  # our turn knows no others
    assert shown["installed"] == ["service.arq_worker"] * 2
    assert shown["plain"] == {
        "queue_name": "hitl:queue",
        "max_jobs": 7,
        "poll_delay": 0.25,
        "job_completion_wait": 9,
        "expires_extra_ms": 30 * 86_400_000,
        "keep_result": 0,
        "max_tries": 1,
        "queue_read_limit": 5000,
        "health_check_interval": 10,
        "allow_abort_jobs": False,
        "log_results": False,
    }


def test_arq_takes_the_loop_that_is_set(stack: Stack) -> None:
    """As its CLI does: no loop runs yet when it makes the worker."""
    shown = """
import arq.worker, uvloop, worker_settings
print(isinstance(arq.worker.create_worker(worker_settings.WorkerSettings).loop, uvloop.Loop))
"""
    done = subprocess.run([sys.executable, "-c", shown], env=stack.env, capture_output=True, check=True)
    assert done.stdout == b"True\n"


def test_the_serializers_are_not_pickle() -> None:
    assert queue.serialize({"f": "advance_run", "a": [1]}) == b'{"f":"advance_run","a":[1]}'
    with pytest.raises(orjson.JSONDecodeError):
        queue.deserialize(pickle.dumps({"f": "advance_run"}))
    with pytest.raises(TypeError):
        queue.serialize({"f": object()})


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


async def test_a_pickled_job_in_the_queue_does_not_execute(stack: Stack, tmp_path: Path, client: Any) -> None:
    touched = tmp_path / "executed"
    redis = queue.connect(stack.env["REDIS_URL"])
    bomb = pickle.dumps({"t": None, "f": "advance_run", "a": (Bomb(touched),), "k": {}, "et": 0})
    assert isinstance(pickle.loads(bomb)["a"][0], type(None))
    assert touched.exists()  # the bomb works
    touched.unlink()
    await redis.set(job_key_prefix + "bomb", bomb)
    await redis.zadd(signals.QUEUE_NAME, {"bomb": time.time() * 1000})
    await redis.publish(signals.WAKE_CHANNEL, b"1")

    async def taken() -> bool:
        return await redis.zscore(signals.QUEUE_NAME, "bomb") is None

    await eventually(taken, "the job's end")
    assert not touched.exists()
    await redis.aclose(close_connection_pool=True)
    run_id = await start(client, run_body(echo()))
    assert (await settled(client, run_id, "completed"))["status"] == "completed"


@pytest.mark.parametrize(
    ("name", "value"),
    [("HITL_MAX_JOBS", "zero"), ("HITL_MAX_JOBS", "0"), ("HITL_POLL_DELAY", "-1"), ("HITL_DRAIN_SECONDS", "soon"),
     ("REDIS_URL", "http://x"), ("DATABASE_URL", ""), ("HITL_SECRET_KEY", "short")],
)  # fmt: skip
def test_a_bad_value_ends_the_worker_with_one_line(stack: Stack, tmp_path: Path, name: str, value: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "arq", "worker_settings.WorkerSettings"],
        env={**stack.env, name: value},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"{name}: got ")
    if name in ("REDIS_URL", "HITL_SECRET_KEY"):
        assert value not in done.stderr


async def test_our_wake_up_leaves_in_redis_what_arqs_enqueue_job_leaves(empty: Runtime) -> None:
    run_id = await begin(empty, echo())
    ours = job_id(run_id, 1)
    job = await empty.redis.enqueue_job(
        "advance_run", str(run_id), 1, _job_id="theirs", _defer_until=datetime.now(UTC) - timedelta(days=10)
    )
    assert job is not None
    left = [orjson.loads(await empty.redis.get(job_key_prefix + name)) for name in (ours, "theirs")]
    assert all(abs(each.pop("et") - time.time() * 1000) < 60_000 for each in left)
    assert left[0] == left[1]
    scores = await empty.redis.zmscore(signals.QUEUE_NAME, [ours, "theirs"])
    assert abs(scores[0] - scores[1]) < 60_000, "ten days before its time: the rank of a plain start"
    assert await empty.redis.pttl(job_key_prefix + ours) > queue.EXPIRES_EXTRA_MS - 60_000


async def test_a_wake_up_that_is_there_is_not_sent_again(empty: Runtime) -> None:
    run = await look(empty, await begin(empty, echo()))
    assert not await empty.services.queue.wake(run)
    assert await empty.redis.zcard(signals.QUEUE_NAME) == 1
