"""`hitl doctor` finds what is wrong, says what to do about it, and its exit status tells."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from redis import Redis

from service.embedded import Servers
from service.store.migrate import migrate, migrations
from tests.conftest import base_env, new_database
from tests.pooler import pooled

HITL = Path(sys.executable).parent / "hitl"


@dataclass
class Diagnosis:
    status: int
    checks: dict[str, dict[str, str]]
    error: str

    def result(self, name: str) -> str:
        return self.checks[name]["result"]

    @property
    def failed(self) -> set[str]:
        return {name for name, check in self.checks.items() if check["result"] == "fail"}


@dataclass
class Patient:
    """A database of its own, with a worker that was seen, for the doctor to look at."""

    servers: Servers
    url: str
    folder: Path

    async def seen(self, **more: str) -> Diagnosis:
        """What the command says; on this loop others may serve meanwhile."""
        env = base_env(self.servers, DATABASE_URL=self.url, **more)
        pipe = asyncio.subprocess.PIPE
        doctor = await asyncio.create_subprocess_exec(
            HITL, "doctor", "--json", env=env, cwd=self.folder, stdout=pipe, stderr=pipe
        )
        async with asyncio.timeout(60):
            out, error = await doctor.communicate()
        checks = {check["id"]: check for check in json.loads(out)}
        for check in checks.values():
            assert bool(check["advice"]) == (check["result"] != "ok"), check
        return Diagnosis(doctor.returncode or 0, checks, error.decode())

    async def treated(self, sql: str) -> None:
        conn = await asyncpg.connect(self.url)
        await conn.execute(sql)
        await conn.close()


async def admitted(servers: Servers, folder: Path, name: str) -> Patient:
    return Patient(servers, await new_database(servers, name), folder)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def patient(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Patient]:
    found = await admitted(servers, tmp_path_factory.mktemp("doctor"), "patient")
    await migrate(found.url)
    await found.treated(
        "insert into workers (id, jobs, max_jobs, seen_at) values ('w', 0, 1, now() + interval '1 day')"
    )
    yield found


@contextmanager
def configured(servers: Servers, name: str, value: str) -> Iterator[None]:
    redis = Redis.from_url(servers.redis_url)
    before = redis.config_get(name)[name]
    redis.config_set(name, value)
    try:
        yield
    finally:
        redis.config_set(name, before)
        redis.close()


async def test_nothing_is_wrong_with_what_is_well(patient: Patient) -> None:
    found = await patient.seen()

    assert (found.status, found.failed, found.error) == (0, set(), "")
    assert found.checks.keys() >= {
        *("version", "settings", "postgres", "postgres_durability", "migrations", "clock", "workers", "pooler"),
        *("redis", "redis_eviction", "redis_persistence"),
    }


async def test_a_wrong_eviction_policy_is_found(patient: Patient) -> None:
    with configured(patient.servers, "maxmemory-policy", "allkeys-lru"):
        found = await patient.seen()

    assert (found.status, found.failed) == (1, {"redis_eviction"})
    assert found.checks["redis_eviction"]["detail"] == "allkeys-lru"
    assert "noeviction" in found.checks["redis_eviction"]["advice"]


async def test_a_redis_that_keeps_nothing_is_a_warning(patient: Patient) -> None:
    with configured(patient.servers, "appendonly", "no"), configured(patient.servers, "save", ""):
        found = await patient.seen()

    assert (found.status, found.result("redis_persistence")) == (0, "warn")


async def test_pending_migrations_are_found(servers: Servers, tmp_path: Path) -> None:
    new = await admitted(servers, tmp_path, "unmigrated")
    found = await new.seen()

    assert found.status == 1
    assert migrations()[-1].name in found.checks["migrations"]["detail"]
    assert "hitl migrate" in found.checks["migrations"]["advice"]


async def test_one_migration_that_is_missing_is_named(servers: Servers, tmp_path: Path) -> None:
    old = await admitted(servers, tmp_path, "half_migrated")
    await migrate(old.url)
    last = migrations()[-1]
    await old.treated(f"delete from schema_migrations where version = '{last.version}'")
    found = await old.seen()

    assert found.checks["migrations"]["detail"] == f"pending: {last.name}"


async def test_a_clock_five_minutes_off_is_found(servers: Servers, tmp_path: Path) -> None:
    late = await admitted(servers, tmp_path, "late")
    await migrate(late.url)
    await late.treated(
        """
        create schema five_minutes;
        grant usage on schema five_minutes to public;
        create function five_minutes.clock_timestamp() returns timestamptz language sql as
            $$ select pg_catalog.clock_timestamp() + interval '5 minutes' $$;
        alter database late set search_path = five_minutes, public, pg_catalog;
        """
    )
    found = await late.seen()

    assert (found.status, found.result("clock")) == (1, "fail")
    assert found.checks["clock"]["detail"].startswith(("299", "300"))


async def test_a_worker_that_nobody_has_seen_is_found(servers: Servers, tmp_path: Path) -> None:
    idle = await admitted(servers, tmp_path, "idle")
    await migrate(idle.url)
    found = await idle.seen()

    assert (found.status, found.failed) == (1, {"workers"})
    assert "hitl worker" in found.checks["workers"]["advice"]
    assert found.error == "hitl: failed: workers\n"


async def test_commits_that_a_crash_may_lose_are_found(servers: Servers, tmp_path: Path) -> None:
    careless = await admitted(servers, tmp_path, "careless")
    await migrate(careless.url)
    await careless.treated("alter database careless set synchronous_commit = off")
    found = await careless.seen()

    assert found.result("postgres_durability") == "fail"


async def test_a_pooler_in_transaction_mode_with_the_cache_on_is_found(patient: Patient) -> None:
    async with pooled(patient.url) as url:
        found = await Patient(patient.servers, url, patient.folder).seen()

    assert (found.status, found.failed) == (1, {"pooler"})
    assert "HITL_PG_POOLER=transaction" in found.checks["pooler"]["advice"]


async def test_a_pooler_that_the_settings_know_of_is_well_with_a_direct_url(patient: Patient) -> None:
    async with pooled(patient.url) as url:
        behind = Patient(patient.servers, url, patient.folder)
        alone = await behind.seen(HITL_PG_POOLER="transaction")
        both = await behind.seen(HITL_PG_POOLER="transaction", DIRECT_DATABASE_URL=patient.url)
        twice = await behind.seen(HITL_PG_POOLER="transaction", DIRECT_DATABASE_URL=url)

    assert (alone.status, alone.result("pooler")) == (0, "warn")
    assert (both.result("pooler"), both.result("direct_database"), both.status) == ("ok", "ok", 0)
    assert (twice.result("direct_database"), twice.status) == ("fail", 1)


async def test_a_pooler_that_is_none_is_a_warning(patient: Patient) -> None:
    found = await patient.seen(HITL_PG_POOLER="transaction")

    assert (found.status, found.result("pooler")) == (0, "warn")


async def test_servers_that_are_away_are_found(patient: Patient) -> None:
    away = Patient(patient.servers, "postgresql://127.0.0.1:1/x", patient.folder)
    found = await away.seen(REDIS_URL="redis://127.0.0.1:1")

    assert found.status == 1
    assert {"postgres", "redis"} <= found.failed
