"""Contract, section 2: a start over the limits of its tenant is 429 `tenant_limit` with `Retry-After`."""

from uuid import uuid4

from service.commands.tenants import set_limits
from service.domain.tenant import Tenant
from tests.conftest import echo, eventually, run_body
from tests.contract.conftest import Secured
from tests.contract.test_conventions import check_problem


async def test_a_start_over_the_limit_is_429_and_says_when_to_come_back(secured: Secured) -> None:
    tenant, other = f"t-{uuid4().hex[:8]}", f"t-{uuid4().hex[:8]}"
    client, neighbour = await secured.client("submitter", tenant=tenant), await secured.client("admin", tenant=other)
    body, key = run_body(echo(), policy="require_human"), {"Idempotency-Key": uuid4().hex}
    first = await client.post("/hitl/run", json=body, headers=key)
    assert first.status_code == 202

    await set_limits(secured.services.db, Tenant(tenant, starts_per_minute=1), ["starts_per_minute"])

    async def refused() -> bool:
        return (await client.post("/hitl/run", json=body)).status_code == 429

    await eventually(refused, "the limit")
    for path, sent in (
        ("/hitl/run", body),
        ("/teams/run", body["run_input"]),
        ("/teams/run-hitl", {"run_input": body["run_input"]}),
    ):
        answer = await client.post(path, json=sent)
        check_problem(answer, 429, "tenant_limit")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    again = await client.post("/hitl/run", json=body, headers=key)
    assert (again.status_code, again.json()["run_id"]) == (202, first.json()["run_id"])
    assert again.headers["idempotent-replayed"] == "true"
    assert (await neighbour.post("/hitl/run", json=body)).status_code == 202
    assert (await client.get("/hitl/runs")).status_code == 200
