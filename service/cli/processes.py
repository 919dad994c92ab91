"""`hitl up`, `hitl web`, `hitl worker`: the processes, and the supervisor that keeps them alive."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import click
import httpx2

from service.cli.embed import Stack, await_gone, migration_url, stack
from service.embedded import die_with as die_with
from service.settings import Settings
from service.store.migrate import migrate

BACKOFF_S: Final = 0.5
BACKOFF_MAX_S: Final = 10.0
CALM_S: Final = 10.0  # a process that lived this long has earned a fresh backoff
LOOK_S: Final = 0.1
RELOAD_GRACE_S: Final = 3.0
PACKAGE: Final = Path(__file__).resolve().parents[1]


def web_command(settings: Settings) -> list[str]:
    return [
        *(sys.executable, "-P", "-m", "uvicorn", "--factory", "service.app:create_app"),
        *("--app-dir", str(PACKAGE.parent)),  # else the working directory, and whatever lies there, comes first
        *("--host", settings.hitl_host, "--port", str(settings.hitl_port)),
        *("--no-access-log", "--log-level", "warning"),
        # longer than balancers keep an idle connection: who closes first while the other sends loses a request
        *("--timeout-keep-alive", "75"),
        *("--timeout-graceful-shutdown", "10", "--ws", "websockets-sansio"),
    ]


def worker_command() -> list[str]:
    return [
        *(sys.executable, "-P", "-m", "arq", "worker_settings.WorkerSettings"),
        *("--custom-log-dict", "service.logs.ARQ_LOG_CONFIG"),
    ]


# --- one child ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Child:
    """One process, in a session of its own: a Ctrl-C in the terminal reaches only us, and we decide."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    output: int | None = None
    cwd: Path | None = None
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        parent_pid = os.getpid()
        self.process = subprocess.Popen(  # noqa: S603 - the commands above
            self.command,
            env=self.env,
            cwd=self.cwd,
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=self.output,
            start_new_session=True,
            preexec_fn=lambda: die_with(parent_pid, signal.SIGKILL),  # noqa: PLW1509 - no thread of ours runs
        )

    async def ended(self) -> int:
        """Wait for its exit status; below zero is the signal that killed it."""
        assert self.process is not None
        while (status := self.process.poll()) is None:
            await asyncio.sleep(LOOK_S)
        return status

    async def stop(self, grace_s: float) -> int:
        """SIGTERM, then SIGKILL to the whole group once the grace is over."""
        assert self.process is not None
        try:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(grace_s):
                return await self.ended()
        except TimeoutError:
            say(f"{self.name} did not stop within {grace_s:g} s and is killed")
        finally:
            with suppress(ProcessLookupError, PermissionError):  # what is left of its group
                os.killpg(self.process.pid, signal.SIGKILL)
        return await self.ended()


def say(line: str) -> None:
    click.echo(f"hitl: {line}", err=True)


# --- the supervisor -----------------------------------------------------------------------------------------


@asynccontextmanager
async def kept_alive(children: Sequence[Child], *, grace_s: float) -> AsyncIterator[None]:
    """The children run during the block and are started again when they die; after it none is left."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_keep_alive(child, grace_s)) for child in children]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def _keep_alive(child: Child, grace_s: float) -> NoReturn:
    delay_s = BACKOFF_S
    while True:
        started = time.monotonic()
        child.start()
        try:
            status = await child.ended()
        finally:
            await child.stop(grace_s)
        if time.monotonic() - started > CALM_S:
            delay_s = BACKOFF_S
        say(f"{child.name} ended with {_status(status)}, it starts again in {delay_s:g} s")
        await asyncio.sleep(delay_s)
        delay_s = min(delay_s * 2, BACKOFF_MAX_S)


def _status(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"status {status}"


async def first(*works: Awaitable[Any]) -> None:
    """Wait for one of these; the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until_ready(base_url: str) -> None:
    """Wait until `/readyz` answers 200."""
    async with httpx2.AsyncClient(base_url=base_url, timeout=5, trust_env=False) as client:
        while True:
            with suppress(httpx2.HTTPError):
                if (await client.get("/readyz")).status_code == 200:
                    return
            await asyncio.sleep(LOOK_S)


async def source_changed() -> None:
    """Wait until a Python file of the package changes."""
    before = _sources()
    while _sources() == before:
        await asyncio.sleep(1)


def _sources() -> dict[Path, int]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        with suppress(FileNotFoundError):
            found[path] = path.stat().st_mtime_ns
    return found


# --- addresses ----------------------------------------------------------------------------------------------


@contextmanager
def reserved(host: str, port: int) -> Iterator[int]:
    """A port that is free, for `port` 0 any; bound during the block so that nobody is given it by chance."""
    with _bound(host, port) as holder:
        free: int = holder.getsockname()[1]
        if sys.platform != "linux":  # there, the listener could not bind beside us
            holder.close()
        yield free


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        holder = socket.socket(family, kind)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(where)
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return holder


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def address(settings: Settings) -> str:
    return f"http://{_bracketed(settings.hitl_host)}:{settings.hitl_port}"


def reachable(settings: Settings) -> str:
    """The listener as this machine calls it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.hitl_host, settings.hitl_host)  # noqa: S104
    return f"http://{_bracketed(host)}:{settings.hitl_port}"


# --- the commands -------------------------------------------------------------------------------------------


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), help="Port of the web listener; 0 picks a free one.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes.")
@click.option("--data-dir", type=click.Path(file_okay=False), help="Where embedded servers keep their data.")
@click.option("--reload", is_flag=True, help="Start again when the code changes.")
def up(port: int | None, workers: int, data_dir: str | None, reload: bool) -> None:
    """Everything on this machine: servers where no URL is set, migrations, web and workers.

    Prints "ready http://HOST:PORT" once it serves. Ctrl-C stops all of it.
    """
    if port is not None:
        os.environ["HITL_PORT"] = str(port)
    if data_dir is not None:
        os.environ["HITL_DATA_DIR"] = data_dir
    for number in (signal.SIGINT, signal.SIGTERM):  # a stop during the start is a stop, too
        signal.signal(number, _leave)
    with stack() as servers, reserved(servers.settings.hitl_host, servers.settings.hitl_port) as free:
        os.environ["HITL_PORT"] = str(free)
        settings = servers.settings.model_copy(update={"hitl_port": free})
        asyncio.run(_up(settings, workers=workers, reload=reload))
    if servers.embedded:
        await_gone(Path(settings.hitl_data_dir))


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


async def _up(settings: Settings, *, workers: int, reload: bool) -> None:
    await migrate(migration_url(settings))
    stop = _stop_event()
    children = [Child("web", web_command(settings))]
    children += [Child(f"worker {n}", worker_command()) for n in range(1, workers + 1)]
    grace_s = RELOAD_GRACE_S if reload else settings.hitl_drain_seconds + 5
    async with asyncio.TaskGroup() as group:
        ready = group.create_task(_announce(settings))
        while not stop.is_set():
            async with kept_alive(children, grace_s=grace_s):
                await first(stop.wait(), *([source_changed()] if reload else []))
        ready.cancel()


async def _announce(settings: Settings) -> None:
    await until_ready(reachable(settings))
    click.echo(f"ready {address(settings)}")


def _stop_event() -> asyncio.Event:
    """Set by SIGINT and SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


@click.command()
def web() -> None:
    """One web process."""
    _one("web", web_command)


@click.command()
def worker() -> None:
    """One worker process."""
    _one("worker", lambda _: worker_command())


def _one(name: str, command: Callable[[Settings], list[str]]) -> None:
    """Become the process; with embedded servers stay, hold the lease, and pass signals on."""
    with stack() as servers:
        line = command(servers.settings)
        if not servers.embedded:
            sys.stdout.flush()
            os.execvp(line[0], line)  # noqa: S606 - one of the two commands above
        if status := asyncio.run(_child(servers, Child(name, line))):
            raise click.ClickException(f"{name} ended with {_status(status)}")


async def _child(servers: Stack, child: Child) -> int:
    await migrate(migration_url(servers.settings))
    stop = _stop_event()
    child.start()
    try:
        await first(stop.wait(), child.ended())
        stopped = stop.is_set()
    finally:
        status = await child.stop(servers.settings.hitl_drain_seconds + 5)
    return 0 if stopped else status
