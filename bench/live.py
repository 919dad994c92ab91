"""From a decision that was accepted to its frame at a WebSocket client: `python -m bench.live --decisions 300`.

Starts an embedded stack with one web process and one worker. Each run asks once; the time runs from the answer of
the decision's POST to the `approval.decided` frame, and to the frame of the run's end. A frame that is there before
the answer counts as 0.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx2

from service.embedded import lease
from service.store.migrate import migrate
from tests.conftest import WORKER, base_env, echo, free_port, process, run_body, start
from tests.following import Socket, socket
from tests.live_drill import Site

PAUSE_S = 0.02


async def one(client: httpx2.AsyncClient, live: Socket) -> tuple[float, float]:
    """Milliseconds to the frame of the decision, and to the run's end."""
    run_id = await start(client, run_body(echo(), policy="require_human", allowed_steps=["payload_review"]))
    await live.ask("subscribe", {"run_id": run_id, "after": {}}, "subscribed")
    asked = await live.hear("hitl_approval_request")
    arrived: dict[str, float] = {}

    async def listen() -> None:
        while "run.completed" not in arrived:
            frame = await live.hear()
            arrived.setdefault(frame.get("event", ""), time.perf_counter())

    heard = asyncio.ensure_future(listen())
    path = f"/hitl/approvals/{asked['data']['approval_id']}/decision"
    answer = await client.post(path, json={"action": "approve"})
    accepted = time.perf_counter()
    assert answer.status_code == 200
    await heard
    decided, over = (max(0.0, arrived[name] - accepted) * 1000 for name in ("approval.decided", "run.completed"))
    return decided, over


async def measure(site: Site, decisions: int) -> dict[str, Any]:
    async with httpx2.AsyncClient(base_url=site.url, timeout=30, trust_env=False) as client, socket(site.url) as live:
        took: list[tuple[float, float]] = []
        for n in range(decisions + 10):
            found = await one(client, live)
            if n >= 10:  # the first ones warm up
                took.append(found)
            await asyncio.sleep(PAUSE_S)
    return {"decided_ms": _figures([t[0] for t in took]), "completed_ms": _figures([t[1] for t in took])}


def _figures(ms: list[float]) -> dict[str, float]:
    return {"median": round(median(ms), 1), "p99": round(quantiles(ms, n=100)[98], 1), "max": round(max(ms), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, default=300)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="hitl-live-"))
    with lease(folder / "data") as servers, ExitStack() as stack:
        asyncio.run(migrate(servers.database_url))
        env = base_env(servers)
        stack.enter_context(process(*WORKER, env=env, log=folder / "worker.log"))
        site = Site(env, folder, free_port(), stack)

        async def run() -> dict[str, Any]:
            await site.serve()
            return {"decisions": given.decisions, **await measure(site, given.decisions)}

        sys.stdout.write(f"{asyncio.run(run())}\n")


if __name__ == "__main__":
    main()
