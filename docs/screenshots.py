"""The pictures of docs/images, taken of a throw-away stack with something in it: `make screenshots`.

Each page is taken in both themes, small, and looked at by whoever commits it.
"""

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
from playwright.async_api import Browser, async_playwright

from service.embedded import lease
from service.store.migrate import migrate
from tests.conftest import WORKER, at, base_env, decide, echo, process, run_body, settled, start, web

IMAGES = Path(__file__).parent / "images"
SIZE = {"width": 1120, "height": 760}
SCHEMA = {
    "type": "object",
    "properties": {
        "prompt": {"type": "string", "description": "What is to be drawn."},
        "num_outputs": {"type": "integer", "minimum": 1, "maximum": 4, "title": "Number of pictures"},
        "aspect_ratio": {"enum": ["1:1", "3:2", "16:9"]},
        "guidance": {"type": "number", "minimum": 0, "maximum": 10},
        "seed": {"type": "integer"},
    },
    "required": ["prompt"],
}
EXAMPLE = {"prompt": "s", "num_outputs": 1, "aspect_ratio": "3:2", "guidance": 3.5}
PROMPTS = (
    "A red fox in deep snow, watercolour, soft morning light",
    "Poster for the harbour festival, bold shapes, four colours",
    "Portrait of the founder for the annual report, contact ann@example.com",
    "A map of the old town in the style of an engraving",
)
QUESTIONS = (
    ("deploy", "Deploy 4.2 to production?", {"version": "4.2", "region": "eu", "changes": 31}, 900),
    ("refund", "Refund order 20-8841 in full?", {"order": "20-8841", "amount": 184.5, "currency": "EUR"}, 7200),
)


async def fill(client: httpx2.AsyncClient) -> str:
    """Runs and questions that wait; the approval that is shown whole."""
    shown = ""
    for n, prompt in enumerate(PROMPTS):
        tool = echo(EXAMPLE, schema=SCHEMA, cost_usd=0.04)
        hitl: dict[str, Any] = {"allowed_steps": ["payload_review"], "timeout_seconds": 1500 * (n + 1) ** 2}
        body = run_body(tool, prompt=prompt, policy="require_human", **hitl)
        body["user_id"] = ("ann", "tom", "lea", "sue")[n]
        run_id = await start(client, body)
        approval = await at(client, run_id, "payload_review")
        shown = approval["approval_id"] if n == 2 else shown
    for checkpoint, message, payload, seconds in QUESTIONS:
        question = {"checkpoint_type": checkpoint, "message": message, "context": {"payload": payload}}
        await client.post("/hitl/approvals", json={**question, "timeout_seconds": seconds})
    return shown


async def told(client: httpx2.AsyncClient) -> str:
    """A run with a story: edited, tried again after a fault, its output approved."""
    tool = echo(EXAMPLE, schema=SCHEMA, cost_usd=0.04, latency_seconds=2, fail=[{"status": 503}])
    asks = {"policy": "require_human", "allowed_steps": ["payload_review", "response_review"]}
    body = run_body(tool, prompt=PROMPTS[1], **asks)  # type: ignore[arg-type]
    run_id = await start(client, {**body, "user_id": "tom", "session_id": "harbour-26"})
    first = await at(client, run_id, "payload_review")
    await asyncio.sleep(3)  # a wait that is long enough to be drawn
    edits = {"aspect_ratio": "16:9", "num_outputs": 3}
    await decide(client, first["approval_id"], "edit", edits=edits, reason="The posters are wide.")
    second = await at(client, run_id, "response_review")
    await asyncio.sleep(2)
    await decide(client, second["approval_id"], "approve")
    await settled(client, run_id, "completed")
    return run_id


# an hour before the picture, so that there is something to see in charts: what went well, what failed, who is late
PAST = """
with past as (
    insert into runs (id, tenant, status, step, status_since, woken_at, provider, tool, submitter, user_id, session_id,
        created_at, updated_at, finished_at, error)
    select gen_random_uuid(), 'default', case when n % 29 = 7 then 'failed' when n % 17 = 5 then 'cancelled'
            else 'completed' end, 'api_call', at, at, case when n % 3 = 0 then 'http' else 'replicate' end, 'x', 'shop',
        (array['ann', 'tom', 'lea', 'sue'])[n % 4 + 1], 'order-' || 4100 + n % 60, at, at, at + interval '40 seconds',
        case when n % 29 = 7 then json_build_object('code', case when n % 2 = 0 then 'provider_unavailable'
            else 'provider_rejected' end, 'message', null, 'step', 'api_call', 'recoverable', n % 2 = 0) end
    from (select n, now() - interval '70 s' - n * interval '5.5 s' - sin(n / 47.0) * interval '150 s' as at
          from generate_series(1, 600) n) as spread
    returning *),
asked as (
    insert into approvals (id, tenant, run_id, checkpoint_type, status, reasons, message, context, submitter, reviewers,
        on_timeout, timeout_s, created_at, expires_at, decided_at)
    select gen_random_uuid(), 'default', id, 'payload_review', 'approved', array['requested'], '?', '{}', 'shop',
        '{"quorum": 1, "users": [], "groups": []}', 'reject', 3600, created_at, created_at + interval '1 h',
        created_at + interval '2 min' * random() + interval '4 s'
    from past where status = 'completed'),
lines as (
    insert into delivery_lines (subject, kind, tenant, run_id, target)
    select id, 'webhook', 'default', id, 'shop.example.com' from past where error->>'code' = 'provider_rejected'
    order by created_at desc limit 2)
insert into deliveries (id, tenant, subject, kind, type, status, tries, error, created_at)
select gen_random_uuid(), 'default', id, 'webhook', 'run.failed', 'dead', 9, 'HTTP 503', finished_at
from past where error->>'code' = 'provider_rejected' order by created_at desc limit 2
"""
LONG_PAUSED = "update runs set paused_at = paused_at - interval '3 hours' where status = 'paused'"


async def look_back(client: httpx2.AsyncClient, database_url: str) -> None:
    """Write what happened before."""
    run_id = await start(client, run_body(echo(EXAMPLE), policy="require_human", allowed_steps=["payload_review"]))
    await at(client, run_id, "payload_review")
    await client.post(f"/hitl/run/{run_id}/pause")
    conn = await asyncpg.connect(database_url)
    await conn.execute(PAST)
    await conn.execute(LONG_PAUSED)
    await conn.close()


async def take(browser: Browser, url: str, pages: dict[str, str]) -> None:
    for scheme in ("light", "dark"):
        context = await browser.new_context(base_url=url, viewport=SIZE, color_scheme=scheme)  # type: ignore[arg-type]
        page = await context.new_page()
        for name, path in pages.items():
            await page.goto(path)
            await page.locator("html.live").wait_for(state="attached")
            await page.screenshot(path=IMAGES / f"{name}-{scheme}.png")
        await context.close()


async def picture(url: str, database_url: str) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=70, trust_env=False) as client:
        run_id = await told(client)
        approval_id = await fill(client)
        await look_back(client, database_url)
    pages = {
        "inbox": "/", "approval": f"/approvals/{approval_id}", "run": f"/runs/{run_id}",
        "runs": "/runs", "operations": "/operations",
    }  # fmt: skip
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        await take(browser, url, pages)
        await browser.close()


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp())
    with lease(folder) as servers:
        asyncio.run(migrate(servers.database_url))
        env = base_env(servers)
        with web(env, folder) as url, process(*WORKER, env=env, log=folder / "worker.log"):
            asyncio.run(picture(url, servers.database_url))
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
