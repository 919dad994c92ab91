"""What every command stands on: the settings, with embedded servers where no URL is set."""

import asyncio
import fcntl
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from service.embedded import LINGER_S, Servers, lease
from service.runtime import Runtime, open_runtime
from service.settings import Settings, load_settings, may_embed, require
from service.store.migrate import migrate

T = TypeVar("T")
GONE_WITHIN_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Stack:
    """The checked settings of this command, and whether a server of them is an embedded one."""

    settings: Settings
    embedded: bool


@contextmanager
def stack() -> Iterator[Stack]:
    """The servers for the block: the ones that the environment names, else embedded ones under a lease.

    What the lease gives is put into the environment, for this process and its children.
    Raises `SettingsError` and `EmbeddedError`.
    """
    settings = load_settings()
    if (settings.database_url and settings.redis_url) or not may_embed():
        yield Stack(require(settings), embedded=False)
        return
    with lease(Path(settings.hitl_data_dir)) as servers:
        for name, value in given(servers).items():
            if not getattr(settings, name.lower()):
                os.environ[name] = value
        yield Stack(require(load_settings()), embedded=True)


def given(servers: Servers) -> dict[str, str]:
    """The environment of a process that uses these servers."""
    return {
        "DATABASE_URL": servers.database_url,
        "REDIS_URL": servers.redis_url,
        "HITL_SECRET_KEY": servers.secret_key,
    }


def migration_url(settings: Settings) -> str:
    """Where migrations go: past a pooler, where there is one."""
    url = settings.direct_database_url or settings.database_url
    assert url is not None
    return url


def operate(work: Callable[[Runtime], Awaitable[T]]) -> T:
    """Run `work` on the open services. An embedded database is brought up to date first."""
    with stack() as servers:
        return asyncio.run(_operate(servers, work))


async def _operate(servers: Stack, work: Callable[[Runtime], Awaitable[T]]) -> T:
    if servers.embedded:
        await migrate(migration_url(servers.settings))
    async with open_runtime(servers.settings, process="cli") as runtime:
        return await work(runtime)


def await_gone(data_dir: Path) -> None:
    """Wait until nothing of the embedded servers is left, or it is clear that somebody else holds them.

    The keeper outlives both servers, and holds its lock as long as it lives; its socket goes when it leaves.
    """
    path = data_dir / "keeper.lock"
    start = time.monotonic()
    while path.exists() and _locked(path):
        waited_s = time.monotonic() - start
        serves = (data_dir / "run" / "keeper.sock").exists()
        if waited_s > GONE_WITHIN_S or (serves and waited_s > LINGER_S + 1):
            return
        time.sleep(0.05)


def _locked(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
