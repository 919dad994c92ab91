"""Use case: starts, decisions and waiting over time, for one tenant, at a cost that has a bound."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Final

from service.commands.context import Services
from service.domain import chart
from service.domain.chart import PERIODS, Bar, Chart, Found, Wait, Window
from service.domain.principal import Permission, Principal, demand
from service.store import series
from service.store.database import Database

COUNTED: Final = 500
"""Of one bar; where it holds more, it is estimated."""
WAITING_COUNTED: Final = 100_000
"""Likewise of those that still wait; beyond, people are told that there are more."""
Read = Callable[[Sequence[Window]], Awaitable[series.Series]]
Weighed = list[tuple[Window, Found, float]]


async def of(services: Services, who: Principal, period: str) -> Chart:
    """`period` is a key of `PERIODS`."""
    demand(who, Permission.READ)
    return await services.kept.of(("chart", who.tenant, period), lambda: look(services.db, who.tenant, period))


async def look(db: Database, tenant: str, period: str) -> Chart:
    """The chart as it is now."""
    shape = PERIODS[period]
    now = db.now()
    edges = chart.bounds(shape, now)
    async with db.connection(tenant) as conn:
        starts, guessed_starts = await _weighed(
            lambda windows: series.starts(conn, tenant, windows, at_most=COUNTED), edges
        )
        closed, guessed_closed = await _weighed(
            lambda windows: series.decided(conn, tenant, windows, edges, at_most=COUNTED), edges
        )
        pending, more = await series.pending(conn, tenant, edges, now=now, at_most=WAITING_COUNTED)
    waits = [*pending, *(_wait(*one) for one in closed)]
    levels = chart.waiting(waits, _lengths_s(edges, now))
    bars = _bars(edges, starts, closed, levels, guessed_starts | guessed_closed)
    return Chart(period, bars, round(sum(wait.n for wait in pending)), more)


async def _weighed(read: Read, edges: Sequence[datetime]) -> tuple[Weighed, set[int]]:
    """What was found, with what each stands for; and the bars that hold too much to be counted."""
    first = chart.whole(edges)
    found = await read(first)
    full = {n for n, seen in found.items() if sum(one.n for one in seen) > COUNTED}
    told = [(first[n], one, 1.0) for n, seen in found.items() if n not in full for one in seen]
    windows = [w for n in full for w in chart.samples(first[n], max(one.last for one in found[n]))]
    for n, seen in (await read(windows)).items() if windows else ():
        heavy = chart.weight(windows[n], seen, at_most=COUNTED)
        told += [(windows[n], one, heavy) for one in seen]
    return told, full


def _wait(window: Window, one: Found, heavy: float) -> Wait:
    return Wait(window.bar, one.opened, one.n * heavy, one.opened_s * heavy, one.closed_s * heavy)


def _lengths_s(edges: Sequence[datetime], now: datetime) -> list[float]:
    """Of each bar in seconds, of the last one so far as it has come."""
    whole = [(until - since).total_seconds() for since, until in pairwise(edges)]
    return [*whole[:-1], max(1.0, (now - edges[-2]).total_seconds())]


def _bars(
    edges: Sequence[datetime], starts: Weighed, closed: Weighed, levels: Sequence[int], full: set[int]
) -> list[Bar]:
    started, decided = [0.0] * len(levels), [0.0] * len(levels)
    for window, one, heavy in starts:
        started[window.bar] += one.n * heavy
    for window, one, heavy in closed:
        decided[window.bar] += one.decisions * heavy
    return [
        Bar(edges[n], edges[n + 1], round(started[n]), round(decided[n]), level, n in full)
        for n, level in enumerate(levels)
    ]
