"""The list of runs: filters in the URL, runs by their id, paging, news, keys, and one tenant's rows only."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import httpx2
from playwright.async_api import expect

from tests.conftest import decide, echo, run_body, settled, start
from tests.console.conftest import Office, new_tenant, sign_in
from tests.console.test_pages import CANARY
from tests.contract.conftest import Secured

RUN = re.compile(r'href="/runs/([0-9a-f-]{36})" data-row')


async def begun(program: httpx2.AsyncClient, status: str = "completed", **more: Any) -> str:
    """A run that has come to this status."""
    waits = status == "awaiting_human"
    body = run_body(echo(), policy="require_human" if waits else "auto", allowed_steps=["payload_review"])
    run_id = await start(program, {**body, **more})
    await settled(program, run_id, status)
    return run_id


async def ids(person: httpx2.AsyncClient, path: str) -> list[str]:
    answer = await person.get(path)
    assert answer.status_code == 200, answer.text[:500]
    return RUN.findall(answer.text)


async def reader(secured: Secured, browserless: Callable[..., Any], tenant: str) -> httpx2.AsyncClient:
    """Somebody who may read, without script."""
    _, key = await secured.key("submitter", tenant=tenant, subject="sam")
    person: httpx2.AsyncClient = await browserless()
    assert (await sign_in(person, key)).status_code == 303
    return person


async def test_the_pages_want_somebody_who_is_signed_in(browserless: Callable[..., Any]) -> None:
    guest = await browserless()
    for path in ("/runs?status=failed", "/operations"):
        answer = await guest.get(path)
        assert (answer.status_code, answer.headers["location"]) == (
            303,
            f"/signin?next={httpx2.URL(path).path[1:]}",
        ) or (answer.headers["location"].startswith("/signin?next=%2F"))


async def test_filters_in_the_url_narrow_the_list(secured: Secured, browserless: Callable[..., Any]) -> None:
    tenant = new_tenant()
    program = await secured.client("service", tenant=tenant, subject="robot")
    done = await begun(program, user_id="ann", session_id="s1")
    open_ = await begun(program, "awaiting_human", user_id="ann", session_id="s2")
    other = await begun(program, user_id="bob", session_id="s1")
    person = await reader(secured, browserless, tenant)
    created = (await program.get(f"/hitl/runs/{other}")).json()["created_at"]

    assert await ids(person, "/runs") == [other, open_, done]
    assert await ids(person, "/runs?status=awaiting_human") == [open_]
    assert await ids(person, "/runs?user=ann") == [open_, done]
    assert await ids(person, "/runs?user=ann&session=s1") == [done]
    assert await ids(person, "/runs?provider=echo&status=completed") == [other, done]
    assert await ids(person, "/runs?provider=http") == []
    assert await ids(person, f"/runs?created_before={created}") == [open_, done]
    assert await ids(person, f"/runs?created_after={created}") == []
    assert await ids(person, "/runs?status=unheard-of&n=7&nothing=1") == [other, open_, done]


async def test_a_run_is_found_by_its_id_its_approval_its_job_and_their_beginnings(
    secured: Secured, browserless: Callable[..., Any]
) -> None:
    tenant = new_tenant()
    program = await secured.client("service", tenant=tenant, subject="robot")
    first = await begun(program, "awaiting_human")
    second = await begun(program)
    run = (await program.get(f"/hitl/runs/{first}")).json()
    person = await reader(secured, browserless, tenant)

    for text in (first, first.upper(), first.replace("-", ""), first[:20], run["job_id"], f"  {first} ",
                 run["pending_actions"][0]["approval_id"]):  # fmt: skip
        assert await ids(person, f"/runs?q={text}") == [first], text
    assert await ids(person, f"/runs?q={first[:8]}") == [second, first]
    refused = await person.get("/runs", params={"q": CANARY, "created_after": CANARY, "user": "ann"})
    assert refused.status_code == 200 and "That is no id" in refused.text and "That is no time" in refused.text
    assert "<img src=x" not in refused.text and "&lt;img src=x" in refused.text


async def test_pages_hold_each_run_once(secured: Secured, browserless: Callable[..., Any]) -> None:
    tenant = new_tenant()
    program = await secured.client("service", tenant=tenant, subject="robot")
    started = await asyncio.gather(*(start(program, run_body(echo())) for _ in range(60)))
    person = await reader(secured, browserless, tenant)
    first = await person.get("/runs?period=24h")
    following = re.search(r'href="(/runs\?[^"]+)" rel="next"', first.text)
    assert following
    second = await person.get(following[1].replace("&amp;", "&"))

    shown = [RUN.findall(page.text) for page in (first, second)]
    assert [len(page) for page in shown] == [50, 10]
    assert {*shown[0], *shown[1]} == set(started)
    assert "period=24h" in following[1] and ">Newest<" in second.text
    assert (await person.get("/runs?after=nonsense")).status_code == 422


async def test_another_tenants_runs_are_nowhere(secured: Secured, browserless: Callable[..., Any]) -> None:
    theirs = await secured.client("service", tenant=new_tenant(), subject="robot")
    run_id = await begun(theirs, "awaiting_human", user_id="ann")
    approval_id = (await theirs.get(f"/hitl/runs/{run_id}")).json()["pending_actions"][0]["approval_id"]
    person = await reader(secured, browserless, new_tenant())

    for path in ("/runs", f"/runs?q={run_id}", f"/runs?q={run_id[:13]}", f"/runs?q={approval_id}", "/runs?user=ann",
                 "/runs?period=7d", "/operations"):  # fmt: skip
        page = await person.get(path)
        assert page.status_code == 200 and RUN.findall(page.text) == []
        assert f'href="/approvals/{approval_id}"' not in page.text
    counts = re.findall(r'>[A-Z][a-z ]+ <span class="num">(\d+)</span></a>', (await person.get("/runs")).text)
    assert counts == ["0"] * 8


async def test_the_chart_counts_starts_and_decisions(secured: Secured, browserless: Callable[..., Any]) -> None:
    tenant = new_tenant()
    program = await secured.client("service", tenant=tenant, subject="robot")
    for _ in range(3):
        run_id = await begun(program, "awaiting_human")
    waiting = (await program.get(f"/hitl/runs/{run_id}")).json()["pending_actions"][0]["approval_id"]
    assert (await decide(program, waiting, "approve")).status_code == 200
    person = await reader(secured, browserless, tenant)

    for period in ("1h", "24h", "7d"):
        page = (await person.get("/runs", params={"period": period})).text
        assert re.search(r'aria-label="Started: 3, over the last', page)
        assert re.search(r'aria-label="Decided: 1, over the last', page)
        assert re.search(r'aria-label="Waiting for a decision: 2 now, over the last', page)
        assert "estimated" not in page


async def test_new_runs_and_their_counts_appear_by_themselves(office: Office) -> None:
    program = await office.program()
    page = await office.person()
    await page.goto("/runs")
    await expect(page.get_by_text("New runs appear here by themselves.")).to_be_visible()
    run_id = await begun(program, "awaiting_human")

    await expect(page.locator(f"#r-{run_id} .chip")).to_have_text("Waits for people")
    await expect(page.locator("#states a", has_text="Waits for people")).to_contain_text("1")
    await expect(page.locator(".starts .figure")).to_have_text("1")
    await program.delete(f"/hitl/run/{run_id}")
    await expect(page.locator(f"#r-{run_id} .chip")).to_have_text("Cancelled")
    await expect(page.locator("#states a", has_text="Cancelled")).to_contain_text("1")


async def test_filters_are_set_by_mouse_and_stand_in_the_url(office: Office) -> None:
    program = await office.program()
    for user in ("ann", "bob", "bob"):
        await begun(program, user_id=user)
    page = await office.person(timezone_id="Asia/Tokyo")
    await page.goto("/runs")
    await expect(page.locator(".line")).to_have_count(3)
    await page.get_by_role("link", name=re.compile("^Completed")).click()
    await expect(page).to_have_url(re.compile(r"/runs\?status=completed$"))
    await page.get_by_text("Filters").click()
    await page.get_by_label("User").fill("bob")
    await page.get_by_label("Started after").fill("2026-01-02T09:30")
    await page.get_by_role("button", name="Apply").click()

    await expect(page).to_have_url(re.compile(r"/runs\?status=completed&user=bob&created_after=2026-01-02T00%3A30Z$"))
    await expect(page.locator(".line")).to_have_count(2)
    await expect(page.get_by_label("Started after")).to_have_value("2026-01-02T09:30")
    await page.get_by_role("link", name="24h").click()
    await expect(page).to_have_url(re.compile(r"user=bob.*period=24h"))
    await expect(page.locator(".line")).to_have_count(2)


async def test_keys_move_open_search_and_show_themselves(office: Office) -> None:
    program = await office.program()
    older, newer = await begun(program), await begun(program)
    page = await office.person()
    await page.goto("/runs")
    await page.keyboard.press("j")
    await expect(page.locator(f'a[href="/runs/{newer}"]')).to_be_focused()
    await page.keyboard.press("j")
    await page.keyboard.press("j")
    await expect(page.locator(f'a[href="/runs/{older}"]')).to_be_focused()
    await page.keyboard.press("k")
    await expect(page.locator(f'a[href="/runs/{newer}"]')).to_be_focused()
    await page.keyboard.press("?")
    await expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    await page.keyboard.press("Escape")
    await page.keyboard.press("/")
    await expect(page.get_by_role("searchbox")).to_be_focused()
    await page.keyboard.type(older)
    await page.keyboard.press("Enter")
    await expect(page.locator(".line")).to_have_count(1)
    await page.keyboard.press("j")
    await page.keyboard.press("Enter")

    await expect(page).to_have_url(re.compile(f"/runs/{older}$"))
    await page.keyboard.press("u")  # to the list as it was
    await expect(page).to_have_url(re.compile(f"/runs\\?q={older}$"))


async def test_where_the_reader_is_stays_while_the_list_changes(office: Office) -> None:
    program = await office.program()
    older = await begun(program)
    page = await office.person()
    await page.goto("/runs")
    await page.keyboard.press("j")
    await page.get_by_text("The numbers").click()
    await page.keyboard.press("j")
    newer = await begun(program)

    await expect(page.locator(f"#r-{newer}")).to_be_visible()
    await expect(page.locator(f'a[href="/runs/{older}"]')).to_be_focused()
    await expect(page.get_by_role("columnheader", name="Started")).to_be_visible()


async def test_hostile_names_are_text_on_both_pages(office: Office) -> None:
    program = await office.program()
    await begun(program, "awaiting_human", user_id=CANARY, session_id=CANARY)
    page = await office.person(role="admin")
    for path in ("/runs", "/operations", "/runs?user=" + CANARY.replace("#", ""), "/runs?provider=" + CANARY):
        await page.goto(path)
        await expect(page.locator("main")).to_be_visible()
        assert await page.locator("main img, main script, main svg[onload]").count() == 0
    await page.goto("/runs")
    await expect(page.get_by_text(CANARY).first).to_be_visible()
