"""Whether chains of events are whole: the same rules over the database and over an export."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from service.domain.canonical import canonical, sha256_hex
from service.domain.content import ERASED
from service.domain.event import EventType

HASHED: Final = ("run_id", "seq", "type", "at", "actor", "data", "prev_hash")


@dataclass(frozen=True, slots=True)
class Head:
    """What the run itself says of its last event."""

    run_id: str
    seq: int
    hash: str | None = None


@dataclass(frozen=True, slots=True)
class Broken:
    """The first link of a run's chain that does not hold; behind it nothing can be said."""

    run_id: str
    seq: int
    problem: str


def link_hash(event: Mapping[str, Any]) -> str:
    """The hash that an event must have (contract, section 7), of the event as it is answered and exported."""
    body = {name: event[name] for name in HASHED}
    return sha256_hex(str(event["prev_hash"]).encode() + canonical(body))


def check(head: Head, events: Iterable[Mapping[str, Any]]) -> Broken | None:
    """The first broken link of one run, its events given in the order of `seq`."""
    last, seq = "", 0
    for event in events:
        if event["seq"] != seq + 1:
            word = "is missing" if event["seq"] > seq + 1 else "is there twice"
            return Broken(head.run_id, seq + 1 if event["seq"] > seq else event["seq"], word)
        seq += 1
        if event["prev_hash"] != last:
            return Broken(head.run_id, seq, "does not follow the event before it")
        if not _erased(event) and event["hash"] != _hash_of(event):
            return Broken(head.run_id, seq, "was changed: its hash does not match")
        last = event["hash"]
    if seq < head.seq:
        return Broken(head.run_id, seq + 1, f"is missing at the end: the run has {head.seq}")
    if seq > head.seq:
        return Broken(head.run_id, head.seq + 1, f"is one too many: the run has {head.seq}")
    if head.hash is not None and last != head.hash:
        return Broken(head.run_id, seq, "is not the one that the run ends with")
    return None


def _erased(event: Mapping[str, Any]) -> bool:
    """Whether its content was erased: what a provider told of its answer so far, which nobody decided anything by.
    Its hash stands, and is held by the event after it and by the run."""
    data = event["data"]
    return event["type"] == EventType.PROVIDER_PROGRESS and isinstance(data, Mapping) and data.get(ERASED) is True


def _hash_of(event: Mapping[str, Any]) -> str | None:
    try:
        return link_hash(event)
    except (TypeError, ValueError):  # a value that JSON cannot carry was put there
        return None


def by_run(lines: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Head, list[Mapping[str, Any]]]]:
    """The lines of an export, a run at a time. Each line says how many events its run had (`of`)."""
    found: list[Mapping[str, Any]] = []
    for line in lines:
        if found and line["run_id"] != found[0]["run_id"]:
            yield Head(found[0]["run_id"], found[0]["of"]), found
            found = []
        found.append(line)
    if found:
        yield Head(found[0]["run_id"], found[0]["of"]), found
