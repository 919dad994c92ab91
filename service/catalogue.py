"""Floor 1: every line of the log: what it says and what it carries. The table in docs/reference.md is made of this
one (`python -m tests.docs`), and tests hold the code to it: a line or a field that is not here is a fault.

`COMMON` stands on every line, `CONTEXT` wherever it is known; the fields of an event are beside those.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

COMMON: Final = ("timestamp", "level", "event", "logger", "service", "process", "version")
CONTEXT: Final = ("request_id", "trace_id", "run_id", "job_id", "approval_id", "tenant")


@dataclass(frozen=True, slots=True)
class Event:
    """`fields` beside `COMMON` and `CONTEXT`. One that is `canonical` tells all of its subject in one line."""

    says: str
    fields: tuple[str, ...] = ()
    canonical: bool = False


def _event(says: str, fields: str = "", *, canonical: bool = False) -> Event:
    return Event(says, tuple(fields.split()), canonical)


EVENTS: Final[Mapping[str, Event]] = {
    "http.request": _event(
        "one request was answered; `code` is the refusal's; of probes that succeed one a minute is written",
        "method route status duration_ms actor code skipped",
        canonical=True,
    ),
    "http.error": _event("a request or a job ended in an error of ours: the exception's class only", "error route"),
    "oidc.failed": _event("the provider of bearer tokens could not be asked for its keys", "error"),
    "run.created": _event("a run was accepted", "provider actor"),
    "run.paused": _event("no further step of a run starts", "step actor"),
    "run.resumed": _event("a paused or failed run goes on", "step actor"),
    "run.finished": _event(
        "a run reached a final status; `code` says why it did not complete, `step` where",
        "status code step provider actor queue_ms human_ms provider_ms duration_ms cost_usd",
        canonical=True,
    ),
    "run.recovered": _event(
        "a run was taken over from a worker that died or fell silent", "step worker cause stood_still_ms"
    ),
    "run.lease_lost": _event("this worker was refused at a write and dropped the run"),
    "run.handed_over": _event("a draining worker gave a run back"),
    "job.started": _event(
        "a worker began a job; `cause` is a `start`, a `decision` (or what else lets a run go on) or a `timer`",
        "job cause waited_ms",
    ),
    "job.finished": _event("a worker ended a job", "job outcome waited_ms duration_ms", canonical=True),
    "job.buried": _event(
        "a job could not be read or run and was taken out of the queue; `hitl queue` lists it with its cause", "cause"
    ),
    "step.finished": _event("a step of a run is durable", "step"),
    "approval.requested": _event("a run or a program asks a human", "step checkpoint reasons actor"),
    "approval.delegated": _event("a reviewer handed an approval on", "actor"),
    "approval.view_not_noted": _event(
        "that somebody opened an approval could not be written down: the class of the reason", "error"
    ),
    "approval.decided": _event(
        "a human, or silence (`system:timeout`), decided; `waited_ms` once the answer is final",
        "actor action status checkpoint channel reasons waited_ms late_ms",
        canonical=True,
    ),
    "approval.expired": _event("an approval's time ran out", "checkpoint on_timeout late_ms"),
    "approval.escalated": _event("an approval's time ran out, and others were asked", "checkpoint on_timeout"),
    "provider.call": _event(
        "one try of a provider call ended", "provider step outcome call tries duration_ms cost_usd", canonical=True
    ),
    "provider.cancelled": _event("what nobody wanted any more was ended at its provider", "call"),
    "provider.cancel_failed": _event(
        "a provider could not be reached to end a call, and was tried often enough", "call"
    ),
    "file.copy_failed": _event(
        "an output file could not be copied: the class of the reason; it is tried again", "error"
    ),
    "webhook.delivered": _event("a webhook was acknowledged", "delivery_id type host tries duration_ms"),
    "webhook.failed": _event(
        "one try of a webhook failed; `dead` when it was the last", "delivery_id type host tries duration_ms code dead"
    ),
    "relay.connected": _event("the relay is there"),
    "relay.disconnected": _event("the relay is away; messages wait for it", "error"),
    "relay.delivered": _event("the relay acknowledged messages of a run", "count"),
    "relay.failed": _event("messages of a run were not acknowledged; they are sent again", "code count"),
    "relay.answered": _event("a decision came back over the relay; `code` where it was refused", "code"),
    "queue.wake_failed": _event("a wake-up could not be sent; the sweep will send it", "error"),
    "notify.failed": _event("a hint to followers could not be sent; they poll", "error"),
    "live.failed": _event("telling news to followers met a fault; they resume from what they have", "error"),
    "live.frame_failed": _event("a client's frame met a fault of ours: the exception's class only", "error"),
    "socket.closed": _event("a WebSocket ended; `code` is its close code", "code actor duration_ms"),
    "worker.started": _event("a worker takes jobs", "worker max_jobs"),
    "worker.draining": _event("a worker was told to stop and takes no more jobs", "signal"),
    "worker.stopped": _event("a worker ended", "worker"),
    "worker.poll_failed": _event("Redis did not answer; the worker tries again", "error failures"),
    "worker.task_failed": _event("a background task of the worker failed and goes on", "task error"),
    "sweep.finished": _event(
        "one sweep that found something, and how many of each",
        "duration_ms recovered timed_out expired reminded armed woken released",
    ),
    "sweep.part_failed": _event("a part of a sweep met a fault; the rest of it went on", "part error"),
    "metrics.served": _event("the port of HITL_METRICS_PORT answers", "port"),
    "metrics.not_served": _event("that port is taken; the process runs without it", "port error"),
    "audit.anchored": _event(
        "what changed in the record was anchored: keep this line elsewhere", "anchor runs hash key_id"
    ),
    "purge.finished": _event(
        "what was over for longer than its tenant keeps it was removed", "days runs files questions duration_ms"
    ),
    "purge.failed": _event("the file store is away; the runs stay until the next time", "error"),
    "content.erased": _event(
        "a person's content was erased; `erasure_id` names its record", "erasure_id actor runs questions files"
    ),
    "content.rewrapped": _event("content keys were wrapped anew after the master secret was rotated", "keys"),
    "lib": _event("a line of a library at WARNING or above: its template, never its arguments", "template error"),
}


def table() -> str:
    """The catalogue as Markdown."""
    head = "| event | says | carries |\n|---|---|---|\n"
    return head + "".join(_row(name, event) for name, event in EVENTS.items())


def _row(name: str, event: Event) -> str:
    mark = " *" if event.canonical else ""
    return f"| `{name}`{mark} | {event.says} | {', '.join(f'`{each}`' for each in event.fields)} |\n"
