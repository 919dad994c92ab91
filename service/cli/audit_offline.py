"""`hitl audit verify FILE`: an export against itself and against the anchors that go with it, without a database."""

from collections.abc import Collection
from pathlib import Path
from uuid import UUID

from service.cli.audit_files import lines_of, read_anchors
from service.commands.audit import BrokenAnchor, Findings, unanchored
from service.domain.anchor import Anchor, End, Tombstone, fault, stone_fault
from service.domain.audit import Broken, by_run, check, check_anchored, check_records


class Beside:
    """What a file of anchors says; it is held in memory, a few hundred bytes for each time that a run was anchored."""

    def __init__(self) -> None:
        self.ends: dict[str, list[End]] = {}
        self.stones: dict[str, Tombstone] = {}
        self.hashes: set[str] = set()
        self.whole = False


def verify_files(
    file: Path, anchors: Path | None, run_id: UUID | None, trusted: Collection[str], anchored: Collection[str]
) -> Findings:
    found = Findings()
    beside = _read(anchors, trusted, found) if anchors is not None else Beside()
    found.broken += unanchored(anchored, beside.hashes)
    seen: set[str] = set()
    with file.open(encoding="utf-8", newline="") as source:
        for head, events in by_run(lines_of(source)):
            if run_id is not None and head.run_id != str(run_id):
                continue
            found.counts["runs"] += 1
            found.counts["events"] += len(events)
            broken = check(head, events) or check_anchored(head, events, beside.ends.get(head.run_id, ()))
            broken = broken or check_records(head, events, {event["seq"]: event.get("record") for event in events})
            if head.run_id in seen:
                broken = Broken(head.run_id, 1, "is there twice")
            if beside.ends:
                seen.add(head.run_id)
            if broken is not None:
                found.broken.append(broken)
    for run in sorted(beside.ends.keys() - seen) if beside.whole else ():
        if run_id is None or run == str(run_id):
            _missing(run, beside, found)
    return found


def _read(file: Path, trusted: Collection[str], found: Findings) -> Beside:
    beside, before = Beside(), None
    for told in read_anchors(file):
        match told:
            case bool():
                beside.whole = told
            case Tombstone():
                found.counts["purged"] += 1
                beside.stones[str(told.end.run_id)] = told
                if (problem := stone_fault(told, trusted)) is not None:
                    says = f"is purged: the word of it {problem}"
                    found.broken.append(Broken(str(told.end.run_id), told.end.seq, says))
            case (Anchor() as anchor, leaves, ends):
                found.counts["anchors"] += 1
                beside.hashes.add(anchor.hash)
                if (problem := fault(anchor, before, leaves, trusted)) is not None:
                    found.broken.append(BrokenAnchor(anchor.n, problem))
                for end in ends:
                    beside.ends.setdefault(str(end.run_id), []).append(end)
                before = anchor
    return beside


def _missing(run: str, beside: Beside, found: Findings) -> None:
    """A run that was anchored and is not in the export: purged, or taken away."""
    last, stone = beside.ends[run][-1], beside.stones.get(run)
    if stone is None or not accounts_for(stone, last):
        found.counts["runs"] += 1
        problem = "is missing with its whole run: it was anchored, and no purge accounts for it"
        found.broken.append(Broken(run, last.seq, problem))


def accounts_for(stone: Tombstone, end: End) -> bool:
    later = stone.end.seq > end.seq or (stone.end.seq == end.seq and stone.end.hash == end.hash)
    return later and stone.end.tenant == end.tenant
