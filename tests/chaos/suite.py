"""The chaos suite: a real stack under load while its parts are killed, frozen, flushed and restarted.

`run_chaos` starts embedded servers of its own, one web process, two worker processes and an HTTP provider
that counts its calls; lets runs and decisions come in while a schedule drawn from a seed breaks things;
waits until every run is final; and holds the database, the provider's books and the client's memory against
each other. `python -m tests.chaos.suite --runs 2000` is the long run.
"""

import argparse
import asyncio
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import orjson
import redis.asyncio
import rfc8785

from service.cli.processes import Child
from service.domain.event import lengthened, rfc3339
from service.embedded import Servers, lease
from service.store.migrate import migrate
from tests.conftest import WEB, WORKER, _response, base_env, free_port, http_tool, run_body

LEASE_S = 4.0
SWEEP_S = 1.0
PAUSE_S = (1.2, 2.4)  # between two faults: the next one often meets the repair of the last
CALL_S = (0.05, 0.4)
FROZEN_LIMIT_MS = round((LEASE_S + SWEEP_S + 1) * 1000)
FINAL = ("completed", "failed", "cancelled")
WITH_PID = 'DATABASE_URL="$DATABASE_URL&chaos.pid=$$" exec "$@"'

# Every connection of a worker says which process it is. Whoever writes to a run that another process holds,
# without taking it over under a new token, is a zombie.
AUDIT = """
create table chaos_audit (
    zombie boolean, run_id uuid, writer text, holder text, token bigint, at timestamptz default clock_timestamp());
create function chaos_look() returns trigger language plpgsql security definer as $$
declare writer text := current_setting('chaos.pid', true);
begin
    if new.fencing_token < old.fencing_token or (coalesce(writer, '') <> '' and old.lease_until is not null
        and split_part(old.worker_id, ':', 2) <> writer) then
        insert into chaos_audit
        values (new.fencing_token <= old.fencing_token, old.id, writer, old.worker_id, old.fencing_token);
    end if;
    return new;
end $$;
create trigger chaos_audit before update on runs for each row execute function chaos_look();
"""


@dataclass
class Report:
    """What was asked, what was broken, what was found; `problems` is empty when every promise was kept."""

    seed: int
    runs: int = 0
    took_s: float = 0
    faults: dict[str, int] = field(default_factory=dict)
    timeline: list[tuple[float, str]] = field(default_factory=list)
    finished: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    started_twice: int = 0
    provider_calls: int = 0
    calls_per_key: dict[int, int] = field(default_factory=dict)
    max_effects_per_key: int = 0
    max_effects_per_run: int = 0
    max_keys_per_run: int = 0
    bodies_changed: int = 0
    payload_not_approved: int = 0
    outcome_unknown: int = 0
    approvals: int = 0
    contested: int = 0
    approvals_without_one_winner: int = 0
    approvals_won_twice_at_client: int = 0
    won_at_client_not_in_table: int = 0
    events: int = 0
    seq_gaps_or_repeats: int = 0
    broken_chains: int = 0
    zombie_writes: int = 0
    take_overs_seen: int = 0
    calls_without_intent: int = 0
    calls_repeated_without_take_over: int = 0
    steps_done_twice: int = 0
    events_after_end: int = 0
    recovered: dict[str, int] = field(default_factory=dict)
    longest_stand_still_ms: int = 0
    longest_stand_still_with_postgres_ms: int = 0
    postgres_away: list[tuple[float, float]] = field(default_factory=list)
    longest_gap_ms: int = 0
    longest_gap_before: str = ""
    client_retries: dict[str, int] = field(default_factory=dict)
    unexpected_answers: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def table(self) -> str:
        """The report as a Markdown table."""
        rows: list[tuple[str, Any]] = [
            ("runs started", self.runs),
            ("finished", _counts(self.finished)),
            ("**lost** (not final, or unknown)", self.lost),
            ("started twice by a repeated request", self.started_twice),
            ("faults", _counts(self.faults)),
            ("provider calls", self.provider_calls),
            ("keys by number of calls", ", ".join(f"{n}: {k}" for n, k in self.calls_per_key.items())),
            ("**effects per idempotency key**, most", self.max_effects_per_key),
            ("effects per run, most", self.max_effects_per_run),
            ("idempotency keys per run, most", self.max_keys_per_run),
            ("keys whose body changed between calls", self.bodies_changed),
            ("sent payload is not the approved one", self.payload_not_approved),
            ("approvals for provider.outcome_unknown", self.outcome_unknown),
            ("approvals decided", self.approvals),
            ("... by two actors at once", self.contested),
            ("**approvals without exactly one winner**", self.approvals_without_one_winner),
            ("approvals that two clients were told to have won", self.approvals_won_twice_at_client),
            ("decisions answered 200 that the table lacks", self.won_at_client_not_in_table),
            ("events", self.events),
            ("**runs with gaps or repeats in seq**", self.seq_gaps_or_repeats),
            ("runs with a broken hash chain", self.broken_chains),
            ("**writes by a zombie**", self.zombie_writes),
            ("writes to another process's run that took it over", self.take_overs_seen),
            ("provider calls without an intent", self.calls_without_intent),
            ("provider calls repeated though nobody took the run over", self.calls_repeated_without_take_over),
            ("steps completed twice", self.steps_done_twice),
            ("runs with events after their end", self.events_after_end),
            ("taken over from workers", _counts(self.recovered)),
            ("longest stand-still (`run.recovered`)", f"{self.longest_stand_still_ms} ms"),
            ("... less the time in which Postgres was away", f"{self.longest_stand_still_with_postgres_ms} ms"),
            ("longest time that Postgres was away", f"{max((b - a for a, b in self.postgres_away), default=0):.1f} s"),
            ("longest pause between two events of a run, without waits for a human",
             f"{self.longest_gap_ms} ms before {self.longest_gap_before}"),
            ("requests repeated by clients", _counts(self.client_retries)),
            ("answers that no client should get", _counts(self.unexpected_answers)),
            ("took", f"{self.took_s:.0f} s"),
            ("verdict", "; ".join(self.problems) or "every promise kept"),
        ]  # fmt: skip
        return "\n".join(["| what | found |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])

    def write(self, folder: Path) -> None:
        (folder / "report.json").write_text(json.dumps(asdict(self), indent=2) + "\n")
        (folder / "report.md").write_text(self.table() + "\n")


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(found.items())) or "none"


# --- the provider -------------------------------------------------------------------------------------------


@dataclass
class CountingProvider:
    """Honours idempotency keys: one effect for each, the stored answer for a repeat. Keeps the books."""

    rng: random.Random
    url: str = ""
    calls: Counter[str] = field(default_factory=Counter)
    effects: Counter[str] = field(default_factory=Counter)
    bodies: dict[str, set[str]] = field(default_factory=dict)
    sent: dict[str, bytes] = field(default_factory=dict)
    keys_of_run: dict[str, set[str]] = field(default_factory=dict)
    told_sha: dict[str, set[str]] = field(default_factory=dict)
    _answers: dict[str, "asyncio.Task[Any]"] = field(default_factory=dict)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            key, run_id = headers["idempotency-key"], headers["x-hitl-run-id"]
            self.calls[key] += 1
            self.bodies.setdefault(key, set()).add(hashlib.sha256(body).hexdigest())
            self.told_sha.setdefault(key, set()).add(headers["x-hitl-payload-sha256"])
            self.keys_of_run.setdefault(run_id, set()).add(key)
            self.sent[run_id] = body
            if key not in self._answers:
                self._answers[key] = asyncio.create_task(self._work(key))
            answer = await asyncio.shield(self._answers[key])
            writer.write(_response(200, answer))
            await writer.drain()
        writer.close()

    async def _work(self, key: str) -> Any:
        self.effects[key] += 1
        await asyncio.sleep(self.rng.uniform(*CALL_S))
        return {"made": key, "effects": self.effects[key]}


# --- the stack ----------------------------------------------------------------------------------------------


@dataclass
class Stack:
    """Our processes, kept alive, and the servers below them."""

    data: Path
    folder: Path
    servers: Servers
    url: str
    children: dict[str, Child]
    stopping: bool = False

    def signal(self, name: str, number: signal.Signals) -> None:
        process = self.children[name].process
        assert process is not None
        process.send_signal(number)

    async def keep_alive(self, child: Child) -> None:
        """Started again at once, whatever it died of."""
        while not self.stopping:
            assert child.process is not None
            if child.process.poll() is not None:
                child.start()
            await asyncio.sleep(0.02)

    async def pids(self) -> Servers:
        return await asyncio.to_thread(_look, self.data)


def _look(data: Path) -> Servers:
    with lease(data) as found:
        return found


@asynccontextmanager
async def stack(folder: Path) -> AsyncIterator[Stack]:
    data = folder / "data"
    with lease(data) as servers:
        await migrate(servers.database_url)
        admin = await asyncpg.connect(servers.database_url)
        await admin.execute(AUDIT)
        await admin.close()
        port = free_port()
        env = base_env(
            servers,
            HITL_PORT=str(port),
            HITL_LEASE_SECONDS=f"{LEASE_S:g}",
            HITL_SWEEP_SECONDS=f"{SWEEP_S:g}",
        )
        env.pop("PYTEST_CURRENT_TEST", None)
        commands = {
            "web": [sys.executable, "-m", *WEB, "--port", str(port)],
            "worker-a": ["/bin/sh", "-c", WITH_PID, "sh", sys.executable, "-m", *WORKER],
            "worker-b": ["/bin/sh", "-c", WITH_PID, "sh", sys.executable, "-m", *WORKER],
        }
        children: dict[str, Child] = {}
        logs: list[int] = []
        for name, command in commands.items():
            logs.append(os.open(folder / f"{name}.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
            children[name] = Child(name, command, env=env, output=logs[-1])
        found = Stack(data, folder, servers, f"http://127.0.0.1:{port}", children)
        for child in children.values():
            child.start()
        keepers = [asyncio.create_task(found.keep_alive(child)) for child in children.values()]
        try:
            yield found
        finally:
            found.stopping = True
            await asyncio.gather(*keepers)
            for name in children:
                with suppress(ProcessLookupError):
                    found.signal(name, signal.SIGCONT)
            await asyncio.gather(*(child.stop(8) for child in children.values()))
            for log in logs:
                os.close(log)


# --- the load -----------------------------------------------------------------------------------------------


@dataclass
class Clients:
    """Those who start runs and those who decide; what they were told."""

    http: httpx2.AsyncClient
    rng: random.Random
    report: Report
    provider_url: str
    retries: Counter[str] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)
    started: dict[str, bool] = field(default_factory=dict)  # run id: a human is asked
    answers: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # approval id: actor, prompt that won
    contested: set[str] = field(default_factory=set)
    deciding: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    async def send(self, method: str, path: str, **more: Any) -> httpx2.Response:
        """One request until it is answered: what may be down is asked again."""
        delay_s = 0.05
        while True:
            try:
                answer = await self.http.request(method, path, **more)
                if answer.status_code < 500:
                    return answer
                if answer.status_code == 503:
                    self.retries["503"] += 1
                    if "retry-after" not in answer.headers:
                        self.unexpected["503 without Retry-After"] += 1
                else:
                    self.unexpected[f"{method} {answer.status_code}"] += 1
            except httpx2.TransportError as error:
                self.retries[type(error).__name__] += 1
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, 1)

    async def start(self, number: int) -> None:
        human = number % 2 == 0
        hitl = {"policy": "require_human", "allowed_steps": ["payload_review"]} if human else {"policy": "auto"}
        body = run_body(http_tool(self.provider_url), prompt=f"picture {number}", **hitl)
        headers = {"Idempotency-Key": f"chaos-{number}", "X-HITL-Actor": "sam"}
        answer = await self.send("POST", "/hitl/run", json=body, headers=headers)
        if answer.status_code == 202:
            self.started[answer.json()["run_id"]] = human
        else:
            self.unexpected[f"start {answer.status_code} {answer.json().get('code')}"] += 1

    async def inbox(self) -> None:
        while True:
            answer = await self.send("GET", "/hitl/approvals/pending", params={"limit": 200})
            for approval in answer.json()["approvals"]:
                if approval["approval_id"] not in self.deciding:
                    self.deciding.add(approval["approval_id"])
                    self.spawn(self.decide(approval))
            await asyncio.sleep(0.2)

    def spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def decide(self, approval: dict[str, Any]) -> None:
        approval_id = approval["approval_id"]
        if "provider.outcome_unknown" in approval["reasons"]:
            self.unknown.add(approval_id)
            await self.answer(approval_id, "ann", {"action": "retry"})
            return
        await asyncio.sleep(self.rng.uniform(0, 1.5))
        sha = approval["payload_sha256"]
        approve = {"action": "approve", "payload_sha256": sha}
        edit = {"action": "edit", "payload_sha256": sha, "edits": {"prompt": _edited(approval_id)}}
        mine = edit if self.rng.random() < 0.4 else approve
        if self.rng.random() < 0.4:
            self.contested.add(approval_id)
            other = mine if self.rng.random() < 0.5 else (approve if mine is edit else edit)
            await asyncio.gather(self.answer(approval_id, "ann", mine), self.answer(approval_id, "bob", other))
        else:
            await self.answer(approval_id, "ann", mine)

    async def answer(self, approval_id: str, actor: str, body: dict[str, Any]) -> None:
        answer = await self.send(
            "POST", f"/hitl/approvals/{approval_id}/decision", json=body, headers={"X-HITL-Actor": actor}
        )
        code = answer.json().get("code")
        if answer.status_code == 200:
            replayed = answer.headers.get("idempotent-replayed") == "true"
            won = self.answers.setdefault(approval_id, [])
            if not (replayed and any(who == actor for who, _ in won)):
                won.append((actor, body["action"]))
        elif code not in ("approval_already_decided",):
            self.unexpected[f"decision {answer.status_code} {code}"] += 1


def _edited(approval_id: str) -> str:
    """A prompt that tells which approval wrote it; in letters, since digits may look like a phone number."""
    return "edited " + approval_id.translate(str.maketrans("0123456789-", "ghijklmnopq"))


# --- the faults ---------------------------------------------------------------------------------------------


@dataclass
class Faults:
    stack: Stack
    rng: random.Random
    report: Report
    began: float
    watching: list["asyncio.Task[None]"] = field(default_factory=list)

    def note(self, name: str, where: str = "") -> None:
        self.report.faults[name] = self.report.faults.get(name, 0) + 1
        self.report.timeline.append((round(time.monotonic() - self.began, 2), f"{name} {where}".strip()))

    async def kill_worker(self) -> None:
        await self.at_work("worker-a")
        self.note("kill worker", "worker-a")
        self.stack.signal("worker-a", signal.SIGKILL)

    async def term_worker(self) -> None:
        await self.at_work("worker-b")
        self.note("SIGTERM worker", "worker-b")
        self.stack.signal("worker-b", signal.SIGTERM)

    async def freeze_worker(self) -> None:
        name = self.rng.choice(["worker-a", "worker-b"])
        await self.at_work(name)
        self.note("freeze worker", name)
        self.stack.signal(name, signal.SIGSTOP)
        await asyncio.sleep(LEASE_S + 2)
        self.stack.signal(name, signal.SIGCONT)

    async def at_work(self, name: str) -> None:
        """Until this worker holds a run, so that the fault meets one; not for ever, since the load may be over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                while not await self.holds(name):
                    await asyncio.sleep(0.01)

    async def holds(self, name: str) -> bool:
        process = self.stack.children[name].process
        assert process is not None
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            conn = await asyncpg.connect(self.stack.servers.database_url, timeout=5)
            try:
                query = "select exists (select from runs where split_part(worker_id, ':', 2) = $1)"
                return bool(await conn.fetchval(query, str(process.pid)))
            finally:
                conn.terminate()
        return False

    async def kill_web(self) -> None:
        self.note("kill web")
        self.stack.signal("web", signal.SIGKILL)

    async def restart_all(self) -> None:
        """What a deploy does: each process is asked to stop, one after another, and comes back."""
        self.note("rolling restart")
        for name, child in self.stack.children.items():
            before = child.process
            assert before is not None
            self.stack.signal(name, signal.SIGTERM)
            while child.process is before:
                await asyncio.sleep(0.02)

    async def flush(self) -> None:
        self.note("FLUSHALL")
        async with redis.asyncio.Redis.from_url(self.stack.servers.redis_url) as conn:
            await conn.flushall()

    async def restart_valkey(self) -> None:
        self.note("kill Valkey")
        os.kill((await self.stack.pids()).valkey_pid, signal.SIGKILL)

    async def restart_valkey_empty(self) -> None:
        pid = (await self.stack.pids()).valkey_pid
        self.note("FLUSHALL and kill Valkey")
        async with redis.asyncio.Redis.from_url(self.stack.servers.redis_url) as conn:
            await conn.flushall()
        os.kill(pid, signal.SIGKILL)

    async def kill_postgres(self) -> None:
        await self.end_postgres("kill Postgres", signal.SIGKILL)

    async def stop_postgres(self) -> None:
        await self.end_postgres("stop Postgres", signal.SIGINT)  # its fast shutdown

    async def end_postgres(self, name: str, number: signal.Signals) -> None:
        pid = (await self.stack.pids()).postgres_pid
        self.note(name)
        os.kill(pid, number)
        self.watching.append(asyncio.create_task(self.until_postgres_is_back(time.time())))

    async def until_postgres_is_back(self, killed_at: float) -> None:
        """Nothing can move meanwhile: the time is told apart from what the service stood still for itself."""
        while True:
            await asyncio.sleep(0.02)
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                conn = await asyncpg.connect(self.stack.servers.database_url, timeout=5)
                self.report.postgres_away.append((killed_at, time.time()))
                await conn.close()
                return

    async def go(self, until: float) -> None:
        """Every fault once in an order of the seed's, round after round; the first round is always whole."""
        kinds: list[Callable[[], Awaitable[None]]] = [
            self.kill_worker, self.term_worker, self.freeze_worker, self.kill_web, self.restart_all, self.flush,
            self.restart_valkey, self.restart_valkey_empty, self.kill_postgres, self.stop_postgres,
        ]  # fmt: skip
        first = True
        while first or time.monotonic() < until:
            self.rng.shuffle(kinds)
            for kind in kinds:
                if not first and time.monotonic() >= until:
                    break
                await asyncio.sleep(self.rng.uniform(*PAUSE_S))
                await kind()
            first = False


# --- the whole ----------------------------------------------------------------------------------------------


async def run_chaos(runs: int, seconds: float, folder: Path, seed: int, *, timed: bool = True) -> Report:
    """`runs` runs started over `seconds`, with faults all the while; the report, also written to `folder`.

    `timed`: a run that stood still for too long is a problem; not on a machine that is busy with other tests.
    """
    os.makedirs(folder, exist_ok=True)
    report = Report(seed=seed, runs=runs)
    began = time.monotonic()
    provider = CountingProvider(random.Random(f"{seed} provider"))
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0, backlog=500)
    provider.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/predict"
    limits = httpx2.Limits(max_connections=100)
    try:
        async with stack(folder) as found, httpx2.AsyncClient(
            base_url=found.url, timeout=20, limits=limits, trust_env=False
        ) as http:  # fmt: skip
            clients = Clients(http, random.Random(f"{seed} clients"), report, provider.url)
            await clients.send("GET", "/readyz")
            clients.retries.clear()
            load_began = time.monotonic()
            inbox = asyncio.create_task(clients.inbox())
            faults = Faults(found, random.Random(f"{seed} faults"), report, load_began)
            breaking = asyncio.create_task(faults.go(load_began + seconds))
            for number in range(runs):
                await asyncio.sleep(max(0, load_began + number * seconds / runs - time.monotonic()))
                clients.spawn(clients.start(number))
            await breaking
            await asyncio.gather(*faults.watching)
            await _until_final(found, clients, runs, limit_s=20 + runs / 20)
            inbox.cancel()
            with suppress(asyncio.CancelledError):
                await inbox
            for task in list(clients.tasks):
                task.cancel()
            report.took_s = round(time.monotonic() - began, 1)
            await _check(report, found.servers, provider, clients)
            if timed:
                _judge_time(report)
    finally:
        server.close()
    report.write(folder)
    return report


async def _until_final(found: Stack, clients: Clients, runs: int, *, limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            conn = await asyncpg.connect(found.servers.database_url, timeout=5)
            try:
                final = await conn.fetchval("select count(*) from runs where status = any($1)", list(FINAL))
            finally:
                await conn.close()
            if final >= runs and not clients.tasks:
                return
        await asyncio.sleep(0.2)


async def _check(report: Report, servers: Servers, provider: CountingProvider, clients: Clients) -> None:
    conn = await asyncpg.connect(servers.database_url)
    try:
        rows = {str(row["id"]): row for row in await conn.fetch("select * from runs")}
        approvals = {str(row["id"]): row for row in await conn.fetch("select * from approvals")}
        decisions = await conn.fetch("select * from decisions order by approval_id, n")
        events = await conn.fetch("select * from events order by run_id, seq")
        audit = await conn.fetch("select * from chaos_audit order by at")
    finally:
        await conn.close()
    _check_runs(report, rows, clients)
    _check_provider(report, rows, approvals, provider)
    _check_decisions(report, approvals, decisions, rows, provider, clients)
    _check_events(report, rows, events, provider)
    report.client_retries, report.unexpected_answers = dict(clients.retries), dict(clients.unexpected)
    zombies = [str(dict(row)) for row in audit if row["zombie"]]
    report.zombie_writes, report.take_overs_seen = len(zombies), len(audit) - len(zombies)
    _judge(report, zombies[:5])


def _check_runs(report: Report, rows: dict[str, Any], clients: Clients) -> None:
    report.finished = dict(Counter(row["status"] for row in rows.values()))
    known = {run_id for run_id, row in rows.items() if row["status"] in FINAL}
    report.lost = max(report.runs - len(known), len(set(clients.started) - known))
    report.started_twice = len(rows) - len(clients.started)
    for run_id, row in rows.items():
        if row["status"] not in FINAL:
            about = f"at {row['step']} token {row['fencing_token']} due {row['due_at']} lease {row['lease_until']}"
            report.problems.append(f"run {run_id} is {row['status']} {about}")
        elif row["status"] != "completed":
            report.problems.append(f"run {run_id} {row['status']}: {row['error']}")


def _check_provider(
    report: Report, rows: dict[str, Any], approvals: dict[str, Any], provider: CountingProvider
) -> None:
    asked_again = {
        str(row["run_id"]) for row in approvals.values() if "provider.outcome_unknown" in row["reasons"]
    }  # fmt: skip
    report.outcome_unknown = len(asked_again)
    report.provider_calls = provider.calls.total()
    report.calls_per_key = dict(sorted(Counter(provider.calls.values()).items()))
    report.max_effects_per_key = max(provider.effects.values(), default=0)
    keys = {run_id: found for run_id, found in provider.keys_of_run.items() if run_id not in asked_again}
    report.max_keys_per_run = max(map(len, keys.values()), default=0)
    report.max_effects_per_run = max(
        (sum(provider.effects[key] for key in found) for found in keys.values()), default=0
    )
    report.bodies_changed = sum(len(found) > 1 for found in provider.bodies.values())
    for run_id, row in rows.items():
        found = provider.keys_of_run.get(run_id, set())
        if row["status"] == "completed" and not found:
            report.problems.append(f"run {run_id} completed without a provider call")
        for key in found:
            if provider.bodies[key] != {row["payload_sha256"]} or provider.told_sha[key] != {row["payload_sha256"]}:
                report.payload_not_approved += 1


def _check_decisions(
    report: Report,
    approvals: dict[str, Any],
    decisions: list[Any],
    rows: dict[str, Any],
    provider: CountingProvider,
    clients: Clients,
) -> None:
    by_approval: dict[str, list[Any]] = {}
    for row in decisions:
        by_approval.setdefault(str(row["approval_id"]), []).append(row)
    report.approvals = sum(row["status"] != "pending" for row in approvals.values())
    report.contested = len(clients.contested)
    told = clients.answers
    report.approvals_won_twice_at_client = sum(len(won) > 1 for won in told.values())
    for approval_id, won in told.items():
        stored = {(row["actor"].removeprefix("user:"), row["action"]) for row in by_approval.get(approval_id, [])}
        report.won_at_client_not_in_table += not stored.issuperset(won)
    for approval_id, row in approvals.items():
        winners = by_approval.get(approval_id, [])
        status = {"approve": "approved", "edit": "edited", "retry": "retried"}
        if row["status"] != "pending" and (len(winners) != 1 or status.get(winners[0]["action"]) != row["status"]):
            report.approvals_without_one_winner += 1
            continue
        if row["checkpoint_type"] != "payload_review" or not winners:
            continue
        run_id = str(row["run_id"])
        if (sent := provider.sent.get(run_id)) is None:
            continue
        edited = orjson.loads(sent).get("prompt") == _edited(approval_id)
        wanted = (winners[0]["payload_sha256"], winners[0]["action"] == "edit")
        if wanted != (hashlib.sha256(sent).hexdigest(), edited):
            report.payload_not_approved += 1
            report.problems.append(f"run {run_id}: sent is not what approval {approval_id} let through")
    asked = {str(row["run_id"]) for row in approvals.values() if row["checkpoint_type"] == "payload_review"}
    for run_id, human in clients.started.items():
        if run_id in rows and human != (run_id in asked) and rows[run_id]["status"] == "completed":
            report.problems.append(f"run {run_id}: a human was {'not ' * human}asked")


def _check_events(report: Report, rows: dict[str, Any], events: list[Any], provider: CountingProvider) -> None:
    report.events = len(events)
    by_run: dict[str, list[Any]] = {}
    for row in events:
        by_run.setdefault(str(row["run_id"]), []).append(row)
    recovered: Counter[str] = Counter()
    for run_id, run in rows.items():
        found = by_run.get(run_id, [])
        seqs = [row["seq"] for row in found]
        if seqs != list(range(1, run["event_seq"] + 1)):
            report.seq_gaps_or_repeats += 1
        report.broken_chains += not _chained(found, run["event_hash"])
        types = [row["type"] for row in found]
        ends = [n for n, kind in enumerate(types) if kind in ("run.completed", "run.failed", "run.cancelled")]
        if run["status"] in FINAL and ends != [len(types) - 1]:
            report.events_after_end += 1
        done = Counter(json.loads(row["data"])["step"] for row in found if row["type"] == "step.completed")
        calls = Counter(json.loads(row["data"])["call"] for row in found if row["type"] == "provider.completed")
        report.steps_done_twice += sum(n > 1 for n in (*done.values(), *calls.values()))
        for row in found:
            if row["type"] == "run.recovered":
                data = json.loads(row["data"])
                recovered[data["cause"]] += 1
                own_ms = data["stood_still_ms"] - _away_ms(report, row["at"].timestamp(), data["stood_still_ms"])
                report.longest_stand_still_with_postgres_ms = max(report.longest_stand_still_with_postgres_ms, own_ms)
                report.longest_stand_still_ms = max(report.longest_stand_still_ms, data["stood_still_ms"])
        made = sum(provider.calls[key] for key in provider.keys_of_run.get(run_id, ()))
        report.calls_without_intent += max(0, made - types.count("provider.submitted"))
        report.calls_repeated_without_take_over += made > 1 and "run.recovered" not in types
        for before, row in pairwise(found):
            gap_ms = round((row["at"] - before["at"]).total_seconds() * 1000)
            if before["type"] != "approval.requested" and gap_ms > report.longest_gap_ms:
                report.longest_gap_ms, report.longest_gap_before = gap_ms, row["type"]
    report.recovered = dict(recovered)


def _away_ms(report: Report, end: float, length_ms: int) -> int:
    """For how much of the time that ended then Postgres was away."""
    start, away_s = end - length_ms / 1000, 0.0
    for gone, back in sorted(report.postgres_away):
        gone, back = max(gone, start), min(back, end)
        if back > gone:
            away_s, start = away_s + back - gone, back  # from there on: two outages may overlap
    return round(1000 * away_s)


def _chained(found: list[Any], last: str) -> bool:
    previous = ""
    for row in found:
        body = {
            "run_id": str(row["run_id"]), "seq": row["seq"], "type": row["type"], "at": rfc3339(row["at"]),
            "actor": row["actor"], "data": lengthened(json.loads(row["data"]), row["stands"]), "prev_hash": previous,
        }  # fmt: skip
        expected = hashlib.sha256(previous.encode() + rfc8785.dumps(body)).hexdigest()
        if row["digest"].hex() != expected:
            return False
        previous = expected
    return previous == last


def _judge(report: Report, zombies: list[str]) -> None:
    must_be_zero = (
        "lost", "started_twice", "bodies_changed", "payload_not_approved", "outcome_unknown",
        "approvals_without_one_winner", "approvals_won_twice_at_client", "won_at_client_not_in_table",
        "seq_gaps_or_repeats", "broken_chains", "zombie_writes", "calls_without_intent",
        "calls_repeated_without_take_over",
        "steps_done_twice", "events_after_end",
    )  # fmt: skip
    report.problems += [f"{name} is {getattr(report, name)}" for name in must_be_zero if getattr(report, name)]
    at_most_one = ("max_effects_per_key", "max_effects_per_run", "max_keys_per_run")
    report.problems += [f"{name} is {getattr(report, name)}" for name in at_most_one if getattr(report, name) > 1]
    report.problems += [f"unexpected answer: {name} ({n})" for name, n in report.unexpected_answers.items()]
    report.problems += [f"zombie: {line}" for line in zombies]
    if report.recovered and not report.take_overs_seen:
        report.problems.append("the audit of writes does not work: it saw no take-over")


def _judge_time(report: Report) -> None:
    if (stood_ms := report.longest_stand_still_with_postgres_ms) > FROZEN_LIMIT_MS:
        report.problems.append(f"a run stood still for {stood_ms} ms, Postgres being there (limit {FROZEN_LIMIT_MS})")


def main() -> int:
    parser = argparse.ArgumentParser(description="Break a real stack under load and see what is left.")
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seconds", type=float, help="how long runs come in and things break (default: runs / 8)")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    parser.add_argument("--folder", type=Path, help="where reports and logs go (default: a temporary folder)")
    given = parser.parse_args()
    folder = (given.folder or Path(tempfile.mkdtemp(prefix="hitl-chaos-"))).resolve()
    print(f"seed {given.seed}, reports and logs in {folder}", flush=True)  # noqa: T201
    report = asyncio.run(run_chaos(given.runs, given.seconds or given.runs / 8, folder, given.seed))
    print(report.table())  # noqa: T201
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
