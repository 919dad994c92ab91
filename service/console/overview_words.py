"""What the pages of runs and of operations say in place of codes."""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from service.domain.run import RunStatus, Step

STATES: Final[Mapping[str, str]] = {
    RunStatus.QUEUED: "In line",
    RunStatus.RUNNING: "Running",
    RunStatus.AWAITING_HUMAN: "Waits for people",
    RunStatus.AWAITING_PROVIDER: "Waits for the provider",
    RunStatus.PAUSED: "Paused",
    RunStatus.COMPLETED: "Completed",
    RunStatus.FAILED: "Failed",
    RunStatus.CANCELLED: "Cancelled",
}
LOOKS: Final[Mapping[str, str]] = {
    RunStatus.COMPLETED: "good",
    RunStatus.FAILED: "bad",
    RunStatus.CANCELLED: "bad",
    RunStatus.PAUSED: "warn",
    RunStatus.AWAITING_HUMAN: "warn",
}
STEPS: Final[Mapping[str, str]] = {
    Step.INFORMATION_REVIEW: "Information review",
    Step.PAYLOAD_REVIEW: "Payload review",
    Step.API_CALL: "Provider call",
    Step.RESPONSE_REVIEW: "Response review",
    Step.COMPLETED: "Done",
}
AGES: Final = ("under 1 min", "1 to 10 min", "10 min to 1 h", "1 to 8 h", "8 h to 1 day", "1 to 7 days", "over 7 days")
"""Of `operations.AGES`, and what is older than the last."""


def length(since: datetime, until: datetime) -> str:
    """A stretch of time in two words at most."""
    return span((until - since).total_seconds())


def span(length_s: float) -> str:
    """Likewise, of seconds."""
    seconds = max(0, int(length_s))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86_400
    if days >= 2:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes >= 5 else f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


def count(n: int, at_most: int) -> str:
    """A number that was counted so far and no further."""
    return f"{at_most:,}+" if n > at_most else f"{n:,}"


def seen(at: datetime, now: datetime) -> str:
    """When a worker gave its last sign, as coarse as the page is renewed."""
    tens = max(0, int((now - at).total_seconds())) // 10 * 10
    return f"silent for {tens} s" if tens else "a moment ago"
