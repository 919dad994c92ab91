"""Whether chains of events are whole: the same rules over the database and over an export."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from service.domain.anchor import End, moved
from service.domain.approval import Decision
from service.domain.canonical import canonical, sha256_hex
from service.domain.content import ERASED
from service.domain.event import EventType
from service.domain.record import decisions_in, differing, records, unfit

HASHED: Final = ("run_id", "seq", "type", "at", "actor", "data", "prev_hash")


@dataclass(frozen=True, slots=True)
class Head:
    """What the run itself says of its last event, and whose it is where that is known."""

    run_id: str
    seq: int
    hash: str | None = None
    tenant: str | None = None


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
        erased = _erased(event)
        if not erased and event["hash"] != _hash_of(event):
            return Broken(head.run_id, seq, "was changed: its hash does not match")
        if not erased and not event.get("spelt", True):
            return Broken(head.run_id, seq, "was changed: its data is not spelt as it was written")
        if event.get("tenant", head.tenant) != head.tenant:
            return Broken(head.run_id, seq, "was moved: it is not of its run's tenant")
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
    claims = event["type"] == EventType.PROVIDER_PROGRESS and isinstance(data, Mapping) and data.get(ERASED) is True
    return claims and bool(event.get("erased", True))  # in the database an erasure must be on record


def check_anchored(head: Head, events: Sequence[Mapping[str, Any]], ends: Iterable[End]) -> Broken | None:
    """What was anchored of one run, the earliest first, against its chain as it is."""
    for end in ends:
        if (problem := moved(end, head.tenant, events)) is not None:
            return Broken(head.run_id, end.seq, problem)
    return None


def check_decisions(
    head: Head, events: Sequence[Mapping[str, Any]], kept: Mapping[str, Sequence[Decision]]
) -> Broken | None:
    """The decisions that are kept beside the chain, by approval, against what the chain says of them."""
    told = decisions_in(events)
    for approval_id, seqs in told.items():
        decisions = kept.get(approval_id, ())
        for n, seq in enumerate(seqs):
            if n >= len(decisions):
                return Broken(head.run_id, seq, "has lost the decision that it tells of")
            if (name := _otherwise(events[seq - 1], decisions[n])) is not None:
                return Broken(head.run_id, seq, f"is not what the decision beside it says: {name}")
    for approval_id, decisions in kept.items():
        if len(decisions) > len(told.get(approval_id, ())):
            return Broken(head.run_id, head.seq, f"comes without word of a decision about {approval_id}")
    return None


def check_records(head: Head, events: Sequence[Mapping[str, Any]], given: Mapping[int, Any]) -> Broken | None:
    """The records of an export, by seq, against what their chain says."""
    derived = records(events)
    for event in events:
        record = given.get(event["seq"])
        if record is None:
            continue
        if not isinstance(record, Mapping) or event["seq"] not in derived:
            return Broken(head.run_id, event["seq"], "has a record that its chain knows nothing of")
        name = differing(record, derived[event["seq"]])
        name = name or unfit(event, record.get("reason"), record.get("edits"), record.get("nonce"))
        if name is not None:
            return Broken(head.run_id, event["seq"], f"has a record that was changed: {name}")
    return None


def _otherwise(event: Mapping[str, Any], decision: Decision) -> str | None:
    said = {"actor": event["actor"], **event["data"]}
    for name in ("actor", "action", "channel"):
        if said.get(name) != getattr(decision, name):
            return name
    return unfit(event, decision.reason, decision.edits, decision.nonce)


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
