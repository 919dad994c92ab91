"""What every use case needs of the outside, and what they share inside a transaction."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar
from uuid import UUID

import httpx2

from service import tracing
from service.commands.kept import Kept
from service.commands.recent import Recent
from service.commands.tenants import Limits
from service.domain import approval as approvals_
from service.domain.altered import altered
from service.domain.approval import Approval
from service.domain.event import EventType, Fact
from service.domain.keyring import Keyring
from service.domain.run import Run, RunStatus, ms_between, woken
from service.errors import Unavailable
from service.filestore import FileStore
from service.logs import get_logger
from service.notifier import Notifier
from service.oidc import Issuer
from service.presence import Presence
from service.providers.registry import Registry
from service.queue import RunQueue
from service.sign_on import SignOn
from service.store import approvals, cancels, changes, runs
from service.store.approvals import ToDecide
from service.store.batch import Batch
from service.store.changes import Change, Kind, kind
from service.store.database import Conn, Database, Scope
from service.store.runs import NewRun

T = TypeVar("T")
R = TypeVar("R")

log = get_logger("commands")


class Together:
    """What the process asks of Postgres in company: many of a kind share a trip and a commit."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._writes: Batch[Kind, Change, bool | None] = Batch(
            lambda kind, wanted: changes.write_together(db, kind[0], wanted)
        )
        self._starts: Batch[str, NewRun, Run] = Batch(self._start)
        self._decides: Batch[str, tuple[UUID, str], ToDecide | None] = Batch(self._to_decide)

    async def write(self, change: Change, scope: Scope) -> bool | None:
        """As `changes.write`."""
        return await self._writes.ask(change, key=kind(scope, change))

    async def start(self, new: NewRun, tenant: str) -> Run:
        """As `runs.insert`."""
        return await self._starts.ask(new, key=tenant)

    async def to_decide(self, approval_id: UUID, tenant: str, subject: str) -> ToDecide | None:
        """As `approvals.to_decide`."""
        return await self._decides.ask((approval_id, subject), key=tenant)

    async def _start(self, tenant: str, new: Sequence[NewRun]) -> list[Run]:
        async with (self._db.transaction if self._db.relays else self._db.connection)(tenant) as conn:
            return await runs.insert_all(conn, new)

    async def _to_decide(self, tenant: str, wanted: Sequence[tuple[UUID, str]]) -> list[ToDecide | None]:
        async with self._db.connection(tenant) as conn:
            return await approvals.to_decide(conn, tenant, wanted)


@dataclass(frozen=True, slots=True)
class Services:
    """The outside, as the wiring opened it. `client` reaches only addresses that may be reached."""

    db: Database
    queue: RunQueue
    notifier: Notifier
    presence: Presence
    registry: Registry
    keyring: Keyring
    public_url: str
    horizon_s: float
    files: FileStore
    file_max_bytes: int
    client: httpx2.AsyncClient
    issuer: Issuer | None = None
    sign_on: SignOn | None = None
    limits: Limits = field(default_factory=Limits)
    noted: Recent = field(default_factory=Recent)
    together: "Together" = field(init=False)
    kept: Kept = field(default_factory=Kept)

    def __post_init__(self) -> None:
        object.__setattr__(self, "together", Together(self.db))


@dataclass(slots=True)
class After:
    """What is to be done once the transaction is committed."""

    wake: list[Run]
    changed: list[UUID]
    stopped: list[UUID]
    cancelling: list[UUID] = field(default_factory=list)
    ended: list[tuple[Run, str]] = field(default_factory=list)  # with who ended it

    @classmethod
    def nothing(cls) -> "After":
        return cls([], [], [])

    def waking(self, run: Run) -> "After":
        """With the job of a run that was put down until a moment that is near."""
        if run.armed:
            self.wake.append(run)
        return self


async def carry_out(services: Services, after: After) -> None:
    """Notify and wake, in one trip. Losing any of it is only a delay: the sweep and the slow poll find it."""
    for run, actor in after.ended:
        _log_end(run, actor)
    deliver = services.db.take_filled()
    await services.notifier.notify(*dict.fromkeys(after.changed), stopped=after.stopped, deliver=deliver)
    await services.queue.wake_all(after.wake)
    await each(services.queue.cancel_calls, list(dict.fromkeys(after.cancelling)))


def _log_end(run: Run, actor: str) -> None:
    took_ms = ms_between(run.created_at, run.finished_at) if run.finished_at else None
    log.info(
        "run.finished", run_id=str(run.id), tenant=run.tenant, status=run.status, code=(run.error or {}).get("code"),
        step=run.step, provider=run.provider, actor=actor, queue_ms=run.queue_ms, human_ms=run.human_ms,
        provider_ms=run.provider_ms, duration_ms=took_ms, cost_usd=run.actual_usd,
    )  # fmt: skip


async def each(act: Callable[[T], Awaitable[R]], subjects: Sequence[T], *, at_once: int = 8) -> list[R]:
    """Do one thing to each, a few at once; what came of each, in order. One alone costs no task."""
    if len(subjects) < 2:
        return [await act(subject) for subject in subjects]
    gate = asyncio.Semaphore(at_once)

    async def one(subject: T) -> R:
        async with gate:
            return await act(subject)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(subject)) for subject in subjects]
    return [task.result() for task in tasks]


async def finish(conn: Conn, run: Run, facts: Sequence[Fact], *, now: datetime, after: After, actor: str) -> Run:
    """Write a run that reached a final status: close its open approvals, let the next in its session go,
    and end what it still has going at its provider, unless it may be taken up again."""
    closed = await closed_of(conn, run, now=now, actor=actor, after=after)
    run, _ = await runs.save(conn, run, [*closed, *facts], now=now)
    after.changed.append(run.id)
    after.ended.append((run, actor))
    unwanted = run.status is not RunStatus.COMPLETED and not (run.error or {}).get("recoverable")
    if unwanted and await cancels.add_of_run(conn, run.id):
        after.cancelling.append(run.id)
    if run.session_id is not None:
        await release_next(conn, run.tenant, run.session_id, now=now, after=after)
    return run


async def closed_of(conn: Conn, run: Run, *, now: datetime, actor: str, after: After) -> list[Fact]:
    """Close the open approvals of a run that ends; what there is to tell of it."""
    closed: list[Fact] = []
    for open_approval in await approvals.open_of_run(conn, run.id):
        closed.append(await close_approval(conn, open_approval, now=now, actor=actor))
        after.changed.append(open_approval.id)
    return closed


async def close_approval(conn: Conn, open_approval: Approval, *, now: datetime, actor: str) -> Fact:
    closed = approvals_.cancelled(open_approval, now=now)
    await approvals.save(conn, closed)
    data = {"approval_id": str(closed.id), "checkpoint_type": closed.checkpoint_type, "status": closed.status}
    return Fact(EventType.APPROVAL_DECIDED, actor, data)


async def release_next(conn: Conn, tenant: str, session_id: str, *, now: datetime, after: After) -> None:
    """Make the session's next run due, if it stands first in line now."""
    waiting = await runs.lock_next_in_session(conn, tenant, session_id)
    if waiting is not None:
        ready = woken(waiting, now=now)
        saved, _ = await runs.save(conn, ready, [queued(ready)], now=now)
        after.wake.append(saved)
        after.changed.append(saved.id)


async def next_turn(services: Services, ended: Run, after: After) -> None:
    """`release_next` once the end of a run is committed. With Postgres away the sweep does it."""
    assert ended.session_id is not None
    with suppress(Unavailable):
        async with services.db.transaction(ended.tenant) as conn:
            await release_next(conn, ended.tenant, ended.session_id, now=services.db.now(), after=after)


def queued(run: Run, reason: str = "turn") -> Fact:
    here = tracing.headers()  # for the job that this leads to: its span goes back to ours
    return Fact(EventType.RUN_QUEUED, "system", {"reason": reason, "token": run.fencing_token, **here})


def with_asked(run: Run, checkpoint: str, reasons: Sequence[str]) -> Run:
    """The run that remembers which reasons a human has answered at this checkpoint."""
    before = run.asked.get(checkpoint, [])
    return altered(run, asked={**run.asked, checkpoint: sorted({*before, *reasons})})
