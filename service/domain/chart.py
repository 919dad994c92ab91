"""Bars over time: which moments are looked into, and how what was found there becomes the bars. Pure.

Where a bar holds more than can be counted at once, it is estimated from windows spread over it. They lie at random, so
that nothing that comes at a regular beat is always hit or always missed, but at the same random places each time.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import accumulate, pairwise
from random import Random
from typing import Final

STRATA: Final = 8
LEAST_SHARE: Final = 0.002


@dataclass(frozen=True, slots=True)
class Period:
    """So many bars of one length, the last of which holds now."""

    label: str
    bars: int
    bar: timedelta
    each: str


PERIODS: Final[Mapping[str, Period]] = {
    "1h": Period("the last hour", 60, timedelta(minutes=1), "a minute"),
    "24h": Period("the last 24 hours", 48, timedelta(minutes=30), "half an hour"),
    "7d": Period("the last 7 days", 56, timedelta(hours=3), "three hours"),
}


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time inside a bar that is looked into; `share` of the bar is looked into by all windows like it."""

    bar: int
    since: datetime
    until: datetime
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Found:
    """What a window holds of one kind, or as much of it as was counted: then `last` is the moment so far as it was.

    `opened`: the bar in which they were opened, 1 being the first and 0 what is before it; `opened_s`, `closed_s`: the
    sums of the moments in seconds since the first bar. Of starts, these say nothing.
    """

    n: int
    last: datetime
    decisions: int = 0
    opened: int = 0
    opened_s: float = 0.0
    closed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Wait:
    """Some that were opened in one bar and closed in another, told as in `Found`."""

    bar: int
    opened: int
    n: float
    opened_s: float
    closed_s: float


@dataclass(frozen=True, slots=True)
class Bar:
    """`waiting`: how many on average. `estimated`: one of the numbers is."""

    since: datetime
    until: datetime
    starts: int
    decisions: int
    waiting: int
    estimated: bool


@dataclass(frozen=True, slots=True)
class Chart:
    """`waiting`: now. `at_least`: more wait than were counted."""

    period: str
    bars: Sequence[Bar]
    waiting: int
    at_least: bool

    @property
    def estimated(self) -> bool:
        return any(bar.estimated for bar in self.bars)

    @property
    def mark(self) -> str:
        """Changes when a picture of it would."""
        return sha256(repr(self).encode()).hexdigest()[:16]


def bounds(period: Period, now: datetime) -> list[datetime]:
    """Where the bars begin, and where the last one ends."""
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    last = epoch + (now - epoch) // period.bar * period.bar
    return [last + (n - period.bars + 1) * period.bar for n in range(period.bars + 1)]


def whole(edges: Sequence[datetime]) -> list[Window]:
    """Each bar as one window."""
    return [Window(n, since, until) for n, (since, until) in enumerate(pairwise(edges))]


def samples(window: Window, counted_until: datetime) -> list[Window]:
    """Windows that hold about as much as was counted from the bar's beginning to that moment."""
    length = window.until - window.since
    share = min(0.5, max(LEAST_SHARE, (counted_until - window.since) / length))
    rng = Random(window.since.timestamp())  # noqa: S311  the same places each time, no secret
    stratum = length / STRATA
    begins = [window.since + stratum * (n + rng.random() * (1 - share)) for n in range(STRATA)]
    return [Window(window.bar, at, at + stratum * share, share) for at in begins]


def weight(window: Window, found: Sequence[Found], *, at_most: int) -> float:
    """What each one found in the window stands for."""
    n = sum(one.n for one in found)
    covered = max((one.last for one in found), default=window.until) - window.since
    cut_off = n > at_most and covered > timedelta(0)
    return (window.until - window.since) / covered / window.share if cut_off else 1 / window.share


def waiting(waits: Iterable[Wait], lengths_s: Sequence[float]) -> list[int]:
    """How many were open in each bar on average: the time that all of them spent open there, by the bar's length.

    An average and not the number at one moment, since that cannot be told from a sample of what was closed: the few
    that are open across a moment are in it or not.
    """
    begins = [0.0, *accumulate(lengths_s)]
    spent = [0.0] * len(lengths_s)
    through = [0.0] * (len(lengths_s) + 1)
    for wait in waits:
        opened = min(wait.opened, len(lengths_s)) - 1
        if opened >= wait.bar:
            spent[wait.bar] += wait.closed_s - wait.opened_s
            continue
        spent[wait.bar] += wait.closed_s - wait.n * begins[wait.bar]
        if opened >= 0:
            spent[opened] += wait.n * begins[opened + 1] - wait.opened_s
        through[opened + 1] += wait.n
        through[wait.bar] -= wait.n
    levels = zip(spent, lengths_s, accumulate(through), strict=False)
    return [max(0, round(s / length_s + all_along)) for s, length_s, all_along in levels]
