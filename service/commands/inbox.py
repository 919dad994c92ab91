"""Use cases of a person's inbox: what waits for them, how much of it, and the filters that they keep."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Final
from uuid import UUID

from service.commands.context import Services
from service.domain.approval import Approval
from service.domain.principal import Permission, Principal, demand, may
from service.errors import Invalid
from service.store import approvals, inbox
from service.store.inbox import Entry, View, Wanted

COUNTED: Final = 1000
"""So far it is counted; beyond, people are told that there are more."""
MAX_VIEWS: Final = 50
MAX_NAME: Final = 60


@dataclass(frozen=True, slots=True)
class Inbox:
    """`total` is None above `COUNTED`, and `checkpoints` is then of the soonest. `mark` changes when the page would."""

    shown: Sequence[Approval]
    after: tuple[datetime, UUID] | None
    total: int | None
    checkpoints: Mapping[str, int]
    mark: str


async def look(
    services: Services, who: Principal, wanted: Wanted, *, after: tuple[datetime, UUID] | None = None, limit: int
) -> Inbox:
    """A page of the inbox, and how much there is."""
    demand(who, Permission.READ)
    first, page = await _entries(services, who, wanted, after, limit)
    async with services.db.connection(who.tenant) as conn:
        found = {a.id: a for a in await approvals.some(conn, [entry.id for entry in page[:limit]])}
    shown = [found[entry.id] for entry in page[:limit] if entry.id in found]
    last = (page[limit - 1].expires_at, page[limit - 1].id) if len(page) > limit else None
    total = len(first) if len(first) <= COUNTED else None
    checkpoints = Counter(entry.checkpoint for entry in first[:COUNTED])
    return Inbox(shown, last, total, dict(checkpoints.most_common(8)), _mark(first, page[:limit]))


async def mark(
    services: Services, who: Principal, wanted: Wanted, *, after: tuple[datetime, UUID] | None = None, limit: int
) -> str:
    """What `look` would say, in brief: for those who only wait for it to change."""
    demand(who, Permission.READ)
    first, page = await _entries(services, who, wanted, after, limit)
    return _mark(first, page[:limit])


async def views(services: Services, who: Principal) -> list[View]:
    demand(who, Permission.READ)
    async with services.db.connection(who.tenant) as conn:
        return await inbox.views(conn, who)


async def keep_view(services: Services, who: Principal, view: View) -> None:
    """Raises `Invalid` for a name that is none, and for one too many."""
    demand(who, Permission.READ)
    if not view.name.strip() or len(view.name) > MAX_NAME or not view.name.isprintable():
        message = f"must have 1 to {MAX_NAME} characters"
        raise Invalid("the view needs a name", errors=[{"pointer": "/name", "message": message}])
    async with services.db.transaction(who.tenant) as conn:
        if not await inbox.keep_view(conn, who, view, at_most=MAX_VIEWS):
            raise Invalid(f"you keep {MAX_VIEWS} views already: drop one first")


async def drop_view(services: Services, who: Principal, name: str) -> None:
    demand(who, Permission.READ)
    async with services.db.transaction(who.tenant) as conn:
        await inbox.drop_view(conn, who, name)


async def _entries(
    services: Services, who: Principal, wanted: Wanted, after: tuple[datetime, UUID] | None, limit: int
) -> tuple[list[Entry], list[Entry]]:
    """As many as are counted, and those of the page with one more."""
    if not may(who.role, Permission.DECIDE):
        return [], []
    async with services.db.connection(who.tenant) as conn:
        first = await inbox.entries(conn, who, wanted, limit=COUNTED + 1)
        page = first if after is None else await inbox.entries(conn, who, wanted, after=after, limit=limit + 1)
    return first, page[: limit + 1]


def _mark(first: Sequence[Entry], page: Sequence[Entry]) -> str:
    told = f"{len(first)} " + " ".join(f"{entry.id}:{entry.version}:{entry.claimed}" for entry in page)
    return sha256(told.encode()).hexdigest()[:16]
