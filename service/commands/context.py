"""What every use case needs of the outside, and what they share inside a transaction."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import UUID

from service.commands.tenants import Limits
from service.domain import approval as approvals_
from service.domain.approval import Approval
from service.domain.event import EventType, Fact
from service.domain.keyring import Keyring
from service.domain.run import Run, woken
from service.notifier import Notifier
from service.oidc import Issuer
from service.providers.registry import Registry
from service.queue import RunQueue
from service.store import approvals, runs
from service.store.database import Conn, Database


@dataclass(frozen=True, slots=True)
class Services:
    """The outside, as the wiring opened it."""

    db: Database
    queue: RunQueue
    notifier: Notifier
    registry: Registry
    keyring: Keyring
    public_url: str
    horizon_s: float
    issuer: Issuer | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(slots=True)
class After:
    """What is to be done once the transaction is committed."""

    wake: list[Run]
    changed: list[UUID]
    stopped: list[UUID]

    @classmethod
    def nothing(cls) -> "After":
        return cls([], [], [])


async def carry_out(services: Services, after: After) -> None:
    """Wake and notify. Losing any of it is only a delay: the sweep and the slow poll find it."""
    for run in after.wake:
        await services.queue.wake(run)
    for run_id in after.stopped:
        await services.notifier.stop(run_id)
    for subject in dict.fromkeys(after.changed):
        await services.notifier.notify(subject)


async def finish(conn: Conn, run: Run, facts: Sequence[Fact], *, now: datetime, after: After, actor: str) -> Run:
    """Write a run that reached a final status: close its open approvals, let the next in its session go."""
    closed: list[Fact] = []
    for open_approval in await approvals.open_of_run(conn, run.id):
        closed.append(await close_approval(conn, open_approval, now=now, actor=actor))
        after.changed.append(open_approval.id)
    run, _ = await runs.save(conn, run, [*closed, *facts], now=now)
    after.changed.append(run.id)
    if run.session_id is not None:
        await release_next(conn, run.tenant, run.session_id, now=now, after=after)
    return run


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


def queued(run: Run, reason: str = "turn") -> Fact:
    return Fact(EventType.RUN_QUEUED, "system", {"reason": reason, "token": run.fencing_token})


def with_asked(run: Run, checkpoint: str, reasons: Sequence[str]) -> Run:
    """The run that remembers which reasons a human has answered at this checkpoint."""
    before = run.asked.get(checkpoint, [])
    return replace(run, asked={**run.asked, checkpoint: sorted({*before, *reasons})})
