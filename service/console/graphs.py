"""Numbers as pictures: places and sizes for SVG, computed here since a page may hold no style and no script of its own.

A picture is a hundred units high and stretched to its place; text stands beside it, and every number in a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from service.domain.chart import PERIODS, Bar, Chart

HIGH: Final = 100.0
STEP: Final = 4.0
LEAST: Final = 2.5
"""What is there is seen, however little."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A bar from the ground up, and the `bar` of the chart that it is about."""

    x: float
    y: float
    width: float
    height: float
    bar: Bar
    n: int


@dataclass(frozen=True, slots=True)
class Graph:
    """One line of numbers over time. `says`: the picture in words."""

    name: str
    figure: str
    says: str
    most: int
    width: float
    shapes: Sequence[Shape]


def over_time(chart: Chart) -> list[Graph]:
    """Starts, decisions and waiting, each by its own scale."""
    period = PERIODS[chart.period]
    about = "about " if chart.estimated else ""
    starts, decisions = sum(bar.starts for bar in chart.bars), sum(bar.decisions for bar in chart.bars)
    now = f"{chart.waiting:,}" if not chart.at_least else f"more than {chart.waiting - 1:,}"
    return [
        _graph("Started", f"{about}{starts:,}", chart, [bar.starts for bar in chart.bars], f"in {period.each}"),
        _graph("Decided", f"{about}{decisions:,}", chart, [bar.decisions for bar in chart.bars], f"in {period.each}"),
        _graph("Waiting for a decision", f"{now} now", chart, [bar.waiting for bar in chart.bars], "on average"),
    ]


def share(n: int, of: int) -> float:
    """A part of a hundred, of something that may be nothing."""
    return min(HIGH, max(LEAST, HIGH * n / of)) if n and of else 0.0


def _graph(name: str, figure: str, chart: Chart, numbers: Sequence[int], unit: str) -> Graph:
    most = max(numbers, default=0)
    shapes = [
        Shape(STEP * at + 0.4, HIGH - high, STEP - 0.8, high, bar, n)
        for at, (bar, n) in enumerate(zip(chart.bars, numbers, strict=True))
        if (high := share(n, most))
    ]
    says = f"{name}: {figure}, over {PERIODS[chart.period].label}; at most {most:,} {unit}."
    return Graph(name, figure, says, most, STEP * len(numbers), shapes)
