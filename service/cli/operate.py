"""Operating the service: keys, runs, approvals, the queue. Across tenants unless one is named."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, Final, cast, get_args
from uuid import UUID

import click
import orjson

from service.api.views import run_view
from service.cli.embed import operate
from service.cli.output import cell, dumps, json_option, progress, show
from service.commands.approvals import Decided, decide
from service.commands.context import Services
from service.commands.keys import NewKey, create_key, revoke_key
from service.commands.runs import cancel_run, resume_run
from service.domain.approval import Action, Approval, ApprovalStatus, Order
from service.domain.event import Event, wire
from service.domain.principal import Principal, Proof, Role
from service.domain.run import Run, RunStatus
from service.domain.view import approval_view
from service.errors import HitlError, NotFound
from service.runtime import Runtime
from service.store import approvals, dead_jobs, deliveries, events, keys, runs
from service.store.database import EVERY, Conn

TAIL_EVERY_S: Final = 0.5
PAGE: Final = 500
DEAD_SHOWN: Final = 100
ACTOR: Final = "cli"
_FIGURES: Final = ("queued", "deferred", "in_progress", "awaiting_human", "awaiting_provider", "failed")
YEAR_S: Final = 366 * 86_400

tenant_option = click.option("--tenant", help="Only of this tenant.")
limit_option = click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True)


def _named(_: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise click.BadParameter("must not be empty", param=parameter)
    return value


# --- keys ---------------------------------------------------------------------------------------------------


@click.group("keys")
def keys_group() -> None:
    """API keys."""


@keys_group.command("create")
@click.option("--name", required=True, callback=_named, help="What the key is for.")
@click.option("--role", required=True, type=click.Choice(get_args(Role)))
@click.option("--tenant", default="default", show_default=True, callback=_named)
@click.option("--subject", callback=_named, help="Who acts with it; default: the name.")
@click.option("--group", "groups", multiple=True, help="May be repeated.")
@click.option("--expires-in", type=click.IntRange(1, 100 * YEAR_S), metavar="SECONDS")
def keys_create(
    name: str, role: str, tenant: str, subject: str | None, groups: tuple[str, ...], expires_in: int | None
) -> None:
    """Make a key and print it: once, alone on standard output."""
    wanted = NewKey(name, cast("Role", role), tenant, subject, groups, expires_in)

    async def work(runtime: Runtime) -> str:
        _, secret = await create_key(runtime.services.db, runtime.services.keyring, wanted)
        return secret

    click.echo(operate(work))


@keys_group.command("list")
@tenant_option
@json_option
def keys_list(tenant: str | None, as_json: bool) -> None:
    """All keys, revoked ones too; never the keys themselves."""

    async def work(runtime: Runtime) -> list[keys.ApiKey]:
        async with runtime.services.db.connection(EVERY) as conn:
            return await keys.all_keys(conn)

    rows = [asdict(key) for key in operate(work) if tenant in (None, key.tenant)]
    columns = (
        *("id", "prefix", "name", "tenant", "role", "subject", "groups"),
        *("created_at", "expires_at", "revoked_at", "used_at"),
    )
    show(rows, columns, as_json=as_json)


@keys_group.command("revoke")
@click.argument("key_id", metavar="ID", type=click.UUID)
def keys_revoke(key_id: UUID) -> None:
    """Refuse the key from now on."""
    operate(lambda runtime: revoke_key(runtime.services.db, key_id))
    click.echo(f"revoked {key_id}")


# --- runs ---------------------------------------------------------------------------------------------------


@click.group("runs")
def runs_group() -> None:
    """Runs: look, follow, cancel, requeue."""


@runs_group.command("list")
@click.option(
    "--status", "statuses", multiple=True, type=click.Choice([s.value for s in RunStatus]), help="May be repeated."
)
@click.option("--user", help="Only of this user_id.")
@click.option("--session", help="Only of this session_id.")
@click.option("--provider", help="Only of this provider.")
@tenant_option
@limit_option
@json_option
def runs_list(
    statuses: tuple[str, ...],
    user: str | None,
    session: str | None,
    provider: str | None,
    tenant: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Newest first."""
    wanted = runs.RunFilter(statuses or None, user, session, provider)

    async def work(runtime: Runtime) -> list[Run]:
        async with runtime.services.db.connection(EVERY) as conn:
            return await runs.recent(conn, tenant, wanted, limit=limit)

    columns = (
        "id",
        "status",
        "error_code",
        "current_step",
        "provider",
        "tenant",
        "user_id",
        "session_id",
        "created_at",
    )
    show([_run_row(run) for run in operate(work)], columns, as_json=as_json)


def _run_row(run: Run) -> dict[str, Any]:
    """The run's hot row, named as over HTTP."""
    same = ("tenant", "status", "provider", "user_id", "session_id", "priority", "created_at", "updated_at", "error")
    hot = {name: getattr(run, name) for name in same}
    return {
        "id": run.id,
        "run_id": run.id,
        "current_step": run.step,
        "error_code": (run.error or {}).get("code"),
        **hot,
    }


@runs_group.command("show")
@click.argument("run_id", metavar="ID", type=click.UUID)
@tenant_option
@json_option
def runs_show(run_id: UUID, tenant: str | None, as_json: bool) -> None:
    """One run, with its payload, its result and what it waits for."""
    found = operate(lambda runtime: _whole_run(runtime, run_id, tenant))
    _show_one(found, as_json=as_json)


async def _whole_run(runtime: Runtime, run_id: UUID, tenant: str | None) -> dict[str, Any]:
    async with runtime.services.db.connection(EVERY) as conn:
        run = await _run(conn, run_id, tenant)
    return {"id": run_id, **(await run_view(runtime.services, run.tenant, run_id) or {})}


async def _run(conn: Conn, run_id: UUID, tenant: str | None) -> Run:
    run = await runs.find(conn, run_id)
    if run is None or tenant not in (None, run.tenant):
        raise NotFound(f"no such run: {run_id}")
    return run


@runs_group.command("tail")
@click.argument("run_id", metavar="ID", type=click.UUID)
@tenant_option
@json_option
def runs_tail(run_id: UUID, tenant: str | None, as_json: bool) -> None:
    """The run's events, as they come, until it is over."""
    operate(lambda runtime: _tail(runtime, run_id, tenant, as_json=as_json))


async def _tail(runtime: Runtime, run_id: UUID, tenant: str | None, *, as_json: bool) -> None:
    last = 0
    while True:
        async with runtime.services.db.connection(EVERY) as conn:
            run = await _run(conn, run_id, tenant)
            found = await events.after(conn, run.tenant, run_id, last, limit=PAGE)
        for event in found:
            _print_event(event, as_json=as_json)
            last = event.seq
        sys.stdout.flush()
        if run.final and last >= run.event_seq:
            break
        if not found:
            await asyncio.sleep(TAIL_EVERY_S)
    if as_json:
        click.echo("\n]")


def _print_event(event: Event, *, as_json: bool) -> None:
    if as_json:  # one array that grows
        one = orjson.dumps({"id": event.seq, **wire(event)}).decode()
        click.echo(("[\n" if event.seq == 1 else ",\n") + one, nl=False)
        return
    at = event.at.strftime("%H:%M:%S.%f")[:-3]
    click.echo(f"{event.seq:>4}  {at}  {event.type:<20}  {event.actor}  {cell(dict(event.data))}")


@runs_group.command("cancel")
@click.argument("run_ids", metavar="ID...", type=click.UUID, nargs=-1, required=True)
@click.option("--reason", help="Kept in the run.")
@tenant_option
@json_option
def runs_cancel(run_ids: tuple[UUID, ...], reason: str | None, tenant: str | None, as_json: bool) -> None:
    """End live runs. Exit status 1 if one of them could not be cancelled."""
    _each_run(
        run_ids, tenant, lambda services, who, run: cancel_run(services, run, who, reason=reason), "cancelled", as_json
    )


@runs_group.command("requeue")
@click.argument("run_ids", metavar="ID...", type=click.UUID, nargs=-1, required=True)
@tenant_option
@json_option
def runs_requeue(run_ids: tuple[UUID, ...], tenant: str | None, as_json: bool) -> None:
    """Take failed runs up again, from their last durable step, where their error is recoverable.

    A call that was sent is not sent a second time in silence. Exit status 1 if one could not be requeued.
    """
    _each_run(run_ids, tenant, lambda services, who, run: resume_run(services, run, who), "requeued", as_json)


def _each_run(
    run_ids: tuple[UUID, ...],
    tenant: str | None,
    act: Callable[[Services, Principal, UUID], Awaitable[Run]],
    done: str,
    as_json: bool,
) -> None:
    """Do one thing to each run, each on its own, and show what became of it."""

    async def one(runtime: Runtime, run_id: UUID) -> dict[str, Any]:
        try:
            async with runtime.services.db.connection(EVERY) as conn:
                run = await _run(conn, run_id, tenant)
            after = await act(runtime.services, Principal(ACTOR, run.tenant, "admin"), run_id)
        except HitlError as refusal:
            return {"id": run_id, "status": refusal.extra.get("run_status"), "error": refusal.detail}
        return {"id": run_id, "status": after.status, "error": None}

    async def work(runtime: Runtime) -> list[dict[str, Any]]:
        rows = []
        with progress(done, len(run_ids)) as told:
            for run_id in run_ids:
                rows.append(await one(runtime, run_id))
                told(1)
        return rows

    rows = operate(work)
    show(rows, ("id", "status", "error"), as_json=as_json)
    if failed := sum(row["error"] is not None for row in rows):
        raise click.ClickException(f"{failed} of {len(rows)} runs could not be {done}")


# --- approvals ----------------------------------------------------------------------------------------------


@click.group("approvals")
def approvals_group() -> None:
    """Approvals: look, decide."""


@approvals_group.command("list")
@click.option(
    "--status", type=click.Choice([*(s.value for s in ApprovalStatus), "all"]), default="pending", show_default=True
)
@click.option("--run", "run_id", type=click.UUID, help="Only of this run.")
@tenant_option
@limit_option
@json_option
def approvals_list(status: str, run_id: UUID | None, tenant: str | None, limit: int, as_json: bool) -> None:
    """Newest first; those that wait for somebody, unless another status is named."""
    wanted = None if status == "all" else status

    async def work(runtime: Runtime) -> list[Approval]:
        async with runtime.services.db.connection(EVERY) as conn:
            return await approvals.recent(conn, tenant, status=wanted, run_id=run_id, limit=limit)

    columns = ("id", "status", "checkpoint_type", "reasons", "run_id", "tenant", "expires_at")
    show([_approval_row(found) for found in operate(work)], columns, as_json=as_json)


@approvals_group.command("show")
@click.argument("approval_id", metavar="ID", type=click.UUID)
@tenant_option
@json_option
def approvals_show(approval_id: UUID, tenant: str | None, as_json: bool) -> None:
    """One approval, with the payload or answer under review and its decisions."""

    async def work(runtime: Runtime) -> Approval:
        return await _approval(runtime, approval_id, tenant)

    _show_one(_approval_row(operate(work)), as_json=as_json)


async def _approval(runtime: Runtime, approval_id: UUID, tenant: str | None) -> Approval:
    async with runtime.services.db.connection(EVERY) as conn:
        found = await approvals.find(conn, approval_id)
    if found is None or tenant not in (None, found.tenant):
        raise NotFound(f"no such approval: {approval_id}")
    return found


@approvals_group.command("decide")
@click.argument("approval_id", metavar="ID", type=click.UUID)
@click.argument("action", type=click.Choice(get_args(Action)))
@click.option("--reason", help="Needed to reject.")
@click.option(
    "--edits", metavar="JSON", help="A merge patch of the payload, or an object with the one member response."
)
@click.option("--as", "subject", default=ACTOR, show_default=True, callback=_named, help="Whose decision it is.")
@tenant_option
@json_option
def approvals_decide(
    approval_id: UUID,
    action: str,
    reason: str | None,
    edits: str | None,
    subject: str,
    tenant: str | None,
    as_json: bool,
) -> None:
    """Decide, under the same rules as everybody else."""
    order = Order(cast("Action", action), _json(edits), reason)

    async def work(runtime: Runtime) -> Decided:
        found = await _approval(runtime, approval_id, tenant)
        return await decide(
            runtime.services,
            approval_id,
            order,
            Principal(subject, found.tenant, "admin", shown=Proof("cli")),
            channel="cli",
        )

    decided = operate(work).approval
    row = {"id": decided.id, "status": decided.status, "run_id": decided.run_id}
    show([row], ("id", "status", "run_id"), as_json=as_json)


def _json(text: str | None) -> Any:
    try:
        return orjson.loads(text) if text is not None else None
    except orjson.JSONDecodeError as error:
        raise click.BadParameter(f"is not JSON: {error}", param_hint="--edits") from None


def _approval_row(found: Approval) -> dict[str, Any]:
    return {"id": found.id, "tenant": found.tenant, **approval_view(found)}


# --- the queue ----------------------------------------------------------------------------------------------


@click.command()
@tenant_option
@json_option
def queue(tenant: str | None, as_json: bool) -> None:
    """What waits for what, by tenant; then the jobs that no worker could run, with their cause."""

    async def work(runtime: Runtime) -> tuple[list[dict[str, Any]], list[dead_jobs.DeadJob]]:
        async with runtime.services.db.connection(EVERY) as conn:
            figures = _with_messages(await runs.queue_by_tenant(conn), await deliveries.figures(conn))
            return figures, await dead_jobs.recent(conn, limit=DEAD_SHOWN)

    figures, dead = operate(work)
    rows = [{"id": row["tenant"], **row} for row in figures if tenant in (None, row["tenant"])]
    buried = [{"id": job.job_id, "status": "dead", **asdict(job)} for job in dead]
    if as_json:
        show([*rows, *buried], (), as_json=True)
        return
    show(rows, ("tenant", *_FIGURES, "oldest_queued_seconds", *deliveries.NONE), as_json=False)
    if buried:
        click.echo("\njobs that no worker could run, newest first:")
        show(buried, ("job_id", "cause", "at", "worker_id"), as_json=False)


def _with_messages(rows: list[dict[str, Any]], messages: dict[str, dict[str, int]]) -> list[dict[str, Any]]:
    """The figures of runs with those of messages out; a tenant may have only the latter."""
    none = dict.fromkeys(_FIGURES, 0) | {"oldest_queued_seconds": 0.0}
    by_tenant = {row["tenant"]: row for row in rows}
    return [
        {"tenant": name, **by_tenant.get(name, none), **messages.get(name, deliveries.NONE)}
        for name in sorted({*by_tenant, *messages})
    ]


def _show_one(row: dict[str, Any], *, as_json: bool) -> None:
    """One object, a line a field; JSON documents below each other."""
    if as_json:
        show([row], (), as_json=True)
        return
    width = max(map(len, row))
    for name, value in row.items():
        if isinstance(value, dict | list) and value:
            click.echo(f"{name}:\n" + "\n".join(f"  {line}" for line in dumps(value).splitlines()))
        elif value not in (None, [], {}):
            click.echo(f"{name:<{width}}  {cell(value)}")
