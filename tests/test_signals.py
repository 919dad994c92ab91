"""Signals travel in company, each sender hears of its own, and nobody waits long for a Redis that is away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from service.domain.ids import uuid7
from service.notifier import Notifier
from service.queue import connect
from service.runtime import Runtime
from service.signals import CHANGED_CHANNEL, QUEUE_NAME, WAKE_CHANNEL, Job, Signals
from tests.acting import within
from tests.conftest import free_port


def job(name: str) -> Job:
    return Job(name, b"{}", keep_ms=60_000, at_ms=1)


@asynccontextmanager
async def asked(runtime: Runtime) -> AsyncIterator[list[str]]:
    """What Redis was asked in the body on this runtime's database, which no other process uses."""
    db = int(str(runtime.settings.redis_url).split("db=")[1])
    found: list[str] = []
    async with runtime.redis.monitor() as monitor:
        yield found
        await runtime.redis.echo("the end")
        while (seen := await monitor.next_command())["command"] != "ECHO the end":
            if seen["db"] == db:
                found.append(seen["command"])


def of(commands: list[str], name: str) -> list[str]:
    return [command.split(" ", 1)[1] for command in commands if command.lower().startswith(name)]


async def test_what_comes_up_during_one_trip_goes_with_the_next(empty: Runtime) -> None:
    signals = Signals(empty.redis)
    await signals.enqueue(job("first"))
    async with asked(empty) as commands:
        leaving = asyncio.gather(*(signals.enqueue(job(f"job {n}")) for n in range(40)))
        signals.hint("with them")
        assert await leaving == [[True]] * 40
        await signals.close()
    assert await empty.redis.zcard(QUEUE_NAME) == 41
    assert len(of(commands, "evalsha")) <= 2


async def test_each_sender_hears_of_its_own_jobs_and_a_job_is_new_once(empty: Runtime) -> None:
    signals = Signals(empty.redis)
    found = await asyncio.gather(
        signals.enqueue(job("a"), job("b")), signals.enqueue(job("b")), signals.enqueue(), signals.enqueue(job("c"))
    )
    assert found == [[True, True], [False], [], [True]]
    assert await signals.enqueue(job("c"), job("d")) == [False, True]


async def test_a_sender_that_goes_away_takes_nobody_with_it(empty: Runtime) -> None:
    signals = Signals(empty.redis)
    goes, stays = (asyncio.ensure_future(signals.enqueue(job(name))) for name in ("goes", "stays"))
    await asyncio.sleep(0)
    goes.cancel()
    assert await stays == [True]
    assert goes.cancelled()
    assert await signals.enqueue(job("later")) == [True]


async def test_one_message_a_trip_wakes_the_workers_and_one_tells_the_followers(empty: Runtime) -> None:
    signals = Signals(empty.redis)
    async with asked(empty) as commands:
        signals.hint("x", "y")
        signals.hint("x", "z")
        await signals.enqueue(job("a"), job("b"))
        late = Job("late", b"{}", keep_ms=60_000, at_ms=4_000_000_000_000)
        assert await signals.enqueue(late) == [True]
        signals.hint("last")
        await signals.close()
    assert of(commands, "publish") == [f"{WAKE_CHANNEL} 1", f"{CHANGED_CHANNEL} x y z", f"{CHANGED_CHANNEL} last"]


async def test_many_hints_in_one_message_reach_whom_they_concern(empty: Runtime) -> None:
    runs = [uuid7() for _ in range(3)]
    stopped: list[UUID] = []
    due = asyncio.Event()
    there, here = Notifier(empty.redis), Notifier(empty.redis)
    there.on_stop(stopped.append)
    with there.follow(runs[0]) as first, there.follow(runs[1]) as second, there.follow(uuid7()) as other:
        with there.on_deliver(due.set):
            async with there.running():
                while (await empty.redis.pubsub_numsub(CHANGED_CHANNEL))[0][1] == 0:
                    await asyncio.sleep(0.01)
                await within(other)  # all look after the subscription
                for event in (first, second, other, due):
                    event.clear()
                await here.notify(runs[0], stopped=[runs[2]])
                await here.notify(runs[1], deliver=True)
                for event in (first, second, due):
                    await within(event)
        assert not other.is_set()
    assert stopped == [runs[2]]


async def test_with_redis_away_hundreds_do_not_wait_one_after_another(empty: Runtime) -> None:
    dead = connect(f"redis://127.0.0.1:{free_port()}")
    signals = Signals(dead)
    async with asyncio.timeout(10):
        found = await asyncio.gather(*(signals.enqueue(job(f"job {n}")) for n in range(300)))
    assert found == [[False]] * 300
    assert signals.away
    signals.hint("nobody hears it")
    await signals.close()
    await dead.aclose(close_connection_pool=True)
