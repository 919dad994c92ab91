"""`hitl audit`: whoever changes the record behind the service's back is found, in the database and in an export."""

import asyncio
import csv
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from service.cli.audit_offline import verify_files
from service.commands.approvals import decide
from service.commands.audit import Wanted, verify
from service.domain.anchor import public_keys
from service.domain.approval import Order
from service.domain.audit import Broken, Head, check, link_hash
from service.embedded import Servers
from service.runtime import Runtime
from tests.acting import begin, sql, worker
from tests.conftest import ASK_ALWAYS, DEV, base_env, echo

HITL = Path(sys.executable).parent / "hitl"
Line = dict[str, Any]


@dataclass
class Auditor:
    """The command line over the database of `empty`, in which two runs came to their end."""

    runtime: Runtime
    env: dict[str, str]
    runs: list[str]

    async def __call__(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return await asyncio.to_thread(
            subprocess.run, [HITL, "audit", *arguments], env=self.env, capture_output=True, text=True, check=False
        )

    async def broken(self, *arguments: str) -> list[Line]:
        found = await self("verify", "--json", *arguments)
        assert found.returncode == 1, found.stderr
        lines: list[Line] = json.loads(found.stdout)
        return lines

    async def exported(self, form: str = "jsonl") -> str:
        found = await self("export", "--format", form)
        assert (found.returncode, found.stderr) == (0, "")
        return found.stdout


@pytest_asyncio.fixture(loop_scope="session")
async def auditor(empty: Runtime, servers: Servers) -> Auditor:
    runs = [await begin(empty, echo()) for _ in range(2)]
    for run_id in runs:
        assert await worker(empty).advance(run_id) == "completed"
    urls = {"DATABASE_URL": str(empty.settings.database_url), "REDIS_URL": str(empty.settings.redis_url)}
    env = base_env(servers, **urls)
    return Auditor(empty, env, sorted(map(str, runs)))


async def test_an_untouched_record_holds(auditor: Auditor) -> None:
    found = await auditor("verify")
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("2 runs, ") and found.stdout.endswith("every chain holds\n")
    assert json.loads((await auditor("verify", "--json")).stdout) == []


@pytest.mark.parametrize(
    ("change", "seq", "problem"),
    [
        ("update events set actor = 'user:eve' where run_id = $1 and seq = 3", 3, "was changed"),
        ("update events set type = 'run.paused' where run_id = $1 and seq = 2", 2, "was changed"),
        ("update events set at = at + interval '1 us' where run_id = $1 and seq = 1", 1, "was changed"),
        ("update events set data = '{\"x\": 1}' where run_id = $1 and seq = 4", 4, "was changed"),
        ("update events set hash = repeat('0', 64) where run_id = $1 and seq = 2", 2, "was changed"),
        ("update events set prev_hash = 'x' where run_id = $1 and seq = 1", 1, "does not follow"),
        ("delete from events where run_id = $1 and seq = 1", 1, "is missing"),
        ("delete from events where run_id = $1 and seq = 3", 3, "is missing"),
        ("delete from events e using runs r where r.id = $1 and e.run_id = r.id and e.seq = r.event_seq", -1,
         "is missing at the end"),
        ("delete from events where run_id = $1", 1, "is missing at the end"),
        ("update runs set event_hash = repeat('0', 64) where id = $1", -1, "is not the one that the run ends with"),
        ("with moved as (update events set seq = -seq where run_id = $1 and seq in (2, 3) returning 1)"
         " select count(*) from moved", 1, "is there twice"),
    ],
)  # fmt: skip
async def test_each_change_in_the_database_is_named(auditor: Auditor, change: str, seq: int, problem: str) -> None:
    touched, whole = map(UUID, auditor.runs)
    last = await sql(auditor.runtime, "select event_seq from runs where id = $1", touched)
    await sql(auditor.runtime, change, touched)
    (link,) = await auditor.broken()
    assert link["run_id"] == str(touched) != str(whole)
    if problem != "is there twice":
        assert link["seq"] == (last if seq == -1 else seq)
        assert link["problem"].startswith(problem)


async def test_two_events_in_each_others_place_are_found(auditor: Auditor) -> None:
    touched = UUID(auditor.runs[0])
    for change in ("seq = -seq where run_id = $1 and seq in (2, 3)", "seq = 5 + seq where run_id = $1 and seq < 0"):
        await sql(auditor.runtime, f"update events set {change}", touched)
    (link,) = await auditor.broken()
    assert (link["run_id"], link["seq"], link["problem"]) == (str(touched), 2, "was changed: its hash does not match")


async def test_a_broken_chain_is_one_line_each_and_exit_status_1(auditor: Auditor) -> None:
    await sql(auditor.runtime, "update events set actor = 'user:eve' where seq = 2")
    found = await auditor("verify")
    assert found.returncode == 1
    assert found.stdout.splitlines() == [
        f"run {run_id}: event 2 was changed: its hash does not match" for run_id in auditor.runs
    ]
    assert found.stderr == "hitl: 2 of 2 chains are broken\n"
    assert [link["run_id"] for link in await auditor.broken("--run", auditor.runs[1])] == [auditor.runs[1]]
    assert (await auditor("verify", "--tenant", "other")).stdout.startswith("0 runs, 0 events")


async def test_both_forms_of_an_export_hold_every_event_whole_and_verify(auditor: Auditor, tmp_path: Path) -> None:
    lines = [json.loads(text) for text in (await auditor.exported()).splitlines()]
    count = await sql(auditor.runtime, "select count(*) from events")
    assert len(lines) == count
    assert sorted({line["run_id"] for line in lines}) == auditor.runs
    assert all(line["hash"] == link_hash(line) for line in lines)
    rows = list(csv.DictReader((await auditor.exported("csv")).splitlines()))
    for row, line in zip(rows, lines, strict=True):
        event = {name: row[name] for name in line if name != "record"}
        event |= {"seq": int(row["seq"]), "of": int(row["of"]), "data": json.loads(row["data"])}
        assert event == {name: value for name, value in line.items() if name != "record"}
    for form in ("jsonl", "csv"):
        out = tmp_path / f"export.{form}"
        assert (await auditor("export", "--format", form, "--out", str(out))).returncode == 0
        found = await auditor("verify", str(out))
        assert (found.returncode, found.stdout) == (0, f"2 runs, {count} events: every chain holds\n")


@pytest.mark.parametrize(
    ("change", "seq", "problem"),
    [
        (lambda lines: lines[1].update(actor="user:eve"), 2, "was changed"),
        (lambda lines: lines.pop(1), 2, "is missing"),
        (lambda lines: lines.insert(1, lines.pop(2)), 2, "is missing"),
        (lambda lines: lines.insert(1, lines[1]), 2, "is there twice"),
        (lambda lines: lines[0]["data"].update(more=float("1e308")), 1, "was changed"),
    ],
)
async def test_each_change_in_an_export_is_named(
    auditor: Auditor, tmp_path: Path, change: Callable[[list[Line]], object], seq: int, problem: str
) -> None:
    lines = [json.loads(text) for text in (await auditor.exported()).splitlines()]
    change(lines)
    file = tmp_path / "changed.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (link,) = verify_files(file, None, None, (), ()).broken
    assert isinstance(link, Broken) and (link.run_id, link.seq) == (auditor.runs[0], seq)
    assert link.problem.startswith(problem)


async def test_a_last_event_that_an_export_lacks_is_named(auditor: Auditor, tmp_path: Path) -> None:
    file = tmp_path / "cut.jsonl"
    text = (await auditor.exported()).splitlines(keepends=True)
    file.write_text("".join(text[:-1]))
    (link,) = await auditor.broken(str(file))
    assert (link["run_id"], link["seq"]) == (auditor.runs[1], json.loads(text[-1])["seq"])
    assert link["problem"].startswith("is missing at the end")


CHANGES = {
    "run_id": "run_id = '{other}'::uuid, seq = 900 + seq",
    "seq": "seq = 900 + seq",
    "tenant": "tenant = tenant || 'x'",
    "type": "type = chr(ascii(type) # 1) || substr(type, 2)",
    "at": "at = at + interval '1 us'",
    "actor": "actor = chr(ascii(actor) # 1) || substr(actor, 2)",
    "data": "data = regexp_replace(replace(data::text, '{}', '{\"y\":1}'), '.$', ',\"x\":1}')::json",
    "stands": "stands = stands # 1",
    "prev_hash": "prev_hash = repeat('0', 64)",
    "hash": "hash = repeat('0', 64)",
    "digest": "digest = set_byte(digest, 0, get_byte(digest, 0) # 1)",
}
NO_FACT = {"xid"}  # which transaction wrote the row: it orders the streams, and says nothing about the run


async def found_by_verify(runtime: Runtime) -> list[str]:
    found = await verify(runtime.services, Wanted(), public_keys(runtime.services.keyring))
    return [link.run_id for link in found.broken if isinstance(link, Broken)]


async def test_no_column_of_any_event_can_be_changed_unseen(auditor: Auditor) -> None:
    """Every column, at the first event, in the middle and at the last; deleted; exchanged with its neighbour."""
    runtime, (touched, other) = auditor.runtime, auditor.runs
    columns = "select array_agg(column_name::text) from information_schema.columns where table_name = 'events'"
    assert set(await sql(runtime, columns)) == CHANGES.keys() | NO_FACT
    last = await sql(runtime, "select event_seq from runs where id = $1", UUID(touched))
    await sql(runtime, "drop table if exists kept_events")
    await sql(runtime, "create table kept_events as select * from events")
    of_one = f"where run_id = '{touched}' and seq"
    changes = [f"update events set {change.replace('{other}', other)} {of_one} = {seq}"
               for change in CHANGES.values() for seq in (1, last // 2, last)]  # fmt: skip
    changes += [f"update events set data = '{data}' {of_one} = 2" for data in ("1", "[]", "null", "{}", '"x"')]
    changes += [f"delete from events {of_one} = {seq}" for seq in range(1, last + 1)]
    changes += [f"delete from events {of_one} > {seq}" for seq in range(last)]
    changes += [f"update events e set {column} = k.{column} from kept_events k where e.run_id = '{touched}' and e.seq"
                f" in ({seq}, {seq + 1}) and k.run_id = e.run_id and k.seq = {2 * seq + 1} - e.seq"
                for column in ("data", "digest", "type") for seq in range(1, last)]  # fmt: skip
    for change in changes:
        await sql(runtime, change)
        broken = await found_by_verify(runtime)
        await sql(runtime, "truncate events")
        await sql(runtime, "insert into events select * from kept_events")
        assert touched in broken, change
    for head in ("event_hash = 'x' || substr(event_hash, 2)", "event_seq = event_seq + 1", "event_seq = event_seq - 1"):
        await sql(runtime, f"update runs set {head} where id = $1", UUID(touched))
        assert touched in await found_by_verify(runtime), head
        await sql(runtime, "update runs r set event_seq = $2, event_hash = encode(k.digest, 'hex') from kept_events k"
                  " where r.id = $1 and k.run_id = r.id and k.seq = $2", UUID(touched), last)  # fmt: skip
    assert await found_by_verify(runtime) == []
    await sql(runtime, "drop table kept_events")


async def test_no_byte_of_what_an_event_says_can_be_changed_unseen(auditor: Auditor) -> None:
    """Each byte of the data, replaced; and blanks, which change no value, put in between."""
    runtime, touched = auditor.runtime, auditor.runs[0]
    text: str = await sql(runtime, "select data::text from events where run_id = $1 and seq = 1", UUID(touched))
    changed = [text[:n] + other + text[n + 1 :] for n in range(len(text)) for other in "1a"]
    changed += [text[:n] + " " + text[n:] for n in range(0, len(text), 3)]
    tried = 0
    for other in changed:
        try:
            json.loads(other)
        except ValueError:  # Postgres takes no such json
            continue
        if other == text:
            continue
        tried += 1
        statement = "update events set data = $2::text::json where run_id = $1 and seq = 1"
        await sql(runtime, statement, UUID(touched), other)
        assert await found_by_verify(runtime) == [touched], other
    assert tried > 80


async def test_a_decision_beside_the_chain_that_says_otherwise_is_named(empty: Runtime) -> None:
    run_id = await begin(empty, echo(), ASK_ALWAYS)
    await worker(empty).advance(run_id)
    approval_id = await sql(empty, "select id from approvals where run_id = $1", run_id)
    edits = {"prompt": "a blue fox"}
    await decide(empty.services, approval_id, Order("edit", edits, reason="the fox is blue"), DEV)
    assert await found_by_verify(empty) == []
    for change in (
        "edits = null, reason = 'because'",
        'edits = \'{"prompt": "x"}\'',
        "actor = 'eve'",
        "action = 'approve'",
        "channel = 'link'",
        "nonce = null",
    ):
        await sql(empty, "drop table if exists kept_decisions")
        await sql(empty, "create table kept_decisions as select * from decisions")
        await sql(empty, f"update decisions set {change}")
        assert await found_by_verify(empty) == [str(run_id)], change
        await sql(empty, "delete from decisions")
        assert await found_by_verify(empty) == [str(run_id)]
        await sql(empty, "insert into decisions select * from kept_decisions")
    await sql(empty, "update decisions set reason = null, edits = null, nonce = null")
    assert await found_by_verify(empty) == [], "content that was erased leaves the record of the decision whole"
    await sql(empty, "drop table kept_decisions")


@pytest.mark.parametrize("content", ["", "not json\n", '{"run_id": "x"}\n', "a,b\n1,2\n", "[]\n", "\x00"])
async def test_a_file_that_is_no_export_is_one_line(auditor: Auditor, tmp_path: Path, content: str) -> None:
    file = tmp_path / "file"
    file.write_text(content)
    found = await auditor("verify", str(file))
    if content:
        assert (found.returncode, found.stdout) == (1, "")
        assert len(found.stderr.splitlines()) == 1 and "is not an event of an export" in found.stderr
    else:
        assert (found.returncode, found.stdout) == (0, "0 runs, 0 events: every chain holds\n")


def chain_of(number: int) -> list[Line]:
    lines: list[Line] = []
    for seq in range(1, number + 1):
        line = {"run_id": "r", "seq": seq, "type": "step.started", "at": f"2026-01-01T00:00:{seq:02}.000000Z",
                "actor": "system", "data": {"n": seq}, "prev_hash": lines[-1]["hash"] if lines else ""}  # fmt: skip
        lines.append({**line, "hash": link_hash(line)})
    return lines


@settings(deadline=None)
@given(st.data(), st.integers(2, 12))
def test_no_single_edit_of_a_chain_goes_unseen(data: st.DataObject, number: int) -> None:
    lines = chain_of(number)
    head = Head("r", number, lines[-1]["hash"])
    assert check(head, lines) is None
    at = data.draw(st.integers(0, number - 1))
    match data.draw(st.sampled_from(["drop", "swap", "twice", "edit", "forge"])):
        case "drop":
            lines.pop(at)
        case "swap":
            other = data.draw(st.integers(0, number - 1).filter(lambda n: n != at))
            lines[at], lines[other] = lines[other], lines[at]
        case "twice":
            lines.insert(at, lines[at])
        case "edit":
            lines[at] = {**lines[at], "data": {"n": at + 1, "more": data.draw(st.text())}}
        case "forge":  # with a hash that fits: the next link, or the run's own head, gives it away
            changed = {**lines[at], "actor": "user:eve"}
            lines[at] = {**changed, "hash": link_hash(changed)}
    assert check(head, lines) is not None
