"""Floor 1: what is counted is what is logged. Each line of the log moves the instruments that are named here,
at every log level; figures of state (runs by status, the oldest approval) are read from Postgres at a scrape.

All times in seconds. No label holds a tenant, a person or an id: their number has no bound.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each, that no question asks for
REGISTRY: Final = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

_FAST: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_CALLS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 1800)
_HUMAN: Final = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 86_400, 3 * 86_400, 7 * 86_400)


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(name, text, labels, registry=REGISTRY)


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(name, text, labels, buckets=buckets, registry=REGISTRY)


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(name, text, labels, registry=REGISTRY)


# counted as it happens, in the process where it happens
REQUESTS: Final = _histogram("hitl_http_request_seconds", "Requests answered.", _FAST, "method", "route", "status")
STARTED: Final = _counter("hitl_runs_started", "Runs accepted.", "provider")
FINISHED: Final = _counter("hitl_runs_finished", "Runs that reached a final status.", "status", "code")
ASKED: Final = _counter("hitl_approvals_requested", "Approvals opened, by each of their reasons.", "reason")
DECIDED: Final = _counter("hitl_decisions", "Decisions accepted.", "action", "checkpoint", "channel")
ANSWERED: Final = _counter("hitl_reasons_decided", "Decisions accepted, by each reason to ask.", "action", "reason")
DECISION_WAIT: Final = _histogram("hitl_decision_wait_seconds", "From asked to decided.", _HUMAN, "checkpoint")
EXPIRED: Final = _counter(
    "hitl_approvals_expired", "Approvals whose time ran out, by policy and by what it meant.", "on_timeout", "done"
)
LATENESS: Final = _histogram("hitl_timer_lateness_seconds", "How long after its moment a timer fired.", _FAST)
RESUME: Final = _histogram(
    "hitl_resume_seconds", "From the wake-up by a start, a decision or a timer to the job that goes on.", _FAST, "cause"
)
JOBS: Final = _histogram("hitl_job_seconds", "Jobs of workers.", _CALLS, "outcome")
CALLS: Final = _histogram("hitl_provider_call_seconds", "Tries of provider calls.", _CALLS, "provider", "outcome")
COST: Final = _counter("hitl_provider_cost_usd", "What providers said their answers cost.", "provider")
RECOVERED: Final = _counter("hitl_runs_recovered", "Runs taken over from a silent or dead worker.", "cause")
STOOD_STILL: Final = _histogram("hitl_stood_still_seconds", "How long a run stood still that was taken over.", _FAST)
LEASE_LOST: Final = _counter("hitl_leases_lost", "Runs that this worker had to drop.")
SWEEP: Final = _histogram("hitl_sweep_seconds", "Sweeps that found something.", _FAST)
SWEPT_AT: Final = _gauge("hitl_sweep_finished_timestamp_seconds", "When this worker's last sweep ended, in Unix time.")
SWEPT: Final = _counter("hitl_sweep_found", "What sweeps found, by kind.", "kind")
DELIVERED: Final = _histogram("hitl_delivery_seconds", "Tries of deliveries.", _FAST, "kind", "outcome")
POOL_WAIT: Final = _histogram("hitl_pool_wait_seconds", "Waits for a connection to Postgres.", _FAST)
FAULTS: Final = _counter("hitl_faults", "Log lines at warning or above, by event.", "event", "level")

# state, set at a scrape
UP: Final = _gauge("hitl_dependency_up", "Whether Postgres and Redis answer.", "dependency")
RUNS: Final = _gauge("hitl_runs", "Runs that are not final, and those that failed.", "status")
QUEUE_DEPTH: Final = _gauge("hitl_queue_depth", "Runs that are due and have no worker: what workers are scaled by.")
QUEUE_OLDEST: Final = _gauge("hitl_queue_oldest_seconds", "Age of the oldest run that is due and has no worker.")
OPEN: Final = _gauge("hitl_approvals_open", "Approvals that wait for a decision.")
OPEN_OLDEST: Final = _gauge("hitl_approval_oldest_seconds", "Age of the oldest open approval.")
OVERDUE: Final = _gauge("hitl_timers_overdue_seconds", "How long the most overdue timer has been waiting.")
BACKLOG: Final = _gauge("hitl_deliveries", "Deliveries not made yet, and dead ones.", "state")
WORKERS: Final = _gauge("hitl_workers", "Workers seen within a minute.")
JOBS_RUNNING: Final = _gauge("hitl_jobs_in_progress", "Runs that workers hold.")
JOBS_MAX: Final = _gauge("hitl_jobs_max", "Runs that all workers may hold at once.")

Line = Mapping[str, Any]


def observe(line: Line) -> None:
    """Move what this line of the log says."""
    if (level := line.get("level")) in ("warning", "error", "critical"):
        FAULTS.labels(line["event"], level).inc()
    if (moves := _MOVES.get(line["event"])) is not None:
        moves(line)


def exposition() -> bytes:
    """The instruments of this process in Prometheus's text format."""
    return generate_latest(REGISTRY)


def table() -> str:
    """The instruments as Markdown, by the names that a query uses."""
    head = "| metric | kind | labels | says |\n|---|---|---|---|\n"
    return head + "".join(_row(each) for each in globals().values() if isinstance(each, MetricWrapperBase))


def _row(each: MetricWrapperBase) -> str:
    name = each._name + ("_total" if isinstance(each, Counter) else "")
    labels = ", ".join(f"`{label}`" for label in each._labelnames)
    return f"| `{name}` | {each._type} | {labels} | {each._documentation} |\n"


def reason_class(reason: str) -> str:
    """A reason without its tail where that is a name that a client chose: `missing.image` is `missing`."""
    return reason.partition(".")[0] if reason.startswith(("missing.", "safety.")) else reason


def _http(line: Line) -> None:
    method = line.get("method")
    labels = (method if method in _METHODS else "other", line.get("route", ""), str(line.get("status", "")))
    _observe_ms(REQUESTS.labels(*labels), line.get("duration_ms"))


def _asked(line: Line) -> None:
    for reason in line.get("reasons") or ("requested",):
        ASKED.labels(reason_class(reason)).inc()


def _decided(line: Line) -> None:
    checkpoint = _checkpoint(line)
    DECIDED.labels(line.get("action", ""), checkpoint, line.get("channel") or "").inc()
    for reason in line.get("reasons") or ():
        ANSWERED.labels(line.get("action", ""), reason_class(reason)).inc()
    _observe_ms(DECISION_WAIT.labels(checkpoint), line.get("waited_ms"))
    if line.get("channel") == "timeout":
        EXPIRED.labels("approve", "approved").inc()
        _observe_ms(LATENESS, line.get("late_ms"))


def _expired(line: Line) -> None:
    done = "escalated" if line["event"] == "approval.escalated" else "rejected"
    EXPIRED.labels(line.get("on_timeout") or "", done).inc()
    _observe_ms(LATENESS, line.get("late_ms"))


def _began(line: Line) -> None:
    if line.get("job") == "advance_run":  # timers have a lateness of their own
        _observe_ms(RESUME.labels(line.get("cause", "")), line.get("waited_ms"))


def _job(line: Line) -> None:
    _observe_ms(JOBS.labels(line.get("outcome") or ""), line.get("duration_ms"))


def _call(line: Line) -> None:
    provider = line.get("provider", "")
    _observe_ms(CALLS.labels(provider, line.get("outcome", "")), line.get("duration_ms"))
    COST.labels(provider).inc(max(0, line.get("cost_usd") or 0))


def _recovered(line: Line) -> None:
    RECOVERED.labels(line.get("cause") or "").inc()
    _observe_ms(STOOD_STILL, line.get("stood_still_ms"))


def _swept(line: Line) -> None:
    _observe_ms(SWEEP, line.get("duration_ms"))
    for kind in _KINDS & line.keys():
        SWEPT.labels(kind).inc(line[kind])


def _delivered(line: Line) -> None:
    kind, _, outcome = line["event"].partition(".")
    _observe_ms(DELIVERED.labels(kind, outcome), line.get("duration_ms"))


def _observe_ms(instrument: Histogram, took_ms: float | None) -> None:
    if took_ms is not None:
        instrument.observe(took_ms / 1000)


def _checkpoint(line: Line) -> str:
    """The five of a run by name; those that programs ask for have names of their own choice."""
    name = line.get("checkpoint") or ""
    return name if name in _CHECKPOINTS else "other"


_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CHECKPOINTS: Final = frozenset(
    {"information_review", "payload_review", "response_review", "error_recovery", "outcome_unknown"}
)
_KINDS: Final = frozenset({"recovered", "timed_out", "expired", "reminded", "armed", "woken", "released"})
_MOVES: Final[Mapping[str, Callable[[Line], None]]] = {
    "http.request": _http,
    "run.created": lambda line: STARTED.labels(line.get("provider", "")).inc(),
    "run.finished": lambda line: FINISHED.labels(line.get("status", ""), line.get("code") or "").inc(),
    "run.recovered": _recovered,
    "run.lease_lost": lambda _: LEASE_LOST.inc(),
    "approval.requested": _asked,
    "approval.decided": _decided,
    "approval.expired": _expired,
    "approval.escalated": _expired,
    "job.started": _began,
    "job.finished": _job,
    "provider.call": _call,
    "sweep.finished": _swept,
    "webhook.delivered": _delivered,
    "webhook.failed": _delivered,
    "relay.delivered": _delivered,
    "relay.failed": _delivered,
}
