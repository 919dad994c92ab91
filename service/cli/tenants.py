"""`hitl tenants`: what a tenant may start and store, and how long its record is kept."""

from dataclasses import asdict
from typing import Any, Final

import click

from service.cli.embed import operate
from service.cli.output import json_option, show
from service.commands.tenants import set_limits
from service.domain.tenant import Tenant
from service.runtime import Runtime
from service.store import tenants
from service.store.database import EVERY

COLUMNS: Final = ("name", "starts_per_minute", "live_runs", "stored_bytes", "stored_bytes_now", "retention_days")
MOST: Final = 2**31 - 1
MOST_BYTES: Final = 2**62


class Limit(click.ParamType[Any]):
    """A whole number, or `none` for no limit any more."""

    name = "N|none"

    def __init__(self, least: int, most: int = MOST) -> None:
        self._range = click.IntRange(least, most)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if value == "none" else self._range.convert(value, param, ctx)


def _named(_: click.Context, parameter: click.Parameter, value: str) -> str:
    if not value.strip() or len(value) > 200:
        raise click.BadParameter("must have 1 to 200 characters", param=parameter)
    return value


@click.group("tenants")
def tenants_group() -> None:
    """Tenants and their limits."""


@tenants_group.command("list")
@json_option
def tenants_list(as_json: bool) -> None:
    """Every tenant that has limits or keys; an empty limit is none."""

    async def work(runtime: Runtime) -> list[Tenant]:
        async with runtime.services.db.connection(EVERY) as conn:
            return await tenants.known(conn)

    show([_row(tenant) for tenant in operate(work)], COLUMNS, as_json=as_json)


@tenants_group.command("set")
@click.argument("name", callback=_named)
@click.option("--starts-per-minute", type=Limit(0), help="Runs that may be started within a minute.")
@click.option("--live-runs", type=Limit(0), help="Runs that are not over.")
@click.option(
    "--stored-bytes", type=Limit(0, MOST_BYTES), help="Bytes of files and documents; counted every 10 seconds or so."
)
@click.option("--retention-days", type=Limit(1), help="Finished runs older than this are deleted.")
@json_option
def tenants_set(name: str, as_json: bool, **limits: Any) -> None:
    """Change limits; those that are not named stay. `none` takes one away. In force within 2 seconds."""
    given: dict[str, Any] = {
        field: None if value == "none" else value for field, value in limits.items() if value is not None
    }
    saved = operate(lambda runtime: set_limits(runtime.services.db, Tenant(name, **given), given))
    show([_row(saved)], COLUMNS, as_json=as_json)


def _row(tenant: Tenant) -> dict[str, Any]:
    return {"id": tenant.name, **asdict(tenant)}
