"""The record of a decision: who gave it, how they showed who they are, what they saw, and what was sent then.

What is no content stands in the event, so that it is chained; content (reason, edits) stands there as a salted hash.
`records` derives the record of each event from its chain alone: an export is held against that.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from service.domain.approval import Approval, ApprovalStatus, Decision, shows_payload, standing
from service.domain.canonical import NotCanonical, canonical, payload_sha256, sha256_hex
from service.domain.event import EventType, rfc3339
from service.domain.patch import diff, pointer
from service.domain.principal import Principal, Role

MOST_CHANGES: Final = 100


@dataclass(frozen=True, slots=True)
class Seen:
    """When the approval was first opened: by who decides, and by anybody who may."""

    by_them: datetime | None = None
    by_anyone: datetime | None = None


NOBODY: Final = Seen()


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is written down beside a decision. `position` of `quorum`: which vote of how many; null for a veto."""

    role: Role | None
    authenticated_by: str
    credential: str | None
    seen: Seen
    position: int | None
    quorum: int
    changes: Sequence[Mapping[str, str]]
    nonce: str = field(repr=False)
    reason_sha256: str | None
    edits_sha256: str | None

    def data(self) -> dict[str, Any]:
        """As the event has it."""
        return {
            "role": self.role,
            "authenticated_by": self.authenticated_by,
            "credential": self.credential,
            "first_seen_at": _when(self.seen.by_them),
            "first_seen_by_anyone_at": _when(self.seen.by_anyone),
            "position": self.position,
            "quorum": self.quorum,
            "changes": [dict(change) for change in self.changes],
            "reason_sha256": self.reason_sha256,
            "edits_sha256": self.edits_sha256,
        }


def recorded(
    before: Approval, after: Approval, decision: Decision, by: Principal | None, seen: Seen, *, nonce: str, payload: Any
) -> Recorded:
    """`by` None: silence. `payload` is the one that stands after the decision."""
    proof = by.proof if by is not None else None
    votes = {each.actor for each in standing(after)} if decision in after.decisions else set()
    counts = by is not None and decision.action != "reject"
    return Recorded(
        role=by.role if by is not None else None,
        authenticated_by=proof.method if proof is not None else "timeout",
        credential=proof.credential if proof is not None else None,
        seen=seen,
        position=len(votes) if counts else None,
        quorum=before.reviewers.quorum,
        changes=changes(before, decision, payload),
        nonce=nonce,
        reason_sha256=salted(nonce, decision.reason),
        edits_sha256=salted(nonce, decision.edits),
    )


def changes(before: Approval, decision: Decision, payload: Any) -> list[dict[str, str]]:
    """`{op, path}` of what an edit changed, without its values."""
    if decision.action != "edit":
        return []
    if before.run_id is not None and not shows_payload(before):
        return [{"op": "replace", "path": "/response"}]
    found = [(each["op"], _named(each["path"], before.schema)) for each in diff(before.context.get("payload"), payload)]
    return [{"op": op, "path": path} for op, path in dict.fromkeys(found)][:MOST_CHANGES]


def _named(path: str, schema: Any) -> str:
    """The path as far as the schema names it: a name that somebody made up may itself be content, so it is `*`."""
    parts: list[str] = []
    for part in path.split("/")[1:]:
        known = schema.get("properties") if isinstance(schema, Mapping) else None
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(known, Mapping) or name not in known:
            return pointer([*parts, "*"])
        parts.append(name)
        schema = known[name]
    return pointer(parts)


def salted(nonce: str, value: Any) -> str | None:
    """A hash that holds the value to what it was, and tells nothing about it without the nonce."""
    if value is None:
        return None
    try:
        return sha256_hex(nonce.encode() + canonical(value))
    except NotCanonical:
        return None


def content_sha256(value: Any) -> str | None:
    """The hash of what was shown or answered, where it has one."""
    try:
        return None if value is None else payload_sha256(value)
    except NotCanonical:
        return None


def asked(question: Approval, *, policy: str) -> dict[str, Any]:
    """What the event of a question says of what is shown."""
    return {
        "policy": policy,
        "schema_sha256": content_sha256(question.schema),
        "quorum": question.reviewers.quorum,
        "expires_at": rfc3339(question.expires_at),
    }


# Reading it back


_ASKED: Final = ("checkpoint_type", "reasons", "payload_sha256", "policy", "schema_sha256")
_DECIDED: Final = (
    *("role", "authenticated_by", "credential", "action", "status", "channel", "first_seen_at"),
    *("first_seen_by_anyone_at", "position", "quorum", "changes"),
)
_SENT: Final = ("provider", "call", "provider_ref", "sent_payload_sha256", "response_sha256")
DERIVED: Final = (
    *("approval_id", "who", "requested_at", "decided_at", *_ASKED, *_DECIDED, "decided_payload_sha256", *_SENT),
    "reviewed_response_sha256",
)
"""The fields of a record that its chain gives."""
CONTENT: Final = ("key_prefix", "reason", "edits", "nonce")
"""Those that it does not: they are held to the event by salted hashes, the prefix by nothing."""
FIELDS: Final = (*DERIVED, *CONTENT)


def records(events: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
    """The record of each event of one chain that has one, by seq."""
    asked_by_id: dict[str, Mapping[str, Any]] = {}
    found: dict[int, dict[str, Any]] = {}
    answer: str | None = None
    reviewed: dict[str, str | None] = {}
    for n, event in enumerate(events):
        data = data_of(event)
        match event["type"]:
            case EventType.APPROVAL_REQUESTED:
                about = str(data.get("approval_id"))
                asked_by_id[about] = event
                reviewed[about] = answer if data.get("checkpoint_type") == "response_review" else None
                found[event["seq"]] = _record(_question(event), reviewed_response_sha256=reviewed[about])
            case EventType.APPROVAL_DECIDED | EventType.APPROVAL_EXPIRED:
                about = str(data.get("approval_id"))
                sent = _sent(events[n + 1 :]) if str(data.get("status")) not in _ENDS else {}
                decided = _decided(event, asked_by_id.get(about))
                found[event["seq"]] = _record({**decided, **sent}, reviewed_response_sha256=reviewed.get(about))
            case EventType.PROVIDER_SUBMITTED:
                found[event["seq"]] = _record(_sent(events[n:]))
            case EventType.PROVIDER_COMPLETED:
                answer = data.get("response_sha256")
                found[event["seq"]] = _record(_call(event))
            case EventType.PROVIDER_FAILED:
                found[event["seq"]] = _record(_call(event))
            case _:
                pass
    return found


_ENDS: Final = frozenset({ApprovalStatus.REJECTED, ApprovalStatus.EXPIRED, ApprovalStatus.CANCELLED})


def data_of(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the event says; nothing, where somebody put something else there."""
    return event["data"] if isinstance(event["data"], Mapping) else {}


def _record(known: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return dict.fromkeys(DERIVED) | dict(known) | more


def _question(event: Mapping[str, Any]) -> dict[str, Any]:
    data = data_of(event)
    about = {name: data.get(name) for name in (*_ASKED, "approval_id", "quorum")}
    return {**about, "requested_at": event["at"]}


def _decided(event: Mapping[str, Any], question: Mapping[str, Any] | None) -> dict[str, Any]:
    data = data_of(event)
    shown = _question(question) if question is not None else {}
    own = {name: data[name] for name in _DECIDED if name in data}
    about = {"approval_id": data.get("approval_id"), "checkpoint_type": data.get("checkpoint_type")}
    decided = {"who": event["actor"], "decided_at": event["at"], "decided_payload_sha256": data.get("payload_sha256")}
    return {**shown, **about, **own, **decided}


def _sent(later: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The next call, and what came of it."""
    for n, event in enumerate(later):
        if event["type"] == EventType.PROVIDER_SUBMITTED:
            call = data_of(event).get("call")
            ends = (_call(each) for each in later[n + 1 :] if _answers(each, call))
            return {**_call(event), **next(ends, {}), "sent_payload_sha256": data_of(event).get("payload_sha256")}
    return {}


def _answers(event: Mapping[str, Any], call: Any) -> bool:
    return event["type"] == EventType.PROVIDER_COMPLETED and bool(data_of(event).get("call") == call)


def _call(event: Mapping[str, Any]) -> dict[str, Any]:
    data = data_of(event)
    return {
        "provider": str(event["actor"]).removeprefix("provider:"),
        "call": data.get("call"),
        "provider_ref": data.get("provider_ref"),
        "sent_payload_sha256": data.get("payload_sha256"),
        "response_sha256": data.get("response_sha256"),
    }


def differing(record: Mapping[str, Any], derived: Mapping[str, Any]) -> str | None:
    """The first field of an exported record that is not what its chain says."""
    return next((name for name in DERIVED if (record.get(name) or None) != (derived.get(name) or None)), None)


def unfit(event: Mapping[str, Any], reason: Any, edits: Any, nonce: Any) -> str | None:
    """The content that is not what the event holds it to. Gone is not changed: it may have been erased."""
    for name, value in (("reason", reason), ("edits", edits)):
        if value is None or f"{name}_sha256" not in event["data"]:  # of before this was written down
            continue
        if not isinstance(nonce, str) or salted(nonce, value) != event["data"][f"{name}_sha256"]:
            return name
    return None


def _when(at: datetime | None) -> str | None:
    return rfc3339(at) if at is not None else None


def decisions_in(events: Iterable[Mapping[str, Any]]) -> dict[str, list[int]]:
    """The seqs of the answers that were taken, by approval, in their order: the n-th is the n-th decision."""
    found: dict[str, list[int]] = {}
    for event in events:
        if event["type"] == EventType.APPROVAL_DECIDED and "action" in data_of(event):
            found.setdefault(str(data_of(event).get("approval_id")), []).append(event["seq"])
    return found
