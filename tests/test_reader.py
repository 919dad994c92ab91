"""A reader's queue: bounded, and told each thing once whatever it follows."""

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from service.domain.event import Event
from service.domain.snapshot import Snapshot
from service.live.reader import MAX_WAITING, MAX_WAITING_BYTES, Ended, Item, Reader, Subscription, Topic
from tests.domain.make import NOW, RUN_ID

RUN, SESSION, USER = Topic("run", "t", str(RUN_ID)), Topic("session", "t", "s"), Topic("user", "t", "u")
TOPICS = (RUN, SESSION, USER)


def at(xid: int) -> Snapshot:
    """All before this transaction is seen."""
    return Snapshot(xid, xid, frozenset())


def item(n: int, size: int = 0) -> Item:
    """The run's event `n`, written by transaction `n`."""
    event = Event(RUN_ID, n, "t", "run.created", NOW, "dev", {"a": "x" * size}, "", "")
    return Item(TOPICS, n, at(n), at(n + 1), event, {"a": "x" * size})


def reader(*subscriptions: Subscription) -> Reader:
    made = Reader("t")
    made.subscriptions = {wanted.topic: wanted for wanted in subscriptions}
    return made


def taken(one: Reader) -> list[int]:
    return [found.place[1] for found in iter(one.take, None)]


@given(starts=st.dictionaries(st.sampled_from(TOPICS), st.integers(1, 12), min_size=1))
def test_what_begins_now_is_told_from_the_earliest_of_its_subscriptions(starts: dict[Topic, int]) -> None:
    one = reader(*(Subscription(topic, at(xid)) for topic, xid in starts.items()))
    for n in range(1, 13):
        one.put(item(n))

    assert taken(one) == list(range(min(starts.values()), 13))


@given(start=st.integers(1, 12), live=st.integers(1, 12), after=st.integers(0, 12))
def test_what_a_replay_tells_is_not_told_once_more(start: int, live: int, after: int) -> None:
    one = reader(Subscription(RUN, at(start), {RUN_ID: after}), Subscription(SESSION, at(live)))
    for n in range(1, 13):
        one.put(item(n))
    replayed = [n for n in range(after + 1, 13) if n < start]
    found = taken(one)

    assert not set(replayed) & set(found)
    assert found == sorted(found)
    assert {n for n in range(start, 13) if n > after or n >= live} == set(found)


def test_what_nobody_follows_is_not_told() -> None:
    one = reader(Subscription(Topic("run", "t", str(UUID(int=9))), at(1)))
    one.put(item(1))

    assert taken(one) == []


def test_a_reader_may_be_a_thousand_frames_behind_and_no_more() -> None:
    one = reader(Subscription(RUN, at(1)))
    for n in range(1, MAX_WAITING + 1):
        one.put(item(n))
    assert one.ended is None
    one.put(item(MAX_WAITING + 1))

    assert one.ended is Ended.BEHIND
    assert one.gone.is_set()
    assert taken(one) == []


def test_a_reader_may_be_four_megabytes_behind_but_for_one_frame_alone() -> None:
    one = reader(Subscription(RUN, at(1)))
    one.put(item(1, size=MAX_WAITING_BYTES))
    assert one.ended is None
    assert taken(one) == [1]
    for n in (2, 3):
        one.put(item(n, size=MAX_WAITING_BYTES // 2))

    assert one.ended is Ended.BEHIND


async def test_a_reader_that_was_let_go_waits_for_nothing() -> None:
    one = reader(Subscription(RUN, at(1)))
    one.end(Ended.REVOKED)
    one.end(Ended.BEHIND)
    one.put(item(1))

    assert one.ended is Ended.REVOKED
    assert await one.next() is None
