"""Migrations: numbered SQL files, forward only, one transaction each, safe when several machines run them."""

import asyncio
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg

from service.store import wall
from service.store.database import Conn

LOCK_KEY: Final = 0x4849544C
LOCK_POLL_S: Final = 0.2
_NAME: Final = re.compile(r"^(\d{4})_[a-z0-9_]+\.sql$")
_CREATES: Final = re.compile(r"^create table (?:if not exists )?(\w+)", re.MULTILINE | re.IGNORECASE)
_TABLE: Final = """
create table if not exists schema_migrations (
    version text primary key, name text not null, checksum text not null, applied_at timestamptz not null default now()
)"""


class MigrationError(Exception):
    """One line that says which file does not fit the database."""


@dataclass(frozen=True, slots=True)
class Migration:
    version: str
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.replace("\r\n", "\n").encode()).hexdigest()


def migrations() -> list[Migration]:
    """The files of this release: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent.parent
    folder = package / "migrations" if (package / "migrations").is_dir() else package.parent / "migrations"
    files = sorted(path for path in folder.iterdir() if _NAME.match(path.name))
    return [Migration(path.name[:4], path.name, path.read_text()) for path in files]


def tables() -> list[str]:
    """Every table that the files create, and the one that lists them; the database may hold others' beside them."""
    return ["schema_migrations", *(name for migration in migrations() for name in _CREATES.findall(migration.sql))]


async def migrate(url: str, *, told: Callable[[int], None] = lambda done: None) -> list[str]:
    """Apply what is missing; returns the names of the applied files. `told` hears of each file that is there, by the
    number 1. Raises `MigrationError`.

    The lock is polled: a blocked `pg_advisory_lock` holds a snapshot and deadlocks with
    CREATE INDEX CONCURRENTLY.
    """
    conn = await asyncpg.connect(url, statement_cache_size=0, server_settings={"application_name": "hitl-migrate"})
    try:
        while not await conn.fetchval("select pg_try_advisory_lock($1)", LOCK_KEY):
            await asyncio.sleep(LOCK_POLL_S)
        await conn.execute(_TABLE)
        rows = await conn.fetch("select version, checksum from schema_migrations")
        have = {row["version"]: row["checksum"] for row in rows}
        applied = []
        for migration in migrations():
            if name := await _apply(conn, migration, have):
                applied.append(name)
            told(1)
        await _settle_restored(conn)
        await wall.put_up(conn, tables())
        return applied
    finally:
        await conn.close()  # frees the lock


async def _settle_restored(conn: Conn) -> None:
    """Events that were restored from another server bear its transaction ids, which may lie in this one's future:
    they are old, and say so from now on, or streams would tell them once more."""
    await conn.execute("update events set xid = '0' where xid >= pg_snapshot_xmax(pg_current_snapshot())")
    await conn.execute("update questions set xid = '0' where xid >= pg_snapshot_xmax(pg_current_snapshot())")


async def pending(conn: Conn) -> list[str]:
    """Names of the migrations that the database has not seen."""
    if await conn.fetchval("select to_regclass('schema_migrations') is null"):
        return [migration.name for migration in migrations()]
    have = {row["version"] for row in await conn.fetch("select version from schema_migrations")}
    return [migration.name for migration in migrations() if migration.version not in have]


async def _apply(conn: Conn, migration: Migration, have: dict[str, str]) -> str | None:
    if migration.version in have:
        if have[migration.version] != migration.checksum:
            raise MigrationError(f"{migration.name} was edited after it was applied")
        return None
    if migration.sql.startswith("-- no-transaction"):
        await conn.execute(migration.sql)
        await _record(conn, migration)
        return migration.name
    async with conn.transaction():
        await conn.execute("set local lock_timeout = '5s'")
        await conn.execute(migration.sql)
        await _record(conn, migration)
    return migration.name


async def _record(conn: Conn, migration: Migration) -> None:
    await conn.execute(
        "insert into schema_migrations (version, name, checksum) values ($1, $2, $3)",
        migration.version,
        migration.name,
        migration.checksum,
    )
