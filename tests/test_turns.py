"""The worker's turns at the queue: what it takes, in which order, and what becomes of a job that ends or is cut off."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import arq.worker
import pytest
from arq.constants import in_progress_key_prefix, job_key_prefix
from arq.worker import func

from service import arq_worker
from service.arq_worker import BURY, Worker
from service.queue import connect, serialize
from service.runtime import Runtime
from service.signals import QUEUE_NAME
from tests.conftest import eventually

BORN_MS = 1_700_000_000_000
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning")  # arq's own


class Work:
    """Jobs that say they began, and end when they may."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.may_end = asyncio.Event()

    async def job(self, ctx: dict[str, Any], name: str) -> None:
        self.begun.append(name)
        await self.may_end.wait()
        self.ended.append(name)


@asynccontextmanager
async def working(
    runtime: Runtime, work: Work, monkeypatch: pytest.MonkeyPatch, *, url: str | None = None, max_jobs: int = 10
) -> AsyncIterator[Worker]:
    monkeypatch.setattr(arq.worker, "poll", arq_worker.poll)
    worker = Worker(
        functions=[func(work.job, name="job", timeout=60)], redis_pool=connect(url or str(runtime.settings.redis_url)),
        queue_name=QUEUE_NAME, max_jobs=max_jobs, poll_delay=0.05, handle_signals=False,
    )  # fmt: skip
    run = asyncio.get_running_loop().create_task(worker.async_run())
    try:
        yield worker
    finally:
        worker.handle_sig(signal.SIGTERM)
        with suppress(asyncio.CancelledError):
            await run
        await worker.close()


async def send(runtime: Runtime, *names: str) -> None:
    """Jobs that are due, each of a lower rank than the one before."""
    for n, name in enumerate(names):
        job = {"t": None, "f": "job", "a": [name], "k": {}, "et": BORN_MS}
        await runtime.redis.set(job_key_prefix + name, serialize(job), px=60_000)
        await runtime.redis.zadd(QUEUE_NAME, {name: BORN_MS + n})


async def gone(runtime: Runtime) -> bool:
    return await runtime.redis.keys("*") in ([], [b"hitl:queue:health-check"])


async def test_no_more_run_at_once_than_there_are_slots_and_the_lowest_score_goes_first(
    empty: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"job {n}" for n in range(7)]
    await send(empty, *names)
    work = Work()
    async with working(empty, work, monkeypatch, max_jobs=2) as worker:
        await eventually(lambda: _is(len(work.begun), 2), "two of them")
        await eventually(lambda: _is(worker._failures, 0))
        assert (work.begun, len(worker.tasks)) == (names[:2], 2)
        work.may_end.set()
        await eventually(lambda: gone(empty), "the end of all")
    assert work.begun == work.ended == names


async def _is(found: Any, wanted: Any) -> bool:
    return bool(found == wanted)


async def test_a_job_that_runs_is_hidden_from_every_look_as_long_as_its_worker_says_so(
    empty: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    await send(empty, "long")
    work = Work()
    async with working(empty, work, monkeypatch) as worker:
        await eventually(lambda: _is(work.begun, ["long"]))
        assert await empty.redis.zcount(QUEUE_NAME, "-inf", time.time() * 1000 + 30_000) == 0
        assert 30_000 < await empty.redis.pttl(in_progress_key_prefix + "long") <= 60_000
        await empty.redis.pexpire(in_progress_key_prefix + "long", 5_000)
        await empty.redis.zadd(QUEUE_NAME, {"long": time.time() * 1000 + 5_000})
        await worker.keep_hidden()
        assert await empty.redis.pttl(in_progress_key_prefix + "long") > 30_000
        assert await empty.redis.zcount(QUEUE_NAME, "-inf", time.time() * 1000 + 30_000) == 0
        work.may_end.set()
        await eventually(lambda: gone(empty), "its end")
        await worker.keep_hidden()
    assert await empty.redis.zcard(QUEUE_NAME) == 0


async def test_what_others_run_is_passed_by(empty: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    await send(empty, "theirs", "theirs too", "free")
    for name in ("theirs", "theirs too"):
        await empty.redis.set(in_progress_key_prefix + name, b"1", px=60_000)
    work = Work()
    work.may_end.set()
    async with working(empty, work, monkeypatch, max_jobs=1):
        await eventually(lambda: _is(work.ended, ["free"]), "the free one")
    assert await empty.redis.zrange(QUEUE_NAME, 0, -1) == [b"theirs", b"theirs too"]


async def test_two_workers_never_take_the_same_job(empty: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"job {n}" for n in range(60)]
    work = Work()
    work.may_end.set()
    async with working(empty, work, monkeypatch, max_jobs=5), working(empty, work, monkeypatch, max_jobs=5):
        await send(empty, *names)
        await eventually(lambda: gone(empty), "the end of all")
    assert sorted(work.ended) == sorted(names)


async def test_what_a_stop_cuts_off_is_due_again_at_once_in_its_old_rank(
    empty: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    await send(empty, "cut")
    work = Work()
    async with working(empty, work, monkeypatch):
        await eventually(lambda: _is(work.begun, ["cut"]))
    assert await empty.redis.zscore(QUEUE_NAME, "cut") == BORN_MS
    assert await empty.redis.exists(in_progress_key_prefix + "cut") == 0
    work.may_end.set()
    async with working(empty, work, monkeypatch):
        await eventually(lambda: _is(work.ended, ["cut"]), "its second try")


async def test_a_job_that_cancels_itself_is_buried_and_not_tried_again(
    empty: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Odd(Work):
        async def job(self, ctx: dict[str, Any], name: str) -> None:
            self.begun.append(name)
            raise asyncio.CancelledError

    await send(empty, "odd")
    work = Odd()
    buried = []

    async def bury(name: str, cause: str) -> None:
        buried.append((name, cause))

    async with working(empty, work, monkeypatch) as worker:
        worker.ctx[BURY] = bury
        await eventually(lambda: gone(empty), "its end")
    assert work.begun == ["odd"]
    assert buried == [("odd", "CancelledError")]


async def test_an_end_that_redis_could_not_hear_of_is_told_once_it_is_back(
    empty: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(empty.settings.redis_url).split("?")[0][7:]
    open_ends: list[asyncio.StreamWriter] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(path)
        open_ends.extend((writer, back))

        async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                while data := await source.read(65_536):
                    target.write(data)
            target.close()

        await asyncio.gather(pass_on(reader, back), pass_on(there, writer), return_exceptions=True)

    await send(empty, "long")
    work = Work()
    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    db = str(empty.settings.redis_url).split("db=")[1]
    async with working(empty, work, monkeypatch, url=f"redis://127.0.0.1:{port}/{db}") as worker:
        await eventually(lambda: _is(work.begun, ["long"]))
        server.close()
        for end in open_ends:
            end.close()
        work.may_end.set()

        async def noticed() -> bool:
            return worker._failures > 0

        await eventually(noticed, "the loss")
        assert work.ended == ["long"]
        assert await empty.redis.zcard(QUEUE_NAME) == 1
        server = await asyncio.start_server(relay, "127.0.0.1", port)
        await eventually(lambda: gone(empty), "the news of its end")
    assert work.begun == ["long"]
    server.close()
