"""The pictures of docs/images, taken of a throw-away stack with something in it: `make screenshots`.

Pages are listed in `PAGES`; each is taken in both themes, small, and looked at by whoever commits it.
"""

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

import httpx2
from playwright.async_api import Browser, async_playwright

from service.embedded import lease
from service.store.migrate import migrate
from tests.conftest import WORKER, at, base_env, echo, process, run_body, start, web

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


async def take(browser: Browser, url: str, pages: dict[str, str]) -> None:
    for scheme in ("light", "dark"):
        context = await browser.new_context(base_url=url, viewport=SIZE, color_scheme=scheme)  # type: ignore[arg-type]
        page = await context.new_page()
        for name, path in pages.items():
            await page.goto(path)
            await page.locator("html.live").wait_for(state="attached")
            await page.screenshot(path=IMAGES / f"{name}-{scheme}.png")
        await context.close()


async def picture(url: str) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=70, trust_env=False) as client:
        approval_id = await fill(client)
    pages = {"inbox": "/", "approval": f"/approvals/{approval_id}"}
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
            asyncio.run(picture(url))
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
