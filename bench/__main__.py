"""What the service costs and how fast it is, beside what this machine can do: `make bench`, or
`python -m bench [A|E|D|G|H|I …] [--rounds N] [--out FILE]`.

A real stack with default settings: embedded servers, web and worker processes, and the load from a process of its
own. bench/README.md says what each figure means. A is A, B and C; D is D and F.
"""

import argparse
import asyncio
import os
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import asyncpg
import orjson
from redis.asyncio import Redis

from bench import depth, figures, floors
from bench.report import Figure, Report
from bench.site import Site
from service.embedded import Servers, lease
from service.store.migrate import migrate

Part = Callable[[Site, int], Awaitable[list[Figure]]]


async def _depth(site: Site, rounds: int) -> list[Figure]:
    return [*await depth.d(site, rounds), *await depth.f(site, rounds)]


PARTS: Final[dict[str, Part]] = {
    "A": figures.a_b_c,
    "E": figures.e,
    "G": figures.g,
    "H": figures.h,
    "I": figures.i,
    "D": _depth,
}


def machine() -> dict[str, object]:
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


async def measure(servers: Servers, folder: Path, wanted: list[str], rounds: int) -> Report:
    report = Report(machine())
    await migrate(servers.database_url)
    sql = await asyncpg.connect(servers.database_url)
    site = Site(servers, folder, sql, Redis.from_url(servers.redis_url))
    try:
        for name, part in {"floors": floors.measure, **PARTS}.items():
            if name == "floors" or name in wanted:
                began = time.perf_counter()
                report.figures += await part(site, rounds)
                sys.stderr.write(f"{name} took {time.perf_counter() - began:.0f} s\n")
    finally:
        await site.redis.aclose()
        await sql.close()
    return report


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[], metavar="PART")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("bench/latest.json"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hitl-bench-") as folder, lease(Path(folder) / "data") as servers:
        report = asyncio.run(measure(servers, Path(folder), given.parts or list(PARTS), given.rounds))
    given.out.write_bytes(orjson.dumps(report.as_json(), option=orjson.OPT_INDENT_2))
    sys.stdout.write(f"{report.machine}\n\n{report.table()}\n")


if __name__ == "__main__":
    main()
