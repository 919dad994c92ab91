"""What silence will mean, said before it happens."""

from service.domain.approval import Approval, escalates, silence_may_approve
from service.domain.event import rfc3339


def in_words(approval: Approval) -> str | None:
    """What becomes of an open approval that nobody answers; null for one that is decided."""
    if not approval.is_open:
        return None
    if approval.clock_stopped_at is not None:
        return "the run is paused: the clock stands still"
    at = f"at {rfc3339(approval.expires_at)}"
    if escalates(approval):
        assert approval.escalate_to is not None
        others = ", ".join((*approval.escalate_to.users, *approval.escalate_to.groups))
        return f"{others} will be asked {at}; rejected after the same time again"
    if approval.on_timeout == "approve" and silence_may_approve(approval):
        return f"approved {at}"
    return f"rejected {at}"
