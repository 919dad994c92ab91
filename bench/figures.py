"""Figures A, B, C, E, G, H and I: what a run costs, how fast it is, and what idling costs."""

import asyncio
import time
from statistics import median
from typing import Any

from bench.report import Figure, p99
from bench.site import Site, Spent, load, parts, until

CLIENTS = 50
RUNS = 2000
SAMPLES = 300
TOOL = {"echo-agent-tool": {"data": {"example_input": {"prompt": "sample", "num_outputs": 1}}}}
ASKS_ONCE = {
    "run_input": {"prompt": "a red fox, watercolour", "agent_tool_config": TOOL},
    "hitl_config": {"policy": "require_human", "allowed_steps": ["payload_review"]},
}
SLOW_TOOL = {"echo-agent-tool": {"data": {"example_input": {"prompt": "sample"}, "latency_seconds": 5}}}
SLOW = {"run_input": {"prompt": "a red fox", "agent_tool_config": SLOW_TOOL}, "hitl_config": {"policy": "auto"}}
NEVER_ASKS = {"run_input": {"prompt": "a red fox", "agent_tool_config": TOOL}, "hitl_config": {"policy": "auto"}}

PENDING = "select id::text from approvals where status = 'pending' order by created_at desc limit $1"
PAIRS = """
select run_id::text, id::text from approvals where status = 'pending' order by created_at desc limit $1
"""
CPU_PARTS = ("web", "worker", "postgres", "redis")


async def started(site: Site, count: int) -> tuple[float, dict[str, float]]:
    """From the first POST until all of them wait for approval: runs a second, CPU milliseconds a run."""
    before = await site.runs("awaiting_human")
    spent = Spent(site)
    found = await load("start", urls=site.urls, clients=CLIENTS, count=count, body=ASKS_ONCE)
    await until(lambda: _at_least(site, "awaiting_human", before + count))
    return count / (time.time() - found["began_at"]), spent.cpu_ms(count)


async def decided(site: Site, count: int) -> tuple[float, dict[str, float]]:
    """From the first decision until all runs are completed: runs a second, CPU milliseconds a run."""
    before = await site.runs("completed")
    approvals = [row["id"] for row in await site.sql.fetch(PENDING, count)]
    spent = Spent(site)
    found = await load("decide", urls=site.urls, clients=CLIENTS, approvals=approvals)
    await until(lambda: _at_least(site, "completed", before + count))
    return count / (time.time() - found["began_at"]), spent.cpu_ms(count)


async def _at_least(site: Site, status: str, count: int) -> bool:
    return await site.runs(status) >= count


def both(name: str, what: str, found: list[tuple[float, dict[str, float]]], goal: str, floor: str) -> list[Figure]:
    """The rate, and the CPU a run by parts."""
    cpus = [cpu for _, cpu in found]
    by_parts = ", ".join(f"{part} {median([cpu[part] for cpu in cpus]):.2f}" for part in CPU_PARTS)
    rate_goal, cpu_goal = goal.split(";")
    return [
        Figure(name, what, "1/s", [rate for rate, _ in found], rate_goal, floor),
        Figure(f"{name}_cpu", f"CPU of each: {by_parts}", "ms", [cpu["all"] for cpu in cpus], cpu_goal),
    ]


async def a_b_c(site: Site, rounds: int, count: int = RUNS) -> list[Figure]:
    starts, decisions, finishes = [], [], []
    with parts(site):
        await site.ready()
        await started(site, 200)
        await decided(site, 200)  # what a first run makes each process load
        for _ in range(rounds):
            await site.empty()
            starts.append(await started(site, count))
            decisions.append(await decided(site, count))
        for _ in range(max(1, rounds // 2)):
            await started(site, SAMPLES)
            pairs = [list(row.values()) for row in await site.sql.fetch(PAIRS, SAMPLES)]
            finishes.append((await load("finish", urls=site.urls, pairs=pairs))["took_s"])
    ms = [[second * 1000 for second in one] for one in finishes]
    return [
        *both("A", f"starts, POST to waiting, {CLIENTS} clients, {count} runs", starts, "≥ 600;≤ 3", "commit_50"),
        Figure("B", "decision sent to run completed, singly", "ms", [median(one) for one in ms], "≤ 8", "commit_1"),
        Figure("B_p99", "its 99th percentile", "ms", [p99(one) for one in ms], "≤ 20", "commit_1"),
        *both("C", f"decisions to completed, {CLIENTS} clients, {count} runs", decisions, "≥ 600;≤ 3", "commit_50"),
    ]  # fmt: skip


async def e(site: Site, rounds: int, count: int = 1000) -> list[Figure]:
    took, memory = [], []
    with parts(site, HITL_MAX_JOBS="1000"):
        await site.ready()
        await load("start", urls=site.urls, clients=CLIENTS, count=20, body=NEVER_ASKS)
        for _ in range(max(1, rounds // 2)):
            await site.empty()
            found = await load("start", urls=site.urls, clients=CLIENTS, count=count, body=SLOW)
            peak = 0

            async def over() -> bool:
                nonlocal peak
                peak = max(peak, site.workers[0].memory_info().rss)
                return await site.runs("completed") >= count

            await until(over, every_s=0.1)
            took.append(time.time() - found["began_at"])
            memory.append(peak / 1e6)
    return [
        Figure("E", f"{count} runs whose provider takes 5 s, one worker", "s", took, "< 8"),
        Figure("E_rss", "resident memory of that worker at its peak", "MB", memory, "< 250"),
    ]


async def g(site: Site, rounds: int, count: int = 1000) -> list[Figure]:
    figures = []
    for webs, workers in ((1, 1), (1, 2), (1, 4), (2, 1), (2, 2)):
        starts, decisions = [], []
        with parts(site, webs=webs, workers=workers):
            await site.ready()
            await started(site, 200)
            await decided(site, 200)
            for _ in range(max(1, rounds // 2)):
                await site.empty()
                starts.append(await started(site, count))
                decisions.append(await decided(site, count))
        shape = f"{webs} web, {workers} worker"
        figures += both(f"G_A_{webs}_{workers}", f"A with {shape}", starts, ";flat", "A")
        figures += both(f"G_C_{webs}_{workers}", f"C with {shape}", decisions, ";flat", "C")
    return figures


async def h(site: Site, rounds: int) -> list[Figure]:
    """Runs that ask nobody tell so many events each; the pace is chosen so that all of them are 1,000 a second."""
    lags, lost, rates = [], [], []
    with parts(site):
        await site.ready()
        await site.empty()
        await load("start", urls=site.urls, clients=10, count=50, body=NEVER_ASKS)
        await until(lambda: _at_least(site, "completed", 50))
        each = int(await site.sql.fetchval("select max(event_seq) from runs"))
        for _ in range(max(1, rounds // 2)):
            await site.empty()
            found = await load(
                "follow", urls=site.urls, followers=200, per_second=1000 / each, seconds=10, body=NEVER_ASKS,
                events_a_run=each,
            )  # fmt: skip
            told = int(await site.sql.fetchval("select sum(event_seq) from runs"))
            lags.append(median(found["lags_s"]) * 1000)
            lost.append(float(told - found["heard"] + found["twice"]))
            rates.append(found["heard"] / found["elapsed_s"])
    return [
        Figure("H", "200 followers: lag of an event at its reader", "ms", lags, "< 50"),
        Figure("H_rate", "events heard by all of them", "1/s", rates, "1,000"),
        Figure("H_lost", "events that were not heard, or twice", "", lost, "0"),
    ]


async def i(site: Site, rounds: int, seconds: float = 10.0) -> list[Figure]:
    shares: list[float] = []
    by_part: list[dict[str, float]] = []
    with parts(site, webs=0):
        await site.ready()
        await site.empty()
        await asyncio.sleep(3)  # what starting up and emptying leave behind
        for _ in range(max(1, rounds // 2)):
            spent = Spent(site)
            await asyncio.sleep(seconds)
            used: dict[str, Any] = spent.cpu_ms(1)
            by_part.append({part: used[part] / spent.seconds() / 10 for part in CPU_PARTS})
            shares.append(sum(by_part[-1].values()))
    text = ", ".join(f"{part} {median([one[part] for one in by_part]):.2f}" for part in CPU_PARTS if part != "web")
    return [Figure("I", f"idle: one worker and the servers ({text})", "% of a core", shares, "< 2")]
