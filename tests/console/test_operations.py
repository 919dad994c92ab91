"""The page of operations: what waits and stands still is told with a reason, and what helps is done by who may."""

import re
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
from playwright.async_api import expect

from service.domain.ids import uuid7
from service.store import dead_jobs
from service.store.database import EVERY
from tests.conftest import Provider, behind, echo, eventually, run_body, settled, start
from tests.console.conftest import Office, ask, csrf, new_tenant, sign_in
from tests.console.test_pages import CANARY, violations
from tests.console.test_runs import begun
from tests.contract.conftest import Secured

FIVE_TIMES: list[dict[str, Any]] = [{"status": 503}] * 5


async def signed_in(
    secured: Secured, browserless: Callable[..., Any], tenant: str, role: str = "admin"
) -> httpx2.AsyncClient:
    _, key = await secured.key(role, tenant=tenant, subject=role)
    person: httpx2.AsyncClient = await browserless()
    assert (await sign_in(person, key)).status_code == 303
    return person


async def broken(program: httpx2.AsyncClient) -> str:
    """A run whose provider was not to be had, and is from now on."""
    run_id = await start(program, run_body(echo(fail=FIVE_TIMES)))
    run = await settled(program, run_id, "failed")
    assert run["error"]["recoverable"], run["error"]
    return run_id


async def failed(secured: Secured, tenant: str, code: str, *, recoverable: bool, n: int = 1) -> list[UUID]:
    """Runs that failed, behind the service's back."""
    ids = [uuid7() for _ in range(n)]
    error = {"code": code, "message": None, "step": "api_call", "recoverable": recoverable}
    async with behind(secured.services.db) as conn:
        await conn.execute(
            """
            insert into runs (id, tenant, status, step, status_since, woken_at, provider, tool, submitter, user_id,
                created_at, updated_at, finished_at, error)
            select id, $2, 'failed', 'api_call', now(), now(), 'echo', 'echo-agent-tool', 'sue', $4, now(), now(),
                now(), $3 from unnest($1::uuid[]) as id
            """,
            ids, tenant, error, CANARY,
        )  # fmt: skip
    return ids


async def undelivered(secured: Secured, tenant: str, run_id: str, status: str = "dead") -> UUID:
    """A webhook of the run that was given up, behind the service's back."""
    message_id = uuid4()
    async with behind(secured.services.db) as conn:
        await conn.execute(
            """
            insert into delivery_lines (subject, kind, tenant, run_id, target) values ($1, 'webhook', $2, $1, $3)
            on conflict do nothing
            """,
            UUID(run_id), tenant, CANARY,
        )  # fmt: skip
        await conn.execute(
            """
            insert into deliveries (id, tenant, subject, kind, type, status, tries, error, created_at)
            values ($1, $2, $3, 'webhook', 'run.completed', $4, 9, $5, now())
            """,
            message_id, tenant, UUID(run_id), status, CANARY,
        )  # fmt: skip
    return message_id


async def post(person: httpx2.AsyncClient, path: str, *ids: Any, **headers: str) -> httpx2.Response:
    """The form of a page, as a browser without script sends it."""
    token = csrf(await person.get("/operations"))
    body = "&".join([f"csrf={token}", *(f"pick={one}" for one in ids)])
    kind = {"content-type": "application/x-www-form-urlencoded", "origin": str(person.base_url).rstrip("/")}
    return await person.post(path, content=body, headers={**kind, **headers})


async def test_who_may_do_what(secured: Secured, browserless: Callable[..., Any]) -> None:
    tenant = new_tenant()
    (run_id,) = await failed(secured, tenant, "internal_error", recoverable=True)
    dead = await undelivered(secured, tenant, str(run_id))
    for role, requeues, redelivers in (
        ("reviewer", False, False), ("submitter", True, False), ("service", True, False), ("admin", True, True),
    ):  # fmt: skip
        person = await signed_in(secured, browserless, tenant, role)
        page = (await person.get("/operations")).text
        assert ('action="/operations/requeue"' in page, 'action="/operations/redeliver"' in page) == (
            requeues, redelivers,
        ), role  # fmt: skip
        if not requeues and not redelivers:
            continue
        refused = await post(person, "/operations/redeliver", dead)
        assert (refused.status_code == 200) == redelivers, role
    reviewer = await signed_in(secured, browserless, tenant, "reviewer")
    token = csrf(await reviewer.get("/"))  # its own form token does not let it do more
    answer = await reviewer.post("/operations/requeue", data={"csrf": token, "pick": str(run_id)})
    assert answer.status_code == 403


async def test_another_tenants_run_and_webhook_cannot_be_touched(
    secured: Secured, browserless: Callable[..., Any]
) -> None:
    theirs = new_tenant()
    (run_id,) = await failed(secured, theirs, "internal_error", recoverable=True)
    dead = await undelivered(secured, theirs, str(run_id))
    person = await signed_in(secured, browserless, new_tenant())
    shown = (await person.get("/operations")).text
    await failed(secured, "other", "run_timeout", recoverable=True)
    token = csrf(await person.get("/"))
    for path, one in (("requeue", run_id), ("redeliver", dead)):
        answer = await person.post(
            f"/operations/{path}", data={"csrf": token, "pick": str(one)}, headers={"accept": "application/json"}
        )
        assert answer.json()["ok"] is False and "no such" in answer.json()["detail"]
    async with secured.services.db.connection(EVERY) as conn:
        states = await conn.fetchrow(
            "select (select status from runs where id = $1), (select status from deliveries where id = $2)",
            run_id,
            dead,
        )

    assert states is not None and tuple(states) == ("failed", "dead")
    assert str(run_id) not in shown and str(dead) not in shown and "internal_error" not in shown


async def test_each_that_is_picked_has_its_own_result(secured: Secured, browserless: Callable[..., Any]) -> None:
    tenant = new_tenant()
    program = await secured.client("service", tenant=tenant, subject="robot")
    final = await begun(program)
    person = await signed_in(secured, browserless, tenant, "submitter")
    await failed(secured, tenant, "internal_error", recoverable=True)
    answer = await post(person, "/operations/requeue", final, uuid4(), "no-id")

    assert answer.status_code == 200 and "0 of 3 taken up again" in answer.text
    assert f'href="/runs/{final}"' in answer.text
    assert "cannot be resumed" in answer.text and "no such run" in answer.text
    assert (await post(person, "/operations/requeue")).status_code == 422
    assert (await post(person, "/operations/requeue", *[uuid4()] * 51)).status_code == 422


async def test_failures_are_grouped_by_what_ended_them(secured: Secured, browserless: Callable[..., Any]) -> None:
    tenant = new_tenant()
    await failed(secured, tenant, "provider_unavailable", recoverable=True, n=3)
    await failed(secured, tenant, "run_timeout", recoverable=False, n=2)
    page = (await (await signed_in(secured, browserless, tenant)).get("/operations")).text
    groups = page[page.index('class="list causes"') : page.index("<h3>Newest</h3>")]

    assert re.findall(r"<code>(\w+)</code>", groups) == ["provider_unavailable", "run_timeout"]
    assert "3 can be taken up again" in groups and "final" in groups
    assert groups.count('name="pick"') == 3 and "Requeue 3" in groups


async def test_what_stands_still_is_told_with_a_reason(secured: Secured, browserless: Callable[..., Any]) -> None:
    tenant = new_tenant()
    program = await secured.client("service", tenant=tenant, subject="robot")
    paused = await begun(program, "awaiting_human", session_id="line")
    assert (await program.post(f"/hitl/run/{paused}/pause")).status_code == 200
    body = run_body(echo())
    behind_it = await start(program, {**body, "session_id": "line", "on_active_run": "queue"})
    async with behind(secured.services.db) as conn:
        await conn.execute(
            """
            update runs set created_at = created_at - interval '2 hours', paused_at = paused_at - interval '2 hours'
            where tenant = $1
            """,
            tenant,
        )
    person = await signed_in(secured, browserless, tenant)
    page = (await person.get("/operations")).text
    still = page[page.index('id="stuck"') : page.index('id="asked"')]

    assert "It is paused." in still and f'href="/runs/{paused}" data-row' in still
    assert "before it is one that is paused" in still and f'href="/runs/{behind_it}" data-row' in still
    assert "0 of 1 taken up again" in (await post(person, "/operations/requeue", paused)).text
    answer = await post(person, "/operations/resume", paused)
    assert "Resumed" in answer.text and "Waits for people" in answer.text
    assert (await program.get(f"/hitl/runs/{paused}")).json()["status"] == "awaiting_human"


async def test_jobs_that_could_not_be_run_are_shown_to_whose_run_it_was(
    secured: Secured, browserless: Callable[..., Any]
) -> None:
    ours, theirs = new_tenant(), new_tenant()
    program = await secured.client("service", tenant=ours, subject="robot")
    run_id = await begun(program, "awaiting_human")
    approval_id = (await program.get(f"/hitl/runs/{run_id}")).json()["pending_actions"][0]["approval_id"]
    async with secured.services.db.transaction(EVERY) as conn:
        for name in (f"run:{run_id}:3", f"approval:{approval_id}:expire:1", f"run:{uuid4()}:1", "run:x", CANARY):
            await dead_jobs.bury(conn, name, "ValueError", CANARY)
    mine = (await (await signed_in(secured, browserless, ours)).get("/operations")).text
    other = (await (await signed_in(secured, browserless, theirs)).get("/operations")).text

    assert mine.count("<strong>ValueError</strong>") == 2 and f"run:{run_id}:3" in mine
    assert "ValueError" not in other and run_id not in other
    assert "<img src=x" not in mine


async def test_counts_and_workers_are_live(office: Office) -> None:
    program = await office.program()
    page = await office.person(role="admin")
    await page.goto("/operations")
    people = page.locator(".tiles a", has_text="Waiting for people").locator(".figure")
    await expect(people).to_have_text("0")
    await expect(page.locator(".worker").first).to_contain_text("jobs")
    await expect(page.get_by_text("Nobody is asked anything.")).to_be_visible()
    run_id = await begun(program, "awaiting_human")
    await expect(people).to_have_text("1")
    await expect(page.get_by_role("link", name="Payload review")).to_be_visible()
    await ask(program, user_id="tom")
    await expect(page.get_by_text("for tom")).to_be_visible()
    await program.delete(f"/hitl/run/{run_id}")

    await expect(people).to_have_text("0")


async def test_a_failed_run_is_taken_up_again_by_a_click(office: Office) -> None:
    program = await office.program()
    page = await office.person(role="submitter")
    await page.goto("/operations")
    run_id = await broken(program)
    await page.get_by_role("button", name=f"Requeue: {run_id}").click()

    await expect(page.locator(".toast", has_text="Taken up again")).to_be_visible()
    await expect(page.get_by_text("No run of this tenant has failed.")).to_be_visible()
    assert (await settled(program, run_id))["status"] == "completed"
    assert page.url.endswith("/operations")


async def test_a_dead_webhook_is_sent_again_by_a_click(office: Office, provider: Provider) -> None:
    program = await office.program()
    run_id = await begun(program, callback_url=provider.url)
    await eventually(lambda: _delivered(office, run_id), "the first webhook")
    async with behind(office.secured.services.db) as conn:
        await conn.execute("update deliveries set status = 'dead', error = $2 where subject = $1", UUID(run_id), CANARY)
    page = await office.person(role="admin")
    await page.goto("/operations")
    await expect(page.get_by_text(CANARY).first).to_be_visible()
    await page.get_by_role("button", name="Redeliver: run.completed").click()

    await expect(page.locator(".toast", has_text="Sent again")).to_be_visible()
    await expect(page.get_by_text("Everything is delivered.")).to_be_visible()
    assert len({seen.headers["webhook-id"] for seen in provider.seen}) == 1 and len(provider.seen) == 2
    assert await page.locator("main img, main script").count() == 0


async def _delivered(office: Office, run_id: str) -> bool:
    async with office.secured.services.db.connection(EVERY) as conn:
        status = await conn.fetchval("select status from deliveries where subject = $1", UUID(run_id))
    return bool(status == "delivered")


async def test_keys_move_through_all_that_can_be_opened(office: Office) -> None:
    program = await office.program()
    run_id = await begun(program, "awaiting_human")
    page = await office.person()
    await page.goto("/operations")
    await page.keyboard.press("j")
    await expect(page.locator(".tiles a").first).to_be_focused()
    await page.keyboard.press("k")
    await expect(page.locator(".tiles a").first).to_be_focused()
    await page.keyboard.press("?")
    await expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    await page.keyboard.press("Escape")
    for _ in range(6):
        await page.keyboard.press("j")
    await page.keyboard.press("j")
    await page.keyboard.press("Enter")

    approval_id = (await program.get(f"/hitl/runs/{run_id}")).json()["pending_actions"][0]["approval_id"]
    await expect(page).to_have_url(re.compile(f"/approvals/{approval_id}$"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_where_there_is_nothing_and_where_all_is_open(office: Office, scheme: Any) -> None:
    page = await office.person("boss", role="admin", color_scheme=scheme)
    found: dict[str, list[str]] = {}

    async def look(name: str) -> None:
        found[name] = await violations(page)

    for path in ("/", "/runs", "/operations", f"/runs/{uuid4()}", "/nowhere"):
        await page.goto(path)
        await look(f"nothing at {path}")
    program = await office.program()
    run_id = await broken(program)
    for path in ("/runs", "/operations", f"/runs/{run_id}"):
        await page.goto(path)
        await page.keyboard.press("?")
        await look(f"keys of {path}")
        await page.keyboard.press("Escape")
        closed = page.locator("main details:not([open]) > summary")
        while await closed.count():
            await closed.first.click()
        await look(f"all open at {path}")
    await page.route("**/live/**", lambda route: route.abort())  # the page is older than the run
    await page.goto(f"/runs/{run_id}")
    await program.post(f"/hitl/run/{run_id}/resume")
    await settled(program, run_id, "completed")
    await page.evaluate("document.querySelector('[data-act=requeue]').submit()")  # as without script
    await page.locator("#problem").wait_for()
    await look("too late")
    await failed(office.secured, office.tenant, "internal_error", recoverable=True)
    await page.goto("/operations")
    await page.evaluate("document.querySelector('[data-acts]').submit()")
    await page.get_by_text("Back to operations").wait_for()
    await look("results")

    assert {name: told for name, told in found.items() if told} == {}
