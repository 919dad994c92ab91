"""Two prompts at once in one session: what `on_active_run` says holds, however many come together."""

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest

from service.commands.approvals import decide
from service.commands.runs import StartRun, cancel_run, start_run
from service.commands.timers import end_overdue, release_lines
from service.domain.approval import Order
from service.domain.policy import HitlConfig
from service.domain.run import RunStatus
from service.errors import HitlError
from service.runtime import Runtime
from service.store import approvals
from service.store.database import EVERY
from tests.acting import begin, look, sql, story, worker
from tests.conftest import ASK_ALWAYS, DEV, at, echo, eventually, run_body


def ordered(session: str, mode: str, prompt: str = "a red fox") -> dict[str, Any]:
    body = run_body(echo(), prompt=prompt, policy="require_human", allowed_steps=["payload_review"])
    return {**body, "session_id": session, "on_active_run": mode}


async def at_once(client: httpx2.AsyncClient, session: str, mode: str, many: int) -> list[httpx2.Response]:
    bodies = [ordered(session, mode, f"prompt {n}") for n in range(many)]
    return list(await asyncio.gather(*(client.post("/hitl/run", json=body) for body in bodies)))


async def live(client: httpx2.AsyncClient, session: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.get(f"/hitl/sessions/{session}/active")).json()["runs"]
    return found


# -- many at once --------------------------------------------------------------------------------------


async def test_of_many_queued_at_once_one_goes_at_a_time_and_all_do(client: httpx2.AsyncClient) -> None:
    session, many = uuid4().hex, 12
    answers = await at_once(client, session, "queue", many)
    assert {answer.status_code for answer in answers} == {202}

    prompts = []
    for left in range(many, 0, -1):
        runs = await live(client, session)
        assert len(runs) == left
        first = min(runs, key=lambda run: (run["created_at"], run["run_id"]))
        approval = await at(client, first["run_id"], "payload_review")
        others = [run for run in await live(client, session) if run["run_id"] != first["run_id"]]
        assert {run["status"] for run in others} <= {"queued"}
        prompts.append(approval["context"]["payload"]["prompt"])
        await client.post(f"/hitl/run/{first['run_id']}/approve", json={"action": "approve"})
        await eventually(lambda left=left: _fewer(client, session, left), "the end of the first in line")

    assert sorted(prompts) == sorted(f"prompt {n}" for n in range(many))


async def _fewer(client: httpx2.AsyncClient, session: str, than: int) -> bool:
    return len(await live(client, session)) < than


async def test_of_many_that_reject_one_another_one_is_taken(client: httpx2.AsyncClient) -> None:
    session = uuid4().hex

    answers = await at_once(client, session, "reject", 20)

    assert Counter(answer.status_code for answer in answers) == {202: 1, 409: 19}
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} == {"session_busy"}
    assert len(await live(client, session)) == 1


async def test_of_many_that_replace_one_another_one_is_left(client: httpx2.AsyncClient) -> None:
    session = uuid4().hex

    answers = await at_once(client, session, "cancel_previous", 20)

    assert {answer.status_code for answer in answers} == {202}
    (left,) = await live(client, session)
    for answer in answers:
        run = (await client.get(f"/hitl/runs/{answer.json()['run_id']}")).json()
        assert (run["status"] == "cancelled") is (run["run_id"] != left["run_id"])


async def test_a_later_prompt_never_stands_in_for_an_earlier_one(client: httpx2.AsyncClient) -> None:
    session = uuid4().hex
    answers = [*await at_once(client, session, "parallel", 5), *await at_once(client, session, "queue", 5)]

    for n, answer in enumerate(answers):
        run = (await client.get(f"/hitl/runs/{answer.json()['run_id']}")).json()
        assert run["run_input"]["prompt"] == f"prompt {n % 5}"


# -- one line, several machines ------------------------------------------------------------------------


class Behind:
    """The database by a clock that is behind."""

    def __init__(self, db: Any) -> None:
        self._db = db

    def now(self) -> datetime:
        moment: datetime = self._db.now() - timedelta(seconds=10)
        return moment

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


async def test_a_clock_that_is_behind_does_not_jump_the_line(empty: Runtime) -> None:
    session = uuid4().hex
    late: Any = replace(empty.services, db=Behind(empty.services.db))
    first = await begin(empty, echo(), ASK_ALWAYS, session_id=session, on_active_run="queue")
    second = await begin(empty, echo(), ASK_ALWAYS, services=late, session_id=session, on_active_run="queue")

    await release_lines(empty.services)

    assert (await look(empty, second)).due_at is None
    await cancel_run(empty.services, first, DEV, reason=None)
    assert (await look(empty, second)).due_at is not None


async def test_a_whole_line_is_replaced_at_once(empty: Runtime) -> None:
    session = uuid4().hex
    line = [await begin(empty, echo(), ASK_ALWAYS, session_id=session, on_active_run="queue") for _ in range(4)]

    last = await begin(empty, echo(), ASK_ALWAYS, session_id=session, on_active_run="cancel_previous")

    for run_id in line:
        assert (await look(empty, run_id)).status is RunStatus.CANCELLED
        assert (await story(empty, run_id))[-1] == "run.cancelled"
    assert (await look(empty, last)).status is RunStatus.QUEUED


async def test_a_line_whose_turn_was_missed_is_replaced_too(empty: Runtime) -> None:
    session = uuid4().hex
    first, second, third = [
        await begin(empty, echo(), ASK_ALWAYS, session_id=session, on_active_run="queue") for _ in range(3)
    ]
    # the first is over, and the one behind it was never told
    await sql(
        empty,
        "update runs set status = 'cancelled', finished_at = now(), due_at = null where id = $1",
        first,
    )

    await begin(empty, echo(), ASK_ALWAYS, session_id=session, on_active_run="cancel_previous")

    for run_id in (second, third):
        assert (await look(empty, run_id)).status is RunStatus.CANCELLED


async def test_a_whole_line_whose_time_is_out_ends_in_one_sweep(empty: Runtime) -> None:
    session = uuid4().hex
    config = HitlConfig(policy="require_human", run_timeout_seconds=60)
    line = [await begin(empty, echo(), config, session_id=session, on_active_run="queue") for _ in range(3)]
    await sql(empty, "update runs set deadline_at = now() - interval '1 s'")

    assert await end_overdue(empty.services) == 3

    for run_id in line:
        run = await look(empty, run_id)
        assert (run.status, (run.error or {})["code"]) == (RunStatus.FAILED, "run_timeout")


# -- against a decision --------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["approve", "reject"])
async def test_a_decision_and_a_replacement_at_once_leave_one_truth(empty: Runtime, action: Any) -> None:
    rounds = 8
    outcomes: Counter[str] = Counter()
    for _ in range(rounds):
        session = uuid4().hex
        run_id = await begin(empty, echo(), ASK_ALWAYS, session_id=session)
        await worker(empty).advance(run_id)
        approval_id = await sql(empty, "select id from approvals where run_id = $1", run_id)
        waiting = await begin(empty, echo(), ASK_ALWAYS, session_id=session, on_active_run="queue")

        decided, replaced = await asyncio.gather(
            _decide(empty, approval_id, action), _replace(empty, session), return_exceptions=True
        )

        assert isinstance(replaced, UUID), replaced
        assert decided in ("200", "409"), decided
        run = await look(empty, run_id)
        assert run.status is RunStatus.CANCELLED
        assert (await look(empty, waiting)).status is RunStatus.CANCELLED
        assert (await look(empty, replaced)).status is RunStatus.QUEUED
        async with empty.services.db.connection(EVERY) as conn:
            approval = await approvals.get(conn, "default", approval_id)
        assert approval is not None and not approval.is_open
        won = approval.status != "cancelled"
        assert won == (decided == "200")
        told = await story(empty, run_id)
        assert told.count("approval.decided") == 1 and told.count("run.cancelled") == 1
        outcomes[str(decided)] += 1
    assert sum(outcomes.values()) == rounds


async def _decide(runtime: Runtime, approval_id: UUID, action: Any) -> str:
    try:
        await decide(runtime.services, approval_id, Order(action, reason="because"), DEV)
    except HitlError as refusal:
        return str(refusal.status)
    return "200"


async def _replace(runtime: Runtime, session: str) -> UUID:
    run_input = {"prompt": "a blue fox", "agent_tool_config": echo()}
    order = StartRun(run_input, ASK_ALWAYS, session_id=session, on_active_run="cancel_previous")
    return (await start_run(runtime.services, order, DEV)).run_id


# -- what programs ask ---------------------------------------------------------------------------------


async def test_many_programs_that_ask_and_wait_each_get_their_own_answer(client: httpx2.AsyncClient) -> None:
    async def ask_and_wait(n: int) -> tuple[int, dict[str, Any]]:
        body = {"checkpoint_type": "buy", "message": "May I?", "context": {"payload": {"n": n}}, "user_id": "asker"}
        asked = (await client.post("/hitl/approvals", json=body, headers={"Idempotency-Key": str(uuid4())})).json()
        ids.append((n, asked["approval_id"]))
        while True:
            seen = (await client.get(f"/hitl/approvals/{asked['approval_id']}", params={"wait": 60})).json()
            if seen["status"] != "pending":
                return n, seen

    ids: list[tuple[int, str]] = []
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        waiting = [group.create_task(ask_and_wait(n)) for n in range(20)]
        await eventually(lambda: _all(ids, 20), "all questions")
        decisions = [{"approval_id": one, "action": "edit", "edits": {"answer": n}} for n, one in ids]
        taken = await client.post("/hitl/approvals/decisions", json={"decisions": decisions})
        assert {result["status_code"] for result in taken.json()["results"]} == {200}

    for task in waiting:
        n, seen = task.result()
        assert seen["context"]["payload"] == {"n": n, "answer": n}
        assert [decision["actor"] for decision in seen["decisions"]] == ["dev"]


async def _all(found: list[Any], many: int) -> bool:
    return len(found) == many
