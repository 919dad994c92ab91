"""What was looked up a moment ago is looked up once for all who ask, and not asked for more often than it is cheap."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count

import pytest

from service.commands import kept
from service.commands.kept import Kept


def looking(takes_s: float = 0.0) -> Callable[[], Awaitable[int]]:
    """Says how often it was asked."""
    asked = count(1)

    async def look() -> int:
        n = next(asked)
        await asyncio.sleep(takes_s)
        return n

    return look


async def test_all_who_ask_at_once_share_one_look() -> None:
    known, look = Kept(), looking(0.01)

    assert set(await asyncio.gather(*(known.of("a", look) for _ in range(50)))) == {1}
    assert await known.of("b", look) == 2


async def test_what_is_known_to_have_changed_is_looked_up_anew() -> None:
    known, look = Kept(), looking()
    await known.of("a", look)
    known.drop("a")

    assert await known.of("a", look) == 2
    assert await known.of("a", look) == 2


async def test_a_look_that_began_before_a_change_is_not_kept() -> None:
    known, look = Kept(), looking(0.02)
    begun = asyncio.ensure_future(known.of("a", look))
    await asyncio.sleep(0)
    known.drop("a")

    assert await begun == 1
    assert await known.of("a", look) == 2


async def test_looking_takes_its_share_of_the_time_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "FRESH_S", 0.0)
    known, look = Kept(), looking(0.05)
    await known.of("a", look)
    assert await known.of("a", look) == 1  # twenty times 0.05 s are not over
    monkeypatch.setattr(kept, "SHARE", 0)
    known.drop("a")
    await known.of("a", look)

    assert await known.of("a", look) == 3


async def test_a_look_that_failed_is_not_kept() -> None:
    known = Kept()

    async def fail() -> int:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        await known.of("a", fail)
    assert await known.of("a", looking()) == 1


async def test_what_is_kept_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST", 10)
    known = Kept()
    for n in range(100):
        await known.of(n, looking())

    assert len(known._known) <= 10 and len(known._looking) <= 11
