"""Every page in both themes, on a phone, and with hostile text in every field that is shown."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import pytest
from playwright.async_api import Page, expect

from service.domain.file import StoredFile, location_of
from service.domain.ids import uuid7
from service.store import files
from tests.conftest import at, echo, run_body, settled, start
from tests.console.conftest import Office, ask

AXE: Final = (Path(__file__).parent / "vendor" / "axe.min.js").read_text()
SHAPES: Final = {
    "type": "object",
    "properties": {
        "prompt": {"type": "string"},
        "n": {"type": "integer"},
        "frame": {"type": "object", "properties": {"w": {"type": "integer"}}},
        "parts": {"type": "array", "items": {"type": "object", "properties": {"w": {"type": "boolean"}}}},
    },
    "required": ["prompt"],
}
CANARY: Final = "<img src=x onerror=alert('xss')><script>alert(1)</script>\"'><svg onload=alert(2)>{{7*7}}"
RUN_AXE: Final = """async () => {
  const tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];
  const { violations } = await axe.run(document, { runOnly: tags });
  return violations.map((v) => `${v.id}: ${v.help} (${v.nodes.slice(0, 5).map((n) => n.target.join(" ")).join(", ")})`);
}"""


async def violations(page: Page) -> list[str]:
    await page.evaluate(AXE)  # by the debugger, which the page's policy does not bind
    found: list[str] = await page.evaluate(RUN_AXE)
    return found


async def hostile_run(program: Any, **hitl: Any) -> dict[str, Any]:
    """A run whose every text is hostile, where it waits for its first review."""
    schema = {
        "type": "object",
        "title": CANARY,
        "properties": {
            "prompt": {"type": "string", "title": CANARY, "description": CANARY},
            "size": {"enum": [CANARY, "small"], "default": CANARY},
            CANARY[:60]: {"type": "object", "properties": {CANARY[:40]: {"type": "string", "description": CANARY}}},
            "items": {"type": "array", "items": {"type": "object", "properties": {CANARY[:30]: {"type": "integer"}}}},
        },
        "required": ["prompt"],
    }
    body = run_body(echo({"prompt": "s", "size": CANARY}, schema=schema), prompt=CANARY, policy="require_human", **hitl)
    body["user_id"] = body["session_id"] = CANARY
    body["run_input"]["conversation"] = [{"role": CANARY, "content": CANARY}]
    body["run_input"]["attachments"] = [{"url": "https://example.com/a.png?" + CANARY, "name": CANARY}]
    run_id = await start(program, body)
    run = await settled(program, run_id)
    assert run["status"] == "awaiting_human", run
    found: dict[str, Any] = run["pending_actions"][0]
    return found


async def every_page(program: Any) -> dict[str, str]:
    """Path by name, with something in each."""
    run_id = await start(
        program,
        run_body(echo(schema=SHAPES), policy="require_human", allowed_steps=["payload_review", "response_review"]),
    )
    first = await at(program, run_id, "payload_review")
    await program.post(f"/hitl/approvals/{first['approval_id']}/decision", json={"action": "approve"})
    second = await at(program, run_id, "response_review")
    open_id = await ask(program, "Still open", reviewers={"quorum": 2})
    ended = await start(program, run_body(echo(SHAPES, fail=[{"status": 400, "message": "no such model"}])))
    await settled(program, ended, "failed")
    return {
        "inbox": "/",
        "inbox filtered": "/?user=nobody",
        "open": f"/approvals/{open_id}",
        "decided": f"/approvals/{first['approval_id']}",
        "output": f"/approvals/{second['approval_id']}",
        "run": f"/runs/{run_id}",
        "run that ended": f"/runs/{ended}?progress=1",
        "refusal": "/approvals/none",
        "runs": "/runs",
        "runs over a week": "/runs?period=7d&status=awaiting_human",
        "runs not found": "/runs?q=zz&created_after=yesterday&user=nobody",
        "operations": "/operations",
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_on_any_page(office: Office, scheme: Any) -> None:
    program = await office.program()
    guest = office.watched(await (await office.window(color_scheme=scheme)).new_page())
    await guest.goto("/signin")
    found = {"signin": await violations(guest)}
    await guest.get_by_label("API key").fill("wrong")
    await guest.get_by_role("button", name="Sign in").click()
    found["signin refused"] = await violations(guest)
    page = await office.person(color_scheme=scheme)
    for name, path in (await every_page(program)).items():
        await page.goto(path)
        found[name] = await violations(page)
    await page.goto(f"/approvals/{await ask(program, 'To hand on', reviewers={'quorum': 2})}")
    await page.keyboard.press("c")
    await page.get_by_text("You have claimed it").wait_for()
    await page.keyboard.press("d")
    found["claimed, and handing on"] = await violations(page)
    await page.goto("/")
    await page.keyboard.press("?")
    found["keys"] = await violations(page)
    await page.keyboard.press("Escape")
    await page.keyboard.press("j")
    await page.keyboard.press("r")
    found["rejection"] = await violations(page)
    await page.keyboard.press("Escape")
    await page.get_by_label("Select all").check()
    await page.get_by_role("button", name="Approve selected").click()
    await page.get_by_role("heading", name="decided").wait_for()
    found["results"] = await violations(page)

    assert {name: told for name, told in found.items() if told} == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_in_an_edit_that_fails_and_one_that_is_proposed(office: Office, scheme: Any) -> None:
    program = await office.program()
    approval = await hostile_run(program, allowed_steps=["payload_review"])
    page = await office.person(color_scheme=scheme)
    await page.goto(f"/approvals/{approval['approval_id']}")
    found = {"hostile": await violations(page)}
    await page.get_by_text("As JSON", exact=True).click()
    await page.get_by_label("Payload as JSON").fill('{"size": "none"}')
    await page.locator("details form[data-change]").get_by_role("button").click()
    await page.get_by_role("alert").first.wait_for()
    found["fails"] = await violations(page)
    await page.get_by_label("Payload as JSON").fill('{"prompt": "a", "size": "small"}')
    await page.locator("details form[data-change]").get_by_role("button").click()
    await page.get_by_role("heading", name="What will change").wait_for()
    found["proposed"] = await violations(page)

    assert {name: told for name, told in found.items() if told} == {}


async def hand_on(page: Page, approval_id: str) -> None:
    """To hostile text, for a hostile reason."""
    await page.goto(f"/approvals/{approval_id}")
    await page.get_by_text("Hand it on to others").click()
    await page.get_by_label("Name", exact=True).fill(CANARY)
    await page.get_by_label("Why optional").fill(CANARY)
    await page.get_by_role("button", name="Hand it on").click()
    await expect(page.get_by_text("ann handed it on to")).to_contain_text(CANARY)


async def test_hostile_text_stays_text_everywhere(office: Office) -> None:
    program = await office.program()
    question = await ask(
        program, CANARY, checkpoint_type=CANARY[:100], user_id=CANARY, session_id=CANARY,
        context={"payload": {"version": CANARY, CANARY: CANARY}, CANARY: {"deep": [CANARY]}, "findings": CANARY,
                 "diff": CANARY, "validation_issues": CANARY},
        reviewers={"users": ["ann", CANARY]},
    )  # fmt: skip
    approval = await hostile_run(program)
    page = await office.person("ann")
    await expect(page.locator(".row")).to_have_count(2)
    await page.goto(f"/?q={CANARY.replace('{', '%7B').replace('#', '')}")
    for path in (f"/approvals/{question}", f"/approvals/{approval['approval_id']}"):
        await page.goto(path)
        await expect(page.get_by_text(CANARY).first).to_be_visible()
        await page.get_by_label("Reason").fill(CANARY)
        await page.get_by_role("button", name="Reject").click()
        await expect(page.get_by_text("Rejected by ann")).to_be_visible()
        assert await page.locator("main img, main svg, main script").count() == 0
    await hand_on(page, await ask(program, "Pass on", reviewers={"users": ["ann"]}))
    assert await page.locator("main img, main svg, main script").count() == 0
    program = await office.program()
    output = await hostile_run(program, allowed_steps=["response_review"])
    await page.goto(f"/approvals/{output['approval_id']}")
    await page.get_by_text("Change the output").click()
    await page.get_by_role("button", name="See what changes").click()
    await expect(page.get_by_role("alert").first).to_contain_text("Nothing is changed")
    assert await page.locator("main img, main svg, main script").count() == 0
    await hostile_runs(office, page, str(approval["run_id"]), str(output["run_id"]))
    # the fixture asserts that no dialog opened, nothing threw and the policy had nothing to refuse


async def hostile_runs(office: Office, page: Page, rejected: str, waits: str) -> None:
    """The pages of runs that are hostile in what people, programs and a provider say."""
    program = await office.program()
    refused = await start(program, run_body(echo(fail=[{"status": 422, "message": CANARY}]), prompt=CANARY))
    await at(program, refused, "error_recovery")
    for run_id in (rejected, waits, refused):
        await page.goto(f"/runs/{run_id}?before={CANARY.replace('#', '')}")
        await expect(page.get_by_text(CANARY).first).to_be_visible()
        await expect(page.locator(f"#{'now' if run_id == rejected else 'calls'}")).to_contain_text(
            CANARY if run_id != waits else "answered"
        )
        for part in ("run", "events", "response"):
            await page.locator(f"#raw-{part} summary").click()
            await expect(page.locator(f"#raw-{part} pre")).not_to_be_empty()
        assert await page.locator("main img, main script, main [onload], main [onerror]").count() == 0
    boss = await office.person("boss", role="admin")
    await boss.goto(f"/runs/{waits}")
    await boss.get_by_text("Cancel…").click()
    await boss.get_by_label("Reason").fill(CANARY)
    await boss.get_by_role("button", name="Cancel the run").click()
    await expect(boss.locator("#now")).to_contain_text(CANARY)
    assert await boss.locator("main img, main script, main [onload], main [onerror]").count() == 0


async def test_a_text_file_of_an_output_is_shown_as_text(office: Office) -> None:
    program = await office.program()
    services, file_id = office.secured.services, uuid7()
    example = {"prompt": "s"}
    body = run_body(echo(example), prompt=f"see /hitl/files/{file_id}", policy="require_human",
                    allowed_steps=["response_review"])  # fmt: skip
    run_id = await start(program, body)
    approval = await at(program, run_id, "response_review")
    text = f"The beginning. {CANARY}"

    async def pieces() -> AsyncIterator[bytes]:
        yield text.encode()

    kept = StoredFile(file_id, office.tenant, UUID(run_id), "notes.html", "text/html", len(text.encode()), "0" * 64,
                      location_of(file_id), datetime.now(UTC))  # fmt: skip
    await services.files.put(kept.location, pieces())
    async with services.db.transaction(office.tenant) as conn:
        await files.insert(conn, [kept])
    page = await office.person("ann")
    await page.goto(f"/approvals/{approval['approval_id']}")

    await expect(page.locator(".media pre")).to_have_text(text)
    await expect(page.get_by_role("link", name="notes.html")).to_be_visible()
    assert await page.locator("main img, main svg, main script").count() == 0


async def test_text_that_hides_or_turns_is_spelled_out(office: Office) -> None:
    program = await office.program()
    await ask(program, "pay \u202e001 to bob\u200b", context={"payload": {"to": "\u2066bob"}})
    page = await office.person()

    await expect(page.locator(".row a[data-row]")).to_have_text("pay ⟨U+202E⟩001 to bob⟨U+200B⟩")


@pytest.mark.parametrize("width", [360, 768, 1280])
async def test_no_page_is_wider_than_its_window(office: Office, width: int) -> None:
    program = await office.program()
    page = await office.person(viewport={"width": width, "height": 740})
    for name, path in (await every_page(program)).items():
        await page.goto(path)
        wider: int = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wider <= 0, name


async def test_a_phone_decides_with_targets_that_a_thumb_hits(office: Office) -> None:
    program = await office.program()
    await ask(program)
    page = await office.person(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    for target in await page.locator(".row button, .row a.button").all():
        box = await target.bounding_box()
        assert box is not None and box["height"] >= 24 and box["width"] >= 24
    await page.get_by_role("button", name="Approve: Deploy").tap()

    await expect(page.get_by_text("Nothing waits for you")).to_be_visible()


async def test_times_are_the_readers_and_the_theme_is_kept(office: Office) -> None:
    program = await office.program()
    approval_id = await ask(program)
    page = await office.person(timezone_id="Asia/Tokyo", color_scheme="light")
    await page.goto(f"/approvals/{approval_id}")
    asked = page.locator("time[data-local]").first
    at_utc = (await asked.get_attribute("datetime")) or ""
    await expect(asked).to_have_attribute("title", f"{await asked.text_content()} Asia/Tokyo")
    assert (await asked.text_content() or "")[11:13] == f"{(int(at_utc[11:13]) + 9) % 24:02}"
    await page.get_by_role("button", name="Switch between light and dark").click()
    await page.reload()

    await expect(page.locator("html")).to_have_attribute("data-theme", "dark")


async def test_signing_in_and_out_in_a_browser(office: Office) -> None:
    page = await office.person("ann")
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    await page.goto("/")
    await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    await page.get_by_label("API key").fill("hitl_wrong")
    await page.get_by_role("button", name="Sign in", exact=True).click()

    await expect(page.get_by_role("alert")).to_contain_text("unknown, expired or revoked")


async def test_the_pages_do_not_move_while_they_load(office: Office) -> None:
    program = await office.program()
    for n in range(5):
        await ask(program, f"Question {n}")
    page = await office.person()
    await page.add_init_script("""
        window.moved = 0;
        new PerformanceObserver((list) => {
          for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.moved += entry.value;
        }).observe({ type: "layout-shift", buffered: true });
    """)
    approval = await page.locator(".row a[data-row]").first.get_attribute("href") or ""
    run_id = await start(program, run_body(echo(), policy="require_human"))
    await at(program, run_id, "information_review")
    for path in ("/", approval, f"/runs/{run_id}", "/runs", "/operations"):
        await page.goto(path)
        await page.locator("html.live").wait_for(state="attached")
        moved: float = await page.evaluate("window.moved")
        assert moved < 0.01, path
