"""The chain of events: numbered without gaps, and broken by any change."""

import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.canonical import canonical
from service.domain.event import Event, EventType, Fact, chain, event_hash, lengthened, rfc3339, shortened, wire
from service.domain.run import RunStatus, Step
from tests.domain.make import NOW, a_run

DATA = st.dictionaries(
    st.text(max_size=5), st.none() | st.booleans() | st.integers(-999, 999) | st.text(max_size=5), max_size=3
)
FACTS = st.lists(st.builds(Fact, st.sampled_from(EventType), st.text(max_size=8), DATA), min_size=1, max_size=6)


def links(events: list[Event]) -> bool:
    """The contract's own words, section 7, written down a second time."""
    last = ""
    for n, event in enumerate(events, 1):
        body = wire(event)
        stated = body.pop("hash")
        found = sha256(last.encode() + canonical(body)).hexdigest()
        if (event.seq, event.prev_hash, stated) != (n, last, found):
            return False
        last = stated
    return True


@given(first=FACTS, second=FACTS)
def test_every_event_is_numbered_and_hashed_onto_the_one_before(first: list[Fact], second: list[Fact]) -> None:
    run, events = chain(a_run(), first, at=NOW)
    run, more = chain(run, second, at=NOW + timedelta(seconds=1))
    whole = events + more

    assert [event.seq for event in whole] == list(range(1, len(first) + len(second) + 1))
    assert links(whole)
    assert (run.event_seq, run.event_hash) == (whole[-1].seq, whole[-1].hash)


@given(facts=FACTS, data=st.data())
def test_any_change_of_any_event_breaks_the_chain(facts: list[Fact], data: st.DataObject) -> None:
    _, events = chain(a_run(), facts, at=NOW)
    n = data.draw(st.integers(0, len(events) - 1))
    was = events[n]
    changed: dict[str, Any] = data.draw(
        st.sampled_from(
            [
                {"type": was.type + "x"},
                {"actor": was.actor + " "},
                {"at": was.at + timedelta(microseconds=1)},
                {"data": {**was.data, "": "more"}},
                {"data": {**was.data, "\x00": None}},
                {"seq": was.seq + 1},
                {"prev_hash": was.prev_hash + "0"},
                {"hash": was.hash[::-1] + "0"},
                {"run_id": type(was.run_id)(int=was.run_id.int ^ 1)},
            ]
        )
    )
    forged = replace(was, **changed)

    assert forged == was or not links([*events[:n], forged, *events[n + 1 :]])


@given(facts=FACTS, data=st.data())
def test_an_event_that_is_gone_or_moved_breaks_the_chain(facts: list[Fact], data: st.DataObject) -> None:
    run, events = chain(a_run(), [*facts, Fact(EventType.RUN_COMPLETED)], at=NOW)
    n = data.draw(st.integers(0, len(events) - 2))

    assert not links(events[:n] + events[n + 1 :])
    assert not links([*events[:n], events[n + 1], events[n], *events[n + 2 :]])
    assert (run.event_seq, run.event_hash) != (events[-2].seq, events[-2].hash)


def test_one_bit_of_the_hashed_text_changes_the_hash() -> None:
    _, (event,) = chain(a_run(), [Fact(EventType.RUN_CREATED, "dev", {"a": "b"})], at=NOW)
    body = wire(event)
    del body["hash"]
    text = canonical(body)
    assert sha256(text).hexdigest() == event.hash == event_hash(event)
    hashes = {sha256(text[:n] + bytes([text[n] ^ 1]) + text[n + 1 :]).hexdigest() for n in range(len(text))}
    assert event.hash not in hashes
    assert len(hashes) == len(text)


def test_a_chain_shares_nothing_with_what_it_was_made_of() -> None:
    run, data = a_run(), {"a": 1}
    before = copy.deepcopy(run)
    chain(run, [Fact(EventType.RUN_CREATED, "dev", data)], at=NOW)
    assert (run, data) == (before, {"a": 1})


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05.000000Z"),
        (datetime(2026, 1, 2, 3, 4, 5, 60, tzinfo=UTC), "2026-01-02T03:04:05.000060Z"),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2))), "2026-01-02T01:04:05.000000Z"),
    ],
)
def test_a_moment_has_one_spelling(at: datetime, text: str) -> None:
    assert rfc3339(at) == text


def test_the_event_types_are_those_of_the_contract() -> None:
    assert [t.value for t in EventType] == [
        "run.created", "run.queued", "step.started", "step.completed", "approval.requested", "approval.reminded",
        "approval.escalated", "approval.claimed", "approval.delegated", "approval.decided", "approval.expired",
        "provider.submitted", "provider.progress", "provider.completed", "provider.failed", "run.paused",
        "run.resumed", "run.recovered", "run.completed", "run.failed", "run.cancelled",
    ]  # fmt: skip


@pytest.mark.parametrize("status", RunStatus)
@pytest.mark.parametrize("step", Step)
def test_what_is_kept_of_an_event_is_its_data_again(status: RunStatus, step: Step) -> None:
    (event,) = chain(
        replace(a_run(), status=status, step=step), [Fact(EventType.RUN_QUEUED, data={"token": 1})], at=NOW
    )[1]
    kept, number = shortened(event.data)
    assert kept == {"token": 1}
    assert list(lengthened(kept, number).items()) == list(event.data.items())


def test_the_numbers_are_those_that_events_were_kept_with() -> None:
    stands = {"run_status": "awaiting_human", "current_step": "payload_review"}
    assert (shortened(stands), lengthened({}, 33)) == (({}, 33), stands)
    assert shortened({"run_status": "cancelled", "current_step": "completed"}) == ({}, 116)


@pytest.mark.parametrize("number", [None, -1, 5, 999])
def test_a_number_that_says_nothing_adds_nothing(number: int | None) -> None:
    assert lengthened({"token": 1}, number) == {"token": 1}
    assert lengthened([1], 33) == [1]
