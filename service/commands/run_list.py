"""Use cases of the list of runs: a page of it, how many there are of each status, and a run by its id."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from typing import Final
from uuid import UUID

from service.commands.context import Services
from service.domain.principal import Permission, Principal, demand
from service.domain.run import Run
from service.store import run_list, runs
from service.store.database import Conn
from service.store.runs import RunFilter

COUNTED: Final = 10_000
"""So far the runs of a status are counted; beyond, people are told that there are more."""
MATCHES_COUNTED: Final = 1000
LOOKED_INTO: Final = 100_000
"""Nothing leads to the runs of a provider: they are looked for among the newest so many."""
_ID: Final = re.compile(r"(?:run:|approval:)?([0-9a-f-]{8,36})(?::.*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Counts:
    """Runs by status. `each`: every status was counted so far; else it was so many of the newest in all."""

    by_status: Mapping[str, int]
    at_most: int
    each: bool

    @property
    def total(self) -> int:
        return sum(self.by_status.values())


@dataclass(frozen=True, slots=True)
class RunList:
    """`mark` changes when the page would. `since`: what is older was not looked into."""

    shown: Sequence[Run]
    after: tuple[datetime, UUID] | None
    counts: Counts
    since: datetime | None
    mark: str


async def look(services: Services, who: Principal, wanted: RunFilter, *, limit: int) -> RunList:
    """A page of the tenant's runs, newest first."""
    demand(who, Permission.READ)
    async with services.db.connection(who.tenant) as conn:
        since = await _horizon(conn, who.tenant, wanted)
        if since is not None:
            wanted = replace(wanted, created_after=since)
        found = await runs.page(conn, who.tenant, wanted, limit=limit + 1)
    counts = await _counts(services, who, wanted)
    shown = found[:limit]
    after = (shown[-1].created_at, shown[-1].id) if len(found) > limit else None
    return RunList(shown, after, counts, since, _mark(shown, counts))


async def find(services: Services, who: Principal, text: str, *, limit: int) -> RunList | None:
    """The runs whose id begins so, or that an approval with this id belongs to; job ids are read too. None: the text
    is no id and no beginning of one."""
    demand(who, Permission.READ)
    ids = _range(text)
    if ids is None:
        return None
    async with services.db.connection(who.tenant) as conn:
        found = await run_list.between(conn, who.tenant, *ids, limit=limit)
        if not found and ids[0] == ids[1]:
            run_id = await run_list.of_approval(conn, who.tenant, ids[0])
            run = await runs.get(conn, who.tenant, run_id) if run_id is not None else None
            found = [run] if run is not None else []
    counts = await _counts(services, who, RunFilter())
    return RunList(found, None, counts, None, _mark(found, counts))


def is_no_id(text: str) -> bool:
    """Whether `find` would say None."""
    return _range(text) is None


def _range(text: str) -> tuple[UUID, UUID] | None:
    """The first and the last id that begin so; at least eight digits, which is about a minute of runs."""
    match = _ID.fullmatch(text.strip())
    digits = match[1].replace("-", "") if match else ""
    if not 8 <= len(digits) <= 32:
        return None
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))


async def _horizon(conn: Conn, tenant: str, wanted: RunFilter) -> datetime | None:
    """How far back is looked where no index leads to what is wanted; None: all the way."""
    if wanted.provider is None or wanted.user_id is not None or wanted.session_id is not None:
        return None
    since = await run_list.started_before(conn, tenant, newest=LOOKED_INTO)
    if since is None or (wanted.created_after is not None and wanted.created_after >= since):
        return None
    return since


async def _counts(services: Services, who: Principal, wanted: RunFilter) -> Counts:
    """Of all runs, shared by all who look; with filters, of what they match, whatever its status."""
    narrowed = replace(wanted, statuses=None, before=None)
    if narrowed == RunFilter():
        return await services.kept.of(("runs", who.tenant), lambda: _all_counts(services, who.tenant))
    async with services.db.connection(who.tenant) as conn:
        found = await run_list.counts_of(conn, who.tenant, narrowed, at_most=MATCHES_COUNTED)
    return Counts(found, MATCHES_COUNTED, each=False)


async def _all_counts(services: Services, tenant: str) -> Counts:
    async with services.db.connection(tenant) as conn:
        return Counts(await run_list.counts(conn, tenant, at_most=COUNTED), COUNTED, each=True)


def _mark(shown: Sequence[Run], counts: Counts) -> str:
    told = f"{counts} " + " ".join(f"{run.id}:{run.version}" for run in shown)
    return sha256(told.encode()).hexdigest()[:16]
