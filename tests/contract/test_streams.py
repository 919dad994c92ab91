"""Contract, section 7: events as Server-Sent Events, of one run and of a session's or a user's runs."""

from typing import Any
from uuid import uuid4

import httpx2
import pytest

from tests.conftest import at, decide, echo, run_body, settled, start
from tests.following import blocks, stream, told

ASK = {"policy": "require_human", "allowed_steps": ["payload_review"]}


async def all_events(client: httpx2.AsyncClient, run_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.get(f"/hitl/runs/{run_id}/events", params={"limit": 200})).json()[
        "events"
    ]
    return found


async def test_a_stream_tells_the_whole_run_as_it_happens_and_ends_with_it(client: httpx2.AsyncClient) -> None:
    run_id = await start(client, run_body(echo(), **ASK))
    async with stream(client, f"/hitl/runs/{run_id}/events") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        approval = await at(client, run_id, "payload_review")
        assert (await decide(client, approval["approval_id"], "approve")).status_code == 200
        found = await told(answer)

    assert [block.json for block in found] == await all_events(client, run_id)
    assert [block.id for block in found] == [str(n) for n in range(1, len(found) + 1)]
    assert [block.event for block in found] == [block.json["type"] for block in found]
    assert found[-1].event == "run.completed"
    assert found[0].retry is not None


@pytest.mark.parametrize("given", [3, 7])
async def test_a_stream_resumes_after_the_seq_that_came_last(client: httpx2.AsyncClient, given: int) -> None:
    run_id = await start(client, run_body(echo()))
    await settled(client, run_id)
    whole = await all_events(client, run_id)

    async with stream(client, f"/hitl/runs/{run_id}/events", last=str(given), after=1) as answer:
        assert [block.json for block in await told(answer)] == whole[given:]
    async with stream(client, f"/hitl/runs/{run_id}/events", after=given) as answer:
        assert [block.json for block in await told(answer)] == whole[given:]


async def test_a_stream_of_a_finished_run_that_was_read_to_its_end_ends_at_once(client: httpx2.AsyncClient) -> None:
    run_id = await start(client, run_body(echo()))
    await settled(client, run_id)
    last = len(await all_events(client, run_id))

    async with stream(client, f"/hitl/runs/{run_id}/events", last=str(last)) as answer:
        assert answer.status_code == 200
        assert await told(answer) == []


async def test_a_stream_of_an_unknown_run_is_not_found(client: httpx2.AsyncClient) -> None:
    async with stream(client, f"/hitl/runs/{uuid4()}/events") as answer:
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "9" * 40, "²"])
async def test_an_id_that_is_no_seq_is_refused(client: httpx2.AsyncClient, last: str) -> None:
    run_id = await start(client, run_body(echo()))
    path = f"/hitl/runs/{run_id}/events"
    headers = {"Accept": "text/event-stream", "Last-Event-ID": last.encode("utf-8")}
    answer = await client.get(path, headers=headers)  # type: ignore[arg-type]  # httpx2 takes bytes too

    assert answer.status_code == 422


async def test_head_opens_no_stream(client: httpx2.AsyncClient) -> None:
    answer = await client.head("/hitl/events", params={"session_id": "s"})

    assert answer.status_code == 200
    assert answer.content == b""


@pytest.mark.parametrize("params", [{}, {"session_id": "a", "user_id": "b"}, {"session_id": ""}])
async def test_a_stream_over_runs_names_a_session_or_a_user(client: httpx2.AsyncClient, params: dict[str, str]) -> None:
    assert (await client.get("/hitl/events", params=params)).status_code == 422


@pytest.mark.parametrize("last", ["x", "MTox", "ä" * 9])
async def test_a_cursor_that_was_never_given_out_is_refused(client: httpx2.AsyncClient, last: str) -> None:
    headers = {"Last-Event-ID": last.encode("utf-8")}
    answer = await client.get("/hitl/events", params={"user_id": "u"}, headers=headers)  # type: ignore[arg-type]

    assert answer.status_code == 422


@pytest.mark.parametrize("line", ["session_id", "user_id"])
async def test_a_stream_over_runs_begins_now_and_tells_each_run_from_its_first_event(
    client: httpx2.AsyncClient, line: str
) -> None:
    name = f"line-{uuid4()}"
    before = await start(client, {**run_body(echo()), line: name})
    await settled(client, before)
    async with stream(client, "/hitl/events", **{line: name}) as answer:
        ids = [await start(client, {**run_body(echo()), line: name}) for _ in range(3)]
        other = await start(client, {**run_body(echo()), line: "another"})
        for run_id in [*ids, other]:
            await settled(client, run_id)
        wanted = [event for run_id in ids for event in await all_events(client, run_id)]
        found = await told(answer, len(wanted))

    seen = [(block.json["run_id"], block.json["seq"]) for block in found]
    assert sorted(seen) == sorted((event["run_id"], event["seq"]) for event in wanted)
    for run_id in ids:
        seqs = [seq for about, seq in seen if about == run_id]
        assert seqs == list(range(1, len(seqs) + 1))


async def test_a_stream_over_runs_resumes_anywhere_with_exactly_what_was_missed(client: httpx2.AsyncClient) -> None:
    """Cut after each event in turn, also before the first: what comes then is the rest, whatever came meanwhile."""
    name = f"cut-{uuid4()}"
    async with stream(client, "/hitl/events", session_id=name) as answer:
        async for block in blocks(answer):
            last = block.id
            break
    ids = [await start(client, {**run_body(echo()), "session_id": name}) for _ in range(2)]
    for run_id in ids:
        await settled(client, run_id)
    events = [event for run_id in ids for event in await all_events(client, run_id)]
    wanted = sorted((event["run_id"], event["seq"]) for event in events)
    seen: list[tuple[str, int]] = []
    while len(seen) < len(wanted):
        async with stream(client, "/hitl/events", last=last, session_id=name) as answer:
            block = (await told(answer, 1))[0]
        last = block.id
        seen.append((block.json["run_id"], block.json["seq"]))

    assert sorted(seen) == wanted
    assert [place for place in seen if place[0] == ids[0]] == [place for place in wanted if place[0] == ids[0]]
