"""The clients: `python -m bench.load KIND`, one JSON job on standard input, one JSON answer on standard output.

A process of its own, so that what it costs is not counted as the service's. Over aiohttp, with one connection a
client and bodies that are made once.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

import aiohttp
import orjson

JSON = {"content-type": "application/json"}
Client = aiohttp.ClientSession


async def each(clients: int, items: Sequence[Any], do: Callable[[Client, Any], Awaitable[Any]]) -> dict[str, Any]:
    """Do it for every item, so many at a time; how long each took and all of it, in seconds, and what came back."""
    took: list[float] = []
    found: list[Any] = []
    rest = iter(items)

    async def client() -> None:
        connector = aiohttp.TCPConnector(limit=1)
        async with Client(connector=connector, trust_env=False) as session:
            for item in rest:
                started = time.perf_counter()
                found.append(await do(session, item))
                took.append(time.perf_counter() - started)

    began_at, began = time.time(), time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return {"began_at": began_at, "elapsed_s": time.perf_counter() - began, "took_s": took, "found": found}


async def get(urls: list[str], clients: int, count: int) -> dict[str, Any]:
    async def one(session: Client, n: int) -> None:
        async with session.get(urls[n % len(urls)]) as answer:
            await answer.read()
            assert answer.status == 200, answer.status

    return await each(clients, range(count), one)


async def start(urls: list[str], clients: int, count: int, body: Any, sessions: int = 0) -> dict[str, Any]:
    bodies = [orjson.dumps({**body, "session_id": f"s{n}"}) for n in range(sessions)] or [orjson.dumps(body)]

    async def one(session: Client, n: int) -> str:
        path = f"{urls[n % len(urls)]}/hitl/run"
        async with session.post(path, data=bodies[n % len(bodies)], headers=JSON) as answer:
            assert answer.status == 202, await answer.text()
            return str(orjson.loads(await answer.read())["run_id"])

    return await each(clients, range(count), one)


async def decide(urls: list[str], clients: int, approvals: list[str]) -> dict[str, Any]:
    async def one(session: Client, item: tuple[int, str]) -> None:
        n, approval_id = item
        path = f"{urls[n % len(urls)]}/hitl/approvals/{approval_id}/decision"
        async with session.post(path, data=b'{"action":"approve"}', headers=JSON) as answer:
            assert answer.status == 200, await answer.text()

    return await each(clients, list(enumerate(approvals)), one)


async def finish(urls: list[str], pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """One at a time: the decision is sent, and the run is seen completed."""

    async def one(session: Client, pair: tuple[str, str]) -> None:
        run_id, approval_id = pair
        path = f"{urls[0]}/hitl/approvals/{approval_id}/decision"
        async with session.post(path, data=b'{"action":"approve"}', headers=JSON) as answer:
            assert answer.status == 200, await answer.text()
        async with session.get(f"{urls[0]}/hitl/runs/{run_id}?wait=30") as answer:
            run = orjson.loads(await answer.read())
            assert run["status"] == "completed", run["status"]

    return await each(1, pairs, one)


async def follow(
    urls: list[str], followers: int, per_second: float, seconds: float, body: Any, events_a_run: int
) -> dict[str, Any]:
    """So many readers of a session each, while runs are started at this pace; what each heard, and how late."""
    lags: list[float] = []
    heard: list[tuple[str, str, int]] = []
    expected = round(per_second * seconds)
    listening = asyncio.Barrier(followers + 1)
    over = asyncio.Event()

    async def reader(session: Client, n: int) -> None:
        url = f"{urls[n % len(urls)]}/hitl/events?session_id=s{n}"
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=None)) as answer:
            await answer.content.readline()  # the stream has begun
            await listening.wait()
            async for line in answer.content:
                if line.startswith(b"data:"):
                    event = orjson.loads(line[5:])
                    lags.append(time.time() - _seconds(event["at"]))
                    heard.append((f"s{n}", event["run_id"], event["seq"]))
                    if len(heard) >= expected * events_a_run:
                        over.set()

    async def starts(session: Client) -> float:
        began = time.perf_counter()
        bodies = [orjson.dumps({**body, "session_id": f"s{n}"}) for n in range(followers)]

        async def one(n: int) -> None:
            async with session.post(
                f"{urls[n % len(urls)]}/hitl/run", data=bodies[n % followers], headers=JSON
            ) as answer:
                assert answer.status == 202, await answer.text()

        async with asyncio.TaskGroup() as group:
            for n in range(expected):
                await asyncio.sleep(max(0.0, began + n / per_second - time.perf_counter()))
                group.create_task(one(n))
        return time.perf_counter() - began

    limits = aiohttp.TCPConnector(limit=0)
    async with Client(connector=limits, trust_env=False) as session:
        readers = [asyncio.ensure_future(reader(session, n)) for n in range(followers)]
        await listening.wait()
        started_s = await starts(session)
        began = time.perf_counter()
        try:
            async with asyncio.timeout(30):
                await over.wait()
        except TimeoutError:
            pass
        elapsed_s = started_s + time.perf_counter() - began
        for each_ in readers:
            each_.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    twice = len(heard) - len(set(heard))
    return {"lags_s": lags, "heard": len(heard), "twice": twice, "runs": expected, "elapsed_s": elapsed_s}


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at).timestamp()


KINDS = {"get": get, "start": start, "decide": decide, "finish": finish, "follow": follow}


def main() -> None:
    job = orjson.loads(sys.stdin.buffer.read())
    answer = asyncio.run(KINDS[sys.argv[1]](**job))  # type: ignore[operator]
    sys.stdout.buffer.write(orjson.dumps(answer))


if __name__ == "__main__":
    main()
