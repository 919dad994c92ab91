"""`hitl webhooks`: what was sent to callback URLs and what was not, sending it again, and the secrets that sign."""

from typing import Any
from uuid import UUID

import click

from service.cli.embed import operate
from service.cli.operate import limit_option, tenant_option
from service.cli.output import json_option, show
from service.commands import webhooks
from service.errors import HitlError
from service.runtime import Runtime
from service.store import deliveries
from service.store.database import EVERY


@click.group("webhooks")
def webhooks_group() -> None:
    """Webhooks: look, send again, the secrets that sign them."""


@webhooks_group.command("list")
@click.option("--dead", is_flag=True, help="Only those that were given up.")
@tenant_option
@limit_option
@json_option
def webhooks_list(dead: bool, tenant: str | None, limit: int, as_json: bool) -> None:
    """Newest first. Of the URL only the host is shown: the rest may be secret."""

    async def work(runtime: Runtime) -> list[dict[str, Any]]:
        async with runtime.services.db.connection(EVERY) as conn:
            return await deliveries.recent(conn, tenant, status="dead" if dead else None, limit=limit)

    columns = ("id", "status", "type", "host", "tries", "error", "run_id", "tenant", "created_at", "due_at")
    show(operate(work), columns, as_json=as_json)


@webhooks_group.command("redeliver")
@click.argument("message_ids", metavar="ID...", type=click.UUID, nargs=-1, required=True)
@tenant_option
@json_option
def webhooks_redeliver(message_ids: tuple[UUID, ...], tenant: str | None, as_json: bool) -> None:
    """Send webhooks again, dead or not, under the same webhook-id. Exit status 1 if one of them is unknown."""

    async def one(runtime: Runtime, message_id: UUID) -> dict[str, Any]:
        try:
            await webhooks.redeliver(runtime.services, message_id, tenant)
        except HitlError as refusal:
            return {"id": message_id, "status": None, "error": refusal.detail}
        return {"id": message_id, "status": "waiting", "error": None}

    async def work(runtime: Runtime) -> list[dict[str, Any]]:
        return [await one(runtime, message_id) for message_id in message_ids]

    rows = operate(work)
    show(rows, ("id", "status", "error"), as_json=as_json)
    if failed := sum(row["error"] is not None for row in rows):
        raise click.ClickException(f"{failed} of {len(rows)} webhooks could not be redelivered")


@webhooks_group.command("secret")
@click.option("--tenant", default="default", show_default=True)
@click.option("--rotate", is_flag=True, help="Make a new one; both sign for 24 hours.")
@json_option
def webhooks_secret(tenant: str, rotate: bool, as_json: bool) -> None:
    """Print the secret that signs the tenant's webhooks, alone on standard output."""
    key = operate(lambda runtime: webhooks.secret(runtime.services, tenant, rotate=rotate))
    if as_json:
        show([{"id": tenant, "key": key}], (), as_json=True)
    else:
        click.echo(key)
