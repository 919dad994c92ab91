"""The console's inbox with 100,000 open approvals: how long the server takes, and how soon a browser can be used.

`.venv/bin/python -m bench.inbox [--open N] [--looks N]` on a throw-away stack: one web process, auth off. Of the
approvals 70 in 100 may be decided by anybody, 30 name the person who looks among others; 20 more ask others only, whom
the walk passes by. The soonest are real questions, with content under their keys; a Chromium looks at them.
"""

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import asyncpg
import click
import httpx2
from playwright.async_api import Browser, async_playwright

from bench.floors import bare_web
from bench.report import Figure, Report
from bench.site import answers, until
from service.embedded import lease
from service.store.migrate import migrate
from tests.conftest import base_env, web

RUNS: Final = """
insert into runs (id, tenant, status, step, status_since, woken_at, provider, tool, submitter, user_id, session_id,
    created_at, updated_at)
select gen_random_uuid(), 'default', 'awaiting_human', 'payload_review', now(), now(),
    (array['echo', 'http', 'openai'])[n % 3 + 1], 'tool', 'sue', 'u' || n % 100, 's' || n % 5000,
    now() - n * interval '10 ms', now()
from generate_series(1, $1::integer) n
"""
APPROVALS: Final = """
insert into approvals (id, tenant, run_id, checkpoint_type, status, reasons, message, context, user_id, session_id,
    submitter, reviewers, on_timeout, timeout_s, created_at, expires_at)
select gen_random_uuid(), 'default', id, (array['payload_review', 'response_review', 'information_review'])[n % 3 + 1],
    'pending', array['policy.require_human', 'changes.above'], 'May payload ' || n || ' be sent?',
    json_build_object('payload', json_build_object('prompt', repeat('a red fox, watercolour ', 20), 'n', n)),
    user_id, session_id, 'sue', jsonb_build_object('quorum', 1, 'allow_self_approval', null,
        'users', case when n % 12 in (0, 3, 6) then '["ann", "bob", "dev"]'::jsonb else '[]' end,
        'groups', case when n % 12 in (1, 7) then '["legal"]'::jsonb else '[]' end),
    'reject', 86400, created_at, now() + interval '1 day' + n * interval '1 second'
from (select *, row_number() over (order by created_at desc) as n from runs) r
"""
ASKED: Final[Mapping[str, str]] = {
    "all": "/",
    "500 on a page": "/?n=500",
    "checkpoint": "/?checkpoint=payload_review",
    "session, 20 fit": "/?session=s77",
    "user, 1 in 100 fits": "/?user=u7",
    "session, none fits": "/?session=nobody",
    "provider, 1 in 3 fits": "/?provider=echo",
    "provider, none fits": "/?provider=replicate",
    "reason, none fits": "/?reason=safety.",
    "group, none fits": "/?group=legal",
    "age, none fits": "/?age=7d",
    "search, 20 fit": "/?q=s4999",
    "search, none fits": "/?q=nobody+here",
    "search of an id, none fits": "/?q=ffff-ffff",
}
FEW: Final = ("all", "session, none fits", "search, none fits", "provider, none fits")
FIRST: Final = 60
MARK: Final = """new Promise((told) => {
  const look = () => {
    const [mark] = performance.getEntriesByName("usable");
    if (mark) told(mark.startTime); else setTimeout(look, 1);
  };
  look();
})"""
SERVER_GOAL: Final = "< 200"
BROWSER_GOAL: Final = "< 1000"


async def fill(url: str, count: int) -> None:
    """A fifth more than `count`: what asks others only."""
    conn = await asyncpg.connect(url)
    await conn.execute("set synchronous_commit = off")
    await conn.execute(RUNS, count * 6 // 5)
    await conn.execute(APPROVALS)
    await conn.execute("vacuum analyze approvals")
    await conn.execute("vacuum analyze runs")
    await conn.close()


async def ask_first(url: str) -> None:
    """Real questions with the soonest deadlines: they are what the first page shows."""
    async with httpx2.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        for n in range(FIRST):
            payload = {"prompt": "a red fox, watercolour " * 20, "n": n}
            question = {"checkpoint_type": "deploy", "message": f"Deploy {n}?", "context": {"payload": payload}}
            answer = await client.post("/hitl/approvals", json={**question, "timeout_seconds": 40_000 + n})
            assert answer.status_code == 201, answer.text


async def repeated(looks: int, look: Callable[[], Awaitable[float]]) -> list[float]:
    return [await look() for _ in range(looks)]


async def at_server(url: str, looks: int) -> list[Figure]:
    """Milliseconds from the request to the whole page."""
    async with httpx2.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:

        async def look(path: str) -> float:
            started = time.perf_counter()
            answer = await client.get(path)
            assert answer.status_code == 200
            return (time.perf_counter() - started) * 1000

        await look("/")
        return [
            Figure(name, path, "ms", await repeated(looks, lambda path=path: look(path)), SERVER_GOAL, "walk")  # type: ignore[misc]
            for name, path in ASKED.items()
        ]


async def in_browser(url: str, floor_url: str, looks: int) -> list[Figure]:
    """Milliseconds from the navigation, in a browser that has nothing of us yet: until the first row can be reached
    and keys are heard (`usable`, a mark of inbox.js), and by a key that was pressed: until `j` is on that row."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        found = [
            Figure("bare_page", "Chromium, a bare page", "ms", await repeated(looks, lambda: bare(browser, floor_url)))
        ]
        for name in FEW:
            marks = [await usable(browser, url + ASKED[name]) for _ in range(looks)]
            for n, what in enumerate(("first paint", "usable", "a key was heard")):
                told = [mark[n] for mark in marks]
                found.append(Figure(f"{name}: {what}", ASKED[name], "ms", told, BROWSER_GOAL, "bare_page"))
        await browser.close()
    return found


async def bare(browser: Browser, url: str) -> float:
    page = await browser.new_page()
    await page.goto(url)
    took: float = await page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    await page.close()
    return took


async def usable(browser: Browser, url: str) -> tuple[float, float, float]:
    context = await browser.new_context()
    page = await context.new_page()
    await page.goto(url, wait_until="commit")
    mark: float = await page.evaluate(MARK)
    heard = mark
    if await page.locator("[data-row]").count():
        await page.keyboard.press("j")
        heard = await page.evaluate("document.activeElement.matches('[data-row]') ? performance.now() : NaN")
    paint: float = await page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN")
    await context.close()
    return paint if paint == paint else mark, mark, heard


async def floors(url: str, floor_url: str, looks: int) -> list[Figure]:
    """A bare request, and a walk over every open approval that asks nothing of it."""
    conn = await asyncpg.connect(url)
    async with httpx2.AsyncClient(timeout=60, trust_env=False) as client:

        async def request() -> float:
            started = time.perf_counter()
            await client.get(floor_url)
            return (time.perf_counter() - started) * 1000

        async def walk() -> float:
            started = time.perf_counter()
            await conn.fetchval("select max(length(submitter)) from approvals where status = 'pending'")
            return (time.perf_counter() - started) * 1000

        await walk()
        found = [
            Figure("bare_request", "a bare Starlette request", "ms", await repeated(looks, request)),
            Figure("walk", "one column of every open approval, by Postgres alone", "ms", await repeated(looks, walk)),
        ]
    await conn.close()
    return found


async def measure(database_url: str, url: str, looks: int) -> Report:
    await ask_first(url)
    with bare_web() as base:
        floor_url = f"{base}/readyz"
        await until(lambda: answers(base))
        machine: dict[str, Any] = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "at": str(datetime.now(UTC))}
        figures = await floors(database_url, floor_url, looks)
        figures += await at_server(url, looks)
        figures += await in_browser(url, floor_url, max(3, looks // 3))
    return Report(machine, figures)


@click.command()
@click.option("--open", "count", default=100_000, show_default=True)
@click.option("--looks", default=21, show_default=True)
def main(count: int, looks: int) -> None:
    folder = Path(tempfile.mkdtemp())
    with lease(folder) as servers:
        asyncio.run(migrate(servers.database_url))
        asyncio.run(fill(servers.database_url, count))
        with web(base_env(servers), folder) as url:
            report = asyncio.run(measure(servers.database_url, url, looks))
    print(report.machine)  # noqa: T201
    print(report.table())  # noqa: T201
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
