"""Messages to the outside: which events are told to whom, in which form, and when a try is repeated."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

from service.domain.event import Event, EventType, rfc3339

Kind = Literal["webhook", "relay"]
WEBHOOK: Final[Kind] = "webhook"
RELAY: Final[Kind] = "relay"

CALLED_BACK: Final = frozenset(
    {
        EventType.RUN_COMPLETED,
        EventType.RUN_FAILED,
        EventType.RUN_CANCELLED,
        EventType.APPROVAL_REQUESTED,
        EventType.APPROVAL_DECIDED,
        EventType.APPROVAL_EXPIRED,
    }
)
ROTATION: Final = timedelta(hours=24)
RELAY_DELAY_MAX_S: Final = 30.0
# nine tries over a little more than a day; jitter only adds
_DELAYS_S: Final = (4, 25, 120, 600, 3600, 3 * 3600, 6 * 3600, 14 * 3600)
_JITTER: Final = 0.25


@dataclass(frozen=True, slots=True)
class Told:
    """One event for one kind of target, before it is a row."""

    kind: Kind
    seq: int | None
    type: str
    approval_id: UUID | None
    at: datetime


_HOST: Final = re.compile(r"[^:/?#]+://(?:[^/?#]*@)?([^/?#@]*)")


def url_host(url: str | None) -> str | None:
    """Host and port of a URL: what a callback is limited, listed and logged by. SQL has the same function."""
    found = _HOST.match(url) if url is not None else None
    return found[1].lower() if found else None


def told(events: Sequence[Event], *, relays: bool, calls_back: bool = True) -> list[Told]:
    """The messages that these events of one run become, in order."""
    return [
        Told(kind, event.seq, event.type, _approval_of(event), event.at)
        for event in events
        for kind in _kinds(event.type, relays=relays, calls_back=calls_back)
    ]


def _approval_of(event: Event) -> UUID | None:
    about = event.data.get("approval_id")
    return UUID(about) if about else None


def _kinds(event_type: str, *, relays: bool, calls_back: bool) -> list[Kind]:
    kinds: list[Kind] = [WEBHOOK] if calls_back and event_type in CALLED_BACK else []
    return [*kinds, RELAY] if relays else kinds


def next_try(tries: int, *, jitter: float) -> timedelta | None:
    """How long to wait after the `tries`-th failure of a webhook; None: it is a dead letter. `jitter` is 0 to 1."""
    if tries > len(_DELAYS_S):
        return None
    return timedelta(seconds=_DELAYS_S[tries - 1] * (1 + _JITTER * jitter))


def relay_delay_s(failures: int, *, jitter: float) -> float:
    """Seconds before a relay is tried again after so many failures in a row; it is never given up."""
    longest = RELAY_DELAY_MAX_S / (1 + _JITTER)
    wait: float = min(0.5 * 2 ** min(failures - 1, 10), longest)
    return wait * (1 + _JITTER * jitter)


def webhook_body(
    event_type: str, at: datetime, *, seq: int | None, run: Mapping[str, Any] | None, approval: Mapping[str, Any] | None
) -> dict[str, Any]:
    """`{type, timestamp, data}` (contract, section 9): the approval for its events, else the run."""
    about: dict[str, Any] = {"seq": seq}
    if approval is not None:
        about |= {"run_id": approval["run_id"], "approval_id": approval["approval_id"], "status": approval["status"]}
        about["approval"] = approval
    elif run is not None:
        about |= {"run_id": run["run_id"], "status": run["status"], "run": run}
    return {"type": event_type, "timestamp": rfc3339(at), "data": about}


def envelope(frame: Mapping[str, Any], *, session_id: str | None, user_id: str | None) -> dict[str, Any]:
    """A frame as the relay takes it (contract, section 8). Where it leaves the words open: `status` is the frame's
    type, `action` the event's."""
    asks = frame["type"] == "hitl_approval_request"
    data = frame["data"] if isinstance(frame["data"], Mapping) else {}
    return {
        "sessionId": session_id,
        "userId": user_id,
        "status": "hitl_request" if asks else frame["type"],
        "action": "approval_required" if asks else frame["event"],
        "message": data.get("message") or frame["event"],
        "data": frame,
    }
