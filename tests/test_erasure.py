"""`hitl erase`: after it nothing of a person's content is to be found, and the record of what was decided stands."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import orjson
import pytest
import pytest_asyncio

from service.api.models import ApprovalView, RunView
from service.commands import webhooks as webhook_commands
from service.commands.approvals import Question, ask, claim, decide
from service.commands.context import Services
from service.commands.delegation import delegate
from service.commands.erasure import count, erase, rewrap
from service.commands.purge import purge
from service.commands.runs import StartRun, cancel_run, resume_run, start_run
from service.commands.views import run_views
from service.deliveries.sender import Sender
from service.deliveries.webhook import Webhooks
from service.domain import audit as rules
from service.domain.approval import Approval, Order
from service.domain.erasure import Erasure
from service.domain.event import EventType, Fact, chain, wire
from service.domain.file import StoredFile, location_of
from service.domain.ids import uuid7
from service.domain.keyring import Keyring
from service.domain.policy import EscalateTo, HitlConfig
from service.domain.principal import Principal
from service.domain.view import approval_view
from service.embedded import Servers
from service.errors import ContentErased, ContentUnreadable, FilesUnavailable, NotFound, RunState
from service.filestore import FolderStore, StoreFailed
from service.runtime import Runtime, open_runtime
from service.store import approvals, audit, calls, deliveries, events, files, frames, runs
from service.store.content import Vault
from service.store.database import EVERY, Conn, Database
from service.store.purge import Kept
from tests import state
from tests.acting import begin, docs_of, look, sql, within, worker
from tests.conftest import ASK_ALWAYS, DEV, Gated, Provider, Stack, echo, http_tool, settled, start
from tests.test_upgrades import FIXTURES, as_left_by

HITL = Path(sys.executable).parent / "hitl"
CANARY = "canary-7f3a"
JANE = Principal("jane", "default", "submitter")
REVIEWER = Principal("rita", "default", "reviewer")
SECOND = Principal("sam", "default", "reviewer")


def of_jane(**more: Any) -> Erasure:
    return Erasure(uuid7(), "default", "jane", "officer", **more)


async def stored(conn: Conn) -> list[str]:
    """Every value of every row of every table, as a dump would have it."""
    tables = await conn.fetch("select tablename from pg_tables where schemaname = 'public'")
    rows = [await conn.fetch(f'select row_to_json(t)::text from "{table[0]}" t') for table in tables]
    return [row[0] for found in rows for row in found]


async def found(runtime: Runtime, word: str = CANARY) -> list[str]:
    """The rows that hold the word, as text or as bytes."""
    async with runtime.services.db.connection(EVERY) as conn:
        return sorted(row for row in await stored(conn) if word in row or word.encode().hex() in row)


async def with_file(services: Services, run_id: UUID) -> None:
    body, file_id = CANARY.encode(), uuid7()

    async def pieces() -> AsyncIterator[bytes]:
        yield body

    place = location_of(file_id)
    await services.files.put(place, pieces())
    row = StoredFile(
        file_id, "default", run_id, f"{CANARY}.png", "image/png", len(body), sha256(body).hexdigest(), place,
        services.db.now(),
    )  # fmt: skip
    async with services.db.transaction(EVERY) as conn:
        await files.insert(conn, [row])


@pytest_asyncio.fixture(loop_scope="session")
async def site(empty: Runtime, tmp_path: Path) -> Runtime:
    await sql(empty, "delete from erased_content")
    await sql(empty, "delete from erasures")
    await sql(empty, "delete from content_keys")
    return replace(empty, services=replace(empty.services, files=FolderStore(tmp_path)))


def order(**more: Any) -> dict[str, Any]:
    """Everything that a client may write about a run, with the word in it."""
    return {"user_id": "jane", "callback_url": f"http://127.0.0.1:9/{CANARY}", **more}


def request(tool: Any) -> dict[str, Any]:
    texts = ("user_email", "agent_email", "message_type", "selected_llm", "document_context", "log_id")
    return {
        "prompt": f"a red {CANARY}",
        "agent_tool_config": tool,
        "conversation": [{"role": "user", "content": f"style: {CANARY}"}],
        "attachments": [{"url": f"https://example.com/{CANARY}.png", "name": CANARY}],
        "document_url": f"https://example.com/{CANARY}.pdf",
        **dict.fromkeys(texts, f"{CANARY}@example.com"),
    }


async def open_of(runtime: Runtime, run_id: UUID) -> Approval:
    async with runtime.services.db.connection(EVERY) as conn:
        return (await approvals.open_of_run(conn, run_id))[0]


async def everywhere(site: Runtime, provider: Provider) -> list[UUID]:
    """Runs of Jane's at every place where content is kept, in every way in which they end or wait."""
    services, hand = site.services, worker(site)
    tool = http_tool(provider.url, {"prompt": "x", "style": CANARY}, note=CANARY, headers={"X-Secret": CANARY})
    run_ids = []

    async def started(config: HitlConfig = ASK_ALWAYS) -> UUID:
        run_id = (await start_run(services, StartRun(request(tool), config, **order()), DEV)).run_id
        run_ids.append(run_id)
        await hand.advance(run_id)
        return run_id

    async def decided(run_id: UUID, action: str, who: Principal = REVIEWER, **more: Any) -> None:
        question = await open_of(site, run_id)
        await decide(services, question.id, Order(action, **more), who)  # type: ignore[arg-type]
        await hand.advance(run_id)

    done = await started()
    await claim(services, (await open_of(site, done)).id, REVIEWER)
    await decided(done, "approve", reason=f"why {CANARY}")
    provider.script = [(200, {"text": CANARY})]
    await delegate(services, (await open_of(site, done)).id, EscalateTo(users=["rita"]), REVIEWER, reason=CANARY)
    await decided(done, "edit", edits={"style": f"of {CANARY}"})
    await decided(done, "edit", edits={"response": {"mended": CANARY}})
    assert (await look(site, done)).status == "completed"
    await with_file(services, done)

    refused = await started()
    await decided(refused, "reject", reason=f"no: {CANARY}")
    cancelled = await started()
    await cancel_run(services, cancelled, JANE, reason=f"not {CANARY}")
    provider.script = [(422, {"detail": [{"loc": ["style"], "msg": f"bad {CANARY}"}]})]
    await started(HitlConfig(policy="auto"))
    provider.script = [(400, {"detail": f"no {CANARY}"})]
    await started(HitlConfig(policy="auto"))
    provider.script = ["cut"] * 9
    await started(HitlConfig(policy="auto"))
    provider.script = []
    await started()  # waits at its first question
    told = await begin(site, echo(), prompt=CANARY, **order())
    run_ids.append(told)
    async with services.db.transaction(EVERY) as conn:
        run = await runs.lock_any(conn, told)
        assert run is not None
        await runs.save(conn, run, [progress()], now=services.db.now())
    return run_ids


def progress() -> Fact:
    return Fact(EventType.PROVIDER_PROGRESS, "provider:echo", {"text": f"so far {CANARY}"})


async def asked(site: Runtime) -> list[UUID]:
    """Questions of a program's for Jane, one answered and one open."""
    ids = []
    for _ in range(2):
        question = Question(
            "deploy", f"Shall {CANARY}?", {"payload": {"n": CANARY}}, schema={"title": CANARY}, user_id="jane",
            callback_url=f"http://127.0.0.1:9/{CANARY}",
        )  # fmt: skip
        ids.append((await ask(site.services, question, Principal("bot", "default", "service")))[0].id)
    await decide(site.services, ids[0], Order("edit", {"n": f"{CANARY}!"}, f"as {CANARY}"), REVIEWER)
    return ids


async def shown(site: Runtime, run_ids: list[UUID], questions: list[UUID]) -> dict[str, Any]:
    """All that a reader is given of them."""
    services = site.services
    async with services.db.connection(EVERY) as conn:
        page = [run for run_id in run_ids if (run := await runs.find(conn, run_id)) is not None]
        views = await run_views(conn, services, page)
        ids = [row["id"] for row in await conn.fetch("select id from approvals where run_id = any($1)", run_ids)]
        whole = sorted(await approvals.some(conn, [*ids, *questions]), key=lambda a: a.id)
        shown_ = [approval_view(a) for a in whole]
        told = [event for run_id in run_ids for event in await events.after(conn, "default", run_id, 0, limit=1000)]
        framed = await frames.of_events(conn, told)
    for view in views:
        RunView.model_validate(orjson.loads(orjson.dumps(view)))
    for view in shown_:
        ApprovalView.model_validate(orjson.loads(orjson.dumps(view)))
    return {"runs": views, "approvals": shown_, "events": [wire(event) for event in told], "frames": framed}


def kept_in(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]


async def verified(runtime: Runtime) -> None:
    async with runtime.services.db.reading(EVERY) as conn:
        async for head, told in audit.chains(conn, tenant=None, run_id=None):
            assert rules.check(head, [wire(event) for event in told]) is None


async def send(services: Services) -> None:
    """One try of every webhook that is due."""
    channel = Webhooks(services, services.client, pause=lambda _: timedelta(0))
    await Sender(services, channel, poll_s=1).once()


async def test_after_an_erasure_no_canary_is_left_and_the_record_is_whole(
    site: Runtime, provider: Provider, tmp_path: Path
) -> None:
    run_ids, questions = await everywhere(site, provider), await asked(site)
    other = await begin(site, echo(), ASK_ALWAYS, user_id="joe")
    await worker(site).advance(other)
    await send(site.services)
    before = await shown(site, run_ids, questions)
    assert orjson.dumps(before).count(CANARY.encode()) > 50
    assert await found(site) == [row for row in await found(site) if f"{CANARY}.png" in row]  # sealed as it lies there
    assert kept_in(tmp_path) == [CANARY.encode()]

    asked_for = of_jane()
    assert await count(site.services, asked_for) == {"runs": 8, "questions": 2, "live": 5}
    assert await erase(site.services, asked_for) == {"runs": 8, "questions": 2, "files": 1}

    after = await shown(site, run_ids, questions)
    assert await found(site) == []
    assert CANARY.encode() not in orjson.dumps(after)
    assert kept_in(tmp_path) == []
    assert await sql(site, "select array_agg(subject) from content_keys") == [other]
    await verified(site)
    for was, now in zip(before["runs"], after["runs"], strict=True):
        assert now["content_erased_at"]
        assert {now[name] is None for name in ("run_input", "payload", "result", "raw_response")} == {True}
        assert now["payload_sha256"] == was["payload_sha256"]
        assert now["status"] == (
            was["status"] if was["status"] in ("completed", "failed", "cancelled") else "cancelled"
        )
        assert (now["user_id"], now["submitter"], now["hitl_config"]) == ("jane", was["submitter"], was["hitl_config"])
    for was, now in zip(before["approvals"], after["approvals"], strict=True):
        kept = ("actor", "action", "at", "channel")
        assert [{name: d[name] for name in kept} for d in now["decisions"]] == [
            {name: d[name] for name in kept} for d in was["decisions"]
        ]
        same = ("approval_id", "payload_sha256", "reviewers", "reasons", "checkpoint_type")
        assert [now[name] for name in same] == [was[name] for name in same]
        assert (now["message"], now["context"], now["schema"]) == (None, None, None)
        assert now["content_erased_at"]
    assert len([d for a in after["approvals"] for d in a["decisions"]]) >= 5
    assert {d["reason"] for a in after["approvals"] for d in a["decisions"]} == {None}
    told = {(event["run_id"], event["seq"]): event for event in after["events"]}
    for event in before["events"]:  # every event, as it was, but for what the provider told
        now = told[event["run_id"], event["seq"]]
        assert now["hash"] == event["hash"]
        assert now == event or now["data"]["content_erased"] is True
    assert (await docs_of(site, other)).run_input["prompt"] == "a red fox"
    row = await sql(site, "select to_jsonb(e) from erasures e")
    assert (row["id"], row["actor"], row["user_id"]) == (str(asked_for.id), "officer", "jane")
    assert (row["runs"], row["questions"], row["files"]) == (8, 2, 1)
    assert await sql(site, "select count(*) from erased_content where erasure_id = $1", asked_for.id) == 10


async def test_erasing_again_finds_nothing_and_only_the_runs_named_go(site: Runtime) -> None:
    first, second = [await begin(site, echo(), prompt=CANARY, user_id="jane") for _ in range(2)]
    strange = await begin(site, echo(), user_id="joe")
    with pytest.raises(NotFound):
        await count(site.services, of_jane(run_ids=[first, strange]))
    assert (await erase(site.services, of_jane(run_ids=[first])))["runs"] == 1
    assert (await docs_of(site, second)).erased_at is None
    assert (await docs_of(site, second)).run_input["prompt"] == CANARY
    assert (await erase(site.services, of_jane()))["runs"] == 1
    assert await erase(site.services, of_jane()) == {"runs": 0, "questions": 0, "files": 0}
    assert await sql(site, "select count(*) from erasures") == 2
    assert (await docs_of(site, strange)).erased_at is None


async def test_another_tenants_person_of_that_name_is_somebody_else(site: Runtime) -> None:
    run_id = await begin(site, echo(), user_id="jane")
    assert (await erase(site.services, replace(of_jane(), tenant="other")))["runs"] == 0
    assert (await docs_of(site, run_id)).run_input


async def test_nobody_goes_on_with_an_erased_run(site: Runtime, provider: Provider) -> None:
    provider.script = ["cut"] * 9
    failed = await begin(site, http_tool(provider.url), user_id="jane")
    await sql(site, "update runs set build_tries = 0 where id = $1", failed)
    while (await look(site, failed)).status == "queued":
        await sql(site, "update runs set due_at = now() where id = $1", failed)
        await worker(site).advance(failed)
    queued = await begin(site, echo(), user_id="jane")
    before = len(provider.seen)
    await erase(site.services, of_jane())

    for run_id in (failed, queued):
        with pytest.raises(RunState):
            await resume_run(site.services, run_id, JANE)
        assert await worker(site).advance(run_id) == "nothing_due"
    assert (await look(site, queued)).status == "cancelled"
    assert len(provider.seen) == before
    await verified(site)


async def test_a_worker_that_has_the_run_in_hand_writes_nothing_more(site: Runtime, gated: Gated) -> None:
    gated.script = [(200, {"text": CANARY})]
    run_id = await begin(site, http_tool(gated.url), user_id="jane", prompt=CANARY)
    working = asyncio.create_task(worker(site).advance(run_id))
    await within(gated.arrived)
    await erase(site.services, of_jane())
    gated.opened.set()
    assert await working == "lease_lost"
    assert await found(site) == []
    assert CANARY.encode() not in orjson.dumps(await shown(site, [run_id], []))
    await verified(site)


async def test_a_writer_that_remembers_the_key_writes_what_nobody_can_read(site: Runtime) -> None:
    """Another process has seen the key before it was deleted."""
    run_id = await begin(site, echo(), user_id="jane")
    await erase(site.services, of_jane())
    async with site.services.db.transaction(EVERY) as conn:
        await runs.set_result(conn, run_id, {"response": CANARY})
    assert await found(site) == []
    assert (await docs_of(site, run_id)).result is None


async def test_a_writer_that_does_not_is_refused(site: Runtime) -> None:
    run_id = await begin(site, echo(), user_id="jane")
    await erase(site.services, of_jane())
    db = Database(str(site.settings.database_url), vault=Vault(site.services.keyring))
    async with db.transaction(EVERY) as conn:
        with pytest.raises(ContentErased):
            await runs.set_result(conn, run_id, {"response": CANARY})
    await db.close()


async def test_files_that_cannot_be_removed_leave_all_of_it_for_another_time(site: Runtime, tmp_path: Path) -> None:
    run_id = await begin(site, echo(), user_id="jane", prompt=CANARY)
    await worker(site).advance(run_id)
    await with_file(site.services, run_id)

    class Away(FolderStore):
        async def remove(self, location: str) -> None:
            raise StoreFailed("away")

    away = replace(site.services, files=Away(tmp_path))
    with pytest.raises(FilesUnavailable):
        await erase(away, of_jane())
    assert (await docs_of(site, run_id)).run_input["prompt"] == CANARY
    assert (await erase(site.services, of_jane()))["files"] == 1


async def test_webhooks_of_an_erased_run_are_dead_and_stay_so(site: Runtime) -> None:
    run_id = await begin(site, echo(), user_id="jane", prompt=CANARY, callback_url="http://127.0.0.1:9/x")
    await worker(site).advance(run_id)
    await send(site.services)
    assert await sql(site, "select body is not null from deliveries") is True
    await erase(site.services, of_jane())
    async with site.services.db.connection(EVERY) as conn:
        told = await deliveries.recent(conn, None, status=None, limit=10)
    assert {(row["status"], row["error"], row["due_at"]) for row in told} == {("dead", "content_erased", None)}
    with pytest.raises(ContentErased):
        await webhook_commands.redeliver(site.services, told[0]["id"])
    await sql(site, "update deliveries set status = 'waiting'")  # as a try that was under way would have left it
    await sql(site, "update delivery_lines set due_at = now(), lease_until = null")
    for _ in told:
        await send(site.services)
    assert await sql(site, "select count(*) from deliveries where status = 'dead'") == len(told)


SWAPPED = [
    "update run_documents d set payload = o.payload from run_documents o where d.run_id = $1 and o.run_id = $2",
    "update run_documents d set output = d.payload where d.run_id = $1 and $2::uuid is not null",
    "update run_documents d set result = d.output where d.run_id = $1 and $2::uuid is not null",
    "update run_documents d set callback_url = o.callback_url from run_documents o "
    "where d.run_id = $1 and o.run_id = $2",
    "update provider_calls d set output = o.output from provider_calls o where d.run_id = $1 and o.run_id = $2",
    "update content_keys d set wrapped = o.wrapped from content_keys o where d.subject = $1 and o.subject = $2",
    "update approvals d set context = o.context from approvals o where d.run_id = $1 and o.run_id = $2",
    "update decisions d set edits = o.edits from decisions o, approvals a, approvals b where d.approval_id = a.id "
    "and o.approval_id = b.id and a.run_id = $1 and b.run_id = $2",
]


@pytest.mark.parametrize("swap", SWAPPED, ids=range(len(SWAPPED)))
async def test_what_was_moved_to_another_run_or_column_does_not_open(site: Runtime, swap: str) -> None:
    one_question = HitlConfig(policy="require_human", allowed_steps=["payload_review"])
    ids = []
    for _ in range(2):
        run_id = await begin(site, echo(), one_question, callback_url="http://127.0.0.1:9/x")
        await worker(site).advance(run_id)
        await decide(site.services, (await open_of(site, run_id)).id, Order("approve", reason="good"), DEV)
        await worker(site).advance(run_id)
        ids.append(run_id)
    await sql(site, swap, *ids)
    with pytest.raises(ContentUnreadable):
        await shown_whole(site, ids[0])
    await shown_whole(site, ids[1])


async def shown_whole(site: Runtime, run_id: UUID) -> None:
    async with site.services.db.connection(EVERY) as conn:
        await runs.documents(conn, run_id)
        await calls.get(conn, run_id, 1)
        rows = await conn.fetch("select * from approvals where run_id = $1", run_id)
        await approvals.with_decisions(conn, rows)


async def test_a_new_master_secret_opens_the_old_content_and_the_next_one_too(site: Runtime) -> None:
    run_id = await begin(site, echo(), ASK_ALWAYS, prompt=CANARY)
    await worker(site).advance(run_id)
    first, second, third = str(site.settings.hitl_secret_key), "n" * 32, "m" * 32

    async def prompt(*secrets: str) -> Any:
        db = Database(str(site.settings.database_url), vault=Vault(Keyring(*secrets)))
        try:
            async with db.connection(EVERY) as conn:
                return (await runs.documents(conn, run_id)).run_input["prompt"]
        finally:
            await db.close()

    assert await prompt(second, first) == CANARY
    with pytest.raises(ContentUnreadable):
        await prompt(second)
    rotating = replace(site.services, keyring=Keyring(second, first))
    assert await rewrap(rotating) == 1
    assert await rewrap(rotating) == 0
    assert await prompt(third, second) == CANARY
    assert await rewrap(replace(site.services, keyring=Keyring(first, second))) == 1
    assert await prompt(first) == CANARY


async def test_keys_go_with_the_runs_that_are_purged(site: Runtime) -> None:
    old, kept = await begin(site, echo(), user_id="jane"), await begin(site, echo())
    for run_id in (old, kept):
        await worker(site).advance(run_id)
    await sql(site, "update runs set finished_at = now() - interval '9 days' where id = $1", old)
    question, _ = await ask(site.services, Question("deploy", "?", {}), DEV)
    await decide(site.services, question.id, Order("approve"), DEV)
    await sql(site, "update approvals set decided_at = now() - interval '9 days' where id = $1", question.id)
    await purge(site.services, Kept("default", 8))
    assert await sql(site, "select array_agg(subject) from content_keys") == [kept]


@pytest.mark.parametrize("fixture", FIXTURES[:1], ids=["v1"])
async def test_what_an_earlier_release_wrote_open_can_be_read_and_erased(
    servers: Servers, provider: Provider, fixture: Path, tmp_path: Path
) -> None:
    url = await as_left_by(fixture, servers, provider, name="erased")
    async with open_runtime(state.settings(url, f"{servers.redis_url}?db=6"), process="test") as runtime:
        site = replace(runtime, services=replace(runtime.services, files=FolderStore(tmp_path)))
        await plant(site)
        run_ids = await sql(site, "select array_agg(id) from runs")
        questions = await sql(site, "select array_agg(id) from approvals where run_id is null")
        before = await shown(site, run_ids, questions)
        assert len(await found(site)) > 20
        assert orjson.dumps(before).count(CANARY.encode()) > 20
        await verified(site)

        taken = await erase(site.services, replace(of_jane(), user_id="dev"))

        assert taken == {"runs": len(run_ids), "questions": len(questions), "files": 0}
        assert await found(site) == []
        assert CANARY.encode() not in orjson.dumps(await shown(site, run_ids, questions))
        await verified(site)


async def plant(site: Runtime) -> None:
    """The word in every open column of content, and in an event as the release before told it."""
    mixed = f"""'{{"prompt": "{CANARY}"}}'"""
    for change in (
        f"update run_documents set run_input = {mixed}, tool_config = {mixed}, description = {mixed},"
        f" payload = {mixed},"
        f' output = {mixed}, raw_response = {mixed}, result = \'{{"response": "{CANARY}"}}\','
        f" callback_url = 'http://127.0.0.1:9/{CANARY}'",
        f"update approvals set message = '{CANARY}', context = {mixed}, schema = {mixed}",
        f"update decisions set reason = '{CANARY}', edits = {mixed}",
        f"update provider_calls set output = {mixed}, raw = {mixed}, issues = '[{mixed[1:-1]}]', problem = '{CANARY}'",
        f'update runs set error = error || \'{{"message": "{CANARY}"}}\' where error is not null',
    ):
        await sql(site, change)
    async with site.services.db.transaction(EVERY) as conn:
        row = await conn.fetchrow("select * from runs where status = 'queued' limit 1")
        assert row is not None
        run, told = chain(runs.of_row(row), [progress()], at=site.services.db.now())
        await conn.execute(
            """
            insert into events (run_id, tenant, seq, at, type, actor, data, prev_hash, hash)
            select $1, 'default', e.* from unnest($2::bigint[], $3::timestamptz[], $4::text[], $5::text[], $6::json[],
                $7::text[], $8::text[]) as e
            """,
            run.id, *([getattr(e, name) for e in told] for name in ("seq", "at", "type", "actor", "data", "prev_hash",
                "hash")),
        )  # fmt: skip
        await conn.execute(
            "update runs set event_seq = $2, event_hash = $3 where id = $1", run.id, run.event_seq, run.event_hash
        )


async def test_nothing_but_progress_of_erased_runs_can_be_blanked(site: Runtime) -> None:
    run_id = await begin(site, echo())
    assert await sql(site, "select blank_progress($1)", [run_id]) == 0
    await erase(site.services, of_jane())
    await verified(site)


def hitl(env: dict[str, str], *args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [HITL, *args], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
    )


async def test_the_command_asks_first(stack: Stack, client: httpx2.AsyncClient) -> None:
    body = {"run_input": {"prompt": CANARY, "agent_tool_config": echo()}, "user_id": "stays"}
    run_id = await start(client, body)
    refused = await asyncio.to_thread(hitl, stack.env, "erase", "--user", "stays")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert (await client.get(f"/hitl/runs/{run_id}")).json()["run_input"]["prompt"] == CANARY


async def test_the_command_erases_and_every_door_says_so(stack: Stack, client: httpx2.AsyncClient) -> None:
    body = {
        "run_input": {"prompt": CANARY, "user_email": f"{CANARY}@example.com", "agent_tool_config": echo()},
        "hitl_config": {"policy": "require_human"},
        "user_id": "to-be-erased",
    }
    run_id = await start(client, body)
    run = await settled(client, run_id)
    approval_id = run["pending_actions"][0]["approval_id"]
    assert run["run_input"]["prompt"] == CANARY

    done = await asyncio.to_thread(hitl, stack.env, "erase", "--user", "to-be-erased", "--yes", "--json", "--by", "me")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["runs"], row["questions"], row["files"]) == (1, 0, 0)

    for path in (f"/hitl/runs/{run_id}", f"/hitl/approvals/{approval_id}", f"/hitl/runs/{run_id}/events",
                 "/hitl/runs?user_id=to-be-erased", f"/hitl/jobs/{run['job_id']}"):  # fmt: skip
        answer = await client.get(path)
        assert answer.status_code == 200, answer.text
        assert CANARY not in answer.text
    told = (await client.get(f"/hitl/runs/{run_id}")).json()
    assert (told["status"], told["run_input"], told["payload"]) == ("cancelled", None, None)
    assert told["content_erased_at"]
    assert told["error"] == {"code": "cancelled", "message": None, "step": told["current_step"], "recoverable": False}
    late = await client.post(f"/hitl/approvals/{approval_id}/decision", json={"action": "approve"})
    assert (late.status_code, late.json()["code"]) == (409, "approval_already_decided")
    assert CANARY not in late.text
    assert all(CANARY not in stack.log(process) for process in ("web", "worker"))
