"""Use case of a scrape: the state of the service beside what this process has counted."""

from service import metrics
from service.commands.context import Services
from service.domain.run import RunStatus
from service.errors import Unavailable
from service.store.database import EVERY
from service.store.figures import Figures, figures

_WATCHED = [status for status in RunStatus if status not in (RunStatus.COMPLETED, RunStatus.CANCELLED)]


async def exposition(services: Services) -> bytes:
    """Everything in Prometheus's text format. With Postgres away the figures of state stand as they were,
    and `hitl_dependency_up` says so."""
    metrics.UP.labels("redis").set(await services.queue.ping())
    try:
        async with services.db.connection(EVERY) as conn:
            _set(await figures(conn))
        metrics.UP.labels("postgres").set(1)
    except Unavailable:
        metrics.UP.labels("postgres").set(0)
    return metrics.exposition()


def _set(found: Figures) -> None:
    for status in _WATCHED:
        metrics.RUNS.labels(status).set(found.runs.get(status, 0))
    metrics.QUEUE_DEPTH.set(found.queue_depth)
    metrics.QUEUE_OLDEST.set(found.queue_oldest_s)
    metrics.OPEN.set(found.approvals_open)
    metrics.OPEN_OLDEST.set(found.approval_oldest_s)
    metrics.OVERDUE.set(found.timers_overdue_s)
    metrics.WORKERS.set(found.workers)
    metrics.JOBS_RUNNING.set(found.jobs)
    metrics.JOBS_MAX.set(found.jobs_max)
    metrics.BACKLOG.labels("waiting").set(found.deliveries_waiting)
    metrics.BACKLOG.labels("dead").set(found.deliveries_dead)
