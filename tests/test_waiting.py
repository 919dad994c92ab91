"""Waiting costs a row: three hundred runs that wait for a human hold no job, no slot, no lease."""

import asyncio
import time

import httpx2

from service import queue, signals
from tests.conftest import Stack, echo, eventually, run_body, start

RUNS = 300


async def test_waiting_runs_hold_no_job_no_slot_and_no_lease(stack: Stack, client: httpx2.AsyncClient) -> None:
    gate = asyncio.Semaphore(50)
    body = run_body(echo(), policy="require_human")
    body["session_id"] = "all-wait"

    async def one() -> str:
        async with gate:
            return await start(client, body)

    ids = set(await asyncio.gather(*(one() for _ in range(RUNS))))
    assert len(ids) == RUNS

    async def all_wait() -> bool:
        waiting = 0
        cursor = None
        while True:
            page = {"session_id": "all-wait", "status": "awaiting_human", "limit": 100}
            seen = (await client.get("/hitl/runs", params=page | ({"cursor": cursor} if cursor else {}))).json()
            waiting += len(seen["runs"])
            cursor = seen.get("next_cursor")
            if not cursor:
                return waiting == RUNS

    await eventually(all_wait, "the wait of all")

    async def idle() -> bool:
        figures = (await client.get("/hitl/queue")).json()
        jobs = [worker["jobs"] for worker in figures["workers"]]
        return figures["in_progress"] == 0 and jobs != [] and set(jobs) == {0}

    await eventually(idle, "an idle worker")
    redis = queue.connect(stack.env["REDIS_URL"])

    async def nothing_to_run() -> bool:
        return await redis.zcount(signals.QUEUE_NAME, "-inf", time.time() * 1000) == 0

    await eventually(nothing_to_run, "an empty queue")
    names = [name.decode() for name in await redis.zrange(signals.QUEUE_NAME, 0, -1)]
    assert not [name for name in names if name.split(":")[1] in ids]
    assert not [key async for key in redis.scan_iter("arq:in-progress:*")]
    await redis.aclose(close_connection_pool=True)
