"""The first wall by itself: every query names its tenant, also where Postgres would show everything."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx2
import pytest
import pytest_asyncio

from service.embedded import Servers
from service.store.database import EVERY
from tests.conftest import base_env, behind, own_runtime, web
from tests.contract import everybody
from tests.contract import test_matrix as matrix
from tests.contract.everybody import EVERYBODY, World
from tests.contract.test_matrix import MATRIX

FOREIGN = [key for key, row in sorted(MATRIX.items()) if row.cells.split()[EVERYBODY.split().index("othr")] == "404"]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def open_house(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """As `world` of the matrix, with the second wall torn down."""
    folder = tmp_path_factory.mktemp("first_wall")
    async with AsyncExitStack() as opened:
        runtime = await opened.enter_async_context(own_runtime(servers, "first_wall", redis_db=10))
        async with behind(runtime.services.db) as conn:
            for policy in await conn.fetch("select polrelid::regclass::text as of from pg_policy"):
                await conn.execute(f"alter table {policy['of']} disable row level security")
        assert runtime.settings.database_url and runtime.settings.redis_url
        env = base_env(
            servers, HITL_AUTH="required", DATABASE_URL=runtime.settings.database_url,
            REDIS_URL=runtime.settings.redis_url, HITL_FILES=str(folder / "files"),
        )  # fmt: skip
        url = opened.enter_context(web(env, folder))
        clients = {}
        for name, key in (await everybody.keys(runtime)).items():
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            client = httpx2.AsyncClient(base_url=url, headers=headers, timeout=70, trust_env=False)
            clients[name] = await opened.enter_async_context(client)
        yield World(runtime, clients, folder / "files")


async def test_the_second_wall_is_down(open_house: World) -> None:
    await open_house.ids("", matrix.Row(""))
    async with open_house.runtime.services.db.connection("nobody's") as conn:
        assert await conn.fetchval("select count(*) from runs")
    async with open_house.runtime.services.db.connection(EVERY) as conn:
        assert await conn.fetchval("select current_user = hitl_role()")


@pytest.mark.parametrize(("method", "path"), FOREIGN, ids=" ".join)
async def test_what_is_another_tenants_is_not_found(open_house: World, method: str, path: str) -> None:
    assert await matrix.cell(open_house, "othr", method, path, MATRIX[method, path]) == 404


async def test_lists_are_of_ones_own_tenant(open_house: World) -> None:
    await matrix.test_lists_of_another_tenant_know_nothing_of_mine(open_house)
