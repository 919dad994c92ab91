"""People at the console: by plain HTTP, as a browser without script would, and by a real Chromium."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import httpx2
import pytest_asyncio

from tests.contract.conftest import Secured, secured

__all__ = ["secured"]

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
