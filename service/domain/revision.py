"""The payloads that a run has had: as it was built, and after each edit, with what changed and by whom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from service.domain.approval import Approval, ApprovalStatus, Decision, patched, shows_payload
from service.domain.patch import diff
from service.domain.plan import Documents
from service.domain.record import content_sha256
from service.errors import Invalid

_TAKEN: Final = frozenset({ApprovalStatus.APPROVED, ApprovalStatus.EDITED, ApprovalStatus.RETRIED})


@dataclass(frozen=True, slots=True)
class Revision:
    """`edit` None: as it was built. `taken` None: the question is still open; False: it was refused with this in it,
    so that the run never had it. `changes` from the revision before, as `patch.diff` says them."""

    payload: Any
    sha256: str | None
    taken: bool | None = True
    edit: Decision | None = None
    approval: Approval | None = None
    changes: Sequence[Mapping[str, Any]] = ()

    @property
    def at(self) -> datetime | None:
        return self.edit.at if self.edit else None


def revisions(docs: Documents, asked: Sequence[Approval]) -> list[Revision]:
    """`asked`: the run's approvals in their order, from its first. Nothing where no payload was built, or it was
    erased."""
    built = (docs.description or {}).get("built", docs.payload)
    if built is None:
        return []
    found = [Revision(built, content_sha256(built))]
    current = built
    for approval in asked:
        if not shows_payload(approval):
            continue
        proposed = _edits(approval, current)
        found += proposed
        if proposed and approval.status in _TAKEN:
            current = proposed[-1].payload
    return found


def standing(docs: Documents) -> list[Revision]:
    """Only the payload that stands, where its history is too long to be told."""
    return [] if docs.payload is None else [Revision(docs.payload, content_sha256(docs.payload))]


def _edits(approval: Approval, before: Any) -> list[Revision]:
    """Each edit upon the one before, as they would be taken together."""
    found = []
    taken = None if approval.is_open else approval.status in _TAKEN
    for decision in approval.decisions:
        if decision.action != "edit":
            continue
        try:
            after = patched(before, decision.edits)
        except Invalid:  # of a release whose edits had another shape
            continue
        changes = diff(before, after)
        found.append(Revision(after, content_sha256(after), taken, decision, approval, changes))
        before = after
    return found
