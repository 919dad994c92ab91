"""The record of a decision: who, how they showed who they are, what they saw first, which vote of how many."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from service.commands.approvals import Question, ask, decide, expire
from service.commands.links import decide_by_link, make_link, open_link
from service.commands.recent import Recent
from service.commands.seen import note_seen
from service.domain.approval import Approval, Order
from service.domain.policy import HitlConfig, Reviewers
from service.domain.principal import Principal, Proof
from service.domain.view import approval_view
from service.errors import Unavailable
from service.runtime import Runtime
from service.store import approvals
from service.store.database import EVERY
from tests.acting import begin, sql, worker
from tests.conftest import ASK_ALWAYS, DEV, echo

ANN = Principal("ann", "default", "reviewer", key_id=UUID(int=7))
BOB = Principal("bob", "default", "reviewer", ("legal",), shown=Proof("oidc", "https://id.example"))


async def asked(runtime: Runtime, config: HitlConfig = ASK_ALWAYS) -> Approval:
    run_id = await begin(runtime, echo({"prompt": "x", "num_outputs": 1}), config)
    assert await worker(runtime).advance(run_id) == "awaiting_human"
    async with runtime.services.db.connection(EVERY) as conn:
        (found,) = await approvals.open_of_run(conn, run_id)
    return found


async def told(runtime: Runtime, approval: Approval, kind: str = "approval.decided") -> list[Mapping[str, Any]]:
    async with runtime.services.db.connection(EVERY) as conn:
        rows = await conn.fetch(
            "select data from events where run_id = $1 and type = $2 order by seq", approval.run_id, kind
        )
    return [row["data"] for row in rows]


async def views(runtime: Runtime, approval: Approval) -> dict[str, str]:
    async with runtime.services.db.connection(EVERY) as conn:
        rows = await conn.fetch("select subject, channel from approval_views where approval_id = $1", approval.id)
    return {row["subject"]: row["channel"] for row in rows}


async def test_a_decision_says_who_by_which_key_and_when_it_was_seen(empty: Runtime) -> None:
    approval = await asked(empty)
    await note_seen(empty.services, BOB, [approval_view(approval)], "http")
    await note_seen(empty.services, ANN, [approval_view(approval)], "websocket")
    await decide(empty.services, approval.id, Order("approve", reason="fine"), ANN)
    (data,) = await told(empty, approval)
    assert (data["role"], data["authenticated_by"], data["credential"]) == ("reviewer", "api_key", str(ANN.key_id))
    assert (data["position"], data["quorum"], data["changes"], data["channel"]) == (1, 1, [], "http")
    assert data["first_seen_by_anyone_at"] < data["first_seen_at"]
    assert len(data["reason_sha256"]) == 64 and data["edits_sha256"] is None
    row = await sql(
        empty, "select row_to_json(d) from decisions d where approval_id = $1 and role = 'reviewer'", approval.id
    )
    assert (row["authenticated_by"], row["position"], row["quorum"]) == ("api_key", 1, 1)
    assert row["first_seen_at"] is not None and len(row["nonce"]) == 32


async def test_the_question_says_what_was_shown(empty: Runtime) -> None:
    approval = await asked(empty)
    (data,) = await told(empty, approval, "approval.requested")
    assert (data["policy"], data["payload_sha256"], data["quorum"]) == (
        "require_human",
        approval.payload_sha256,
        1,
    )
    assert len(data["schema_sha256"]) == 64


async def test_each_vote_of_a_quorum_has_its_place_and_an_edit_its_paths_but_no_values(empty: Runtime) -> None:
    rule = HitlConfig(policy="require_human", reviewers=Reviewers(quorum=2))
    approval = await asked(empty, rule)
    edits = {"prompt": "a secret fox", "num_outputs": None, "made up": {"Jane Doe": 1}}
    await decide(empty.services, approval.id, Order("edit", edits), ANN)
    await decide(empty.services, approval.id, Order("approve"), BOB)
    first, second = await told(empty, approval)
    assert [(d["position"], d["quorum"]) for d in (first, second)] == [(1, 2), (2, 2)]
    assert first["changes"] == [
        {"op": "add", "path": "/*"},
        {"op": "remove", "path": "/num_outputs"},
        {"op": "replace", "path": "/prompt"},
    ]
    assert (second["authenticated_by"], second["credential"]) == ("oidc", "https://id.example")
    assert "secret" not in str(first) and "Jane" not in str(first)


async def test_a_veto_has_no_place_and_silence_no_person(empty: Runtime) -> None:
    vetoed, silent, let = [
        await asked(empty, config)
        for config in (ASK_ALWAYS, ASK_ALWAYS, HitlConfig(policy="require_human", on_timeout="approve"))
    ]
    await decide(empty.services, vetoed.id, Order("reject", reason="no"), ANN)
    for each in (silent, let):
        await sql(empty, "update approvals set expires_at = now() where id = $1", each.id)
        assert await expire(empty.services, each.id)
    assert (await told(empty, vetoed))[0]["position"] is None
    for data in (*(await told(empty, silent, "approval.expired")), *(await told(empty, let))):
        assert (data["authenticated_by"], data["role"], data["position"]) == ("timeout", None, None)
        assert data["first_seen_by_anyone_at"] is None


async def test_a_link_says_who_made_it_and_that_it_was_opened(empty: Runtime) -> None:
    approval = await asked(empty)
    url, _ = await make_link(empty.services, approval.id, "lea", DEV, expires_in_s=None)
    token = url.rsplit("/", 1)[1]
    shown = await open_link(empty.services, token)
    await note_seen(empty.services, shown.reviewer, [approval_view(shown.approval)], "link")
    await decide_by_link(empty.services, token, Order("approve"), nonce=shown.nonce)
    (data,) = await told(empty, approval)
    assert (data["authenticated_by"], data["credential"], data["channel"]) == ("link", "dev", "link")
    assert data["first_seen_at"] is not None
    assert await views(empty, approval) == {"lea": "link"}


async def test_questions_without_a_run_keep_it_beside_the_decision(empty: Runtime) -> None:
    approval, _ = await ask(empty.services, Question("deploy", "May it go?", {}), DEV)
    await note_seen(empty.services, ANN, [approval_view(approval)], "http")
    await decide(empty.services, approval.id, Order("approve"), ANN)
    row = await sql(empty, "select row_to_json(d) from decisions d where approval_id = $1", approval.id)
    assert (row["role"], row["authenticated_by"], row["credential"]) == ("reviewer", "api_key", str(ANN.key_id))
    assert row["first_seen_at"] is not None


async def test_the_first_time_stays_whoever_looks_again_and_wherever(empty: Runtime) -> None:
    approval = await asked(empty)
    elsewhere = replace(empty.services, noted=Recent())
    await note_seen(empty.services, ANN, [approval_view(approval)], "http")
    at = await sql(empty, "select first_seen_at from approval_views where approval_id = $1", approval.id)
    services = [empty.services, elsewhere] * 3
    await asyncio.gather(*(note_seen(each, ANN, [approval_view(approval)], "websocket") for each in services))
    assert await sql(empty, "select count(*) from approval_views where approval_id = $1", approval.id) == 1
    assert await sql(empty, "select first_seen_at from approval_views where approval_id = $1", approval.id) == at
    assert await views(empty, approval) == {"ann": "http"}


@pytest.mark.parametrize(
    ("who", "rule"),
    [
        (Principal("sue", "default", "submitter"), Reviewers()),
        (Principal("ann", "other", "reviewer"), Reviewers()),
        (Principal("backend", "default", "service", key_id=UUID(int=8)), Reviewers()),
        (ANN, Reviewers(users=["bob"])),
        (ANN, Reviewers(groups=["legal"])),
        (DEV, Reviewers(allow_self_approval=False)),
    ],
)
async def test_who_may_not_decide_has_not_seen_it(empty: Runtime, who: Principal, rule: Reviewers) -> None:
    approval = await asked(empty, HitlConfig(policy="require_human", reviewers=rule))
    await note_seen(empty.services, who, [approval_view(approval)], "http")
    assert await views(empty, approval) == {}


async def test_a_database_that_is_away_fails_no_read(empty: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    approval = await asked(empty)

    async def away(*_: object) -> None:
        raise Unavailable

    with monkeypatch.context() as broken:
        broken.setattr("service.store.seen.note", away)
        await note_seen(empty.services, ANN, [approval_view(approval)], "http")
    assert await views(empty, approval) == {}
    await note_seen(empty.services, ANN, [approval_view(approval)], "http")
    assert await views(empty, approval) == {"ann": "http"}, "it was not taken for noted"
