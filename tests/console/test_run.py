"""One run's page in a real browser: it follows the run, and pauses, resumes, cancels and requeues it."""

import time
from typing import Any
from uuid import UUID

import pytest
from playwright.async_api import Page, expect

from service.commands.erasure import erase
from service.commands.purge import purge
from service.domain.erasure import Erasure
from service.domain.event import EventType, Fact
from service.domain.ids import uuid7
from service.store import runs
from service.store.purge import Kept
from tests.conftest import at, behind, decide, echo, http_tool, run_body, settled, start
from tests.console.conftest import Office, csrf, new_tenant, sign_in
from tests.console.test_pages import violations

ASKS = {"policy": "require_human", "allowed_steps": ["payload_review"]}
EXAMPLE = {"prompt": "s", "num_outputs": 1}


async def waiting(office: Office, **more: Any) -> tuple[Any, str, str]:
    """A run that waits for people: its program, its id, its approval's."""
    program = await office.program()
    run_id = await start(program, {**run_body(echo(EXAMPLE), **ASKS), **more})
    return program, run_id, (await at(program, run_id, "payload_review"))["approval_id"]


async def keeper(office: Office, name: str = "ann", **options: Any) -> Page:
    """Somebody who may start and stop runs, and decide."""
    return await office.person(name, role="admin", **options)


def state(page: Page) -> Any:
    return page.locator("#state")


async def test_the_page_follows_the_run_from_its_question_to_its_end(office: Office) -> None:
    program, run_id, approval_id = await waiting(office)
    page = await office.person()
    await page.goto(f"/runs/{run_id}")
    await expect(state(page)).to_have_text("Waits for people")
    lanes = page.get_by_role("list", name="Steps, waits and calls")
    await expect(lanes.get_by_role("listitem")).to_have_count(3)
    await expect(page.locator("#lane-3 .bar rect.goes")).to_have_count(1)
    await page.evaluate("window.same = true")

    await decide(program, approval_id, "edit", edits={"num_outputs": 3}, reason="more of them")

    await expect(state(page)).to_have_text("Completed")
    await expect(lanes.get_by_text("approved with changes by robot")).to_be_visible()
    await expect(lanes.get_by_text("Call 1, try 1")).to_be_visible()
    await expect(page.locator("#events li").first).to_contain_text("Run completed")
    await expect(page.locator("#output")).to_contain_text('"num_outputs": 3')
    revisions = page.locator("#revisions .turns > li")
    await expect(revisions).to_have_count(2)
    await expect(revisions.nth(1)).to_contain_text("robot changed it")
    await expect(revisions.nth(1)).to_contain_text("more of them")
    await expect(revisions.nth(1).locator("del")).to_contain_text("1")
    await expect(revisions.nth(1).locator("ins")).to_contain_text("3")
    await expect(revisions.nth(1)).to_contain_text("sent in call 1")
    await expect(page.locator("#calls")).to_contain_text(f"{run_id}-1")
    assert await page.evaluate("window.same"), "the page was never loaded anew"


async def test_pause_resume_and_cancel_by_mouse(office: Office) -> None:
    program, run_id, _ = await waiting(office)
    page = await keeper(office)
    await page.goto(f"/runs/{run_id}")

    await page.get_by_role("button", name="Pause").click()
    await expect(state(page)).to_have_text("Paused")
    await expect(page.locator("#now")).to_contain_text("Paused by ann")
    assert (await settled(program, run_id, "paused"))["status"] == "paused"
    await page.get_by_role("button", name="Resume").click()
    await expect(state(page)).to_have_text("Waits for people")
    await expect(page.get_by_role("button", name="Cancel the run")).to_be_hidden()
    await page.get_by_text("Cancel…").click()
    await page.get_by_label("Reason").fill("nobody needs it")
    await page.get_by_role("button", name="Cancel the run").click()

    await expect(state(page)).to_have_text("Cancelled")
    await expect(page.locator("#now")).to_contain_text("Cancelled by ann")
    await expect(page.locator("#now")).to_contain_text("nobody needs it")
    await expect(page.locator("#actions")).to_have_count(0)
    run = await settled(program, run_id)
    assert (run["status"], run["error"]["message"]) == ("cancelled", "nobody needs it")


async def test_pause_resume_and_cancel_by_keyboard_alone(office: Office) -> None:
    _, run_id, approval_id = await waiting(office)
    page = await keeper(office)
    keys = page.keyboard
    await page.locator(f"a[href='/runs/{run_id}']").focus()
    await keys.press("Enter")
    await page.wait_for_url("**/runs/*")

    await keys.press("?")
    await expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    await keys.press("Escape")
    await keys.press("p")
    await expect(state(page)).to_have_text("Paused")
    await keys.press("p")
    await expect(state(page)).to_have_text("Waits for people")
    await keys.press("o")
    await page.wait_for_url(f"**/approvals/{approval_id}")
    await page.locator(f"a[href='/runs/{run_id}']").focus()
    await keys.press("Enter")
    await page.wait_for_url("**/runs/*")
    await keys.press("r")
    await expect(page.get_by_text("This run cannot be requeued now")).to_be_visible()
    await keys.press("x")
    await expect(page.get_by_label("Reason")).to_be_focused()
    await keys.press("Escape")
    await expect(page.get_by_label("Reason")).to_be_hidden()
    await keys.press("x")
    await keys.type("no more")
    await keys.press("Control+Enter")
    await expect(state(page)).to_have_text("Cancelled")
    await keys.press("u")
    await page.get_by_role("heading", name="Runs", exact=True).wait_for()


async def test_what_has_failed_says_what_to_do_and_is_requeued_by_mouse_and_by_key(office: Office) -> None:
    program = await office.program()
    body = run_body(echo(EXAMPLE, fail=[{"status": 503, "message": "no room"}] * 5))
    ids = [await start(program, body) for _ in range(2)]
    for run_id in ids:
        await settled(program, run_id, "failed")
    page = await keeper(office)

    await page.goto(f"/runs/{ids[0]}")
    await expect(page.locator("#now")).to_contain_text("The provider could not be reached, or had no room")
    await expect(page.locator("#now")).to_contain_text("provider_unavailable")
    await expect(page.locator(".lanes .provider")).to_have_count(5)
    await page.get_by_role("button", name="Requeue").click()
    await expect(state(page)).to_have_text("Completed")
    await page.goto(f"/runs/{ids[1]}")
    await page.keyboard.press("r")
    await expect(state(page)).to_have_text("Completed")

    assert [(await settled(program, run_id))["status"] for run_id in ids] == ["completed", "completed"]


async def test_two_race_and_the_late_one_is_told_what_the_run_is_now(office: Office) -> None:
    _, run_id, _ = await waiting(office)
    ann, bob = await keeper(office), await keeper(office, "bob")
    for page in (ann, bob):
        await page.route("**/live/**", lambda route: route.abort())  # neither hears of the other
        await page.goto(f"/runs/{run_id}")

    await ann.get_by_text("Cancel…").click()
    await ann.get_by_role("button", name="Cancel the run").click()
    await expect(state(ann)).to_have_text("Cancelled")
    await bob.get_by_role("button", name="Pause").click()

    await expect(bob.locator(".toast")).to_contain_text("It cannot be paused")
    await expect(bob.locator(".toast")).to_contain_text("It is now: Cancelled, by ann at")
    await expect(state(bob)).to_have_text("Cancelled")
    await expect(bob.get_by_role("button", name="Pause")).to_have_count(0)


async def test_who_may_not_act_sees_no_actions_and_is_refused_them(office: Office) -> None:
    program, run_id, _ = await waiting(office)
    page = await office.person("rita")
    await page.goto(f"/runs/{run_id}")
    await expect(state(page)).to_have_text("Waits for people")
    await expect(page.locator("form[data-act]")).to_have_count(0)
    token = await page.locator("input[name=csrf]").first.get_attribute("value")

    answer = await page.request.post(
        f"/runs/{run_id}/pause", form={"csrf": token or ""}, headers={"Origin": office.secured.url}
    )

    assert answer.status == 403
    assert (await settled(program, run_id))["status"] == "awaiting_human"


async def test_it_works_without_script(office: Office) -> None:
    _, run_id, _ = await waiting(office)
    page = await keeper(office, java_script_enabled=False)
    await page.goto(f"/runs/{run_id}")
    await page.get_by_role("button", name="Pause").click()
    await expect(state(page)).to_have_text("Paused")
    other = await keeper(office, "bob", java_script_enabled=False)
    await other.goto(f"/runs/{run_id}")
    await page.get_by_text("Cancel…").click()
    await page.get_by_label("Reason").fill("enough")
    await page.get_by_role("button", name="Cancel the run").click()
    await expect(page.locator("#now")).to_contain_text("enough")
    await other.get_by_role("button", name="Resume").click()

    await expect(other.get_by_role("alert")).to_contain_text("It cannot be resumed")
    await expect(other.get_by_role("alert")).to_contain_text("Cancelled, by ann")
    await page.get_by_text("Raw response").click()
    await expect(page.locator("#raw-run a")).to_have_attribute("href", f"/runs/{run_id}/run.json")


async def test_raw_json_is_loaded_when_it_is_opened_and_follows_the_run(office: Office) -> None:
    program, run_id, approval_id = await waiting(office)
    page = await office.person()
    await page.goto(f"/runs/{run_id}")
    await page.locator("#raw-run summary").click()
    await expect(page.locator("#raw-run pre")).to_contain_text('"status": "awaiting_human"')
    await page.locator("#raw-events summary").click()
    await expect(page.locator("#raw-events pre")).to_contain_text('"prev_hash"')

    await decide(program, approval_id, "approve")

    await expect(page.locator("#raw-run pre")).to_contain_text('"status": "completed"')
    await page.locator("#raw-response summary").click()
    await expect(page.locator("#raw-response pre")).to_contain_text('"num_outputs": 1')


async def test_many_events_of_progress_are_left_out_bounded_and_paged(office: Office) -> None:
    program, run_id, _ = await waiting(office)
    services = office.secured.services
    async with services.db.transaction(office.tenant) as conn:
        run = await runs.lock(conn, office.tenant, UUID(run_id))
        assert run is not None
        told = [Fact(EventType.PROVIDER_PROGRESS, "provider:echo", {"text": f"word {n}"}) for n in range(200)]
        await runs.save(conn, run, told, now=services.db.now())
    page = await office.person()
    await page.goto(f"/runs/{run_id}")
    events = page.locator(".events > li")

    await expect(page.locator("#events")).not_to_contain_text("word 7")
    await page.get_by_role("link", name="With the 200 of progress").click()
    await expect(events).to_have_count(50)
    await expect(events.first).to_contain_text("word 199")
    await page.get_by_role("link", name="Earlier").click()
    await expect(events.first).to_contain_text("word 149")
    await page.get_by_role("link", name="Newest").click()
    await expect(events.first).to_contain_text("word 199")
    await expect(page.locator("#so-far")).to_contain_text("word 199")
    assert (await program.get(f"/hitl/runs/{run_id}")).json()["status"] == "awaiting_human"


async def test_its_session_and_its_approval_lead_to_each_other(office: Office) -> None:
    program, run_id, approval_id = await waiting(office, session_id="s-7")
    second = await start(program, {**run_body(echo(EXAMPLE)), "session_id": "s-7"})
    page = await office.person()
    await page.goto(f"/approvals/{approval_id}")
    await page.get_by_role("link", name=run_id).click()
    await expect(page).to_have_url(f"{office.secured.url}/runs/{run_id}")
    await page.locator("#others a").click()
    await expect(page).to_have_url(f"{office.secured.url}/runs/{second}")
    await page.goto(f"/runs/{run_id}")
    await page.locator("#lane-3 a").click()
    await expect(page).to_have_url(f"{office.secured.url}/approvals/{approval_id}")


async def test_media_of_ones_own_is_shown_and_what_lies_elsewhere_is_never_loaded(office: Office) -> None:
    program, run_id, approval_id = await waiting(office)
    picture = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
    await decide(program, approval_id, "edit", edits={"look": picture, "like": "https://example.com/a.png"})
    await settled(program, run_id, "completed")
    page = await office.person()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    await page.goto(f"/runs/{run_id}")

    await expect(page.locator("#media img")).to_have_attribute("src", picture)
    await expect(page.locator("#media a[rel~=noopener]")).to_have_attribute("href", "https://example.com/a.png")
    assert not [url for url in asked if "example.com" in url]


async def test_silence_is_nobodys_doing(office: Office) -> None:
    program = await office.program()
    run_id = await start(program, run_body(echo(EXAMPLE), **ASKS, timeout_seconds=1))
    await settled(program, run_id, "cancelled")
    page = await office.person()
    await page.goto(f"/runs/{run_id}")

    await expect(page.locator("#now")).to_contain_text("nobody answered in time")
    await expect(page.locator("#now")).not_to_contain_text(" by ")
    await expect(page.locator("#asked")).to_contain_text("Nobody answered by")
    await expect(page.locator(".lanes .human")).to_contain_text("expired")


async def test_what_a_provider_refuses_says_why_and_cannot_be_requeued(office: Office, provider: Any) -> None:
    provider.script[:] = [(403, {"error": "no such key"})]
    program = await office.program()
    run_id = await start(program, run_body(http_tool(provider.url)))
    await settled(program, run_id, "failed")
    page = await keeper(office)
    await page.goto(f"/runs/{run_id}")

    await expect(page.locator("#now")).to_contain_text("provider_rejected")
    await expect(page.locator("#calls")).to_contain_text("the provider refused the call")
    await expect(page.get_by_role("button", name="Requeue")).to_have_count(0)


async def test_who_looks_on_asks_for_the_page_once_a_second_however_much_happens(office: Office) -> None:
    program, run_id, _ = await waiting(office)
    page = await office.person()
    await page.goto(f"/runs/{run_id}")
    await page.locator("html.live").wait_for(state="attached")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/live/" not in request.url else None)
    began, happened = time.monotonic(), 0
    while time.monotonic() - began < 3:
        for act in ("pause", "resume"):
            await program.post(f"/hitl/run/{run_id}/{act}")
            happened += 1
    most = time.monotonic() - began + 1

    assert 2 <= len(asked) <= most < happened


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_where_one_can_act_and_nothing_is_too_wide(office: Office, scheme: Any) -> None:
    _, run_id, _ = await waiting(office)
    page = await keeper(office, color_scheme=scheme, viewport={"width": 360, "height": 740})
    await page.goto(f"/runs/{run_id}")
    await page.keyboard.press("x")
    found = {"cancel": await violations(page)}
    await page.get_by_role("button", name="Pause").click()
    await expect(state(page)).to_have_text("Paused")
    await page.locator("#raw-run summary").click()
    await expect(page.locator("#raw-run pre")).to_contain_text('"status": "paused"')
    found["paused"] = await violations(page)
    wider: int = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    await page.locator("#main").focus()
    await page.keyboard.press("?")
    found["keys"] = await violations(page)

    assert {name: told for name, told in found.items() if told} == {}
    assert wider <= 0


async def test_what_was_erased_says_so_and_shows_nothing_of_it(office: Office) -> None:
    program, run_id, approval_id = await waiting(office, user_id="jane")
    await decide(program, approval_id, "edit", edits={"num_outputs": 2}, reason="a secret reason")
    await settled(program, run_id, "completed")
    await erase(office.secured.services, Erasure(uuid7(), office.tenant, "jane", "officer"))
    page = await office.person()
    await page.goto(f"/runs/{run_id}")

    await expect(page.locator("#erased")).to_contain_text("Its content was erased")
    await expect(page.locator("#asked")).to_contain_text("robot changed it")
    await expect(page.locator(".lanes > li")).not_to_have_count(0)
    for gone in ("red fox", "secret reason", "num_outputs"):
        await expect(page.locator("main")).not_to_contain_text(gone)


async def test_what_was_purged_says_so(office: Office) -> None:
    program = await office.program()
    run_id = await start(program, run_body(echo(EXAMPLE)))
    await settled(program, run_id, "completed")
    services = office.secured.services
    async with behind(services.db) as conn:
        await conn.execute("update runs set finished_at = now() - interval '40 days' where id = $1", UUID(run_id))
    await purge(services, Kept(office.tenant, 30))
    page = await office.person()
    answer = await page.goto(f"/runs/{run_id}")

    assert answer is not None and answer.status == 404
    await expect(page.locator("main")).to_contain_text("it was purged on")


@pytest.mark.parametrize("path", ["", "/run.json", "/events.json", "/response.json"])
async def test_another_tenants_run_is_not_there(office: Office, path: str) -> None:
    _, run_id, _ = await waiting(office)
    stranger = Office(office.secured, office.browser, office.open, new_tenant())
    page = await stranger.person("eve", role="admin")
    answer = await page.goto(f"/runs/{run_id}{path}")

    assert answer is not None and answer.status == 404
    await expect(page.get_by_role("heading", name="Not found")).to_be_visible()


@pytest.mark.parametrize("action", ["pause", "resume", "cancel", "requeue"])
async def test_nobody_acts_on_another_tenants_run(office: Office, browserless: Any, action: str) -> None:
    program, run_id, _ = await waiting(office)
    _, key = await office.secured.key("admin", tenant=new_tenant(), subject="eve")
    eve = await browserless()
    await sign_in(eve, key)
    token = csrf(await eve.get("/"))

    answer = await eve.post(f"/runs/{run_id}/{action}", data={"csrf": token})

    assert answer.status_code == 404
    assert (await settled(program, run_id))["status"] == "awaiting_human"


async def test_requeue_does_not_resume_what_was_paused_meanwhile_nor_the_other_way_round(office: Office) -> None:
    program, run_id, _ = await waiting(office)
    await program.post(f"/hitl/run/{run_id}/pause")
    page = await keeper(office)
    await page.goto(f"/runs/{run_id}")
    token = await page.locator("input[name=csrf]").first.get_attribute("value")
    answer = await page.request.post(
        f"/runs/{run_id}/requeue", form={"csrf": token or ""}, headers={"Origin": office.secured.url}
    )

    assert answer.status == 409
    assert (await settled(program, run_id, "paused"))["status"] == "paused"
