"""Anchors: what was signed cannot be rewritten, taken away or passed off as purged by whoever has the database."""

import asyncio
import csv
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from service.cli.audit_offline import verify_files
from service.commands.anchors import anchor_all
from service.commands.approvals import decide
from service.commands.audit import Wanted, verify
from service.commands.purge import purge
from service.domain.anchor import Signer, public_keys
from service.domain.approval import Order
from service.domain.audit import Broken, link_hash
from service.domain.event import wire
from service.domain.keyring import Keyring
from service.domain.principal import Principal
from service.embedded import Servers
from service.runtime import Runtime
from service.store import anchors, events
from service.store.database import EVERY
from service.store.purge import Kept
from tests.acting import begin, sql, worker
from tests.conftest import ASK_ALWAYS, DEV, base_env, behind, echo

HITL = Path(sys.executable).parent / "hitl"


async def done(runtime: Runtime) -> UUID:
    run_id = await begin(runtime, echo())
    assert await worker(runtime).advance(run_id) == "completed"
    return run_id


async def anchored(runtime: Runtime) -> int:
    return await anchor_all(runtime.services, every_s=0)


async def problems(runtime: Runtime, *trusted: str, **more: Any) -> list[tuple[str, str]]:
    """What verify names: run or anchor, and why."""
    keys = [*trusted, *public_keys(runtime.services.keyring)]
    found = await verify(runtime.services, Wanted(), keys, **more)
    return [(b.run_id if isinstance(b, Broken) else f"anchor {b.n}", b.problem) for b in found.broken]


async def rewrite(runtime: Runtime, run_id: UUID, actor: str = "user:eve") -> None:
    """Another past for a run: every hash recomputed, its head moved along."""
    async with behind(runtime.services.db) as conn:
        last = ""
        for event in await events.after(conn, "default", run_id, 0, limit=1000):
            line = {**wire(event), "actor": actor, "prev_hash": last}
            last, before = link_hash(line), last
            await conn.execute(
                "update events set actor = $3, prev_hash = $4, hash = $5 where run_id = $1 and seq = $2",
                run_id, event.seq, actor, before, last,
            )  # fmt: skip
        await conn.execute("update runs set event_hash = $2 where id = $1", run_id, last)


async def test_a_run_rewritten_whole_is_named_if_it_was_anchored(empty: Runtime) -> None:
    rewritten, whole = await done(empty), await done(empty)
    await rewrite(empty, whole)
    assert await problems(empty) == [], "nobody can tell, before there is an anchor"
    assert await anchored(empty) == 1
    await rewrite(empty, rewritten, "user:ann")
    assert await problems(empty) == [(str(rewritten), "was rewritten since it was anchored")]


async def test_a_run_that_goes_on_after_its_anchor_holds_and_one_cut_back_does_not(empty: Runtime) -> None:
    run_id = await begin(empty, echo(), ASK_ALWAYS)
    await worker(empty).advance(run_id)
    assert await anchored(empty) == 1
    assert await anchored(empty) == 0, "nothing has changed"
    seq, last = await sql(empty, "select array[event_seq::text, event_hash] from runs where id = $1", run_id)
    approval_id = await sql(empty, "select id from approvals where run_id = $1", run_id)
    await decide(empty.services, approval_id, Order("reject", reason="no"), DEV)
    assert await anchored(empty) == 1
    assert await problems(empty) == []
    await sql(empty, "delete from decisions")
    await sql(empty, "delete from events where run_id = $1 and seq > $2", run_id, int(seq))
    await sql(empty, "update runs set event_seq = $2, event_hash = $3 where id = $1", run_id, int(seq), last)
    assert await problems(empty) == [(str(run_id), "is missing: it was anchored")]


async def test_a_deleted_run_is_named_a_purged_one_is_not_and_a_false_word_of_a_purge_is(empty: Runtime) -> None:
    purged, deleted, hidden = [await done(empty) for _ in range(3)]
    await anchored(empty)
    await sql(empty, "update runs set finished_at = now() - interval '9 days' where id = $1", purged)
    assert (await purge(empty.services, Kept("default", 5)))["runs"] == 1
    assert await problems(empty) == []
    await sql(empty, "delete from runs where id = any($1)", [deleted, hidden])
    await sql(
        empty,
        "insert into purged_runs select $1, p.tenant, h.seq, h.hash, p.at, p.key_id, p.public_key, p.signature"
        " from purged_runs p, anchored_heads h where h.run_id = $1 and p.run_id = $2",
        hidden,
        purged,
    )
    missing = "is missing with its whole run: it was anchored, and no purge accounts for it"
    assert await problems(empty) == [
        (str(deleted), missing),
        (str(hidden), "is purged: the word of it is not what was signed"),
    ]


async def test_a_purged_run_need_not_have_been_anchored_and_a_cut_word_of_it_is_not_enough(empty: Runtime) -> None:
    run_id = await done(empty)
    await sql(empty, "update runs set finished_at = now() - interval '9 days'")
    await purge(empty.services, Kept("default", 5))
    assert await anchored(empty) == 0
    assert await problems(empty) == []
    found = await verify(empty.services, Wanted(), public_keys(empty.services.keyring))
    assert dict(found.counts) == {"purged": 1}
    await sql(empty, "update purged_runs set seq = seq - 1 where run_id = $1", run_id)
    assert await problems(empty) == [(str(run_id), "is purged: the word of it is not what was signed")]


@pytest.mark.parametrize(
    ("change", "anchor", "why"),
    [
        ("update anchors set at = at - interval '1 day' where n = 1", 1, "was changed"),
        ("update anchors set root = repeat('0', 64) where n = 2", 2, "was changed"),
        ("update anchors set heads = heads + 1 where n = 2", 2, "was changed"),
        ("update anchors set signature = reverse(signature) where n = 2", 2, "is not what was signed"),
        ("update anchors set signature = left(signature, -1) where n = 2", 2, "is not what was signed"),
        ("delete from anchors where n = 2", 3, "does not follow"),
        ("delete from anchors where n = 1", 2, "does not follow"),
        ("delete from anchored_heads where n = 2", 2, "was changed: the ends"),
        ("update anchored_heads set hash = repeat('0', 64) where n = 2", 2, "was changed: the ends"),
        ("update anchored_heads set tenant = 'other' where n = 2", 2, "was changed: the ends"),
    ],
)
async def test_a_change_of_an_anchor_is_named(empty: Runtime, change: str, anchor: int, why: str) -> None:
    for _ in range(3):
        await done(empty)
        assert await anchored(empty) == 1
    await sql(empty, change)
    found = await problems(empty)
    assert any(name == f"anchor {anchor}" and problem.startswith(why) for name, problem in found), found


async def test_a_tenant_that_a_run_was_moved_to_is_named(empty: Runtime) -> None:
    run_id = await done(empty)
    await anchored(empty)
    await sql(empty, "with moved as (update events set tenant = 'other') update runs set tenant = 'other'")
    assert await problems(empty) == [(str(run_id), "belongs to another tenant than when it was anchored")]


async def test_anchors_that_were_all_thrown_away_are_missed_by_who_kept_a_line_of_the_log(empty: Runtime) -> None:
    await done(empty)
    with capture_logs() as logged:
        await anchored(empty)
    (line,) = [each for each in logged if each["event"] == "audit.anchored"]
    assert (line["anchor"], line["runs"]) == (1, 1)
    assert await problems(empty, anchored=[line["hash"]]) == []
    await sql(empty, "delete from anchors")
    assert await problems(empty) == []
    assert await problems(empty, anchored=[line["hash"]]) == [("anchor 0", f"is missing: {line['hash']}")]


async def test_an_anchor_by_another_key_needs_somebody_to_vouch_for_it(empty: Runtime) -> None:
    await done(empty)
    forger = replace(empty.services, keyring=Keyring("f" * 40))
    await anchor_all(forger, every_s=0)
    theirs = public_keys(forger.keyring)[0]
    ((name, why),) = await problems(empty)
    assert name == "anchor 1" and "nobody vouches for" in why
    assert await problems(empty, theirs) == []
    rotated = replace(empty, services=replace(empty.services, keyring=Keyring("n" * 40, "f" * 40)))
    assert await problems(rotated) == [], "the key of the secret before this one is still known"
    assert Signer(rotated.services.keyring).seal("x").public_key != theirs


async def test_many_at_once_make_one_anchor_and_none_before_it_is_time(empty: Runtime) -> None:
    for _ in range(3):
        await done(empty)
    assert sum(await asyncio.gather(*(anchor_all(empty.services, every_s=3600) for _ in range(8)))) == 1
    await done(empty)
    assert await anchor_all(empty.services, every_s=3600) == 0
    await sql(empty, "update anchors set at = at - interval '2 hours'")
    assert await anchor_all(empty.services, every_s=3600) == 1


async def test_more_than_a_page_is_anchored_whole_the_first_time_and_later(
    empty: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.commands.anchors.PAGE", 2)
    runs = {await done(empty) for _ in range(5)}
    assert await anchored(empty) == 3
    runs |= {await done(empty) for _ in range(4)}
    assert await anchored(empty) == 3, "two pages, and that there is no third"
    async with empty.services.db.connection(EVERY) as conn:
        found = await anchors.ends_of_runs(conn, list(runs))
    assert found.keys() == runs and all(len(ends) == 1 for ends in found.values())
    assert await problems(empty) == []


async def test_on_a_server_that_was_restored_it_begins_anew(empty: Runtime) -> None:
    first = await done(empty)
    await anchored(empty)
    await sql(empty, "update anchors set seen = '900000000:900000000:'")
    await sql(empty, "update events set xid = '900000001'")
    second = await done(empty)
    assert await anchored(empty) == 1
    async with empty.services.db.connection(EVERY) as conn:
        found = await anchors.ends_of_runs(conn, [first, second])
    assert (len(found[first]), len(found[second])) == (2, 1)
    assert await anchored(empty) == 0


# Exports


class Auditor:
    def __init__(self, runtime: Runtime, servers: Servers) -> None:
        urls = {"DATABASE_URL": str(runtime.settings.database_url), "REDIS_URL": str(runtime.settings.redis_url)}
        self.env = base_env(servers, **urls)

    async def __call__(self, *arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [HITL, "audit", *map(str, arguments)]
        return await asyncio.to_thread(
            subprocess.run, command, env=self.env, capture_output=True, text=True, check=False
        )


async def edited(runtime: Runtime) -> UUID:
    """A run whose payload a reviewer edited, with a reason."""
    run_id = await begin(runtime, echo({"prompt": "x", "num_outputs": 1}), ASK_ALWAYS)
    reviewer = Principal("ann", "default", "reviewer")
    while await worker(runtime).advance(run_id) != "completed":
        approval = await sql(runtime, "select row_to_json(a) from approvals a where status = 'pending'")
        first = approval["checkpoint_type"] == "information_review"
        order = Order("edit", {"num_outputs": 3}, reason="=three") if first else Order("approve")
        await decide(runtime.services, UUID(approval["id"]), order, reviewer)
    return run_id


async def test_the_record_says_who_decided_on_what_and_what_was_sent_then(
    empty: Runtime, servers: Servers, tmp_path: Path
) -> None:
    run_id = await edited(empty)
    hitl = Auditor(empty, servers)
    out = tmp_path / "export.jsonl"
    assert (await hitl("export", "--out", out)).returncode == 0
    lines = [json.loads(text) for text in out.read_text().splitlines()]
    decided = [line["record"] for line in lines if line["type"] == "approval.decided"]
    sent = next(line for line in lines if line["type"] == "provider.submitted")
    answered = next(line for line in lines if line["type"] == "provider.completed")
    first = decided[0]
    assert (first["who"], first["role"], first["authenticated_by"]) == ("ann", "reviewer", "unknown")
    assert (first["policy"], first["reasons"]) == ("require_human", ["policy.require_human"])
    assert (first["action"], first["channel"], first["position"], first["quorum"]) == ("edit", "http", 1, 1)
    assert first["changes"] == [{"op": "replace", "path": "/num_outputs"}]
    assert (first["reason"], first.get("edits")) == ("=three", None)
    assert first["requested_at"] < first["decided_at"]
    assert first["payload_sha256"] != first["decided_payload_sha256"] == sent["data"]["payload_sha256"]
    assert (first["provider"], first["call"]) == ("echo", 1)
    assert first["sent_payload_sha256"] == sent["data"]["payload_sha256"]
    assert first["response_sha256"] == answered["data"]["response_sha256"] is not None
    assert decided[-1]["reviewed_response_sha256"] == answered["data"]["response_sha256"]
    assert all("record" not in line for line in lines if line["type"].startswith(("run.", "step.")))
    assert lines[0]["run_id"] == str(run_id)
    content = tmp_path / "content.csv"
    assert (await hitl("export", "--format", "csv", "--with-content", "--out", content)).returncode == 0
    rows = [row for row in csv.DictReader(content.read_text().splitlines()) if row["type"] == "approval.decided"]
    assert rows[0]["record_reason"] == "'=three", "no formula for a spreadsheet"
    assert json.loads(rows[0]["record_edits"]) == {"num_outputs": 3}
    for file in (out, content):
        found = await hitl("verify", file)
        assert (found.returncode, found.stderr) == (0, ""), found.stdout


LIES = {
    "who": "eve", "role": "admin", "authenticated_by": "oidc", "first_seen_at": "2026-01-01T00:00:00.000000Z",
    "position": 2, "changes": [], "reason": "because", "edits": {"num_outputs": 4}, "policy": "auto",
    "sent_payload_sha256": "0" * 64, "response_sha256": "0" * 64, "nonce": "00",
}  # fmt: skip


async def test_a_record_that_was_changed_is_named(empty: Runtime, servers: Servers, tmp_path: Path) -> None:
    run_id = await edited(empty)
    file = tmp_path / "export.jsonl"
    assert (await Auditor(empty, servers)("export", "--with-content", "--out", file)).returncode == 0
    text = file.read_text()
    assert verify_files(file, None, None, (), ()).broken == []
    for name, value in LIES.items():
        lines = [json.loads(each) for each in text.splitlines()]
        line = next(line for line in lines if line["type"] == "approval.decided")
        line["record"][name] = value
        file.write_text("".join(json.dumps(each) + "\n" for each in lines))
        (link,) = verify_files(file, None, None, (), ()).broken
        assert isinstance(link, Broken) and (link.run_id, link.seq) == (str(run_id), line["seq"])
        assert link.problem.startswith("has a record that was changed"), name


def forged(lines: list[dict[str, Any]], run_id: str) -> list[dict[str, Any]]:
    last = ""
    for line in lines:
        if line["run_id"] == run_id:
            line |= {"actor": "user:eve", "prev_hash": last}
            line["hash"] = last = link_hash(line)
            line.pop("record", None)
    return lines


TAMPERED: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "was rewritten since it was anchored": forged,
    "is missing with its whole run": lambda lines, run_id: [line for line in lines if line["run_id"] != run_id],
}


async def test_an_export_is_held_against_the_anchors_that_go_with_it(
    empty: Runtime, servers: Servers, tmp_path: Path
) -> None:
    touched, purged, _ = [await done(empty) for _ in range(3)]
    await anchored(empty)
    await sql(empty, "update runs set finished_at = now() - interval '9 days' where id = $1", purged)
    await purge(empty.services, Kept("default", 5))
    hitl = Auditor(empty, servers)
    file, beside = tmp_path / "export.jsonl", tmp_path / "anchors.jsonl"
    assert (await hitl("export", "--out", file, "--anchors", beside)).returncode == 0
    (key,) = [row["public_key"] for row in json.loads((await hitl("key", "--json")).stdout)]
    assert key in public_keys(empty.services.keyring)
    hitl.env["HITL_SECRET_KEY"] = "another secret, of somebody who has none of ours"
    found = await hitl("verify", file, "--anchors", beside, "--key", key)
    assert (found.returncode, found.stderr) == (0, ""), found.stdout
    assert ", 1 anchors, 1 purged: every chain holds" in found.stdout
    found = await hitl("verify", file, "--anchors", beside)
    assert found.returncode == 1 and "nobody vouches for" in found.stdout
    text = file.read_text()
    for why, change in TAMPERED.items():
        lines = change([json.loads(line) for line in text.splitlines()], str(touched))
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert verify_files(file, None, None, (), ()).broken == [], "alone it cannot be told"
        (link,) = verify_files(file, beside, None, [key], ()).broken
        assert isinstance(link, Broken) and link.run_id == str(touched) and link.problem.startswith(why)
    assert [b.n for b in verify_files(file, beside, UUID(int=0), [key], ["x"]).broken if not isinstance(b, Broken)] == [
        0
    ]


async def test_anchors_beside_a_part_show_nothing_of_the_rest(empty: Runtime, servers: Servers, tmp_path: Path) -> None:
    shown, other = await done(empty), await done(empty)
    await sql(
        empty,
        "with moved as (update events set tenant = 'acme' where run_id = $1)"
        " update runs set tenant = 'acme' where id = $1",
        shown,
    )
    await anchored(empty)
    hitl = Auditor(empty, servers)
    file, beside = tmp_path / "export.jsonl", tmp_path / "anchors.jsonl"
    assert (await hitl("export", "--tenant", "acme", "--out", file, "--anchors", beside)).returncode == 0
    text = beside.read_text()
    assert str(shown) in text and str(other) not in text and "default" not in text
    found = await hitl("verify", file, "--anchors", beside)
    assert (found.returncode, found.stderr) == (0, ""), found.stdout
    assert (await hitl("verify", "--anchors", beside)).returncode == 2
    assert (await hitl("verify", file, "--anchors", file)).returncode == 1
    assert (await hitl("verify", "--key", "nonsense")).returncode == 2
