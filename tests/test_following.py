"""The store under a reader of many runs: nothing missing and nothing twice, whatever order commits land in."""

from typing import Any
from uuid import UUID

from service.domain.event import Event, EventType, Fact
from service.domain.snapshot import START, Snapshot
from service.runtime import Runtime
from service.store import events, frames, runs
from service.store.database import EVERY, Conn
from service.store.events import Line
from service.store.migrate import migrate
from tests.acting import begin, look, sql, worker
from tests.conftest import ASK_ALWAYS, echo

SESSION = Line("default", session_id="s")


async def a_reminder(conn: Conn, runtime: Runtime, run_id: UUID) -> None:
    run = await runs.lock_any(conn, run_id)
    assert run is not None
    fact = Fact(EventType.APPROVAL_REMINDED, data={"approval_id": str(run_id)})
    await runs.save(conn, run, [fact], now=runtime.services.db.now())


def marks(found: list[Event]) -> list[tuple[UUID, int]]:
    return [(event.run_id, event.seq) for event in found]


async def test_a_commit_that_lands_late_is_news_to_the_next_snapshot(empty: Runtime) -> None:
    db = empty.services.db
    early, late = [await begin(empty, echo(), session_id="s") for _ in range(2)]
    async with db.connection(EVERY) as reader:
        first = await events.snapshot(reader)
        async with db.transaction(EVERY) as slow:
            await a_reminder(slow, empty, early)
            async with db.transaction(EVERY) as quick:
                await a_reminder(quick, empty, late)
            second, seen = await events.news(reader, first)
            assert [item.run_id for item in seen] == [late]
        third, seen = await events.news(reader, second)
        assert [(item.run_id, item.seq) for item in seen] == [(early, 3)]
        assert not second.sees(seen[0].xid)
        assert third.sees(seen[0].xid)
        assert (await events.news(reader, third))[1] == []
        replayed = await events.of_line_since(reader, SESSION, first, third, limit=9)
        assert marks(replayed) == [(early, 3), (late, 3)]
        assert marks(await events.of_line_since(reader, SESSION, first, second, limit=9)) == [(late, 3)]


async def test_a_run_of_one_line_comes_from_its_first_event_unless_it_is_named(empty: Runtime) -> None:
    one, two = [await begin(empty, echo(), session_id="s", user_id="u") for _ in range(2)]
    await begin(empty, echo(), session_id="other")
    async with empty.services.db.connection(EVERY) as conn:
        now = await events.snapshot(conn)
        whole = await events.of_line(conn, SESSION, {}, now, limit=9)
        assert marks(whole) == [(one, 1), (one, 2), (two, 1), (two, 2)]
        assert await events.of_line(conn, Line("default", user_id="u"), {}, now, limit=9) == whole
        assert marks(await events.of_line(conn, SESSION, {one: 2, two: 1}, now, limit=9)) == [(two, 2)]
        assert await events.of_line(conn, Line("elsewhere", session_id="s"), {}, now, limit=9) == []
        assert marks(await events.of_runs(conn, "default", {two: 1}, now, limit=9)) == [(two, 2)]
        assert await events.of_runs(conn, "elsewhere", {two: 0}, now, limit=9) == []


async def test_pages_of_a_line_join_without_a_gap(empty: Runtime) -> None:
    for _ in range(5):
        await begin(empty, echo(), session_id="s")
    found: list[Event] = []
    async with empty.services.db.connection(EVERY) as conn:
        now = await events.snapshot(conn)
        beyond = START
        while page := await events.of_line(conn, SESSION, {}, now, beyond=beyond, limit=3):
            found += page
            beyond = (page[-1].run_id, page[-1].seq)
        assert found == await events.of_line(conn, SESSION, {}, now, limit=99)


async def test_frames_hold_what_the_run_made(empty: Runtime) -> None:
    run_id = await begin(empty, echo({"prompt": "x", "n": 1}), ASK_ALWAYS)
    await worker(empty).advance(run_id)
    async with empty.services.db.connection(EVERY) as conn:
        told = await events.after(conn, "default", run_id, 0, limit=99)
        shown = await frames.of_events(conn, told)
    run = await look(empty, run_id)

    asked: dict[str, Any] = shown[-1]
    assert asked["type"] == "hitl_approval_request"
    assert asked["data"]["status"] == "pending"
    assert asked["data"]["context"]["payload"] == {"prompt": "a red fox", "n": 1}
    assert [frame["seq"] for frame in shown] == list(range(1, run.event_seq + 1))


async def test_events_of_another_server_are_old_news(empty: Runtime) -> None:
    """What `hitl migrate` does after a restore: ids of the future would be told again when their time comes."""
    run_id = await begin(empty, echo())
    async with empty.services.db.connection(EVERY) as conn:
        await sql(empty, "update events set xid = '99999999999' where run_id = $1 returning true", run_id)
        settings = empty.settings
        assert settings.database_url is not None
        await migrate(settings.database_url)
        assert await conn.fetchval("select max(xid)::text from events where run_id = $1", run_id) == "0"
        assert (await events.news(conn, Snapshot(3, 3, frozenset())))[1] == []
