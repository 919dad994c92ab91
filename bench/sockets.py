"""What idle WebSockets cost one web process: `python -m bench.sockets --sockets 1000`.

Starts an embedded stack, opens the sockets, each following a session of its own, and prints the resident memory
that they added.
"""

import argparse
import asyncio
import sys
import tempfile
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import psutil

from service.embedded import lease
from service.store.migrate import migrate
from tests.conftest import base_env, free_port
from tests.following import socket
from tests.live_drill import Site

AT_ONCE = 50


async def measure(site: Site, sockets: int) -> dict[str, Any]:
    await site.serve()
    assert site.child is not None
    process = psutil.Process(site.child.pid)
    gate = asyncio.Semaphore(AT_ONCE)
    async with AsyncExitStack() as opened:

        async def one(name: str) -> None:
            async with gate:
                live = await opened.enter_async_context(socket(site.url))
                await live.ask("subscribe", {"session_id": name})

        await asyncio.gather(*(one(f"warm-{n}") for n in range(20)))  # what the first ones load is not their cost
        before = process.memory_info().rss
        await asyncio.gather(*(one(f"idle-{n}") for n in range(sockets)))
        added = process.memory_info().rss - before
        busy = process.cpu_percent(None)
        await asyncio.sleep(5)
        busy = process.cpu_percent(None)
    return {
        "sockets": sockets,
        "added_mb": round(added / 1e6, 1),
        "kb_each": round(added / 1e3 / sockets, 1),
        "idle_cpu_percent": busy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sockets", type=int, default=1000)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="hitl-sockets-"))
    with lease(folder / "data") as servers, ExitStack() as stack:
        asyncio.run(migrate(servers.database_url))
        site = Site(base_env(servers), folder, free_port(), stack)
        sys.stdout.write(f"{asyncio.run(measure(site, given.sockets))}\n")


if __name__ == "__main__":
    main()
