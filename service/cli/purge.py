"""`hitl purge`: forget what is over for longer than it is kept."""

from typing import Any

import click

from service.cli.embed import operate
from service.cli.output import json_option, progress, show
from service.commands.purge import count, kept
from service.commands.purge import purge as purge_one
from service.runtime import Runtime


@click.command()
@click.option("--tenant", help="Only of this tenant.")
@click.option(
    "--older-than",
    "days",
    type=click.IntRange(1, 36_500),
    metavar="DAYS",
    help="In place of each tenant's --retention-days; without --tenant for all of them.",
)
@click.option("--dry-run", is_flag=True, help="Only count.")
@json_option
def purge(tenant: str | None, days: int | None, dry_run: bool, as_json: bool) -> None:
    """Delete what is over for longer than its tenant keeps it: finished runs with their events, files and approvals,
    and decided questions of programs. A worker does the same every hour. What is left still verifies: each run has a
    chain of its own."""

    async def work(runtime: Runtime) -> list[dict[str, Any]]:
        rows = []
        for one in await kept(runtime.services, tenant=tenant, days=days):
            found = await count(runtime.services, one)
            if not dry_run:
                with progress(one.tenant, found["runs"]) as told:
                    found = await purge_one(runtime.services, one, told=told)
            rows.append({"id": one.tenant, "tenant": one.tenant, "days": one.days, **found})
        return rows

    show(operate(work), ("tenant", "days", "runs", "files", "questions"), as_json=as_json)
