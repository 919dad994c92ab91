"""Contract, section 3: what holds for every request."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import orjson
import pytest

from service.commands.keys import revoke_key
from tests.conftest import Stack, at, decide, echo, eventually, free_port, process, run_body, settled, start
from tests.contract.conftest import Secured

JSON = {"content-type": "application/json"}
NOBODY = "0197f3a0-0000-7000-8000-000000000000"


def check_problem(answer: httpx2.Response, status: int, code: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    body: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail", "code", "instance"} <= set(body)
    assert body["status"] == status
    assert code is None or body["code"] == code
    assert body["code"] == body["code"].lower() and body["code"].replace("_", "").isalnum()
    if status == 422:
        assert all(isinstance(e["message"], str) and isinstance(e["pointer"], str) for e in body["errors"])
        assert all(e["pointer"] == "" or e["pointer"].startswith("/") for e in body["errors"])
    return body


# Credentials and roles


@pytest.mark.parametrize("credentials", [None, "Bearer nonsense", "Basic ZGV2OmRldg==", "Bearer", "bearer x y"])
async def test_without_a_good_key_it_is_401(secured: Secured, credentials: str | None) -> None:
    client = await secured.bearing(None, **({"Authorization": credentials} if credentials else {}))

    for answer in (
        await client.get("/hitl/runs"),
        await client.post("/hitl/run", json=run_body(echo())),
        await client.delete(f"/hitl/run/{NOBODY}"),
    ):
        check_problem(answer, 401)
        assert "www-authenticate" in answer.headers


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/openapi.json", "/docs"])
async def test_health_and_documents_need_no_key(secured: Secured, path: str) -> None:
    assert (await (await secured.bearing(None)).get(path)).status_code == 200


async def test_a_submitter_starts_and_steers_but_does_not_decide(secured: Secured) -> None:
    client = await secured.client("submitter")
    run_id = await start(client, run_body(echo(), policy="require_human"))
    approval = await at(client, run_id, "information_review")

    check_problem(await decide(client, approval["approval_id"], "approve"), 403)
    check_problem(await client.post(f"/hitl/run/{run_id}/approve", json={"action": "approve"}), 403)
    assert (await client.get(f"/hitl/approvals/{approval['approval_id']}")).json()["status"] == "pending"
    assert (await client.get("/hitl/approvals/pending")).status_code == 200
    assert (await client.post(f"/hitl/run/{run_id}/pause")).status_code == 200
    assert (await client.post(f"/hitl/run/{run_id}/resume")).status_code == 202
    assert (await client.delete(f"/hitl/run/{run_id}")).status_code == 200


async def test_a_reviewer_decides_but_neither_starts_nor_steers(secured: Secured) -> None:
    reviewer, submitter = await secured.client("reviewer"), await secured.client("submitter")
    run_id = await start(submitter, run_body(echo(), policy="require_human", allowed_steps=["payload_review"]))
    approval = await at(reviewer, run_id, "payload_review")

    check_problem(await reviewer.post("/hitl/run", json=run_body(echo())), 403)
    check_problem(await reviewer.post("/teams/run", json=run_body(echo())["run_input"]), 403)
    check_problem(await reviewer.post(f"/hitl/run/{run_id}/pause"), 403)
    check_problem(await reviewer.post(f"/hitl/run/{run_id}/resume"), 403)
    check_problem(await reviewer.delete(f"/hitl/run/{run_id}"), 403)
    assert (await decide(reviewer, approval["approval_id"], "approve")).status_code == 200
    assert (await settled(reviewer, run_id))["status"] == "completed"


@pytest.mark.parametrize("role", ["submitter", "reviewer", "service", "admin"])
async def test_providers_queue_and_lists_are_readable_by_every_role(secured: Secured, role: str) -> None:
    client = await secured.client(role)

    for path in ("/hitl/providers", "/hitl/queue", "/hitl/runs", "/hitl/runs/active", "/hitl/approvals/pending"):
        assert (await client.get(path)).status_code == 200


async def decider(secured: Secured, role: str, **headers: str) -> str:
    """Who stands as the actor of a decision that this role makes with these headers."""
    submitter = await secured.client("submitter")
    run_id = await start(submitter, run_body(echo(), policy="require_human", allowed_steps=["payload_review"]))
    approval = await at(submitter, run_id, "payload_review")
    client = await secured.bearing((await secured.key(role, subject="the-key"))[1], **headers)
    assert (await decide(client, approval["approval_id"], "approve")).status_code == 200
    decided = (await submitter.get(f"/hitl/approvals/{approval['approval_id']}")).json()
    return str(decided["decisions"][0]["actor"])


async def test_only_a_service_key_may_name_the_acting_user(secured: Secured) -> None:
    assert "carol" in await decider(secured, "service", **{"X-HITL-Actor": "carol"})
    assert "the-key" in await decider(secured, "service")
    for role in ("reviewer", "admin"):
        assert "the-key" in await decider(secured, role, **{"X-HITL-Actor": "carol"})


async def test_an_actor_that_is_the_service_itself_is_refused_where_the_header_counts(secured: Secured) -> None:
    for role, status in (("service", 403), ("admin", 200), ("reviewer", 200), ("submitter", 200)):
        for actor in ("system:timeout", "provider:echo"):
            client = await secured.bearing((await secured.key(role))[1], **{"X-HITL-Actor": actor})
            assert (await client.get("/hitl/runs")).status_code == status


async def test_a_run_of_another_tenant_is_unknown(secured: Secured) -> None:
    mine, other = await secured.client("admin", tenant="t-one"), await secured.client("admin", tenant="t-two")
    started = (await mine.post("/hitl/run", json=run_body(echo(), policy="require_human"))).json()
    run_id = started["run_id"]
    approval_id = (await at(mine, run_id, "information_review"))["approval_id"]

    for path in (
        f"/hitl/runs/{run_id}",
        f"/hitl/runs/{run_id}?wait=1",
        f"/hitl/run/{run_id}/status",
        f"/hitl/runs/{run_id}/state",
        f"/hitl/runs/{run_id}/events",
        f"/hitl/jobs/{started['job_id']}",
        f"/hitl/approvals/{approval_id}",
    ):
        check_problem(await other.get(path), 404)
    check_problem(await other.post(f"/hitl/run/{run_id}/pause"), 404)
    check_problem(await other.post(f"/hitl/run/{run_id}/resume"), 404)
    check_problem(await other.delete(f"/hitl/run/{run_id}"), 404)
    check_problem(await other.post(f"/hitl/run/{run_id}/approve", json={"action": "approve"}), 404)
    check_problem(await decide(other, approval_id, "approve"), 404)
    check_problem(await other.post(f"/hitl/approvals/{approval_id}/claim"), 404)
    for path in ("/hitl/runs", "/hitl/runs/active", "/hitl/approvals/pending"):
        assert (await other.get(path)).json()["items"] == []
    assert (await mine.get(f"/hitl/runs/{run_id}")).json()["status"] == "awaiting_human"


async def test_an_idempotency_key_is_of_one_tenant(secured: Secured) -> None:
    mine, other = await secured.client("admin", tenant="t-one"), await secured.client("admin", tenant="t-two")
    key = uuid4().hex

    ids = {await start(client, run_body(echo()), **{"Idempotency-Key": key}) for client in (mine, other)}

    assert len(ids) == 2


async def test_a_tenant_that_is_not_the_keys_is_refused(secured: Secured) -> None:
    client = await secured.client("submitter", tenant="t-one")
    body = run_body(echo())

    body["run_input"]["tenant"] = "t-two"
    check_problem(await client.post("/hitl/run", json=body), 403)
    body["run_input"]["tenant"] = "t-one"
    assert (await client.post("/hitl/run", json=body)).status_code == 202


async def test_a_revoked_key_is_refused(secured: Secured) -> None:
    key_id, key = await secured.key("admin")
    client = await secured.bearing(key)
    assert (await client.get("/hitl/runs")).status_code == 200

    await revoke_key(secured.services.db, key_id)

    check_problem(await client.get("/hitl/runs"), 401)


async def test_with_auth_off_the_caller_is_dev_or_whom_the_header_names(client: httpx2.AsyncClient) -> None:
    for headers, expected in (({}, "dev"), ({"X-HITL-Actor": "carol"}, "carol")):
        run_id = await start(client, run_body(echo()), **headers)
        events = (await client.get(f"/hitl/runs/{run_id}/events")).json()["events"]
        assert expected in events[0]["actor"]
        assert (await client.get(f"/hitl/runs/{run_id}")).json()["tenant"] == "default"


# Refusals


@pytest.mark.parametrize(
    "path",
    ["/hitl/nothing", f"/hitl/runs/{NOBODY}", "/hitl/runs/not-a-uuid", "/hitl/jobs/none", "/hitl/approvals/x"],
)
async def test_what_is_not_there_is_404(client: httpx2.AsyncClient, path: str) -> None:
    check_problem(await client.get(path), 404, "not_found")


async def test_a_wrong_method_is_405_with_the_allowed_ones(client: httpx2.AsyncClient) -> None:
    for method, path, allowed in (
        ("PUT", f"/hitl/runs/{NOBODY}", "GET"),
        ("GET", "/hitl/run", "POST"),
        ("POST", f"/hitl/run/{NOBODY}", "DELETE"),
    ):
        answer = await client.request(method, path)
        check_problem(answer, 405, "method_not_allowed")
        assert allowed in answer.headers["allow"]


async def test_a_conflict_tells_the_run_status_and_the_approval(client: httpx2.AsyncClient) -> None:
    run_id = await start(client, run_body(echo(), policy="require_human"))
    approval = await at(client, run_id, "information_review")
    rejected = await decide(client, approval["approval_id"], "reject", reason="no")
    assert rejected.status_code == 200

    conflict = check_problem(await decide(client, approval["approval_id"], "approve"), 409, "approval_already_decided")
    assert conflict["run_status"] == "cancelled"
    assert conflict["approval"]["approval_id"] == approval["approval_id"]
    assert conflict["approval"]["decisions"][0]["action"] == "reject"
    paused = check_problem(await client.post(f"/hitl/run/{run_id}/pause"), 409)
    assert paused["run_status"] == "cancelled"


async def test_a_body_over_a_mebibyte_is_413(client: httpx2.AsyncClient) -> None:
    big = orjson.dumps({**run_body(echo()), "pad": "x" * 2**20})

    async def chunks() -> AsyncIterator[bytes]:
        yield big

    check_problem(await client.post("/hitl/run", content=big, headers=JSON), 413)
    check_problem(await client.post("/hitl/run", content=chunks(), headers=JSON), 413)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/xml", ""])
async def test_a_body_that_does_not_say_json_is_415(client: httpx2.AsyncClient, kind: str) -> None:
    check_problem(
        await client.post("/hitl/run", content=orjson.dumps(run_body(echo())), headers={"content-type": kind}), 415
    )


async def test_a_charset_beside_the_media_type_is_fine(client: httpx2.AsyncClient) -> None:
    body = orjson.dumps(run_body(echo()))
    answer = await client.post("/hitl/run", content=body, headers={"content-type": "Application/JSON; charset=utf-8"})
    assert answer.status_code == 202


def with_setting(literal: str) -> bytes:
    """A start whose example holds this literal."""
    example = f'{{"prompt":"x","n":{literal}}}'
    tool = f'{{"echo-agent-tool":{{"example_input":{example}}}}}'
    return f'{{"run_input":{{"prompt":"a","agent_tool_config":{tool}}},"hitl_config":{{"policy":"auto"}}}}'.encode()


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"{", id="malformed"),
        pytest.param(b'{"run_input": {"prompt": "a"},}', id="trailing comma"),
        pytest.param(b"{'a': 1}", id="single quotes"),
        pytest.param(with_setting("1") + b"x", id="trailing text"),
        pytest.param(b'{"run_input": "\xff"}', id="not utf-8"),
        pytest.param(with_setting('"a\\u0000b"'), id="NUL in a string"),
        pytest.param(with_setting('{"a\\u0000b":1}'), id="NUL in a key"),
        pytest.param(with_setting('"a\x00b"'), id="raw NUL"),
        pytest.param(with_setting('{"a":1,"a":2}'), id="duplicate keys"),
        pytest.param(with_setting('{"a":1,"\\u0061":2}'), id="duplicate keys, one escaped"),
        pytest.param(b'{"hitl_config":{},' + with_setting("1")[1:], id="duplicate policy"),
        pytest.param(with_setting("NaN"), id="NaN"),
        pytest.param(with_setting("Infinity"), id="Infinity"),
        pytest.param(with_setting("-Infinity"), id="-Infinity"),
        pytest.param(with_setting("1e999"), id="1e999"),
        pytest.param(with_setting("-1e999"), id="-1e999"),
        pytest.param(with_setting(str(2**53)), id="2**53"),
        pytest.param(with_setting(str(-(2**53))), id="-2**53"),
        pytest.param(with_setting("9" * 5000), id="5000 digits"),
        pytest.param(with_setting("[" * 100 + "]" * 100), id="a hundred deep"),
        pytest.param(with_setting("[" * 100_000 + "]" * 100_000), id="100,000 deep"),
        pytest.param(with_setting('{"a":' * 5000 + "1" + "}" * 5000), id="5000 objects deep"),
        pytest.param(with_setting('"\\ud800"'), id="lone surrogate"),
        pytest.param(with_setting('"\\udc00\\ud800"'), id="surrogates the wrong way round"),
    ],
)
async def test_json_that_cannot_be_carried_is_refused(client: httpx2.AsyncClient, raw: bytes) -> None:
    check_problem(await client.post("/hitl/run", content=raw, headers=JSON), 422, "invalid_json")


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        (str(2**53 - 1), 2**53 - 1),
        (str(-(2**53) + 1), -(2**53) + 1),
        ("1.5e300", 1.5e300),
        ("5e-324", 5e-324),
        ('"\\ud83d\\ude00"', "😀"),
        ('"\\\\u0000"', "\\u0000"),
        ("true", True),
        ("null", None),
    ],
)
async def test_json_at_the_edge_is_carried_unchanged(client: httpx2.AsyncClient, literal: str, value: Any) -> None:
    answer = await client.post("/hitl/run", content=with_setting(literal), headers=JSON)
    assert answer.status_code == 202, answer.text

    run = await settled(client, answer.json()["run_id"])

    assert run["status"] == "completed"
    assert run["payload"]["n"] == value
    assert type(run["payload"]["n"]) is type(value)


async def test_invalid_json_is_refused_in_a_decision_too(client: httpx2.AsyncClient) -> None:
    run_id = await start(client, run_body(echo(), policy="require_human"))
    url = f"/hitl/approvals/{(await at(client, run_id, 'information_review'))['approval_id']}/decision"

    for raw in (b'{"action":"reject","action":"approve"}', b'{"action":"edit","edits":{"n":NaN}}', b'"\\ud800"'):
        check_problem(await client.post(url, content=raw, headers=JSON), 422, "invalid_json")
    check_problem(await client.post(url, json={"action": "edit", "edits": {"prompt": "\x00"}}), 422, "invalid_json")
    check_problem(await client.post(url), 422)
    check_problem(await client.post(url, content=b"", headers=JSON), 422)
    check_problem(await client.post(url, json={}), 422)
    assert (await client.get(f"/hitl/runs/{run_id}")).json()["status"] == "awaiting_human"


@pytest.mark.parametrize("body", [[], "text", 1, None, True])
async def test_a_body_that_is_no_object_is_422(client: httpx2.AsyncClient, body: Any) -> None:
    check_problem(await client.post("/hitl/run", content=orjson.dumps(body), headers=JSON), 422)


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"polcy": 1}, "/polcy"),
        ({"hitl_config": {"polcy": "require_human"}}, "/hitl_config/polcy"),
        ({"hitl_config": {"reviewers": {"user": ["a"]}}}, "/hitl_config/reviewers/user"),
        ({"run_input": {**run_body(echo())["run_input"], "promt": "x"}}, "/run_input/promt"),
        ({"a/b~c": 1}, "/a~1b~0c"),
    ],
)
async def test_an_unknown_field_is_refused_where_it_stands(
    client: httpx2.AsyncClient, change: dict[str, Any], pointer: str
) -> None:
    problem = check_problem(await client.post("/hitl/run", json={**run_body(echo()), **change}), 422)
    assert pointer in [error["pointer"] for error in problem["errors"]]


async def test_unknown_query_parameters_are_ignored(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/hitl/run?utm=1&limit=x", json=run_body(echo()))
    assert answer.status_code == 202
    run_id = answer.json()["run_id"]

    for path in (f"/hitl/runs/{run_id}?x=1", "/hitl/runs?x=1&y=", f"/hitl/runs/{run_id}/events?z", "/hitl/queue?a=b"):
        assert (await client.get(path)).status_code == 200


async def test_no_error_tells_of_our_inside(client: httpx2.AsyncClient) -> None:
    odd = ["%00", "'; drop table runs; --", "\ud7ff", "..%2f..%2fetc%2fpasswd"]
    for text in odd:
        for path in (f"/hitl/runs/{text}", f"/hitl/sessions/{text}/active", f"/hitl/jobs/{text}", f"/{text}"):
            answer = await client.get(path)
            assert answer.status_code in (200, 404, 422), (path, answer.text)
            for word in ("Traceback", "asyncpg", "psycopg", "/service/", "select ", "site-packages"):
                assert word not in answer.text
    for query in (
        "user_id=%00",
        "session_id=%00",
        "provider=%00",
        "cursor=%00",
        "created_after=x",
        "created_before=0.5",
        "created_after=1700000000",
        "status=x",
    ):
        answer = await client.get(f"/hitl/runs?{query}")
        assert answer.status_code in (200, 422), (query, answer.text)
    nul = check_problem(await client.get("/hitl/runs?user_id=%00"), 422)
    assert nul["errors"][0]["pointer"] == "/query/user_id"


NO_BODY: Any = ({}, {"content": b"{}", "headers": JSON}, {"content": b"", "headers": {"content-type": "text/plain"}})


@pytest.mark.parametrize("given", NO_BODY, ids=["nothing", "empty object", "only a content type"])
async def test_pause_and_resume_need_neither_body_nor_content_type(client: httpx2.AsyncClient, given: Any) -> None:
    run_id = await start(client, run_body(echo(), policy="require_human"))
    await at(client, run_id, "information_review")

    for action, expected in (("pause", 200), ("resume", 202)):
        answer = await client.post(f"/hitl/run/{run_id}/{action}", **given)
        assert answer.status_code == expected, answer.text
    check_problem(await client.post(f"/hitl/run/{run_id}/pause", json={"polcy": 1}), 422)


@pytest.mark.parametrize("given", NO_BODY, ids=["nothing", "empty object", "only a content type"])
async def test_claim_and_release_need_neither_body_nor_content_type(client: httpx2.AsyncClient, given: Any) -> None:
    run_id = await start(client, run_body(echo(), policy="require_human"))
    approval_id = (await at(client, run_id, "information_review"))["approval_id"]

    for action in ("claim", "release"):
        answer = await client.post(f"/hitl/approvals/{approval_id}/{action}", **given)
        assert answer.status_code == 200, answer.text


async def test_a_submitter_may_not_claim(secured: Secured) -> None:
    client = await secured.client("submitter")
    run_id = await start(client, run_body(echo(), policy="require_human"))
    approval_id = (await at(client, run_id, "information_review"))["approval_id"]
    check_problem(await client.post(f"/hitl/approvals/{approval_id}/claim"), 403)


# Ids


async def test_request_id_and_traceparent_are_echoed_and_reach_the_worker(
    client: httpx2.AsyncClient, stack: Stack
) -> None:
    request_id, trace = uuid4().hex, uuid4().hex
    parent = f"00-{trace}-{uuid4().hex[:16]}-01"
    answer = await client.post(
        "/hitl/run", json=run_body(echo()), headers={"X-Request-Id": request_id, "traceparent": parent}
    )
    assert answer.headers["x-request-id"] == request_id
    assert answer.headers["traceparent"] == parent
    run_id = answer.json()["run_id"]
    await settled(client, run_id)

    def lines(process: str, run: bool) -> list[dict[str, Any]]:
        found = [orjson.loads(line) for line in stack.log(process).splitlines() if line.startswith("{")]
        return [e for e in found if e.get("request_id") == request_id and (not run or e.get("run_id") == run_id)]

    async def logged() -> Any:
        return lines("web", False) and lines("worker", True)

    of_worker = await eventually(logged, "the request id in the worker's log")
    assert {entry["trace_id"] for entry in of_worker} == {trace}


async def test_a_refusal_echoes_the_request_id_and_a_bad_one_is_replaced(client: httpx2.AsyncClient) -> None:
    refused = await client.get(f"/hitl/runs/{NOBODY}", headers={"X-Request-Id": "abc-123"})
    assert refused.headers["x-request-id"] == "abc-123"
    for bad in ("x" * 5000, "with space"):
        replaced = (await client.get("/healthz", headers={"X-Request-Id": bad})).headers["x-request-id"]
        assert replaced and replaced != bad
    assert "traceparent" not in (await client.get("/healthz", headers={"traceparent": "nonsense"})).headers


# Lists


@pytest.mark.parametrize(
    "path", ["/hitl/runs", "/hitl/runs/active", "/hitl/sessions/s/active", "/hitl/approvals/pending"]
)
async def test_a_limit_is_1_to_200(client: httpx2.AsyncClient, path: str) -> None:
    for limit in ("1", "200"):
        answer = await client.get(path, params={"limit": limit})
        assert answer.status_code == 200
        assert len(answer.json()["items"]) <= int(limit)
    for limit in ("0", "201", "-1", "x", "1.5", "", "99999999999999999999"):
        check_problem(await client.get(path, params={"limit": limit}), 422)
    check_problem(await client.get(path, params={"cursor": "not-ours"}), 422)


async def pages(client: httpx2.AsyncClient, path: str, key: str, **params: Any) -> list[list[dict[str, Any]]]:
    found: list[list[dict[str, Any]]] = []
    cursor = None
    while True:
        answer = (await client.get(path, params={**params, **({"cursor": cursor} if cursor else {})})).json()
        assert answer["items"] == answer[key]
        found.append(answer["items"])
        cursor = answer["next_cursor"]
        if cursor is None:
            return found


async def test_cursor_pages_go_through_everything_once_newest_first(client: httpx2.AsyncClient) -> None:
    user = uuid4().hex
    body = {**run_body(echo(), policy="require_human"), "user_id": user}
    started = set(await asyncio.gather(*(start(client, body) for _ in range(7))))
    for run_id in started:
        await at(client, run_id, "information_review")

    for size in (1, 3, 7):
        found = await pages(client, "/hitl/runs", "runs", user_id=user, limit=size)
        runs = [run for page in found for run in page]
        assert [len(page) for page in found] == [size] * (7 // size) + ([7 % size] if 7 % size else [])
        assert {run["run_id"] for run in runs} == started and len(runs) == 7
        assert [r["created_at"] for r in runs] == sorted((r["created_at"] for r in runs), reverse=True)
        waiting = [a for page in await pages(client, "/hitl/approvals/pending", "approvals", user_id=user, limit=size)
                   for a in page]  # fmt: skip
        assert {approval["run_id"] for approval in waiting} == started and len(waiting) == 7
        assert [a["expires_at"] for a in waiting] == sorted(a["expires_at"] for a in waiting)


async def test_a_run_that_starts_between_two_pages_shifts_nothing(client: httpx2.AsyncClient) -> None:
    body = {**run_body(echo()), "user_id": uuid4().hex}
    first = [await start(client, body) for _ in range(4)]
    page = (await client.get("/hitl/runs", params={"user_id": body["user_id"], "limit": 2})).json()

    await start(client, body)
    rest = (
        await client.get("/hitl/runs", params={"user_id": body["user_id"], "limit": 2, "cursor": page["next_cursor"]})
    ).json()

    assert [run["run_id"] for run in page["runs"] + rest["runs"]] == first[::-1]


async def test_ids_are_uuid7_and_times_are_rfc3339_utc(client: httpx2.AsyncClient) -> None:
    run_id = await start(client, run_body(echo(), policy="require_human"))
    approval = await at(client, run_id, "information_review")
    run = (await client.get(f"/hitl/runs/{run_id}")).json()

    assert run_id[14] == approval["approval_id"][14] == "7"
    for moment in (run["created_at"], run["updated_at"], run["expires_at"], approval["created_at"]):
        assert moment[10] == "T" and moment.endswith(("Z", "+00:00"))


async def test_postgres_away_is_503_with_retry_after_and_nothing_of_it_is_told(stack: Stack, tmp_path: Path) -> None:
    nowhere = {**stack.env, "DATABASE_URL": f"postgresql://postgres@/postgres?host={tmp_path}"}
    port = free_port()
    args = ("uvicorn", "--factory", "service.app:create_app", "--port", str(port), "--log-level", "warning")
    with process(*args, env={**nowhere, "HITL_PORT": str(port)}, log=tmp_path / "web.log"):
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:

            async def alive() -> bool:
                try:
                    return (await client.get("/healthz")).status_code == 200
                except httpx2.TransportError:
                    return False

            await eventually(alive, "the web process")
            ready = await client.get("/readyz")
            refused = await client.post("/hitl/run", json=run_body(echo()))
            read = await client.get(f"/hitl/runs/{uuid4()}")

    assert (ready.status_code, ready.json()["dependencies"]["postgres"]) == (503, "away")
    for answer in (refused, read):
        check_problem(answer, 503)
        assert int(answer.headers["retry-after"]) >= 1
        assert str(tmp_path) not in answer.text
