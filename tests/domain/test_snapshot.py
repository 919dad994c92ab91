"""Snapshots say what was seen; cursors carry them and nothing else gets through."""

import base64
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.domain.snapshot import Cursor, Snapshot

XIDS = st.integers(3, 2**62)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    low = draw(XIDS)
    high = low + draw(st.integers(0, 50))
    return Snapshot(low, high, frozenset(draw(st.sets(st.integers(low, high - 1), max_size=5)) if high > low else ()))


@given(snapshots(), snapshots(), st.uuids(), st.integers(0, 2**53))
def test_a_cursor_comes_back_as_it_went_out(since: Snapshot, until: Snapshot, run_id: UUID, seq: int) -> None:
    cursor = Cursor(since, until, (run_id, seq))

    assert Cursor.decode(cursor.encode()) == cursor
    assert set(cursor.encode()) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@given(st.text())
@example("x" * 30_000)
@example("MQ")
@example(base64.urlsafe_b64encode(b"9:3: 3:3: 00000000000000000000000000000000 1").rstrip(b"=").decode())
def test_what_is_no_cursor_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        Cursor.decode(text)


def test_a_snapshot_sees_what_was_committed_before_it() -> None:
    seen = Snapshot.parse("10:20:10,15")

    assert [xid for xid in range(8, 23) if not seen.sees(xid)] == [10, 15, 20, 21, 22]
