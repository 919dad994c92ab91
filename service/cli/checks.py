"""`hitl migrate`, `hitl openapi`, `hitl doctor`."""

import asyncio
import platform
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import click
from redis.exceptions import RedisError, ResponseError

from service import __version__
from service.cli.embed import Stack, migration_url, stack
from service.cli.output import dumps, json_option, progress, show
from service.embedded import lease
from service.errors import Unavailable
from service.logs import CATALOGUE
from service.queue import connect
from service.settings import Settings, load_settings, may_embed, require
from service.store import wall, workers
from service.store.database import EVERY, Conn, Database, server_facts
from service.store.migrate import migrate, migrations, pending
from service.store.pooler import shares_sessions

SKEW_WARN_S: Final = 1.0
SKEW_FAIL_S: Final = 30.0
MIN_POSTGRES: Final = 14
MIN_REDIS: Final = (6, 2)


@click.command("migrate")
def migrate_command() -> None:
    """Apply what is missing of migrations/; safe when several machines do it at once."""
    settings = load_settings()
    if settings.direct_database_url or settings.database_url:
        url = migration_url(settings)
        applied = _migrated(url)
        asyncio.run(_say_if_wide(url))
    elif may_embed():
        with lease(Path(settings.hitl_data_dir)) as servers:
            applied = _migrated(servers.database_url)
    else:
        require(settings)
        raise AssertionError("a setting is missing")
    for name in applied:
        click.echo(f"applied {name}")
    if not applied:
        click.echo("nothing to do")


async def _say_if_wide(url: str) -> None:
    """A host that lets nobody make roles is no reason to fail, but one to say so."""
    db = Database(url, pooler=True, application="hitl-migrate")
    try:
        async with db.connection(EVERY) as conn:
            result, detail, advice = await wall.verdict(conn)
    finally:
        await db.close()
    if result == "warn":
        click.echo(f"note: the service {detail} - {advice}", err=True)


def _migrated(url: str) -> list[str]:
    with progress("migrating", len(migrations())) as told:
        return asyncio.run(migrate(url, told=told))


@click.command()
def openapi() -> None:
    """The OpenAPI document of the HTTP API, as JSON."""
    from service.api import openapi as api  # a fifth of a second that no other command should pay

    click.echo(dumps(api.document()))


# --- doctor -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at, and what to do about it."""

    id: str
    result: Literal["ok", "warn", "fail"]
    detail: str
    advice: str = ""


@click.command()
@click.option("--events", is_flag=True, help="Print the catalogue of log events instead.")
@json_option
def doctor(events: bool, as_json: bool) -> None:
    """Look at settings, servers, schema, clocks and workers. Exit status 1 if something fails."""
    if events:
        rows = [{"id": event, "meaning": meaning} for event, meaning in CATALOGUE.items()]
        show(rows, ("id", "meaning"), as_json=as_json)
        return
    with stack() as servers:
        checks = asyncio.run(_checks(servers))
    if as_json:
        show([asdict(check) for check in checks], (), as_json=True)
    else:
        for check in checks:
            click.echo(
                f"{check.result:<4}  {check.id}: {check.detail}" + (f" - {check.advice}" if check.advice else "")
            )
    if failed := [check.id for check in checks if check.result == "fail"]:
        raise click.ClickException(f"failed: {', '.join(failed)}")


async def _checks(servers: Stack) -> list[Check]:
    if servers.embedded:
        await migrate(migration_url(servers.settings))
    return [
        *_of_settings(servers),
        *[check async for check in _of_postgres(servers)],
        *[check async for check in _of_pooler(servers.settings)],
        *[check async for check in _of_redis(servers.settings)],
    ]


def _of_settings(servers: Stack) -> list[Check]:
    settings = servers.settings
    where = f"embedded servers in {settings.hitl_data_dir}" if servers.embedded else "servers from the environment"
    auth = "required" if settings.auth_required else "off"
    found = [
        Check("version", "ok", f"hitl {__version__}, Python {platform.python_version()}"),
        Check("settings", "ok", f"{where}, HITL_AUTH {auth}, links under {settings.public_url}"),
    ]
    if not settings.loopback and settings.hitl_public_url is None:
        advice = "set HITL_PUBLIC_URL to the address that people and providers can reach"
        found.append(Check("public_url", "warn", f"links lead to {settings.public_url}", advice))
    if settings.hitl_secret_key_previous:
        advice = "unset HITL_SECRET_KEY_PREVIOUS once every key and link was renewed"
        found.append(Check("secret_rotation", "warn", "the previous secret is still honoured", advice))
    return found


async def _of_postgres(servers: Stack) -> AsyncIterator[Check]:
    assert servers.settings.database_url
    # one transaction without a statement cache: this must work through any pooler
    db = Database(servers.settings.database_url, pooler=True, application="hitl-doctor")
    try:
        async with db.reading(EVERY) as conn:
            for check in await _postgres_checks(conn, embedded=servers.embedded):
                yield check
    except Unavailable as error:
        cause = type(error.__cause__).__name__
        yield Check("postgres", "fail", f"no connection ({cause})", "check DATABASE_URL and that the server runs")
    finally:
        await db.close()


async def _postgres_checks(conn: Conn, *, embedded: bool) -> list[Check]:
    before = time.time()
    facts = await server_facts(conn)
    here = datetime.fromtimestamp((before + time.time()) / 2, UTC)
    missing = await pending(conn)
    present = [] if missing else await workers.present(conn)
    role = [] if missing else [Check("postgres_role", *await wall.verdict(conn))]
    return [
        _version(facts),
        _durability(facts),
        _schema(missing),
        *role,
        _clock(facts["now"], here),
        _workers(present, embedded=embedded),
    ]


def _version(facts: dict[str, Any]) -> Check:
    if int(facts["version"].split(".")[0]) < MIN_POSTGRES:
        return Check("postgres", "fail", f"version {facts['version']}", f"use Postgres {MIN_POSTGRES} or newer")
    return Check("postgres", "ok", f"version {facts['version']}")


def _durability(facts: dict[str, Any]) -> Check:
    off = [name for name in ("fsync", "full_page_writes", "synchronous_commit") if facts[name] == "off"]
    if off:
        detail = f"{', '.join(off)} off: a crash may lose what was acknowledged"
        return Check("postgres_durability", "fail", detail, "turn it on in postgresql.conf")
    return Check("postgres_durability", "ok", f"fsync on, synchronous_commit {facts['synchronous_commit']}")


def _schema(missing: list[str]) -> Check:
    if missing:
        return Check("migrations", "fail", f"pending: {', '.join(missing)}", "run `hitl migrate`")
    return Check("migrations", "ok", "none pending")


def _clock(there: datetime, here: datetime) -> Check:
    skew_s = abs((there - here).total_seconds())
    if skew_s <= SKEW_WARN_S:
        return Check("clock", "ok", f"{skew_s:.3f} s from Postgres")
    result: Literal["warn", "fail"] = "warn" if skew_s <= SKEW_FAIL_S else "fail"
    return Check("clock", result, f"{skew_s:.1f} s from Postgres", "synchronise this machine's clock (NTP)")


def _workers(present: Any, *, embedded: bool) -> Check:
    """With embedded servers there may well be none: nothing runs beside this command."""
    if not present:
        result: Literal["warn", "fail"] = "warn" if embedded else "fail"
        return Check("workers", result, "none seen in the last minute", "start one: `hitl worker`, or `hitl up`")
    jobs = sum(worker["jobs"] for worker in present)
    return Check("workers", "ok", f"{len(present)} seen in the last minute, {jobs} jobs")


async def _of_pooler(settings: Settings) -> AsyncIterator[Check]:
    """Where the URLs lead to, by what can be seen from outside; a setting alone may be wrong."""
    assert settings.database_url
    try:
        pooled = await shares_sessions(settings.database_url)
        direct = settings.direct_database_url
        yield _pooler(settings, pooled=pooled)
        if direct is not None and await shares_sessions(direct):
            detail, advice = (
                "leads to a pooler in transaction mode",
                "name the server itself: migrations need a session",
            )
            yield Check("direct_database", "fail", f"DIRECT_DATABASE_URL {detail}", advice)
        elif direct is not None:
            yield Check("direct_database", "ok", "DIRECT_DATABASE_URL leads to the server itself")
    except Unavailable as error:
        cause = type(error.__cause__).__name__
        yield Check("pooler", "warn", f"not looked at ({cause})", "check the URLs and how many connections are free")


def _pooler(settings: Settings, *, pooled: bool) -> Check:
    match pooled, settings.hitl_pg_pooler is not None:
        case True, False:
            detail = "DATABASE_URL leads to a pooler in transaction mode, and the statement cache is on"
            return Check("pooler", "fail", detail, "set HITL_PG_POOLER=transaction, and DIRECT_DATABASE_URL")
        case True, True if settings.direct_database_url is None:
            detail = "in transaction mode, and DIRECT_DATABASE_URL is unset: `hitl migrate` needs a session"
            return Check("pooler", "warn", detail, "set DIRECT_DATABASE_URL to the server itself")
        case True, True:
            return Check("pooler", "ok", "in transaction mode, the statement cache is off")
        case _, True:
            detail = "HITL_PG_POOLER is set, but each client has a session of its own: the cache is off for nothing"
            return Check("pooler", "warn", detail, "unset HITL_PG_POOLER, if DATABASE_URL is what it should be")
        case _:
            return Check("pooler", "ok", "none in transaction mode: each client has a session of its own")


async def _of_redis(settings: Settings) -> AsyncIterator[Check]:
    assert settings.redis_url
    client = connect(settings.redis_url, max_connections=2)
    try:
        async with asyncio.timeout(10):
            info = await client.info()
            policy = info.get("maxmemory_policy") or await _configured(client, "maxmemory-policy")
            durable = info.get("aof_enabled") or await _configured(client, "save")
    except (RedisError, OSError, TimeoutError) as error:
        detail = f"no connection ({type(error).__name__})"
        yield Check("redis", "fail", detail, "check REDIS_URL and that the server runs")
        return
    finally:
        await client.aclose(close_connection_pool=True)
    yield _redis_version(info)
    yield _eviction(policy)
    if durable:
        yield Check("redis_persistence", "ok", "append-only file" if info.get("aof_enabled") else "snapshots")
    else:
        detail = "off: after its restart, wake-ups come from the sweep"
        yield Check("redis_persistence", "warn", detail, "set appendonly yes")


def _redis_version(info: Mapping[str, Any]) -> Check:
    """Valkey says which Redis it answers like, beside its own version."""
    like = str(info.get("redis_version", "0.0"))
    name = f"valkey {info['valkey_version']}" if "valkey_version" in info else f"redis {like}"
    if tuple(int(part) for part in like.split(".")[:2]) < MIN_REDIS:
        return Check("redis", "fail", f"version {like}", "use Redis 6.2 or newer, or Valkey")
    return Check("redis", "ok", name)


def _eviction(policy: str) -> Check:
    advice = "set maxmemory-policy noeviction: jobs and wake-ups must not be thrown out"
    if not policy:
        return Check("redis_eviction", "warn", "the server does not tell its policy", advice)
    return Check(
        "redis_eviction", "ok" if policy == "noeviction" else "fail", policy, advice * (policy != "noeviction")
    )


async def _configured(client: Any, name: str) -> str:
    """A setting of the server, empty where the provider forbids CONFIG."""
    try:
        found = await client.config_get(name)
    except ResponseError:
        return ""
    return str(found.get(name, ""))
