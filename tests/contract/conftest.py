"""A web process that wants keys, shared by the contract tests."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx2
import pytest_asyncio

from service.commands.context import Services
from service.commands.keys import NewKey, create_key
from service.runtime import open_runtime
from service.settings import Settings
from tests.conftest import Stack, web
from tests.contract.everybody import world as world


@dataclass
class Secured:
    """A web process that wants keys, and a way to make them."""

    url: str
    services: Services
    open: AsyncExitStack

    async def key(self, role: Any, **more: Any) -> tuple[Any, str]:
        wanted = NewKey(name=f"{role}-{uuid4().hex[:6]}", role=role, **more)
        row, secret = await create_key(self.services.db, self.services.keyring, wanted)
        return row.id, secret

    async def client(self, role: Any, **more: Any) -> httpx2.AsyncClient:
        return await self.bearing((await self.key(role, **more))[1])

    async def bearing(self, key: str | None, **headers: str) -> httpx2.AsyncClient:
        auth = {"Authorization": f"Bearer {key}"} if key else {}
        made = httpx2.AsyncClient(base_url=self.url, headers={**auth, **headers}, timeout=70, trust_env=False)
        return await self.open.enter_async_context(made)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def secured(stack: Stack) -> AsyncIterator[Secured]:
    settings = Settings(
        database_url=stack.env["DATABASE_URL"],
        redis_url=stack.env["REDIS_URL"],
        hitl_secret_key=stack.env["HITL_SECRET_KEY"],
        _env_file=None,
    )
    async with AsyncExitStack() as opened:
        runtime = await opened.enter_async_context(open_runtime(settings, process="test"))
        url = opened.enter_context(web({**stack.env, "HITL_AUTH": "required"}, stack.folder, "secured"))
        yield Secured(url, runtime.services, opened)
