"""What an idle worker costs where Redis bills by the command: `python -m bench.idle_redis [POLL_DELAY...]`.

Embedded servers, one worker; commands that Valkey counted in a minute, by kind.
"""

import asyncio
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from bench.waiting import WORKER, environment, process
from service.embedded import Servers, lease
from service.store.migrate import migrate

DELAYS = ("0.5", "5")
WARM_S, MINUTE_S = 10, 60


async def counted(redis: Redis) -> dict[str, int]:
    told: dict[str, Any] = await redis.info("commandstats")
    return {name.removeprefix("cmdstat_"): each["calls"] for name, each in told.items()}


async def measure(servers: Servers, folder: Path, delay: str) -> None:
    env = {**environment(servers, 0), "HITL_POLL_DELAY": delay}
    with ExitStack() as stack:
        stack.enter_context(process(folder, env, f"worker-{delay}", *WORKER))
        redis = Redis.from_url(servers.redis_url)
        await asyncio.sleep(WARM_S)
        before = await counted(redis)
        await asyncio.sleep(MINUTE_S)
        after = await counted(redis)
        await redis.aclose()
    spent = {name: count - before.get(name, 0) for name, count in after.items() if count > before.get(name, 0)}
    spent.pop("info", None)
    kinds = ", ".join(f"{name} {count}" for name, count in sorted(spent.items(), key=lambda kind: -kind[1]))
    sys.stdout.write(f"HITL_POLL_DELAY={delay:<4} {sum(spent.values())} commands a minute ({kinds})\n")
    sys.stdout.flush()


async def main(delays: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="hitl-bench-") as folder, lease(Path(folder) / "data") as servers:
        await migrate(servers.database_url)
        for delay in delays:
            await measure(servers, Path(folder), delay)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:] or list(DELAYS)))
