"""Figures, and how they are shown: runs, median, min and max, and the ratio to one of the machine's floors."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One measured quantity. `floor` names the floor that it is compared with; `goal` is text."""

    name: str
    what: str
    unit: str
    runs: Sequence[float]
    goal: str = ""
    floor: str = ""
    note: str = ""

    @property
    def median(self) -> float:
        return median(self.runs)


@dataclass
class Report:
    machine: Mapping[str, Any]
    figures: list[Figure] = field(default_factory=list)

    def ratio(self, figure: Figure) -> float | None:
        """How the figure stands to its floor: above 1 is more of the same unit."""
        for one in self.figures:
            if one.name == figure.floor and one.median:
                return figure.median / one.median
        return None

    def as_json(self) -> dict[str, Any]:
        rows = [
            {**asdict(one), "median": one.median, "min": min(one.runs), "max": max(one.runs), "ratio": self.ratio(one)}
            for one in self.figures
        ]
        return {"machine": dict(self.machine), "figures": rows}

    def table(self) -> str:
        head = (
            "| | what | unit | runs | median | min | max | goal | to its floor |\n|---|---|---|---|---|---|---|---|---|"
        )
        return "\n".join([head, *(self._row(one) for one in self.figures)])

    def _row(self, one: Figure) -> str:
        ratio = self.ratio(one)
        against = f"{short(ratio)} of {one.floor}" if ratio is not None else ""
        figures = " | ".join(short(value) for value in (one.median, min(one.runs), max(one.runs)))
        what = f"{one.what} ({one.note})" if one.note else one.what
        return f"| {one.name} | {what} | {one.unit} | {len(one.runs)} | {figures} | {one.goal} | {against} |"


def short(value: float) -> str:
    """Three significant digits, without an exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def p99(values: Sequence[float]) -> float:
    return quantiles(values, n=100)[98]
