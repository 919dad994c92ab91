"""Use cases of a person's look at one run: what it is at, what it was at, and what its people and providers said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from service.commands.context import Services
from service.commands.views import run_views
from service.domain.approval import Approval
from service.domain.call import ProviderCall
from service.domain.event import Event
from service.domain.file import StoredFile
from service.domain.plan import Documents
from service.domain.principal import Permission, Principal, demand
from service.domain.revision import Revision, revisions, standing
from service.domain.run import Run
from service.domain.timeline import MOVES
from service.errors import NotFound
from service.store import approvals, files, history, runs
from service.store.database import Conn
from service.store.history import Told
from service.store.runs import RunFilter

MAX_MOVES: Final = 500
MAX_ASKED: Final = 50
MAX_CALLS: Final = 20
NEIGHBOURS: Final = 8
PAGE: Final = 50


@dataclass(frozen=True, slots=True)
class History:
    """`error`: of a run that ended badly, with its message to be read. `asked`: its newest approvals, in their order;
    `revisions` begin with the payload as it was built; `cut`: there were too many approvals, and only the
    payload that stands is in them. `moves`: its newest
    events that change the picture; `told`: a page of all, newest first, and whether there are `more` before them.
    `others`: the newest runs of its session. `mark` changes when the page would."""

    run: Run
    error: Mapping[str, Any] | None
    docs: Documents
    asked: Sequence[Approval]
    cut: bool
    revisions: Sequence[Revision]
    calls: Sequence[ProviderCall]
    files: Sequence[StoredFile]
    moves: Sequence[Event]
    told: Sequence[Event]
    more: bool
    progress: int
    last_progress: Event | None
    others: Sequence[Run]
    mark: str


async def look(services: Services, run_id: UUID, who: Principal, wanted: Told) -> History:
    """Everything about the run. Raises `NotFound`, which says where one was purged."""
    demand(who, Permission.READ)
    async with services.db.connection(who.tenant) as conn:
        mark = await history.mark(conn, who.tenant, run_id)  # first: what changes meanwhile is news
        run = await _found(conn, who.tenant, run_id)
        docs = await runs.documents(conn, run_id)
        newest = await approvals.recent(conn, who.tenant, status=None, run_id=run_id, limit=MAX_ASKED + 1)
        asked, cut = list(reversed(newest[:MAX_ASKED])), len(newest) > MAX_ASKED
        page = await history.told(conn, who.tenant, run_id, wanted, limit=PAGE + 1)
        count, last = await history.progress_of(conn, who.tenant, run_id)
        return History(
            run=run, error=await runs.error_of(conn, run), docs=docs, asked=asked, cut=cut,
            revisions=standing(docs) if cut else revisions(docs, asked),
            calls=await history.calls_of(conn, who.tenant, run_id, limit=MAX_CALLS),
            files=await files.of_run(conn, who.tenant, run_id),
            moves=await history.moves(conn, who.tenant, run_id, MOVES, limit=MAX_MOVES), told=page[:PAGE],
            more=len(page) > PAGE, progress=count, last_progress=last,
            others=await _others(conn, run), mark=mark or "",
        )  # fmt: skip


async def watch(services: Services, run_id: UUID, who: Principal) -> str:
    """`History.mark` alone, for those who wait for it to change. Raises `NotFound`."""
    demand(who, Permission.READ)
    async with services.db.connection(who.tenant) as conn:
        mark = await history.mark(conn, who.tenant, run_id)
    if mark is None:
        raise NotFound("there is no such run")
    return mark


async def whole(services: Services, run_id: UUID, who: Principal) -> dict[str, Any]:
    """The run as the API answers it. Raises `NotFound`."""
    demand(who, Permission.READ)
    async with services.db.connection(who.tenant) as conn:
        run = await _found(conn, who.tenant, run_id)
        return (await run_views(conn, services, [run]))[0]


async def told(services: Services, run_id: UUID, who: Principal, wanted: Told) -> list[Event]:
    """A page of its events, newest first. Raises `NotFound`."""
    demand(who, Permission.READ)
    async with services.db.connection(who.tenant) as conn:
        await _found(conn, who.tenant, run_id)
        return await history.told(conn, who.tenant, run_id, wanted, limit=PAGE)


async def _found(conn: Conn, tenant: str, run_id: UUID) -> Run:
    run = await runs.get(conn, tenant, run_id)
    if run is not None:
        return run
    purged_at = await history.purged_at(conn, tenant, run_id)
    if purged_at is not None:
        raise NotFound(f"this run was over for longer than runs are kept here: it was purged on {purged_at:%Y-%m-%d}")
    raise NotFound("there is no such run")


async def _others(conn: Conn, run: Run) -> list[Run]:
    if run.session_id is None:
        return []
    found = await runs.page(conn, run.tenant, RunFilter(session_id=run.session_id), limit=NEIGHBOURS + 1)
    return [other for other in found if other.id != run.id][:NEIGHBOURS]
