"""Use case of the auditor: the record as the database has it, a batch of runs at a time, and what does not hold."""

from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID

from service.commands.context import Services
from service.domain.anchor import Anchor, End, fault, leaf, stone_fault
from service.domain.approval import Decision
from service.domain.audit import Broken, Head, check, check_anchored, check_decisions
from service.domain.event import EventType, wire
from service.domain.record import data_of
from service.errors import ContentUnreadable
from service.store import anchors, approvals, audit, keys
from service.store.database import EVERY, Conn

BATCH_RUNS: Final = 50
BATCH_EVENTS: Final = 2000
UNREADABLE: Final = "stands beside a decision that cannot be opened: it was changed, or the master secret was"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Of whom, and of which run: all, where nothing is said."""

    tenant: str | None = None
    run_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Audited:
    """One run's chain as it is exported, with what is kept beside it: its decisions by approval (None: they cannot be
    opened), the prefixes of the keys that decided, and what was anchored of it."""

    head: Head
    events: list[dict[str, Any]]
    decisions: dict[str, Sequence[Decision]] | None
    prefixes: dict[str, str]
    ends: Sequence[End]


@dataclass(frozen=True, slots=True)
class BrokenAnchor:
    n: int
    problem: str


@dataclass(slots=True)
class Findings:
    """What a verification found, and over how much."""

    broken: list[Broken | BrokenAnchor] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


async def audited(conn: Conn, wanted: Wanted) -> AsyncIterator[Audited]:
    """Every run, in the order of ids. Inside a transaction that sees one moment."""
    batch: list[tuple[Head, list[dict[str, Any]]]] = []
    size = 0
    async for head, events in audit.chains(conn, tenant=wanted.tenant, run_id=wanted.run_id):
        batch.append((head, [_found(event) for event in events]))
        size += len(events)
        if len(batch) >= BATCH_RUNS or size >= BATCH_EVENTS:
            for one in await _whole(conn, batch):
                yield one
            batch, size = [], 0
    for one in await _whole(conn, batch):
        yield one


async def verify(
    services: Services, wanted: Wanted, trusted: Collection[str], *, anchored: Collection[str] = ()
) -> Findings:
    """Every chain, every decision beside it, every anchor and every tombstone.

    `trusted`: public keys; `anchored`: hashes of anchors that are known from elsewhere, such as the log.
    """
    found = Findings()
    async with services.db.reading(EVERY) as conn:
        found.broken += unanchored(anchored, await _verify_anchors(conn, found, trusted))
        async for one in audited(conn, wanted):
            found.counts["runs"] += 1
            found.counts["events"] += len(one.events)
            broken = check(one.head, one.events) or check_anchored(one.head, one.events, one.ends)
            if one.decisions is None:
                broken = broken or Broken(one.head.run_id, one.head.seq, UNREADABLE)
            else:
                broken = broken or check_decisions(one.head, one.events, one.decisions)
            if broken is not None:
                found.broken.append(broken)
        async for end, purged in anchors.gone(conn, tenant=wanted.tenant, run_id=wanted.run_id):
            if not purged:
                found.counts["runs"] += 1
                problem = "is missing with its whole run: it was anchored, and no purge accounts for it"
                found.broken.append(Broken(str(end.run_id), end.seq, problem))
        async for stone in anchors.tombstones(conn, tenant=wanted.tenant, run_id=wanted.run_id):
            found.counts["purged"] += 1
            if (problem_ := stone_fault(stone, trusted)) is not None:
                found.broken.append(
                    Broken(str(stone.end.run_id), stone.end.seq, f"is purged: the word of it {problem_}")
                )
    return found


def unanchored(known: Collection[str], there: Collection[str]) -> list[BrokenAnchor]:
    """Anchors that are known from elsewhere and are not there."""
    return [BrokenAnchor(0, f"is missing: {digest}") for digest in known if digest not in there]


async def _verify_anchors(conn: Conn, found: Findings, trusted: Collection[str]) -> set[str]:
    """The hashes of the anchors that are there."""
    before: Anchor | None = None
    hashes: set[str] = set()
    for anchor in await anchors.all_anchors(conn):
        found.counts["anchors"] += 1
        leaves = [leaf(end) for end in await anchors.ends_of(conn, anchor.n)]
        if (problem := fault(anchor, before, leaves, trusted)) is not None:
            found.broken.append(BrokenAnchor(anchor.n, problem))
        before = anchor
        hashes.add(anchor.hash)
    return hashes


async def _whole(conn: Conn, batch: Sequence[tuple[Head, list[dict[str, Any]]]]) -> list[Audited]:
    if not batch:
        return []
    run_ids = [UUID(head.run_id) for head, _ in batch]
    decided = await _decided(conn, run_ids)
    ends = await anchors.ends_of_runs(conn, run_ids)
    prefixes = await keys.prefixes(conn, sorted({key for _, events in batch for key in _keys(events)}))
    return [
        Audited(
            head,
            events,
            decided[UUID(head.run_id)],
            prefixes,
            ends.get(UUID(head.run_id), ()),
        )
        for head, events in batch
    ]


async def _decided(conn: Conn, run_ids: Sequence[UUID]) -> dict[UUID, dict[str, Sequence[Decision]] | None]:
    """The decisions of each run by approval. What cannot be opened is of one run, and keeps no other from its proof."""
    try:
        found = await approvals.of_runs(conn, run_ids)
    except ContentUnreadable:
        if len(run_ids) == 1:
            return {run_ids[0]: None}
        parts = [await _decided(conn, [run_id]) for run_id in run_ids]
        return {run_id: decided for part in parts for run_id, decided in part.items()}
    return {run_id: {str(a.id): a.decisions for a in found.get(run_id, ())} for run_id in run_ids}


def _found(event: audit.Found) -> dict[str, Any]:
    """The event as it stands there, whatever that may be by now."""
    beside = {"tenant": event.tenant, "spelt": event.spelt, "erased": event.erased}
    return {**wire(replace(event, data={})), "data": event.data, **beside}


def _keys(events: Sequence[dict[str, Any]]) -> list[str]:
    """The ids of the keys that decided."""
    decided = [data_of(event) for event in events if event["type"] == EventType.APPROVAL_DECIDED]
    return [str(data.get("credential")) for data in decided if data.get("authenticated_by") in ("api_key", "actor")]
