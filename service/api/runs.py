"""Routes of runs: start, read, list, pause, resume, cancel, events, jobs."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from starlette.responses import Response

from service.api import streams
from service.api.models import (
    CancelQuery,
    Changed,
    EmptyRequest,
    EventList,
    EventsQuery,
    JobView,
    Resumed,
    RunAccepted,
    RunInput,
    RunList,
    RunsQuery,
    RunView,
    SessionRunList,
    StartHitlRequest,
    StartRunRequest,
    TeamsQuery,
    WaitQuery,
)
from service.api.operation import Call, Operation, Reply
from service.api.views import job_view, run_view
from service.border import paging
from service.commands import runs as commands
from service.commands.runs import Idempotency, StartRun
from service.commands.seen import note_seen
from service.commands.views import run_views
from service.domain.canonical import canonical, sha256_hex
from service.domain.event import wire
from service.domain.ids import job_id, parse_job_id
from service.domain.policy import HitlConfig, dump
from service.domain.principal import Permission
from service.domain.run import LIVE, Run
from service.errors import Invalid, NotFound
from service.store import approvals, events, runs
from service.store.runs import RunFilter


async def start_run(call: Call) -> Reply:
    """Start a run. It stops where its `hitl_config` says a human must look."""
    body: StartRunRequest = call.body
    return await _start(call, body.run_input, body.hitl_config, body)


async def teams_run(call: Call) -> Reply:
    """Start a run from its bare input; with `enable_hitl` it stops at thresholds, else only for what is missing."""
    query: TeamsQuery = call.query
    config = HitlConfig(policy="auto_with_thresholds" if query.enable_hitl else "auto")
    return await _start(call, call.body, config, query, hitl_enabled=query.enable_hitl)


async def teams_run_hitl(call: Call) -> Reply:
    """Start a run that stops at every checkpoint, unless a config says otherwise."""
    body: StartHitlRequest = call.body
    reply = await _start(call, body.run_input, body.hitl_config, call.query)
    return Reply({**reply.body, "config": dump(body.hitl_config)}, reply.status, reply.headers)


async def _start(call: Call, given: RunInput, config: HitlConfig, outer: Any, *, hitl_enabled: bool = True) -> Reply:
    request = call.request
    run_input = given.model_dump(mode="json", exclude_unset=True)
    order = StartRun(
        run_input=run_input,
        config=config,
        user_id=outer.user_id or given.user_id,
        session_id=outer.session_id or given.session_id,
        callback_url=getattr(outer, "callback_url", None),
        priority=getattr(outer, "priority", 0),
        on_active_run=getattr(outer, "on_active_run", "parallel"),
        idempotency=idempotency(call),
        request_id=request.state.request_id,
        traceparent=request.state.traceparent,
    )
    started = await commands.start_run(call.services, order, call.principal)
    body = {
        "run_id": str(started.run_id),
        "job_id": job_id(started.run_id, 1),
        "status": "queued",
        "message": "accepted",
        "websocket_url": "ws" + call.services.public_url.removeprefix("http") + "/hitl/ws",
        "hitl_enabled": hitl_enabled,
    }
    headers = {"Location": f"/hitl/runs/{started.run_id}"}
    if started.replayed:
        headers["Idempotent-Replayed"] = "true"
    return Reply(body, 202, headers)


def idempotency(call: Call) -> Idempotency | None:
    """The caller's key, bound to the whole request. Raises `Invalid` for one that is too long or empty."""
    key = call.request.headers.get("idempotency-key")
    if key is None:
        return None
    if not 1 <= len(key) <= 255 or not key.isprintable():
        message = "must be 1 to 255 printable characters"
        raise Invalid(
            "the Idempotency-Key is not valid", errors=[{"pointer": "/header/idempotency-key", "message": message}]
        )
    used_for = {
        "path": call.request.url.path,
        "query": sorted(call.request.query_params.multi_items()),
        "body": call.raw_body,
    }
    return Idempotency(key, sha256_hex(canonical({**used_for, "query": [list(q) for q in used_for["query"]]})))


async def get_run(call: Call) -> Reply:
    """The run. With `wait` it answers once the run is final or awaits a human."""
    query: WaitQuery = call.query
    run_id: UUID = call.id("run_id")
    tenant = call.principal.tenant

    async def look() -> Run | None:
        async with call.services.db.connection(call.principal.tenant) as conn:
            return await runs.get(conn, tenant, run_id)

    def done(run: Run | None) -> bool:
        return run is None or run.final or run.status == "awaiting_human"

    seen = await call.services.notifier.wait_until(run_id, look, done, timeout_s=query.wait) if query.wait else None
    view = await _view(call, run_id, known=seen if seen is not None and seen.final else None)
    await note_seen(call.services, call.principal, view["pending_actions"], "http")
    return Reply(view)


async def pause_run(call: Call) -> Reply:
    """No step starts while paused; open approvals cannot be decided and their clocks stand."""
    run = await commands.pause_run(call.services, call.id("run_id"), call.principal)
    return Reply({**await _view(call, run.id), "success": True, "message": "paused"})


async def resume_run(call: Call) -> Reply:
    """Go on: a paused run, or a failed one whose error is recoverable."""
    run = await commands.resume_run(call.services, call.id("run_id"), call.principal)
    body = {"success": True, "message": "resumed", "run_id": str(run.id), "job_id": job_id(run.id, run.fencing_token)}
    return Reply({**body, "status": run.status.value}, 202)


async def cancel_run(call: Call) -> Reply:
    """End a live run. Cancelling a cancelled run is 200 again."""
    query: CancelQuery = call.query
    run = await commands.cancel_run(call.services, call.id("run_id"), call.principal, reason=query.reason)
    return Reply({**await _view(call, run.id), "success": True, "message": "cancelled"})


async def list_runs(call: Call) -> Reply:
    """Runs, newest first."""
    query: RunsQuery = call.query
    return Reply(await _page(call, query, [query.status] if query.status else None))


async def list_active(call: Call) -> Reply:
    """Runs that are not final, newest first."""
    query: RunsQuery = call.query
    live = [query.status] if query.status else sorted(LIVE)
    return Reply(await _page(call, query, [status for status in live if status in LIVE]))


async def list_session(call: Call) -> Reply:
    """The session's runs that are not final, newest first."""
    query: RunsQuery = call.query
    mine = query.model_copy(update={"session_id": call.path["session_id"]})
    page = await _page(call, mine, sorted(LIVE))
    async with call.services.db.connection(call.principal.tenant) as conn:
        wanted = approvals.InboxFilter(session_id=mine.session_id)
        waiting = await approvals.inbox(conn, call.principal.tenant, wanted, limit=1)
    return Reply({**page, "has_pending_approvals": bool(waiting)})


async def list_events(call: Call) -> Reply | Response:
    """The run's events after a seq; with `Accept: text/event-stream` as a live stream to the run's end."""
    query: EventsQuery = call.query
    run_id: UUID = call.id("run_id")
    if streams.wants_stream(call.request):
        return await streams.follow_run(call, run_id, query.after)
    async with call.services.db.connection(call.principal.tenant) as conn:
        if await runs.get(conn, call.principal.tenant, run_id) is None:
            raise NotFound("no such run")
        found = await events.after(conn, call.principal.tenant, run_id, query.after, limit=query.limit)
    return Reply({"events": [wire(e) for e in found], "next_after": found[-1].seq if found else query.after})


async def get_job(call: Call) -> Reply:
    """The state of a run's latest wake-up, under any job id that the run was ever given."""
    asked = call.path["job_id"]
    parsed = parse_job_id(asked)
    async with call.services.db.connection(call.principal.tenant) as conn:
        run = await runs.get(conn, call.principal.tenant, parsed[0]) if parsed else None
        if run is None or parsed is None or not 1 <= parsed[1] <= run.fencing_token:
            raise NotFound("no such job")
        docs = await runs.documents(conn, run.id)
        run = replace(run, error=await runs.error_of(conn, run))
    done = docs.result["response"] if docs.result and run.status == "completed" else None
    return Reply(job_view(run, asked, done))


async def _view(call: Call, run_id: UUID, *, known: Run | None = None) -> dict[str, Any]:
    view = await run_view(call.services, call.principal.tenant, run_id, known=known)
    if view is None:
        raise NotFound("no such run")
    return view


async def _page(call: Call, query: RunsQuery, statuses: list[str] | None) -> dict[str, Any]:
    wanted = RunFilter(
        statuses, query.user_id, query.session_id, query.provider, _utc(query.created_after),
        _utc(query.created_before), paging.decode(query.cursor),
    )  # fmt: skip
    async with call.services.db.connection(call.principal.tenant) as conn:
        found = await runs.page(conn, call.principal.tenant, wanted, limit=query.limit + 1)
        shown = found[: query.limit]
        items = await run_views(conn, call.services, shown)
    more = len(found) > len(shown)
    cursor = paging.encode(shown[-1].created_at, shown[-1].id) if more else None
    return {"runs": items, "items": items, "next_cursor": cursor}


def _utc(at: datetime | None) -> datetime | None:
    """A time without a zone is UTC."""
    return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at


_SUBMIT = Permission.SUBMIT
_START = (401, 403, 409, 413, 415, 422, 429)
OPERATIONS = (
    Operation("POST", "/hitl/run", start_run, RunAccepted, _SUBMIT, 202, body=StartRunRequest, problems=_START),
    Operation(
        "POST", "/teams/run", teams_run, RunAccepted, _SUBMIT, 202, query=TeamsQuery, body=RunInput, problems=_START
    ),
    Operation(
        "POST", "/teams/run-hitl", teams_run_hitl, RunAccepted, _SUBMIT, 202, query=TeamsQuery,
        body=StartHitlRequest, problems=_START,
    ),
    Operation("GET", "/hitl/runs", list_runs, RunList, query=RunsQuery),
    Operation("GET", "/hitl/runs/active", list_active, RunList, query=RunsQuery),
    Operation("GET", "/hitl/sessions/{session_id}/active", list_session, SessionRunList, query=RunsQuery),
    Operation("GET", "/hitl/runs/{run_id}", get_run, RunView, query=WaitQuery, problems=(404,)),
    Operation("GET", "/hitl/run/{run_id}/status", get_run, RunView, query=WaitQuery, problems=(404,)),
    Operation("GET", "/hitl/runs/{run_id}/state", get_run, RunView, query=WaitQuery, problems=(404,)),
    Operation(
        "GET", "/hitl/runs/{run_id}/events", list_events, EventList, query=EventsQuery, problems=(404,),
        media_types=("application/json", streams.EVENT_STREAM),
    ),
    Operation(
        "POST", "/hitl/run/{run_id}/pause", pause_run, Changed, _SUBMIT, body=EmptyRequest, body_required=False,
        problems=(404, 409),
    ),
    Operation(
        "POST", "/hitl/run/{run_id}/resume", resume_run, Resumed, _SUBMIT, 202, body=EmptyRequest,
        body_required=False, problems=(404, 409),
    ),
    Operation("DELETE", "/hitl/run/{run_id}", cancel_run, Changed, _SUBMIT, query=CancelQuery, problems=(404, 409)),
    Operation("GET", "/hitl/jobs/{job_id}", get_job, JobView, problems=(404,), tag="operations"),
)  # fmt: skip
