"""The first wall by itself: every query names its tenant, also where Postgres would show everything."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from service.embedded import Servers
from service.runtime import Runtime
from service.store.database import EVERY
from tests.conftest import behind
from tests.contract import test_matrix as matrix
from tests.contract.everybody import EVERYBODY, World, a_world
from tests.contract.test_matrix import MATRIX

FOREIGN = [key for key, row in sorted(MATRIX.items()) if row.cells.split()[EVERYBODY.split().index("othr")] == "404"]


async def torn_down(runtime: Runtime) -> None:
    async with behind(runtime.services.db) as conn:
        for policy in await conn.fetch("select polrelid::regclass::text as of from pg_policy"):
            await conn.execute(f"alter table {policy['of']} disable row level security")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def open_house(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """As `world` of the matrix, with the second wall torn down."""
    folder = tmp_path_factory.mktemp("first_wall")
    async with a_world(servers, folder, "first_wall", redis_db=10, before=torn_down) as found:
        yield found


async def test_the_second_wall_is_down(open_house: World) -> None:
    await open_house.ids("")
    async with open_house.runtime.services.db.connection("nobody's") as conn:
        assert await conn.fetchval("select count(*) from runs")
    async with open_house.runtime.services.db.connection(EVERY) as conn:
        assert await conn.fetchval("select current_user = hitl_role()")


@pytest.mark.parametrize(("method", "path"), FOREIGN, ids=" ".join)
async def test_what_is_another_tenants_is_not_found(open_house: World, method: str, path: str) -> None:
    assert await matrix.cell(open_house, "othr", method, path, MATRIX[method, path]) == 404


async def test_lists_are_of_ones_own_tenant(open_house: World) -> None:
    await matrix.test_lists_of_another_tenant_know_nothing_of_mine(open_house)
