"""Contract, sections 5 and 7: the run as it is shown and steered, its events, and the figures around it."""

import asyncio
import time
from datetime import datetime
from hashlib import sha256
from itertools import pairwise
from typing import Any
from uuid import uuid4

import httpx2
import pytest
import rfc8785

from tests.conftest import Provider, at, decide, echo, eventually, http_tool, run_body, settled, start
from tests.contract.endpoint import Gate, endpoint

RUN_FIELDS = {
    "run_id",
    "job_id",
    "tenant",
    "status",
    "current_step",
    "provider",
    "user_id",
    "session_id",
    "created_at",
    "updated_at",
    "expires_at",
    "run_input",
    "hitl_config",
    "payload",
    "payload_sha256",
    "validation_issues",
    "progress",
    "pending_actions",
    "result",
    "raw_response",
    "error",
    "timings",
    "cost",
    "version",
}
TYPES = {
    "run.created",
    "run.queued",
    "step.started",
    "step.completed",
    "approval.requested",
    "approval.reminded",
    "approval.escalated",
    "approval.claimed",
    "approval.delegated",
    "approval.decided",
    "approval.expired",
    "provider.submitted",
    "provider.progress",
    "provider.completed",
    "provider.failed",
    "run.paused",
    "run.resumed",
    "run.recovered",
    "run.completed",
    "run.failed",
    "run.cancelled",
}
ASK = {"policy": "require_human", "allowed_steps": ["information_review"]}


def refused(answer: httpx2.Response, code: str | None = None) -> dict[str, Any]:
    assert answer.status_code == 409, answer.text
    body: dict[str, Any] = answer.json()
    assert "run_status" in body
    assert code is None or body["code"] == code
    return body


async def run_of(client: httpx2.AsyncClient, run_id: str) -> dict[str, Any]:
    run: dict[str, Any] = (await client.get(f"/hitl/runs/{run_id}")).json()
    return run


async def pause(client: httpx2.AsyncClient, run_id: str) -> None:
    answer = await client.post(f"/hitl/run/{run_id}/pause")
    assert answer.status_code == 200, answer.text
    assert (await run_of(client, run_id))["status"] == "paused"


async def resume(client: httpx2.AsyncClient, run_id: str) -> dict[str, Any]:
    answer = await client.post(f"/hitl/run/{run_id}/resume")
    assert answer.status_code == 202, answer.text
    body: dict[str, Any] = answer.json()
    assert body["success"] is True and body["run_id"] == run_id and {"message", "job_id"} <= set(body)
    return body


async def events_of(client: httpx2.AsyncClient, run_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.get(f"/hitl/runs/{run_id}/events?limit=200")).json()["events"]
    return found


# The run object


async def test_a_run_has_every_field_at_every_stage(client: httpx2.AsyncClient) -> None:
    run_id = await start(client, {**run_body(echo(), policy="require_human"), "user_id": "u", "session_id": "s"})
    for checkpoint in ("information_review", "payload_review", "response_review"):
        approval = await at(client, run_id, checkpoint)
        run = await run_of(client, run_id)
        assert set(run) >= RUN_FIELDS
        assert (run["status"], run["current_step"]) == ("awaiting_human", checkpoint)
        assert run["result"] is None and run["error"] is None
        assert run["expires_at"] == approval["expires_at"]
        await decide(client, approval["approval_id"], "approve")
    run = await settled(client, run_id)

    assert set(run) >= RUN_FIELDS
    assert (run["run_id"], run["status"], run["current_step"], run["provider"]) == (
        run_id,
        "completed",
        "completed",
        "echo",
    )
    assert (run["tenant"], run["user_id"], run["session_id"]) == ("default", "u", "s")
    assert run["pending_actions"] == [] and run["validation_issues"] == [] and run["error"] is None
    assert run["progress"]["total_steps"] == run["progress"]["completed_steps"] == 4
    assert run["progress"]["percentage"] == 100 and run["progress"]["current_step"] == "completed"
    for entry in run["progress"]["step_history"]:
        assert {"step", "status", "timestamp", "actor", "message"} <= set(entry)
    assert run["result"] == run["raw_response"] == run["payload"]
    assert run["payload_sha256"] == sha256(rfc8785.dumps(run["payload"])).hexdigest()
    assert set(run["timings"]) >= {"queue_ms", "human_ms", "provider_ms", "total_ms"}
    assert all(isinstance(ms, int) and ms >= 0 for ms in run["timings"].values())
    assert run["timings"]["total_ms"] >= run["timings"]["human_ms"]
    assert set(run["cost"]) >= {"estimated_usd", "actual_usd"}


async def test_status_and_state_answer_the_same_run(client: httpx2.AsyncClient) -> None:
    run_id = await start(client, run_body(echo()))
    run = await settled(client, run_id)

    for path in (f"/hitl/run/{run_id}/status", f"/hitl/runs/{run_id}/state"):
        assert (await client.get(path)).json() == run


async def test_the_result_is_the_humans_edit_and_the_raw_response_the_providers(
    client: httpx2.AsyncClient, provider: Provider
) -> None:
    provider.script = [(200, {"n": 1.5, "deep": [None, True]})]
    body = run_body(http_tool(provider.url), policy="require_human", allowed_steps=["response_review"])
    run_id = await start(client, body)
    approval = await at(client, run_id, "response_review")
    assert approval["context"]["output"] == approval["context"]["response"] == {"n": 1.5, "deep": [None, True]}

    await decide(client, approval["approval_id"], "edit", edits={"response": "mine"})
    run = await settled(client, run_id)

    assert run["result"] == "mine"
    assert run["raw_response"] == {"n": 1.5, "deep": [None, True]}


# Waiting


async def test_wait_answers_at_once_for_a_human_and_with_what_it_is_after_n_seconds(client: httpx2.AsyncClient) -> None:
    run_id = await start(client, run_body(echo(), **ASK))
    started = time.monotonic()
    run = (await client.get(f"/hitl/runs/{run_id}?wait=60")).json()
    assert run["status"] == "awaiting_human" and time.monotonic() - started < 20
    await pause(client, run_id)

    started = time.monotonic()
    run = (await client.get(f"/hitl/runs/{run_id}?wait=0.5")).json()

    assert run["status"] == "paused" and time.monotonic() - started > 0.4


async def test_a_waiting_reader_hears_of_the_end(client: httpx2.AsyncClient) -> None:
    async with endpoint(gate := Gate({"ok": 1})) as (url, _):
        run_id = await start(client, run_body(http_tool(url)))
        await asyncio.wait_for(gate.entered.wait(), 20)
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(client.get(f"/hitl/runs/{run_id}?wait=30"))
            await run_of(client, run_id)
            started = time.monotonic()
            gate.opened.set()
    assert waiting.result().json()["status"] == "completed"
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("wait", ["61", "-1", "x"])
async def test_a_wait_is_at_most_a_minute(client: httpx2.AsyncClient, wait: str) -> None:
    run_id = await start(client, run_body(echo()))
    assert (await client.get(f"/hitl/runs/{run_id}", params={"wait": wait})).status_code == 422


# Pause and resume


async def test_nothing_can_be_decided_while_paused_and_all_goes_on_after(client: httpx2.AsyncClient) -> None:
    run_id = await start(client, run_body(echo(), **ASK))
    approval_id = (await at(client, run_id, "information_review"))["approval_id"]
    await pause(client, run_id)

    for action, more in (("approve", {}), ("reject", {"reason": "no"}), ("edit", {"edits": {"num_outputs": 2}})):
        assert refused(await decide(client, approval_id, action, **more), "run_paused")["run_status"] == "paused"
    refused(await client.post(f"/hitl/run/{run_id}/approve", json={"action": "approve"}), "run_paused")
    assert (await client.get(f"/hitl/approvals/{approval_id}")).json()["status"] == "pending"
    await pause(client, run_id)  # a paused run is paused already
    await resume(client, run_id)

    assert (await at(client, run_id, "information_review"))["approval_id"] == approval_id
    assert (await decide(client, approval_id, "approve")).status_code == 200
    assert (await settled(client, run_id))["status"] == "completed"


async def test_an_approvals_clock_stands_while_its_run_is_paused(client: httpx2.AsyncClient) -> None:
    run_id = await start(client, run_body(echo(), **ASK, timeout_seconds=2))
    approval_id = (await at(client, run_id, "information_review"))["approval_id"]

    async def expiry() -> float:
        approval = (await client.get(f"/hitl/approvals/{approval_id}")).json()
        return datetime.fromisoformat(approval["expires_at"]).timestamp()

    before, t0 = await expiry(), time.monotonic()
    await pause(client, run_id)
    t1 = time.monotonic()
    await client.get(f"/hitl/runs/{run_id}?wait=2.2")  # longer than the approval had
    t2 = time.monotonic()
    await resume(client, run_id)
    moved, t3 = await expiry() - before, time.monotonic()

    assert t2 - t1 - 0.05 <= moved <= t3 - t0 + 0.05
    run = await settled(client, run_id, "cancelled")
    assert run["error"]["code"] == "approval_expired"
    assert datetime.fromisoformat(run["updated_at"]).timestamp() >= before + moved


async def test_a_call_under_way_when_paused_is_finished_and_kept(client: httpx2.AsyncClient) -> None:
    async with endpoint(gate := Gate({"kept": True})) as (url, seen):
        run_id = await start(client, run_body(http_tool(url)))
        await asyncio.wait_for(gate.entered.wait(), 20)
        await pause(client, run_id)
        gate.opened.set()

        async def kept() -> bool:
            return bool((await run_of(client, run_id))["raw_response"])

        await eventually(kept, "the answer")
        assert (await run_of(client, run_id))["status"] == "paused"
        await resume(client, run_id)
        run = await settled(client, run_id)

    assert run["status"] == "completed" and run["result"] == {"kept": True}
    assert len(seen) == 1


async def test_a_call_that_is_still_under_way_when_resumed_is_not_sent_again(client: httpx2.AsyncClient) -> None:
    async with endpoint(gate := Gate({"once": True})) as (url, seen):
        run_id = await start(client, run_body(http_tool(url)))
        await asyncio.wait_for(gate.entered.wait(), 20)
        await pause(client, run_id)
        await resume(client, run_id)
        await pause(client, run_id)
        await resume(client, run_id)
        gate.opened.set()
        run = await settled(client, run_id)

    assert run["result"] == {"once": True} and len(seen) == 1


async def test_a_queued_run_may_be_paused_and_resumed(client: httpx2.AsyncClient) -> None:
    body = {**run_body(echo(), **ASK), "session_id": uuid4().hex, "on_active_run": "queue"}
    first, second = await start(client, body), await start(client, body)
    await at(client, first, "information_review")
    await pause(client, second)
    await client.delete(f"/hitl/run/{first}")
    assert (await client.get(f"/hitl/runs/{second}?wait=0.7")).json()["status"] == "paused"

    await resume(client, second)

    await at(client, second, "information_review")


async def test_a_callback_to_a_paused_run_is_kept(client: httpx2.AsyncClient, provider: Provider) -> None:
    provider.script = [(202, {})]
    run_id = await start(client, run_body(http_tool(provider.url)))
    await settled(client, run_id, "awaiting_provider")
    await pause(client, run_id)
    answer = await client.post(provider.seen[0].headers["x-hitl-callback-url"].split("/", 3)[3], json={"late": 1})
    assert answer.status_code == 200
    assert (await run_of(client, run_id))["status"] == "paused"

    await resume(client, run_id)

    assert (await settled(client, run_id))["result"] == {"late": 1}


async def test_a_live_run_that_is_not_paused_cannot_be_resumed(client: httpx2.AsyncClient) -> None:
    run_id = await start(client, run_body(echo(), **ASK))
    await at(client, run_id, "information_review")

    assert refused(await client.post(f"/hitl/run/{run_id}/resume"))["run_status"] == "awaiting_human"


# Cancel


async def cancelled(client: httpx2.AsyncClient, run_id: str) -> dict[str, Any]:
    answer = await client.delete(f"/hitl/run/{run_id}", params={"reason": "enough"})
    assert answer.status_code == 200, answer.text
    run = await run_of(client, run_id)
    assert run["status"] == "cancelled"
    assert run["pending_actions"] == []
    assert (await client.delete(f"/hitl/run/{run_id}")).status_code == 200
    assert (await events_of(client, run_id))[-1]["type"] == "run.cancelled"
    return run


async def test_a_run_that_awaits_a_human_can_be_cancelled(client: httpx2.AsyncClient) -> None:
    run_id = await start(client, run_body(echo(), **ASK))
    approval_id = (await at(client, run_id, "information_review"))["approval_id"]

    await cancelled(client, run_id)

    assert (await client.get(f"/hitl/approvals/{approval_id}")).json()["status"] == "cancelled"
    pending = (await client.get("/hitl/approvals/pending", params={"run_id": run_id})).json()
    assert pending["approvals"] == []
    refused(await decide(client, approval_id, "approve"))


async def test_a_queued_run_can_be_cancelled(client: httpx2.AsyncClient) -> None:
    body = {**run_body(echo(), **ASK), "session_id": uuid4().hex, "on_active_run": "queue"}
    first, second = await start(client, body), await start(client, body)
    assert (await run_of(client, second))["status"] == "queued"
    await cancelled(client, second)
    await cancelled(client, first)


async def test_a_paused_run_can_be_cancelled(client: httpx2.AsyncClient) -> None:
    run_id = await start(client, run_body(echo(), **ASK))
    approval_id = (await at(client, run_id, "information_review"))["approval_id"]
    await pause(client, run_id)

    await cancelled(client, run_id)

    assert (await client.get(f"/hitl/approvals/{approval_id}")).json()["status"] == "cancelled"


async def test_a_run_whose_call_is_under_way_can_be_cancelled(client: httpx2.AsyncClient) -> None:
    async with endpoint(gate := Gate({"late": True})) as (url, _):
        run_id = await start(client, run_body(http_tool(url)))
        await asyncio.wait_for(gate.entered.wait(), 20)
        assert (await run_of(client, run_id))["status"] == "running"

        await cancelled(client, run_id)
        gate.opened.set()
        run = (await client.get(f"/hitl/runs/{run_id}")).json()

    assert run["status"] == "cancelled" and run["result"] is None


async def test_a_run_that_awaits_its_provider_can_be_cancelled(client: httpx2.AsyncClient, provider: Provider) -> None:
    provider.script = [(202, {})]
    run_id = await start(client, run_body(http_tool(provider.url)))
    await settled(client, run_id, "awaiting_provider")

    await cancelled(client, run_id)

    late = await client.post(provider.seen[0].headers["x-hitl-callback-url"].split("/", 3)[3], json={"late": 1})
    assert late.status_code == 200
    run = await run_of(client, run_id)
    assert run["status"] == "cancelled" and run["result"] is None


# Final states


async def final_run(client: httpx2.AsyncClient, status: str) -> tuple[str, str]:
    """A run that ended so, and its approval."""
    run_id = await start(client, run_body(echo(fail=[{"status": 400}] if status == "failed" else []), **ASK))
    approval_id = (await at(client, run_id, "information_review"))["approval_id"]
    if status == "cancelled":
        await client.delete(f"/hitl/run/{run_id}")
    elif status == "rejected":
        await decide(client, approval_id, "reject", reason="no")
    else:
        await decide(client, approval_id, "approve")
    assert (await settled(client, run_id))["status"] == ("cancelled" if status == "rejected" else status)
    return run_id, approval_id


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled", "rejected"])
async def test_a_final_run_cannot_be_revived(client: httpx2.AsyncClient, status: str) -> None:
    run_id, approval_id = await final_run(client, status)
    before = await run_of(client, run_id)

    refused(await client.post(f"/hitl/run/{run_id}/resume"))
    refused(await client.post(f"/hitl/run/{run_id}/pause"))
    refused(await decide(client, approval_id, "edit", edits={"num_outputs": 5}))
    refused(await client.post(f"/hitl/run/{run_id}/approve", json={"action": "edit", "edits": {"prompt": "x"}}))
    cancel = await client.delete(f"/hitl/run/{run_id}")
    assert cancel.status_code == (200 if status in ("cancelled", "rejected") else 409)

    assert await run_of(client, run_id) == before
    if status == "rejected":
        assert before["error"]["code"] == "rejected" and before["error"]["recoverable"] is False


async def test_a_run_past_its_own_deadline_fails(client: httpx2.AsyncClient) -> None:
    run_id = await start(client, run_body(echo(), **ASK, run_timeout_seconds=1))
    approval_id = (await at(client, run_id, "information_review"))["approval_id"]

    run = await settled(client, run_id, "failed")

    assert run["error"]["code"] == "run_timeout"
    assert {"code", "message", "step", "recoverable"} <= set(run["error"])
    assert (await client.get(f"/hitl/approvals/{approval_id}")).json()["status"] in ("cancelled", "expired")
    assert (await events_of(client, run_id))[-1]["type"] == "run.failed"


async def test_a_call_that_outlives_the_runs_deadline_fails_the_run(client: httpx2.AsyncClient) -> None:
    async with endpoint(gate := Gate({})) as (url, _):
        run_id = await start(client, run_body(http_tool(url), run_timeout_seconds=1))
        run = await settled(client, run_id, "failed")
        gate.opened.set()
    assert run["error"]["code"] == "run_timeout"


# Events


def check_chain(events: list[dict[str, Any]]) -> None:
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[0]["prev_hash"] == ""
    for before, after in pairwise(events):
        assert after["prev_hash"] == before["hash"] and after["at"] >= before["at"]
    for event in events:
        bare = {name: value for name, value in event.items() if name != "hash"}
        assert sha256(event["prev_hash"].encode() + rfc8785.dumps(bare)).hexdigest() == event["hash"]
        assert set(bare) == {"run_id", "seq", "type", "at", "actor", "data", "prev_hash"}
        assert event["type"] in TYPES
        assert not event["type"].startswith("approval.") or event["data"]["approval_id"]


async def test_events_are_numbered_without_gaps_and_chained_by_hash(client: httpx2.AsyncClient) -> None:
    run_id = await start(client, run_body(echo(fail=[{"status": 422}]), policy="require_human"))
    for checkpoint, action in (
        ("information_review", "approve"), ("payload_review", "edit"), ("error_recovery", "retry"),
    ):  # fmt: skip
        approval = await at(client, run_id, checkpoint)
        await decide(client, approval["approval_id"], action, edits={"num_outputs": 2} if action == "edit" else None)
    await at(client, run_id, "response_review")
    await pause(client, run_id)
    await resume(client, run_id)
    await decide(client, (await at(client, run_id, "response_review"))["approval_id"], "approve")
    await settled(client, run_id)

    events = await events_of(client, run_id)

    check_chain(events)
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["run.created", "run.queued"] and kinds[-1] == "run.completed"
    assert kinds.count("approval.requested") == kinds.count("approval.decided") == 4
    done = [event["data"]["step"] for event in events if event["type"] == "step.completed"]
    assert set(done) == {"information_review", "payload_review", "api_call", "response_review"}
    assert done[-2:] == ["api_call", "response_review"] and done.count("api_call") == 1
    assert {"provider.submitted", "provider.failed", "provider.completed", "run.paused", "run.resumed"} <= set(kinds)
    assert kinds.index("provider.submitted") < kinds.index("provider.failed") < kinds.index("provider.completed")


@pytest.mark.parametrize("status", ["failed", "cancelled", "rejected"])
async def test_the_chain_of_a_run_that_ended_badly_holds_too(client: httpx2.AsyncClient, status: str) -> None:
    run_id, _ = await final_run(client, status)
    events = await events_of(client, run_id)
    check_chain(events)
    assert events[-1]["type"] == ("run.failed" if status == "failed" else "run.cancelled")


async def test_events_are_read_page_by_page(client: httpx2.AsyncClient) -> None:
    run_id = await start(client, run_body(echo()))
    await settled(client, run_id)
    whole = await events_of(client, run_id)

    after, read = 0, []
    while True:
        page = (await client.get(f"/hitl/runs/{run_id}/events", params={"after": after, "limit": 2})).json()
        if not page["events"]:
            break
        assert page["next_after"] == page["events"][-1]["seq"]
        read += page["events"]
        after = page["next_after"]

    assert read == whole
    assert page["next_after"] == after
    for bad in ({"limit": 0}, {"limit": 201}, {"after": -1}, {"after": "x"}):
        assert (await client.get(f"/hitl/runs/{run_id}/events", params=bad)).status_code == 422


# Jobs and figures


async def job(client: httpx2.AsyncClient, job_id: str) -> dict[str, Any]:
    answer = await client.get(f"/hitl/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    assert {"job_id", "status", "result", "error", "enqueued_at", "started_at", "finished_at", "meta"} <= set(body)
    assert {"run_id", "run_status", "current_step"} <= set(body["meta"])
    return body


async def test_a_job_is_known_under_every_id_that_its_run_ever_had(client: httpx2.AsyncClient) -> None:
    first = (await client.post("/hitl/run", json=run_body(echo(), policy="require_human"))).json()
    run_id, ids = first["run_id"], [first["job_id"]]
    for checkpoint in ("information_review", "payload_review", "response_review"):
        approval = await at(client, run_id, checkpoint)
        ids.append((await decide(client, approval["approval_id"], "approve")).json()["job_id"])
    run = await settled(client, run_id)
    ids.append(run["job_id"])

    for job_id in ids:
        body = await job(client, job_id)
        assert body["status"] == "complete" and body["error"] is None
        assert body["meta"] == {"run_id": run_id, "run_status": "completed", "current_step": "completed"}
        assert body["enqueued_at"] <= body["started_at"] <= body["finished_at"]
    assert (await client.get(f"/hitl/jobs/{first['job_id']}x")).status_code == 404
    assert (await client.get(f"/hitl/jobs/{uuid4()}")).status_code == 404


async def test_a_jobs_status_follows_its_run(client: httpx2.AsyncClient) -> None:
    async with endpoint(gate := Gate({})) as (url, _):
        body = {**run_body(http_tool(url)), "session_id": uuid4().hex, "on_active_run": "queue"}
        running = (await client.post("/hitl/run", json=body)).json()["job_id"]
        waiting = (await client.post("/hitl/run", json=body)).json()["job_id"]
        await asyncio.wait_for(gate.entered.wait(), 20)
        assert (await job(client, running))["status"] == "in_progress"
        assert (await job(client, waiting))["status"] in ("deferred", "queued")
        gate.opened.set()
        await settled(client, (await job(client, waiting))["meta"]["run_id"], "completed")
    failed = await start(client, run_body(echo(fail=[{"status": 400}])))
    run = await settled(client, failed)
    body = await job(client, run["job_id"])
    assert body["status"] == "failed" and body["error"]["code"] == "provider_rejected"


async def test_the_queue_tells_its_figures_and_its_workers(client: httpx2.AsyncClient) -> None:
    before = (await client.get("/hitl/queue")).json()
    await at(client, await start(client, run_body(echo(), **ASK)), "information_review")
    figures = (await client.get("/hitl/queue")).json()

    names = {"queued", "deferred", "in_progress", "failed", "awaiting_human", "awaiting_provider"}
    assert names | {"oldest_queued_seconds", "workers"} <= set(figures)
    assert all(isinstance(figures[name], int) and figures[name] >= 0 for name in names)
    assert figures["awaiting_human"] == before["awaiting_human"] + 1
    assert len(figures["workers"]) >= 1
    for worker in figures["workers"]:
        assert {"id", "jobs", "max_jobs", "seen_at"} <= set(worker)
        assert worker["max_jobs"] == 100


async def test_providers_are_listed_with_their_tools(client: httpx2.AsyncClient) -> None:
    body = (await client.get("/hitl/providers")).json()
    found = {entry["name"]: entry for entry in body["providers"]}

    assert body["total"] == len(body["providers"])
    assert found["echo"]["tools"] == ["echo-agent-tool"] and found["http"]["tools"] == ["http-agent-tool"]
    assert all(isinstance(entry["capabilities"], list) for entry in body["providers"])


# Lists


async def test_a_sessions_active_runs_tell_of_pending_approvals(client: httpx2.AsyncClient) -> None:
    session = uuid4().hex
    path = f"/hitl/sessions/{session}/active"
    nothing = (await client.get(path)).json()
    assert (nothing["runs"], nothing["has_pending_approvals"]) == ([], False)
    done = await start(client, {**run_body(echo()), "session_id": session})
    await settled(client, done)
    run_id = await start(client, {**run_body(echo(), **ASK), "session_id": session})
    await at(client, run_id, "information_review")

    active = (await client.get(path)).json()
    assert [run["run_id"] for run in active["runs"]] == [run_id] and active["has_pending_approvals"] is True
    await client.delete(f"/hitl/run/{run_id}")

    after = (await client.get(path)).json()
    assert (after["runs"], after["has_pending_approvals"]) == ([], False)


async def test_runs_are_found_by_each_filter(client: httpx2.AsyncClient) -> None:
    user, session = uuid4().hex, uuid4().hex
    done = await start(client, {**run_body(echo()), "user_id": user, "session_id": session})
    await settled(client, done)
    open_ = await start(client, {**run_body(echo(), **ASK), "user_id": user})
    await at(client, open_, "information_review")
    first, second = await run_of(client, done), await run_of(client, open_)

    async def found(path: str = "/hitl/runs", **params: str) -> list[str]:
        runs = (await client.get(path, params={"user_id": user, **params})).json()["runs"]
        return [run["run_id"] for run in runs]

    assert await found() == [open_, done]
    assert await found(status="completed") == [done]
    assert await found(status="awaiting_human") == [open_]
    assert await found(session_id=session) == [done]
    assert await found(provider="echo") == [open_, done]
    assert await found(provider="http") == []
    assert done not in await found(created_after=second["created_at"])
    assert await found(created_before=second["created_at"], created_after=first["created_at"]) in ([done], [])
    assert await found("/hitl/runs/active") == [open_]
    assert await found("/hitl/runs/active", status="completed") == []
    assert (await client.get("/hitl/runs?status=nonsense")).status_code == 422
