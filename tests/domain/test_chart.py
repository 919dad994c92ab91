"""Bars over time: what is sampled lies in its bar, and waiting is what a count of every moment tells."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain import chart
from service.domain.chart import PERIODS, Found, Wait, Window

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
BARS, LENGTH_S = 6, 10.0
MOMENT = st.floats(-30, 59.9)


@pytest.mark.parametrize("name", PERIODS)
def test_the_last_bar_holds_now_and_all_are_of_one_length(name: str) -> None:
    edges = chart.bounds(PERIODS[name], NOW)

    assert edges[-2] <= NOW < edges[-1]
    assert {b - a for a, b in pairwise(edges)} == {PERIODS[name].bar}
    assert len(edges) == PERIODS[name].bars + 1


@given(st.floats(0, 1))
def test_samples_lie_in_their_bar_apart_from_each_other_and_make_up_their_share(part: float) -> None:
    bar = Window(3, NOW, NOW + timedelta(hours=1))
    found = chart.samples(bar, NOW + part * timedelta(hours=1))

    assert found == chart.samples(bar, NOW + part * timedelta(hours=1))
    assert bar.since <= found[0].since and found[-1].until <= bar.until + timedelta(microseconds=10)
    assert all(a.until <= b.since + timedelta(microseconds=10) for a, b in pairwise(found))
    length = sum((w.until - w.since for w in found), timedelta(0))
    assert length / timedelta(hours=1) == pytest.approx(found[0].share, abs=1e-6)
    assert chart.LEAST_SHARE <= found[0].share <= 0.5


def test_a_window_that_was_cut_off_stands_for_its_whole_length() -> None:
    window = Window(0, NOW, NOW + timedelta(minutes=1), share=0.5)
    half = [Found(11, NOW + timedelta(seconds=30))]

    assert chart.weight(window, half, at_most=20) == 2
    assert chart.weight(window, half, at_most=10) == 4


@given(st.lists(st.tuples(MOMENT, MOMENT).map(sorted), max_size=20))
def test_waiting_is_the_time_spent_open_in_a_bar_by_its_length(stretches: list[list[float]]) -> None:
    inside = [(opened, closed) for opened, closed in stretches if closed >= 0]
    waits = [Wait(int(closed // LENGTH_S), _bar_of(opened), 1, opened, closed) for opened, closed in inside]
    told = chart.waiting(waits, [LENGTH_S] * BARS)

    for n in range(BARS):
        since, until = n * LENGTH_S, (n + 1) * LENGTH_S
        spent = sum(max(0.0, min(until, closed) - max(since, opened)) for opened, closed in inside)
        assert told[n] == pytest.approx(spent / LENGTH_S, abs=0.501)


def _bar_of(moment: float) -> int:
    return 0 if moment < 0 else int(moment // LENGTH_S) + 1
