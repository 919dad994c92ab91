"""People at the console: by plain HTTP, as a browser without script would, and by a real Chromium."""

import os
import re
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

from tests.contract.conftest import Secured, secured

__all__ = ["secured"]

PATIENCE_MS = 20_000
TOKEN = re.compile(r'name="csrf" value="([^"]+)"')


def csrf(page: httpx2.Response) -> str:
    """The token of the page's forms."""
    found = TOKEN.search(page.text)
    assert found, page.text[:2000]
    return found[1]


def new_tenant() -> str:
    return f"console-{uuid4().hex[:8]}"


async def sign_in(person: httpx2.AsyncClient, key: str, **more: str) -> httpx2.Response:
    form = {"csrf": csrf(await person.get("/signin")), "key": key, **more}
    return await person.post("/signin", data=form)


@pytest_asyncio.fixture(loop_scope="session")
async def browserless(secured: Secured) -> AsyncIterator[Callable[..., Any]]:
    """Makes people without script: clients that keep cookies and follow nothing by themselves."""
    async with AsyncExitStack() as opened:

        async def make(url: str | None = None) -> httpx2.AsyncClient:
            return await opened.enter_async_context(
                httpx2.AsyncClient(base_url=url or secured.url, timeout=30, trust_env=False)
            )

        yield make


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium() -> AsyncIterator[Browser]:
    """One browser for all tests: the system's, since its own download is not to be had everywhere."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium on this machine, and CI tests the console in one: install `chromium`")
        pytest.skip("no Chromium on this machine: `apt install chromium` for the tests of the console")
    expect.set_options(timeout=PATIENCE_MS)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        await browser.close()


@dataclass
class Office:
    """A tenant with people at their browsers, and a program that asks them. `trouble` is what no page may cause."""

    secured: Secured
    browser: Browser
    open: AsyncExitStack
    tenant: str = field(default_factory=new_tenant)
    trouble: list[str] = field(default_factory=list)

    async def program(self) -> httpx2.AsyncClient:
        """A client that starts runs and asks."""
        return await self.secured.client("service", tenant=self.tenant, subject="robot")

    async def window(self, **options: Any) -> BrowserContext:
        context = await self.browser.new_context(base_url=self.secured.url, **options)
        self.open.push_async_callback(context.close)
        context.set_default_timeout(PATIENCE_MS)
        return context

    def watched(self, page: Page) -> Page:
        """Its errors, its dialogs and what its policy refused are kept."""
        page.on("pageerror", lambda error: self.trouble.append(str(error)))
        page.on("dialog", lambda dialog: self.trouble.append(f"dialog: {dialog.message}"))
        page.on("console", lambda told: self.trouble.append(told.text) if "Content Security" in told.text else None)
        return page

    async def person(
        self, name: str = "ann", *, role: str = "reviewer", groups: tuple[str, ...] = (), **options: Any
    ) -> Page:
        """Somebody who has signed in by the form, at the inbox."""
        _, key = await self.secured.key(role, tenant=self.tenant, subject=name, groups=groups)
        page = self.watched(await (await self.window(**options)).new_page())
        await page.goto("/")
        await page.get_by_label("API key").fill(key)
        await page.get_by_role("button", name="Sign in", exact=True).click()
        await page.get_by_role("heading", name="Inbox").wait_for()
        if options.get("java_script_enabled", True):
            await page.locator("html.live").wait_for(state="attached")
        return page


@pytest_asyncio.fixture(loop_scope="session")
async def office(secured: Secured, chromium: Browser) -> AsyncIterator[Office]:
    async with AsyncExitStack() as opened:
        made = Office(secured, chromium, opened)
        yield made
        assert made.trouble == []


def row(page: Page, name: str) -> Any:
    """The row of the inbox that says this."""
    return page.locator(".row", has_text=name)


async def ask(program: httpx2.AsyncClient, message: str = "Deploy 4.2?", **more: Any) -> str:
    """A program's question; its id."""
    body = {"checkpoint_type": "deploy", "message": message, "context": {"payload": {"version": "4.2"}}, **more}
    answer = await program.post("/hitl/approvals", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["approval_id"])
