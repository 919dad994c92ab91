"""Use cases of those who look after a tenant's runs: what waits, what stands still, what failed; and what helps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any, Final
from uuid import UUID

from service.commands import webhooks
from service.commands.context import Services
from service.commands.runs import resume_run
from service.domain import stuck
from service.domain.principal import Permission, Principal, demand
from service.domain.run import Run, RunStatus
from service.domain.stuck import Crew, Failures, Stuck, Waiting
from service.store import deliveries, runs, standing, workers
from service.store.database import Conn
from service.store.runs import RunFilter
from service.store.standing import Backlog, Buried

COUNTED: Final = 10_000
"""So far runs and messages are counted; beyond, people are told that there are more."""
AMONG: Final = 1000
SHOWN: Final = 10
EACH: Final = 50
"""As many failed runs of one cause are taken up again at once."""
DUE_FOR: Final = timedelta(seconds=15)
"""After a lease and a few sweeps, whoever should have gone on is not going to by itself."""
LONG: Final = timedelta(hours=1)
AGES: Final = (
    timedelta(minutes=1), timedelta(minutes=10), timedelta(hours=1), timedelta(hours=8), timedelta(days=1),
    timedelta(days=7),
)  # fmt: skip
QUIET: Final = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Deliveries:
    """`figures`: how many wait and how many are dead; `backlog` by kind, of the first that wait."""

    figures: Mapping[str, int]
    backlog: Sequence[Backlog]
    dead: Sequence[Mapping[str, Any]]
    waiting: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Operations:
    """The state of a tenant's runs at `at`; the workers are those of everybody. `ages`: open approvals by `AGES`."""

    at: datetime
    queue: Mapping[str, Any]
    workers: Sequence[Mapping[str, Any]]
    crew: Crew
    stuck: Sequence[Stuck]
    asked: Sequence[Waiting]
    called: Sequence[Waiting]
    ages: Sequence[int]
    failures: Sequence[Failures]
    failed: Sequence[Run]
    deliveries: Deliveries
    dead_jobs: Sequence[Buried]

    @property
    def mark(self) -> str:
        """Changes when a page of it would, but for ages that grow by themselves."""
        told = (
            {name: n for name, n in self.queue.items() if name != "oldest_queued_seconds"},
            [(w["id"], w["jobs"], w["max_jobs"], (self.at - w["seen_at"]) // QUIET) for w in self.workers],
            [(one.run_id, one.approval_id, one.reason) for one in self.stuck],
            [one.id for one in (*self.asked, *self.called)],
            self.ages, self.failures, [(run.id, run.version) for run in self.failed], self.deliveries,
            [job.job_id for job in self.dead_jobs], self.crew.redis, self.at.timestamp() // 60,
        )  # fmt: skip
        return sha256(repr(told).encode()).hexdigest()[:16]


async def look(services: Services, who: Principal) -> Operations:
    """As it is, or was a moment ago: all of a tenant who look share one look."""
    demand(who, Permission.READ)
    return await services.kept.of(_key(who), lambda: _look(services, who.tenant))


async def requeue(services: Services, who: Principal, run_id: UUID) -> Run:
    """Take a failed run up again. Raises `NotFound`, `RunState`."""
    demand(who, Permission.SUBMIT)
    return await _resumed(services, who, run_id, RunStatus.FAILED)


async def resume(services: Services, who: Principal, run_id: UUID) -> Run:
    """Go on with a paused run. Raises `NotFound`, `RunState`."""
    demand(who, Permission.SUBMIT)
    return await _resumed(services, who, run_id, RunStatus.PAUSED)


async def redeliver(services: Services, who: Principal, message_id: UUID) -> None:
    """Send a webhook again. Raises `NotFound`, `ContentErased`."""
    demand(who, Permission.ADMIN)
    await webhooks.redeliver(services, message_id, who.tenant)
    services.kept.drop(_key(who))


async def _resumed(services: Services, who: Principal, run_id: UUID, only: RunStatus) -> Run:
    """Neither does the other's work, should the run have changed since it was shown."""
    run = await resume_run(services, run_id, who, only=only)
    services.kept.drop(_key(who))
    return run


def _key(who: Principal) -> tuple[str, str]:
    return ("operations", who.tenant)


async def _look(services: Services, tenant: str) -> Operations:
    redis = await services.queue.ping()
    async with services.db.connection(tenant) as conn:
        now = services.db.now()
        present = await workers.present(conn)
        crew = Crew(len(present), sum(w["jobs"] for w in present), sum(w["max_jobs"] for w in present), redis)
        return Operations(
            at=now,
            queue=await runs.queue_figures(conn, tenant, at_most=COUNTED),
            workers=present,
            crew=crew,
            stuck=await _stuck(conn, tenant, crew, now),
            asked=await standing.longest_asked(conn, tenant, limit=SHOWN),
            called=await standing.longest_called(conn, tenant, among=AMONG, limit=SHOWN),
            ages=await standing.by_age(conn, tenant, AGES, at_most=COUNTED),
            failures=await standing.failures(conn, tenant, among=AMONG, each=EACH),
            failed=await runs.page(conn, tenant, RunFilter(statuses=["failed"]), limit=SHOWN),
            deliveries=await _deliveries(conn, tenant),
            dead_jobs=await standing.dead_jobs(conn, tenant, limit=SHOWN),
        )


async def _stuck(conn: Conn, tenant: str, crew: Crew, now: datetime) -> list[Stuck]:
    held = await standing.held_up(conn, tenant, due_for=DUE_FOR, long=LONG, among=AMONG, limit=SHOWN + 1)
    late = await standing.overdue(conn, tenant, for_=DUE_FOR, limit=SHOWN + 1)
    return [
        *(stuck.of_run(one, crew, now) for one in held),
        *(stuck.of_approval(one, crew) for one in late),
    ]


async def _deliveries(conn: Conn, tenant: str) -> Deliveries:
    return Deliveries(
        await deliveries.figures_of(conn, tenant, at_most=COUNTED),
        await standing.backlog(conn, tenant, at_most=AMONG),
        await deliveries.recent(conn, tenant, status="dead", limit=SHOWN),
        await deliveries.recent(conn, tenant, status="waiting", limit=SHOWN),
    )
