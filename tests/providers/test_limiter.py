"""The limiter: shares of a minute, a stop for everybody, and a crowd that does not come back at once."""

import asyncio

from service.providers.limiter import Limiter


class Clock:
    """A clock that a test moves by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_burst_goes_at_once_and_the_rest_is_told_when() -> None:
    clock = Clock()
    limiter = Limiter(600, clock=clock)

    told = [await limiter.admit(patience_s=0) for _ in range(105)]

    assert told[:100] == [None] * 100
    later = [wait for wait in told[100:] if wait is not None]
    assert later == sorted(later) and len(set(later)) == 5
    assert 0.1 <= later[0] < 1


async def test_shares_come_back_with_time() -> None:
    clock = Clock()
    limiter = Limiter(600, clock=clock)
    for _ in range(100):
        await limiter.admit(patience_s=0)
    clock.now += 1

    told = [await limiter.admit(patience_s=0) for _ in range(11)]

    assert told[:10] == [None] * 10 and told[10] is not None


async def test_a_pause_holds_for_everybody_until_its_end() -> None:
    clock = Clock()
    limiter = Limiter(600, clock=clock)
    limiter.pause(30)
    limiter.pause(5)

    first, second = await limiter.admit(patience_s=3), await limiter.admit(patience_s=3)
    assert first is not None and second is not None
    assert 30 <= first < second < 31

    clock.now += 30
    assert await limiter.admit(patience_s=0) is None


async def test_who_waits_when_a_pause_comes_is_sent_away() -> None:
    limiter = Limiter(600)
    for _ in range(101):
        await limiter.admit(patience_s=0)
    waiting = asyncio.ensure_future(limiter.admit(patience_s=3))
    await asyncio.sleep(0)
    limiter.pause(60)

    told = await waiting
    assert told is not None and told > 59


async def test_a_short_wait_is_waited() -> None:
    limiter = Limiter(60_000)
    told = await asyncio.gather(*(limiter.admit(patience_s=10) for _ in range(10_100)))
    assert set(told) == {None}
