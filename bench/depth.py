"""Figures D and F: what it costs that 100,000 runs wait and a million are over.

The rows are copies of runs that the service made, by SQL: what is measured then is the service over them.
"""

import time
from collections.abc import Mapping
from statistics import median
from typing import Any, Final
from uuid import UUID

from bench.figures import ASKS_ONCE, NEVER_ASKS, decided, started
from bench.report import Figure, p99
from bench.site import Site, load, parts, until

SIZES: Final = (1_000, 10_000, 100_000)
OVER: Final = 1_000_000
LISTS: Final = (
    "/hitl/runs",
    "/hitl/runs?status=completed",
    "/hitl/runs?status=awaiting_human",
    "/hitl/runs?user_id=u7",
    "/hitl/runs?session_id=s7",
    "/hitl/runs?provider=echo&created_after=2020-01-01T00:00:00Z",
    "/hitl/runs/active",
    "/hitl/sessions/s7/active",
    "/hitl/approvals/pending",
    "/hitl/approvals/pending?user_id=u7",
    "/hitl/approvals/pending?checkpoint_type=payload_review&limit=200",
)
COLUMNS: Final = """
select c.relname as table_name, a.attname as name
from pg_class c join pg_attribute a on a.attrelid = c.oid
where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and a.attnum > 0 and not a.attisdropped
  and a.attgenerated = '' and a.attidentity = '' and exists (
    select from pg_attribute r where r.attrelid = c.oid and r.attname = 'run_id' or c.relname = 'runs')
order by c.relname <> 'runs', c.relname, a.attnum
"""
NAMES: Final = ("user_id", "session_id")
# Content is sealed for the row it lies in; a copy has it open, as a release of before sealing left it.
OPEN: Final = {
    "run_input": """'{"prompt": "a red fox, watercolour"}'::json""",
    "tool_config": "'{}'::json",
    "context": """'{"payload": {"prompt": "a red fox, watercolour", "num_outputs": 1}}'::json""",
    "message": "'May this payload be sent to the provider?'",
    "reason": "null",
    "edits": "null",
    "schema": "null",
    "callback_url": "null",
}
OUTPUTS: Final = ("payload", "description", "output", "raw_response", "raw", "issues", "problem")


async def copy(site: Site, model: UUID, count: int, *, spread_s: float) -> None:
    """So many copies of the run with all that belongs to it, over so many seconds of the past, of 1,000 users."""
    tables: dict[str, list[str]] = {}
    for row in await site.sql.fetch(COLUMNS):
        tables.setdefault(row["table_name"], []).append(row["name"])
    await site.sql.execute("drop table if exists bench_copy")
    await site.sql.execute(
        "create temporary table bench_copy as select g, uuidv7(-make_interval(secs => $1 * g / $2)) as id,"
        " make_interval(secs => $1 * g / $2) as age from generate_series(1, $2::int) g".replace(
            "$1", str(float(spread_s))
        ).replace("$2", str(count))
    )
    for table, columns in tables.items():
        key = "id" if table == "runs" else "run_id"
        values = ", ".join(_open(table, name) or _value(name, key) for name in columns)
        await site.sql.execute(
            f"insert into {table} ({', '.join(columns)}) select {values} from {table} t, bench_copy c"  # noqa: S608
            f" where t.{key} = '{model}'",
            timeout=600,
        )
    await site.sql.execute("vacuum analyze", timeout=600)


def _open(table: str, name: str) -> str | None:
    """What stands for content in a copy, if this column holds any."""
    if table in ("runs", "steps", "events", "delivery_lines"):
        return None
    if name == "result":
        return """case when t.result is not null then '{"response": "a red fox"}'::json end"""
    if name in OUTPUTS:
        plain = "null" if name == "problem" else """'{"prompt": "a red fox, watercolour"}'::json"""
        return f"case when t.{name} is not null then {plain} end"
    return OPEN.get(name)


def _value(name: str, key: str) -> str:
    """A column of the copy: its own id, user and session, moved in time; all else as it was."""
    if name == key:
        return "c.id"
    if name == "id":
        return "gen_random_uuid()"
    if name == "idempotency_key":
        return "gen_random_uuid()::text"
    if name in NAMES:
        return f"'{name[0]}' || c.g % 1000"
    if name in ("created_at", "updated_at", "finished_at"):
        return f"t.{name} - c.age"
    return f"t.{name}"


async def d(site: Site, rounds: int) -> list[Figure]:
    figures: list[Figure] = []
    with parts(site):
        await site.ready()
        await site.empty()
        within = await _redis_within_horizon(site)
        await site.empty()
        shallow = [(await started(site, 1000), await decided(site, 1000)) for _ in range(rounds)]
        await site.empty()
        empty = await _bytes(site)
        await started(site, SIZES[0])
        await site.sql.execute("vacuum analyze")
        really = (await _bytes(site) - empty) / SIZES[0]
        await site.empty()
        await load("start", urls=site.urls, clients=1, count=1, body=ASKS_ONCE)
        await until(lambda: site.runs("awaiting_human"))
        model = await site.sql.fetchval("select id from runs")
        rss, redis = site.workers[0].memory_info().rss, await _redis_bytes(site)
        per_run = []
        for size in SIZES:
            before = await _bytes(site)
            there = await site.runs("awaiting_human")
            await copy(site, model, size - there, spread_s=86400)
            per_run.append((await _bytes(site) - before) / (size - there))
        grown = (site.workers[0].memory_info().rss - rss) / 1e6
        beyond = (await _redis_bytes(site) - redis) / SIZES[-1]
        deep = [(await started(site, 1000), await decided(site, 1000)) for _ in range(rounds)]
    restarts = [await _restart_s(site) for _ in range(max(1, rounds // 2))]
    for n, what in enumerate(("A", "C")):
        rate_before = median([one[n][0] for one in shallow])
        lost = [(1 - one[n][0] / rate_before) * 100 for one in deep]
        cpu_before = median([one[n][1]["all"] for one in shallow])
        cpu = [(one[n][1]["all"] / cpu_before - 1) * 100 for one in deep]
        figures.append(Figure(f"D_{what}", f"what {what} loses while 100,000 wait", "%", lost, "< 10"))
        figures.append(Figure(f"D_{what}_cpu", "what its CPU grows by", "%", cpu))
    return [
        *(
            Figure(f"D_{size}", f"Postgres for each of {size:,} copies of a waiting run", "B", [found], "≤ 2,500")
            for size, found in zip(SIZES, per_run, strict=True)
        ),
        Figure(
            "D_started", "Postgres for each of 1,000 waiting runs as the service left them", "B", [really], "≤ 2,500"
        ),
        Figure("D_redis", "Redis for each waiting run, deadline beyond the horizon", "B", [beyond], "0"),
        Figure("D_redis_near", "Redis for each waiting run, deadline within it", "B", [within], "≤ 600"),
        Figure("D_rss", "what the worker grew by with 100,000 waiting", "MB", [grown], "flat"),
        *figures,
        Figure("D_restart", "100,000 wait: a worker starts until its first run is over", "s", restarts, "≤ 5"),
    ]


async def _redis_bytes(site: Site) -> int:
    return int((await site.redis.info("memory"))["used_memory"])


async def _bytes(site: Site) -> int:
    return int(
        await site.sql.fetchval(
            "select sum(pg_total_relation_size(oid)) from pg_class"
            " where relkind = 'r' and relnamespace = 'public'::regnamespace"
        )
    )


async def _redis_within_horizon(site: Site, count: int = 2000) -> float:
    """Of runs that wait with their deadline as a deferred job."""
    await load("start", urls=site.urls, clients=10, count=20, body=ASKS_ONCE)
    await until(lambda: _waiting(site, 20))
    before = await _redis_bytes(site)
    near = {**ASKS_ONCE, "hitl_config": {**ASKS_ONCE["hitl_config"], "timeout_seconds": 1800}}
    await load("start", urls=site.urls, clients=50, count=count, body=near)
    await until(lambda: _waiting(site, count + 20))
    await until(lambda: _armed(site, count))
    return (await _redis_bytes(site) - before) / count


async def _waiting(site: Site, count: int) -> bool:
    return await site.runs("awaiting_human") >= count


async def _armed(site: Site, count: int) -> bool:
    return int(await site.sql.fetchval("select count(*) from approvals where armed")) >= count


async def _restart_s(site: Site) -> float:
    """A run is there when the worker comes up: until it is over."""
    with parts(site, workers=0):
        await site.ready()
        done = await site.runs("completed")
        await load("start", urls=site.urls, clients=1, count=1, body=NEVER_ASKS)
        began = time.perf_counter()
        with site.worker():
            await until(lambda: _completed(site, done + 1))
            return time.perf_counter() - began


async def _completed(site: Site, count: int) -> bool:
    return await site.runs("completed") >= count


async def f(site: Site, rounds: int) -> list[Figure]:
    """Over what `d` left: 100,000 that wait, and a million copies of a finished run."""
    with parts(site):
        await site.ready()
        model = await site.sql.fetchval("select id from runs where status = 'completed' limit 1")
        await copy(site, model, OVER, spread_s=90 * 86400)
    with parts(site, workers=0):
        await site.ready()
        medians, worst, by_list = [], [], {}
        for _ in range(max(1, rounds // 2)):
            for path in LISTS:
                took = (await load("get", urls=[site.urls[0] + path], clients=1, count=100))["took_s"]
                by_list.setdefault(path, []).append(median(took) * 1000)
                worst.append(p99(took) * 1000)
            medians.append(max(found[-1] for found in by_list.values()))
    slowest = _slowest(by_list)
    return [
        Figure("F", f"the slowest of {len(LISTS)} lists, its median", "ms", medians, "< 20", note=slowest),
        Figure("F_p99", "the 99th percentile of all of them", "ms", worst, "< 100"),
    ]


def _slowest(by_list: Mapping[str, list[float]]) -> str:
    found: Any = max(by_list, key=lambda path: median(by_list[path]))
    return str(found)
