"""Statements in company: who shares a trip, and whose fault is whose."""

import asyncio
from collections.abc import Sequence

import pytest

from service.errors import Unavailable
from service.store.batch import MOST, Batch


class Trips:
    """What was asked together, each trip held until it is let go; `faulty` cannot be served."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[int]]] = []
        self.gate = asyncio.Event()
        self.arrived = asyncio.Event()
        self.faulty: set[int] = set()
        self.away = False

    async def together(self, key: str, questions: Sequence[int]) -> list[int]:
        self.asked.append((key, list(questions)))
        self.arrived.set()
        await self.gate.wait()
        if self.away:
            raise Unavailable
        if self.faulty & set(questions):
            raise ValueError("faulty")
        return [question * 10 for question in questions]


def asking(batch: Batch[str, int, int], *questions: int, key: str = "a") -> list["asyncio.Task[int]"]:
    return [asyncio.create_task(batch.ask(question, key=key)) for question in questions]


async def test_whoever_comes_during_a_trip_goes_along_with_the_next() -> None:
    trips = Trips()
    batch = Batch(trips.together)
    first = asking(batch, 1)
    await trips.arrived.wait()
    rest = asking(batch, 2, 3, 4)
    await asyncio.sleep(0)
    trips.gate.set()
    assert await asyncio.gather(*first, *rest) == [10, 20, 30, 40]
    assert trips.asked == [("a", [1]), ("a", [2, 3, 4])]


async def test_no_trip_takes_more_than_it_may_and_keys_go_apart() -> None:
    trips = Trips()
    trips.gate.set()
    batch = Batch(trips.together)
    found = await asyncio.gather(*asking(batch, *range(MOST + 1)), *asking(batch, 5, key="b"))
    assert found == [n * 10 for n in [*range(MOST + 1), 5]]
    assert sorted((key, len(asked)) for key, asked in trips.asked) == [("a", 1), ("a", MOST), ("b", 1)]


async def test_the_fault_of_one_is_heard_by_nobody_else() -> None:
    trips = Trips()
    trips.gate.set()
    trips.faulty = {3}
    found = await asyncio.gather(*asking(Batch(trips.together), 1, 2, 3, 4), return_exceptions=True)
    assert isinstance(found[2], ValueError)
    assert [found[0], found[1], found[3]] == [10, 20, 40]
    assert [len(asked) for _, asked in trips.asked] == [4, 1, 1, 1, 1]


async def test_an_outage_is_everybodys_and_is_not_asked_about_again() -> None:
    trips = Trips()
    trips.gate.set()
    trips.away = True
    found = await asyncio.gather(*asking(Batch(trips.together), 1, 2), return_exceptions=True)
    assert [type(each) for each in found] == [Unavailable, Unavailable]
    assert len(trips.asked) == 1


async def test_who_is_cancelled_before_the_trip_was_never_there() -> None:
    trips = Trips()
    batch = Batch(trips.together)
    first = asking(batch, 1)
    await trips.arrived.wait()
    second, third = asking(batch, 2, 3)
    await asyncio.sleep(0)
    second.cancel()
    trips.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert await asyncio.gather(*first, third) == [10, 30]
    assert trips.asked == [("a", [1]), ("a", [3])]


async def test_who_is_cancelled_during_the_trip_hears_of_it_once_it_is_over() -> None:
    trips = Trips()
    (task,) = asking(Batch(trips.together), 1)
    await trips.arrived.wait()
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done(), "what is being written is waited for"
    trips.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_after_an_idle_moment_the_next_goes_at_once() -> None:
    trips = Trips()
    trips.gate.set()
    batch = Batch(trips.together)
    assert [await batch.ask(n, key="a") for n in range(3)] == [0, 10, 20]
    assert [asked for _, asked in trips.asked] == [[0], [1], [2]]
