"""The second wall: the service's role, and the rows that it sees. Here every query forgets its tenant."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio

from service.embedded import Servers
from service.runtime import Runtime
from service.store import approvals, events, runs, wall
from service.store.database import EVERY, Database
from service.store.migrate import migrate, tables
from tests.acting import begin, sql, story, worker
from tests.conftest import ASK_ALWAYS, DEV, base_env, echo, new_database

MINE, THEIRS = "mine", "theirs"
NASTY: Final = [
    "*", "=", "", " ", "=*", "'", "''", "a' or '1'='1", "\\", "\\'", "E'\\'", "x'; drop table runs; --", '"', "$1",
    "%", "ünïcödé \N{SNOWMAN}", "\n", "tab\there", "theirs\\",
]  # fmt: skip
TENANT_TABLES = """
    select c.relname::text from pg_class c join pg_attribute a on a.attrelid = c.oid and not a.attisdropped
    where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p') and a.attname = 'tenant' order by 1
"""


# --- the role -----------------------------------------------------------------------------------------------


async def test_the_service_works_as_a_role_that_is_nobody(quiet: Runtime) -> None:
    async with quiet.services.db.connection(EVERY) as conn:
        row = await conn.fetchrow("select * from pg_roles where rolname = current_user")
        assert row is not None and row["rolname"] == await conn.fetchval("select hitl_role()")
        assert not any(row[f"rol{power}"] for power in ("super", "createrole", "createdb", "bypassrls", "canlogin"))
        owned = "select count(*) from pg_class where relowner = current_user::regrole"
        assert await conn.fetchval(owned) == 0


FORBIDDEN: Final = """
    update events set data = '{}'; delete from events; truncate events; drop table events;
    alter table events disable row level security; drop policy hitl_tenant on runs;
    create trigger t before insert on events execute function suppress_redundant_updates_trigger();
    delete from runs; truncate runs cascade; delete from approvals;
    update decisions set actor = 'x'; delete from decisions;
    update delegations set users = '{}'; update steps set actor = 'x';
    update purged_runs set tenant = 'x'; update schema_migrations set checksum = 'x'; delete from anchors
"""


@pytest.mark.parametrize("change", [" ".join(each.split()) for each in FORBIDDEN.split(";")])
async def test_the_service_cannot_change_the_record(empty: Runtime, change: str) -> None:
    await begin(empty, echo())
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with empty.services.db.transaction(EVERY) as conn:
            await conn.execute(change)


async def test_what_people_wrote_can_be_erased_from_the_record(empty: Runtime) -> None:
    async with empty.services.db.transaction(EVERY) as conn:
        await conn.execute("update decisions set reason = null, edits = null")
        await conn.execute("update delegations set reason = null")


async def test_whoever_owns_the_database_still_can(empty: Runtime) -> None:
    """Which is what `hitl audit verify` and the anchors are for."""
    run_id = await begin(empty, echo())
    await sql(empty, "update events set actor = 'x' where run_id = $1", run_id)
    assert await sql(empty, "select actor from events where run_id = $1 limit 1", run_id) == "x"


async def test_every_connection_is_narrow_also_the_one_that_lives_as_long_as_a_session(quiet: Runtime) -> None:
    async with quiet.services.db.session() as conn:
        assert await conn.fetchval("select current_user = hitl_role()")
        found = await wall.rights(conn)
    assert (found.wide, found.blind) == ([], True)


async def test_a_pool_that_was_open_before_the_migration_becomes_narrow(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wall, "ROLE_AGAIN_S", 0.0)
    url = await new_database(servers, "opened_too_early")
    for pooler in (False, True):
        db = Database(url, max_size=1, pooler=pooler)
        async with db.connection("a") as conn:
            assert await conn.fetchval("select current_user = session_user") is not pooler
        await migrate(url)
        async with db.connection("a") as conn:
            assert await conn.fetchval("select current_user = hitl_role()")
        await db.close()


async def test_the_role_and_the_tenant_outlast_the_release_of_a_connection(quiet: Runtime) -> None:
    db = Database(str(quiet.settings.database_url), max_size=1)
    for scope, shown in (("a", "=a"), ("a", "=a"), (EVERY, "*"), ("b", "=b")):
        async with db.connection(scope) as conn:
            assert await conn.fetchval("select current_user = hitl_role()")
            assert await conn.fetchval("select current_setting('hitl.tenant')") == shown
        async with db.transaction("c") as conn:
            assert await conn.fetchval("select current_setting('hitl.tenant')") == "=c"
        with pytest.raises(ZeroDivisionError):
            async with db.transaction(EVERY) as conn:
                raise ZeroDivisionError
        async with db.connection(scope) as conn:  # what a transaction saw ended with it
            assert await conn.fetchval("select current_setting('hitl.tenant')") == shown
    await db.close()


@pytest.mark.parametrize("tenant", NASTY)
async def test_a_tenant_may_bear_any_name(quiet: Runtime, tenant: str) -> None:
    async with quiet.services.db.connection(tenant) as conn:
        assert await conn.fetchval("select current_setting('hitl.tenant')") == "=" + tenant
    async with quiet.services.db.transaction(tenant) as conn:
        assert await conn.fetchval("select current_setting('hitl.tenant')") == "=" + tenant
        await conn.execute("set local standard_conforming_strings = off")
        await conn.execute(wall.local(tenant))
        assert await conn.fetchval("select current_setting('hitl.tenant')") == "=" + tenant


# --- rows ---------------------------------------------------------------------------------------------------


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def two(servers: Servers) -> AsyncIterator[Database]:
    """A database with one row of each of two tenants in every table that knows tenants."""
    url = await new_database(servers, "two_tenants")
    await migrate(url)
    owner = await asyncpg.connect(url)
    for constraint in await owner.fetch(
        "select conrelid::regclass::text as of, conname from pg_constraint where contype in ('c', 'f')"
        " and connamespace = 'public'::regnamespace"
    ):
        await owner.execute(f'alter table {constraint["of"]} drop constraint "{constraint["conname"]}"')
    for table in await known(owner):
        for tenant in (MINE, THEIRS):
            await fill(owner, table, tenant)
    await owner.close()
    db = Database(url)
    yield db
    await db.close()


async def known(conn: Any) -> list[str]:
    return ["tenants", *(row[0] for row in await conn.fetch(TENANT_TABLES))]


async def fill(conn: Any, table: str, tenant: str) -> None:
    """A row of this tenant, with something in each column that needs it."""
    columns = await conn.fetch(
        """
        select attname::text as name, format_type(atttypid, null) as type from pg_attribute
        where attrelid = $1::regclass and attnum > 0 and not attisdropped and attnotnull and not atthasdef
          and attidentity = ''
        """,
        table,
    )
    some = {"uuid": str(uuid4()), "bytea": "\\x" + uuid4().hex, "json": "{}", "jsonb": "{}", "text[]": "{}",
            "timestamp with time zone": "now", "boolean": "false", "interval": "1 s"}  # fmt: skip
    own = "name" if table == "tenants" else "tenant"
    values = [tenant if c["name"] == own else some.get(c["type"], str(uuid4().int % 1000)) for c in columns]
    names = ", ".join(f'"{c["name"]}"' for c in columns)
    placed = ", ".join(f"${n}::text::{c['type']}" for n, c in enumerate(columns, 1))
    await conn.execute(f"insert into {table} ({names}) values ({placed})", *values)


async def test_every_table_that_knows_tenants_is_walled(two: Database) -> None:
    async with two.connection(EVERY) as conn:
        found = await known(conn)
        assert {"runs", "events", "approvals", "api_keys", "run_documents"} < set(found) <= set(tables())
        for table in found:
            about = "select relrowsecurity from pg_class where oid = $1::regclass"
            assert await conn.fetchval(about, table), table
            assert await conn.fetchval("select count(*) from pg_policy where polrelid = $1::regclass", table) == 1


async def test_a_raw_select_shows_the_tenants_own_rows_alone(two: Database) -> None:
    async with two.connection(EVERY) as conn:
        found = await known(conn)
    for scope, shown in ((MINE, {MINE}), (THEIRS, {THEIRS}), (EVERY, {MINE, THEIRS}), ("*", set()), ("", set())):
        for table in found:
            own = "name" if table == "tenants" else "tenant"
            async with two.connection(scope) as conn:
                assert {row[own] for row in await conn.fetch(f"select * from {table}")} == shown, (table, scope)
            async with two.transaction(scope) as conn:
                assert {row[own] for row in await conn.fetch(f"select * from {table}")} == shown, (table, scope)


@pytest.mark.parametrize("forget", ["reset hitl.tenant", "set hitl.tenant = ''", "set hitl.tenant = 'mine'"])
async def test_with_nothing_set_nothing_is_seen(two: Database, forget: str) -> None:
    async with two.transaction(MINE) as conn:
        await conn.execute(forget)
        for table in await known(conn):
            assert not await conn.fetch(f"select * from {table}"), table


async def test_rows_of_another_tenant_are_neither_changed_nor_made(two: Database) -> None:
    async with two.connection(MINE) as conn:
        for table in await known(conn):
            own = "name" if table == "tenants" else "tenant"
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await fill(conn, table, THEIRS)
            for change in (f"update {table} set {own} = {own}", f"delete from {table} where {own} = 'theirs'"):
                try:
                    done = await conn.execute(change)
                except asyncpg.InsufficientPrivilegeError:
                    continue  # of nobody's
                assert done in ("UPDATE 1", "DELETE 0"), (table, change)
            with pytest.raises(asyncpg.InsufficientPrivilegeError):  # or given away
                await conn.execute(f"update {table} set {own} = 'theirs'")


async def test_a_query_that_forgot_its_tenant_finds_nothing_of_another(empty: Runtime) -> None:
    run_id = await begin(empty, echo(), ASK_ALWAYS)
    await worker(empty).advance(run_id)
    async with empty.services.db.connection(DEV.tenant) as conn:
        assert await runs.find(conn, run_id)
        approval_id = (await approvals.open_of_run(conn, run_id))[0].id
    async with empty.services.db.connection(THEIRS) as conn:
        assert await runs.find(conn, run_id) is None
        assert await approvals.find(conn, approval_id) is None
        assert await approvals.open_of_run(conn, run_id) == []
        assert await events.some(conn, [(run_id, 1)]) == []
    async with empty.services.db.transaction(THEIRS) as conn:
        assert await runs.lock_any(conn, run_id) is None


# --- what a purge may ---------------------------------------------------------------------------------------


async def ended(runtime: Runtime, days: float) -> UUID:
    run_id = await begin(runtime, echo())
    assert await worker(runtime).advance(run_id) == "completed"
    await sql(runtime, "update runs set finished_at = now() - $2 * interval '1 day' where id = $1", run_id, days)
    return run_id


async def purged(runtime: Runtime, scope: wall.Scope, run_ids: list[UUID], tenant: str, kept: timedelta) -> int:
    async with runtime.services.db.transaction(scope) as conn:
        gone: int = await conn.fetchval("select count(*) from hitl_purge_runs($1, $2, $3)", run_ids, tenant, kept)
        return gone


async def test_only_what_is_over_for_long_enough_can_be_purged(empty: Runtime) -> None:
    old, young, fresh = await ended(empty, 9), await ended(empty, 3), await ended(empty, 0.5)
    live = await begin(empty, echo())
    every = [old, young, fresh, live]

    assert await purged(empty, EVERY, every, "default", timedelta(days=5)) == 1
    assert await purged(empty, "default", every, "default", timedelta(0)) == 1  # a day at the least
    assert await purged(empty, EVERY, every, "default", timedelta(days=-400)) == 0
    assert {row for row in every if await story(empty, row)} == {fresh, live}


async def test_nobody_purges_another_tenants_runs(empty: Runtime) -> None:
    old = await ended(empty, 9)
    assert await purged(empty, THEIRS, [old], "default", timedelta(days=1)) == 0
    assert await purged(empty, "default", [old], THEIRS, timedelta(days=1)) == 0
    assert await purged(empty, EVERY, [old], THEIRS, timedelta(days=1)) == 0
    assert await purged(empty, "default", [old], "default", timedelta(days=1)) == 1


async def test_the_functions_of_the_owner_look_only_where_they_were_told_to(empty: Runtime) -> None:
    async with empty.services.db.connection(EVERY) as conn:
        found = await conn.fetch(
            """
            select proname, proconfig, has_function_privilege('pg_monitor', oid, 'execute') as public
            from pg_proc where prosecdef and pronamespace = 'public'::regnamespace
            """
        )
    about = {row["proname"]: (row["proconfig"], row["public"]) for row in found}
    for name in ("hitl_purge_runs", "hitl_purge_questions"):
        assert about.pop(name) == (["search_path=pg_catalog, pg_temp"], False)
    for name, (config, _) in about.items():
        assert config and config[0].startswith("search_path=") and config[0].endswith(" pg_temp"), name


# --- where nobody may make a role ---------------------------------------------------------------------------


@pytest_asyncio.fixture(loop_scope="session")
async def managed(servers: Servers) -> AsyncIterator[tuple[str, asyncpg.Connection]]:
    """A database whose owner may make no roles, as some hosts have it; and an administrator's connection."""
    login = f"owner_{uuid4().hex[:8]}"
    url = await new_database(servers, f"managed_{login}")
    admin = await asyncpg.connect(url)
    await admin.execute(f"create role {login} login")
    await admin.execute(f"grant all on schema public to {login}")
    yield url.replace("postgres@", f"{login}@"), admin
    await admin.close()


async def test_without_the_right_to_make_roles_it_migrates_works_and_says_so(
    managed: tuple[str, asyncpg.Connection],
) -> None:
    url, admin = managed
    assert await migrate(url)
    db = Database(url)
    async with db.connection("mine") as conn:
        before = await wall.rights(conn)
        result, _, advice = await wall.verdict(conn)
    await db.close()
    assert result == "warn"
    assert set(before.wide) == {"update", "delete", "truncate"} and not before.blind

    for statement in re.findall(r"create role [^;]+|grant [^;]+", advice):  # what it told us to do
        await admin.execute(statement)
    assert await migrate(url) == []

    narrow = Database(url)
    async with narrow.connection("mine") as conn:
        after = await wall.rights(conn)
        assert (await wall.verdict(conn))[0] == "ok"
        assert not await conn.fetch("select * from runs")
    await narrow.close()
    assert (after.wide, after.blind) == ([], True)


async def test_the_commands_say_what_is_missing_and_do_not_fail_for_it(
    managed: tuple[str, asyncpg.Connection], servers: Servers
) -> None:
    url, _ = managed
    env = base_env(servers, DATABASE_URL=url)

    async def hitl(*arguments: str) -> tuple[int, str, str]:
        command = [str(Path(sys.executable).parent / "hitl"), *arguments]
        done = await asyncio.to_thread(subprocess.run, command, env=env, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    code, said, noted = await hitl("migrate")
    assert code == 0 and "applied 0010_wall.sql" in said
    assert "create role hitl_service_managed" in noted and noted.count("\n") == 1
    _, said, _ = await hitl("doctor", "--json")
    checks = {check["id"]: check for check in json.loads(said)}
    assert checks["postgres_role"]["result"] == "warn"
    assert "grant hitl_service_managed" in checks["postgres_role"]["advice"]
    assert (await hitl("runs", "list"))[0] == 0


async def test_an_owner_that_may_make_roles_makes_one_and_takes_it_on(
    managed: tuple[str, asyncpg.Connection],
) -> None:
    url, admin = managed
    await admin.execute(f"alter role {url.split('//')[1].split('@')[0]} createrole")
    await migrate(url)
    db = Database(url)
    async with db.connection("mine") as conn:
        assert (await wall.rights(conn)).wide == []
    await db.close()


async def test_a_login_of_its_own_that_is_in_the_role_is_held_by_the_same_walls(
    managed: tuple[str, asyncpg.Connection],
) -> None:
    url, admin = managed
    await migrate(re.sub("//[^@]+@", "//postgres@", url))
    login = f"app_{uuid4().hex[:8]}"
    await admin.execute(f"create role {login} login in role {await admin.fetchval('select hitl_role()')}")
    db = Database(re.sub("//[^@]+@", f"//{login}@", url))
    async with db.connection("mine") as conn:
        found = await wall.rights(conn)
        await conn.execute("reset role")
        anyway = await wall.rights(conn)
    await db.close()
    for each in (found, anyway):
        assert (each.wide, each.blind, each.leaves) == ([], True, False)
