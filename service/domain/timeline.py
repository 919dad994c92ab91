"""A run's events as something to be drawn: what it did and waited for, each from when until when.

A claim leaves no event, so a wait in line lasts until the worker's first word. What `chain` adds to each event says how
its transaction left the run; all that is drawn comes from that and from the event itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from service.domain.event import Event, EventType
from service.domain.run import FINAL, RunStatus, Step

_E = EventType
MOVES: Final = frozenset(_E) - {
    _E.PROVIDER_PROGRESS, _E.APPROVAL_REMINDED, _E.APPROVAL_ESCALATED, _E.APPROVAL_CLAIMED, _E.APPROVAL_DELEGATED,
}  # fmt: skip
"""The types that change the picture."""
NOTABLE_WAIT: Final = timedelta(seconds=1)
"""A wait in line that is shorter is not told of on its own."""


class Kind(StrEnum):
    STEP = "step"
    QUEUE = "queue"
    WORK = "work"
    HUMAN = "human"
    PROVIDER = "provider"
    PAUSE = "pause"


@dataclass(frozen=True, slots=True)
class Stretch:
    """What all of the run was at. `until` None: it goes on. They follow each other and do not overlap."""

    kind: Kind
    since: datetime
    until: datetime | None


@dataclass(frozen=True, slots=True)
class Lane:
    """One step, wait or try of a call. `name`: of the step or checkpoint; `ended`: how (an approval's status, a call's
    code, `again` for a step that is gone back from); `by`: who ended it."""

    kind: Kind
    name: str
    since: datetime
    until: datetime | None = None
    ended: str | None = None
    by: str | None = None
    approval_id: str | None = None
    call: int | None = None
    attempt: int | None = None


def stretches(events: Iterable[Event]) -> list[Stretch]:
    """Of the run's events in their order: of all that are in `MOVES`."""
    found: list[Stretch] = []
    current: Stretch | None = None
    calling = False
    for event in events:
        calling = _calling(event, before=calling)
        kind = _kind(event, calling=calling)
        if current is not None and kind is current.kind:
            continue
        if current is not None and event.at > current.since:
            found.append(replace(current, until=event.at))
        current = Stretch(kind, event.at, None) if kind is not None else None
    return found if current is None else [*found, current]


def lanes(events: Iterable[Event]) -> list[Lane]:
    """Of the same events: each step, question, try, pause and longer wait in line, in the order of their beginnings."""
    events = list(events)
    drawn = _Drawn()
    for event in events:
        drawn.take(event)
    waits = [
        Lane(Kind.QUEUE, "", one.since, one.until)
        for one in stretches(events)
        if one.kind is Kind.QUEUE and (one.until is None or one.until - one.since >= NOTABLE_WAIT)
    ]
    found = [*drawn.done, *drawn.open.values(), *waits]
    return sorted(found, key=lambda lane: (lane.since, lane.kind is not Kind.STEP))


def _kind(event: Event, *, calling: bool) -> Kind | None:
    """What the run is at after this event; None: it is over."""
    match event.data.get("run_status"):
        case RunStatus.QUEUED:
            return Kind.QUEUE
        case RunStatus.AWAITING_HUMAN:
            return Kind.HUMAN
        case RunStatus.AWAITING_PROVIDER:
            return Kind.PROVIDER
        case RunStatus.PAUSED:
            return Kind.PAUSE
        case RunStatus.RUNNING:  # a wait for a call that was accepted begins without an event
            return Kind.PROVIDER if calling else Kind.WORK
        case _:
            return None


def _calling(event: Event, *, before: bool) -> bool:
    match event.type:
        case _E.PROVIDER_SUBMITTED:
            return True
        case _E.PROVIDER_COMPLETED | _E.PROVIDER_FAILED | _E.STEP_COMPLETED | _E.APPROVAL_REQUESTED:
            return False
        case _:
            return before


class _Drawn:
    """The lanes so far; those that go on by what they are."""

    def __init__(self) -> None:
        self.done: list[Lane] = []
        self.open: dict[tuple[Kind, str], Lane] = {}

    def take(self, event: Event) -> None:
        data, at = event.data, event.at
        match event.type:
            case _E.STEP_STARTED:
                self._begin(Lane(Kind.STEP, str(data.get("step")), at))
            case _E.STEP_COMPLETED:
                self._end((Kind.STEP, str(data.get("step"))), event, "completed")
            case _E.APPROVAL_REQUESTED:
                asked = str(data.get("approval_id"))
                self._begin(Lane(Kind.HUMAN, str(data.get("checkpoint_type")), at, approval_id=asked), asked)
            case _E.APPROVAL_DECIDED | _E.APPROVAL_EXPIRED if data.get("status") != "pending":
                self._end((Kind.HUMAN, str(data.get("approval_id"))), event, str(data.get("status")))
                self._stand_at(event)
            case _E.PROVIDER_SUBMITTED:
                self._end((Kind.PROVIDER, ""), event, "unanswered")
                self._begin(Lane(Kind.PROVIDER, "", at, call=data.get("call"), attempt=data.get("try")), "")
            case _E.PROVIDER_COMPLETED | _E.PROVIDER_FAILED:
                self._end((Kind.PROVIDER, ""), event, str(data.get("code", "answered")))
            case _E.RUN_PAUSED:
                self._begin(Lane(Kind.PAUSE, "", at), "")
            case _E.RUN_RESUMED:
                self._end((Kind.PAUSE, ""), event, "resumed")
                self._stand_at(event)
            case _E.RUN_COMPLETED | _E.RUN_FAILED | _E.RUN_CANCELLED:
                for key in list(self.open):
                    self._end(key, event, event.type.removeprefix("run."))
            case _:
                pass

    def _stand_at(self, event: Event) -> None:
        """A human's answer, and a resumption, may leave the run at another step than it was at."""
        step = event.data.get("current_step")
        if event.data.get("run_status") in FINAL or step in (None, Step.COMPLETED):
            return
        for kind, name in list(self.open):
            if kind is Kind.STEP and name != step:
                self._end((kind, name), event, "again")
        self._begin(Lane(Kind.STEP, str(step), event.at))

    def _begin(self, lane: Lane, key: str | None = None) -> None:
        self.open.setdefault((lane.kind, lane.name if key is None else key), lane)

    def _end(self, key: tuple[Kind, str], event: Event, ended: str) -> None:
        lane = self.open.pop(key, None)
        if lane is not None:
            self.done.append(replace(lane, until=event.at, ended=ended, by=event.actor))
