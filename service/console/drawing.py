"""A run's timeline as shapes: places in hundredths of its length, so that a browser draws it at any width."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from service.domain.event import Event, EventType
from service.domain.timeline import Kind, Lane, Stretch, lanes, stretches

MAX_LANES: Final = 60
TICKS: Final = 5
LEAST: Final = 0.05  # of a moment: nothing is drawn of a shape that has no width
_STEPS_S: Final = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30),
    *(60, 120, 300, 600, 900, 1800, 3600, 2 * 3600, 4 * 3600, 6 * 3600, 12 * 3600),
    *(86_400, 2 * 86_400, 7 * 86_400, 14 * 86_400, 28 * 86_400, 91 * 86_400),
)
_FAULTS: Final = frozenset({EventType.PROVIDER_FAILED, EventType.RUN_FAILED, EventType.RUN_RECOVERED})


@dataclass(frozen=True, slots=True)
class Bar:
    """`x` and `width` in percent of the timeline."""

    kind: Kind
    x: str
    width: str
    open: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    x: str
    label: str
    last: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    lane: Lane
    bar: Bar
    begins: str
    took: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """`spent`: what the time went into, the most first, with its share in percent. `hidden`: how many of the first
    rows are left out. `length_s`: of the whole."""

    band: Sequence[Bar]
    faults: Sequence[str]
    ticks: Sequence[Tick]
    rows: Sequence[Row]
    hidden: int
    spent: Sequence[tuple[Kind, str, str]]
    whole: str
    length_s: float


def draw(moves: Sequence[Event], *, now: datetime) -> Drawing | None:
    """Of a run's moves in their order; what goes on is drawn up to now."""
    if not moves:
        return None
    found, drawn = lanes(moves), stretches(moves)
    goes_on = bool(drawn) and drawn[-1].until is None
    scale = _Scale(moves[0].at, max(now, moves[-1].at) if goes_on else moves[-1].at)
    rows = [_row(scale, lane) for lane in found[-MAX_LANES:]]
    return Drawing(
        band=[scale.bar(one.kind, one.since, one.until) for one in drawn],
        faults=[scale.place(event.at) for event in moves if event.type in _FAULTS],
        ticks=scale.ticks(),
        rows=rows,
        hidden=max(0, len(found) - MAX_LANES),
        spent=_spent(drawn, scale),
        whole=length(scale.whole),
        length_s=scale.whole.total_seconds(),
    )


def length(time: timedelta) -> str:
    """A length of time in words, to what matters of it."""
    seconds = max(0.0, time.total_seconds())
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86_400
    if days >= 2:
        return _two(days, "d", hours % 24, "h")
    return _two(hours, "h", minutes % 60, "min") if hours else _two(minutes, "min", whole % 60, "s")


def _two(first: int, unit: str, second: int, smaller: str) -> str:
    return f"{first} {unit} {second} {smaller}" if second else f"{first} {unit}"


class _Scale:
    def __init__(self, start: datetime, end: datetime) -> None:
        self.start, self.end = start, end
        self.whole = max(end - start, timedelta(milliseconds=1))

    def bar(self, kind: Kind, since: datetime, until: datetime | None) -> Bar:
        at, width = self._share(since - self.start), self._share((until or self.end) - since)
        return Bar(kind, f"{at:.3f}%", f"{max(LEAST, width):.3f}%", until is None)

    def place(self, at: datetime) -> str:
        return f"{self._share(at - self.start):.3f}%"

    def ticks(self) -> list[Tick]:
        """The beginning, and a few round lengths after it."""
        whole_s = self.whole.total_seconds()
        step_s = next((step for step in _STEPS_S if whole_s / step <= TICKS), whole_s / TICKS)
        lengths = [timedelta(seconds=step_s * n) for n in range(int(whole_s / step_s) + 1)]
        return [Tick(f"{self._share(one):.3f}%", length(one) if one else "0", self._share(one) > 90) for one in lengths]

    def _share(self, part: timedelta) -> float:
        return min(100.0, max(0.0, 100 * (part / self.whole)))


def _row(scale: _Scale, lane: Lane) -> Row:
    until = lane.until or scale.end
    bar = scale.bar(lane.kind, lane.since, lane.until)
    return Row(lane, bar, length(lane.since - scale.start), length(until - lane.since))


def _spent(drawn: Iterable[Stretch], scale: _Scale) -> list[tuple[Kind, str, str]]:
    sums: dict[Kind, timedelta] = {}
    for one in drawn:
        sums[one.kind] = sums.get(one.kind, timedelta()) + ((one.until or scale.end) - one.since)
    most = sorted(sums.items(), key=lambda item: -item[1])
    return [(kind, length(time), _percent(time / scale.whole)) for kind, time in most if time]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.005 else "< 1 %"
