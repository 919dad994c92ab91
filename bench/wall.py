"""What the second wall costs: starts and decisions of this checkout against another one's, in turns on one machine.

    git worktree add /tmp/before <commit> && python bench/wall.py /tmp/before

Each side is a process of its own with a database of its own on the same Postgres; rounds alternate, so that what
else the machine does hits both. Prints the medians in milliseconds, and the ratio of this to the other.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent.parent
ROUNDS, EACH = 40, 25


async def side(database_url: str, redis_url: str) -> None:
    """One side: a round for each line on standard input."""
    from service.commands.approvals import decide, only_open
    from service.commands.runs import StartRun, start_run
    from service.domain.approval import Order
    from service.domain.policy import HitlConfig
    from service.domain.principal import Principal
    from service.orchestrator import HITLOrchestrator
    from service.runtime import open_runtime
    from service.settings import Settings
    from service.store.migrate import migrate

    await migrate(database_url)
    settings = Settings(database_url=database_url, redis_url=redis_url, hitl_secret_key="k" * 40, _env_file=None)
    tool = {"echo-agent-tool": {"data": {"example_input": {"prompt": "x"}}}}
    who = Principal("dev", "default", "admin")
    async with open_runtime(settings, process="bench") as runtime:
        worker = HITLOrchestrator(runtime.services, worker_id="w", lease_s=30)

        async def timed(work: Any) -> tuple[float, Any]:
            began = time.perf_counter()
            found = await work
            return (time.perf_counter() - began) * 1000, found

        while sys.stdin.readline().strip():
            starts, decisions = [], []
            for _ in range(EACH):
                order = StartRun({"prompt": "a red fox", "agent_tool_config": tool}, HitlConfig(policy="require_human"))
                ms, started = await timed(start_run(runtime.services, order, who))
                starts.append(ms)
                await worker.advance(started.run_id)
                approval_id = await only_open(runtime.services, started.run_id, who)
                ms, _ = await timed(decide(runtime.services, approval_id, Order("approve"), who))
                decisions.append(ms)
            sys.stdout.write(json.dumps({"start": starts, "decide": decisions}) + "\n")
            sys.stdout.flush()
        await worker.close()


def main(other: Path) -> None:
    from service.embedded import lease

    with tempfile.TemporaryDirectory() as folder, lease(Path(folder)) as servers:
        sides: dict[str, subprocess.Popen[str]] = {}
        for n, (name, where) in enumerate((("before", other), ("after", HERE)), 1):
            _psql(servers.database_url, f"create database bench_{name}")
            url = servers.database_url.replace("/postgres?", f"/bench_{name}?")
            command = [sys.executable, str(HERE / "bench" / "wall.py"), "--side", url, f"{servers.redis_url}?db={n}"]
            env = {**os.environ, "PYTHONPATH": str(where), "LOG_LEVEL": "ERROR"}
            sides[name] = subprocess.Popen(  # noqa: S603  # noqa: S603  this very file
                command, cwd=where, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
        found: dict[str, dict[str, list[float]]] = {name: {"start": [], "decide": []} for name in sides}
        for turn in range(ROUNDS + 2):
            for name in sorted(sides, reverse=bool(turn % 2)):
                told = _round(sides[name])
                for command_name, took in told.items():
                    if turn > 1:  # warm
                        found[name][command_name] += took
        for child in sides.values():
            assert child.stdin
            child.stdin.close()
            child.wait(10)
    for what in ("start", "decide"):
        before, after = median(found["before"][what]), median(found["after"][what])
        sys.stdout.write(f"{what}: before {before:.3f} ms, after {after:.3f} ms, ratio {after / before:.3f}\n")


def _round(child: "subprocess.Popen[str]") -> dict[str, list[float]]:
    assert child.stdin and child.stdout
    child.stdin.write("go\n")
    child.stdin.flush()
    while True:
        line = child.stdout.readline()
        assert line, "a side ended"
        if line.startswith('{"start"'):
            told: dict[str, list[float]] = json.loads(line)
            return told


def _psql(url: str, statement: str) -> None:
    import asyncpg

    async def run() -> None:
        conn = await asyncpg.connect(url)
        await conn.execute(statement)
        await conn.close()

    asyncio.run(run())


if __name__ == "__main__":
    if sys.argv[1] == "--side":
        # the side's own checkout, wherever the package is installed from
        sys.path.insert(0, os.environ["PYTHONPATH"])
        asyncio.run(side(*sys.argv[2:4]))
    else:
        main(Path(sys.argv[1]).resolve())
