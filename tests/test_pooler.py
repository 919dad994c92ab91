"""Behind a transaction pooler: no statement outlives a transaction, and nothing leans on a session."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import asyncpg
import pytest

from service.commands.approvals import decide, only_open
from service.commands.purge import purge_by_policy
from service.commands.timers import sweep
from service.domain.approval import Order
from service.embedded import Servers
from service.runtime import Runtime, open_runtime
from service.settings import Settings
from service.store.migrate import migrate
from tests.acting import begin, worker
from tests.conftest import ASK_ALWAYS, DEV, echo, new_database
from tests.pooler import Pooler, pooled

SERVICE = Path(__file__).resolve().parents[1] / "service"


@asynccontextmanager
async def behind(servers: Servers, name: str, *, told: bool) -> AsyncIterator[tuple[Runtime, Pooler]]:
    """The service behind a pooler, which its settings tell of, or not."""
    url = await new_database(servers, name)
    await migrate(url)
    socket_dir = parse_qs(urlsplit(url).query)["host"][0]
    async with pooled(socket_dir) as (pooler, port):
        settings = Settings(
            database_url=f"postgresql://postgres@127.0.0.1:{port}/{name}",
            redis_url=f"{servers.redis_url}?db=12",
            hitl_secret_key=servers.secret_key,
            hitl_pg_pooler="transaction" if told else None,
            _env_file=None,
        )
        async with open_runtime(settings, process="test") as runtime:
            yield runtime, pooler


async def whole(runtime: Runtime) -> UUID:
    """A run through its three checkpoints."""
    run_id = await begin(runtime, echo(), ASK_ALWAYS)
    while (outcome := await worker(runtime).advance(run_id)) == "awaiting_human":
        await decide(runtime.services, await only_open(runtime.services, run_id, DEV), Order("approve"), DEV)
    assert outcome == "completed", outcome
    return run_id


async def test_a_run_goes_through_a_transaction_pooler(servers: Servers) -> None:
    async with behind(servers, "pooled", told=True) as (runtime, pooler):
        for _ in range(3):
            await whole(runtime)
        await sweep(runtime.services)
        assert await purge_by_policy(runtime.services)
        assert pooler.turns > 50


async def test_the_pooler_of_these_tests_breaks_who_does_not_know_of_it(servers: Servers) -> None:
    async with behind(servers, "unaware", told=False) as (runtime, _):
        with pytest.raises(asyncpg.PostgresError, match="prepared statement"):
            await whole(runtime)


def test_what_lives_in_a_session_is_in_two_places_that_go_past_the_pooler() -> None:
    """Migrations go to DIRECT_DATABASE_URL; a worker's sign of life too, and without one it does without."""
    session = re.compile(r"pg_(?:try_)?advisory_lock\b|\blisten [a-z]|\bnotify [a-z]|create temp|declare \w+ cursor")
    found = {
        path.relative_to(SERVICE).as_posix()
        for path in (SERVICE / "store").rglob("*.py")
        if session.search(path.read_text())
    }
    assert found == {"store/workers.py", "store/migrate.py"}
    door = (SERVICE / "worker.py").read_text()
    assert "if settings.hitl_pg_pooler is None or settings.direct_database_url:" in door
