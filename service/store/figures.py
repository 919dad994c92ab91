"""The state of the service in figures, over all tenants: for whoever watches it."""

from dataclasses import dataclass
from datetime import datetime

from service.store.database import Conn


@dataclass(frozen=True, slots=True)
class Figures:
    """Counts, and ages in seconds (0 where there is nothing)."""

    runs: dict[str, int]
    queue_depth: int
    queue_oldest_s: float
    approvals_open: int
    approval_oldest_s: float
    timers_overdue_s: float
    workers: int
    jobs: int
    jobs_max: int
    deliveries_waiting: int
    deliveries_dead: int


async def figures(conn: Conn) -> Figures:
    now: datetime = await conn.fetchval("select now()")
    runs = await conn.fetch(
        """
        select status, count(*) as n, min(due_at) filter (where status = 'queued' and lease_until is null) as oldest,
            count(*) filter (where status = 'queued' and lease_until is null and due_at <= now()) as due
        from runs where status not in ('completed', 'cancelled') group by status
        """
    )
    asked = await conn.fetchrow(
        """
        select count(*) as n, min(created_at) as oldest, min(expires_at) filter (where clock_stopped_at is null) as due
        from approvals where status = 'pending'
        """
    )
    seen = await conn.fetchrow(
        """
        select count(*) as n, coalesce(sum(jobs), 0) as jobs, coalesce(sum(max_jobs), 0) as jobs_max
        from workers where seen_at > now() - interval '60 s'
        """
    )
    messages = await conn.fetchrow(
        """
        select count(*) filter (where status = 'waiting') as waiting, count(*) filter (where status = 'dead') as dead
        from deliveries where status <> 'delivered'
        """
    )
    assert asked is not None and seen is not None and messages is not None

    def age(moment: datetime | None) -> float:
        return max(0.0, (now - moment).total_seconds()) if moment else 0.0

    return Figures(
        runs={row["status"]: row["n"] for row in runs},
        queue_depth=sum(row["due"] for row in runs),
        queue_oldest_s=age(min((row["oldest"] for row in runs if row["oldest"]), default=None)),
        approvals_open=asked["n"],
        approval_oldest_s=age(asked["oldest"]),
        timers_overdue_s=age(asked["due"]),
        workers=seen["n"],
        jobs=seen["jobs"],
        jobs_max=seen["jobs_max"],
        deliveries_waiting=messages["waiting"],
        deliveries_dead=messages["dead"],
    )
