"""A signed link: one reviewer, one approval, one payload, one answer."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from service.domain.approval import Approval
from service.errors import LinkExpired, LinkUsed


@dataclass(frozen=True, slots=True)
class Link:
    """The row of `links` without its hash."""

    tenant: str
    approval_id: UUID
    reviewer: str
    payload_sha256: str | None
    made_by: str
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None


def latest_end(approval: Approval, *, now: datetime) -> datetime:
    """When a link to an open approval is over at the latest: with the approval, whose clock may stand."""
    stood = now - approval.clock_stopped_at if approval.clock_stopped_at else now - now
    return approval.expires_at + stood


def check_good(link: Link, *, now: datetime) -> None:
    """Raises `LinkExpired` or `LinkUsed`."""
    if link.expires_at <= now:
        raise LinkExpired("the link is over")
    if link.used_at is not None:
        raise LinkUsed("the link was used")
