"""People decide in a real browser, by mouse and by keyboard, alone and against each other."""

import re
import time
from typing import Any

import pytest
from playwright.async_api import expect

from tests.conftest import at, behind, echo, run_body, settled, start
from tests.console.conftest import Office, ask, row

SCHEMA = {
    "type": "object",
    "properties": {
        "prompt": {"type": "string"},
        "num_outputs": {"type": "integer", "minimum": 1, "maximum": 4},
        "size": {"enum": ["small", "large"]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "frame": {"type": "object", "properties": {"width": {"type": "integer"}, "tiled": {"type": "boolean"}}},
    },
    "required": ["prompt"],
}
EXAMPLE = {"prompt": "s", "num_outputs": 1, "size": "small", "tags": [], "frame": {"width": 8, "tiled": False}}


async def under_review(office: Office, step: str = "payload_review", **hitl: Any) -> tuple[Any, str, dict[str, Any]]:
    """A run that waits at this step, its program and its approval."""
    program = await office.program()
    hitl = {"policy": "require_human", "allowed_steps": [step], **hitl}
    run_id = await start(program, run_body(echo(EXAMPLE, schema=SCHEMA), **hitl))
    return program, run_id, await at(program, run_id, step)


async def decided(program: Any, approval_id: str) -> dict[str, Any]:
    answer = await program.get(f"/hitl/approvals/{approval_id}", params={"wait": 20})
    found: dict[str, Any] = answer.json()
    return found


async def test_each_action_by_mouse(office: Office) -> None:
    program = await office.program()
    ids = {name: await ask(program, f"Question {name}") for name in ("approve", "reject")}
    page = await office.person()

    await row(page, "Question approve").get_by_role("button", name="Approve: ").click()
    await expect(row(page, "Question approve")).to_have_count(0)
    await row(page, "Question reject").get_by_role("link", name="Reject: ").click()
    await page.get_by_role("dialog").get_by_role("button", name="Reject").click()
    await page.get_by_role("dialog").get_by_label("Reason").fill("not on a friday")
    await page.get_by_role("dialog").get_by_role("button", name="Reject").click()
    await expect(page.get_by_text("Nothing waits for you")).to_be_visible()

    assert (await decided(program, ids["approve"]))["status"] == "approved"
    rejected = await decided(program, ids["reject"])
    assert rejected["status"] == "rejected"
    assert rejected["decisions"][0] | {"at": None} == {
        "actor": "ann", "action": "reject", "reason": "not on a friday", "edits": None, "channel": "console",
        "at": None,
    }  # fmt: skip


async def test_an_edit_and_a_retry_by_mouse(office: Office) -> None:
    program, run_id, approval = await under_review(office)
    page = await office.person()
    await page.goto(f"/approvals/{approval['approval_id']}")
    await page.get_by_label("Num outputs").fill("3")
    await page.get_by_label("Size").select_option(label="large")
    await page.get_by_label("Tags").fill("red\nfox")
    await page.get_by_label("Width").fill("16")
    await expect(page.get_by_text("4 changes, valid")).to_be_visible()
    await page.locator("form#change").get_by_role("button", name="See what changes").click()
    await expect(page.locator("#proposal .diff > li")).to_have_count(4)
    await page.get_by_role("button", name="Approve with these changes").click()
    await expect(page.get_by_text("Approved with changes by ann")).to_be_visible()

    edited = await decided(program, approval["approval_id"])
    assert edited["decisions"][0]["edits"] == {
        "num_outputs": 3, "size": "large", "tags": ["red", "fox"], "frame": {"width": 16},
    }  # fmt: skip
    run = await settled(program, run_id, "completed")
    assert run["payload"] | {"prompt": ""} == {
        "prompt": "", "num_outputs": 3, "size": "large", "tags": ["red", "fox"], "frame": {"width": 16, "tiled": False},
    }  # fmt: skip
    events = (await program.get(f"/hitl/runs/{run_id}/events")).json()["events"]
    (told,) = [event["data"] for event in events if event["type"] == "approval.decided"]
    assert told["channel"] == "console" and told["first_seen_at"], "the page was opened before it was decided"

    program, run_id, approval = await under_review(office, "response_review")
    await page.goto(f"/approvals/{approval['approval_id']}")
    await page.get_by_role("button", name="Try again").click()
    await expect(page.get_by_text("Tried again by ann")).to_be_visible()
    assert (await decided(program, approval["approval_id"]))["status"] == "retried"


async def test_each_action_by_keyboard_alone(office: Office) -> None:
    program = await office.program()
    names = ("first", "second", "third", "fourth")
    ids = [await ask(program, f"The {name}", timeout_seconds=1000 + n) for n, name in enumerate(names)]
    page = await office.person()
    keys = page.keyboard

    await keys.press("?")
    await expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    await keys.press("Escape")
    await keys.press("j")
    await keys.press("j")
    await keys.press("k")
    await keys.press("c")
    await expect(row(page, "The first").get_by_text("claimed by you")).to_be_visible()
    await keys.press("a")
    await expect(row(page, "The first")).to_have_count(0)
    await keys.press("r")
    await keys.type("no, never")
    await keys.press("Tab")
    await keys.press("Tab")
    await keys.press("Enter")
    await expect(row(page, "The second")).to_have_count(0)
    await keys.press("j")
    await keys.press("Enter")
    await page.wait_for_url("**/approvals/*")
    opened = page.url.rsplit("/", 1)[1]
    await keys.press("e")
    await expect(page.locator("form#change :focus")).to_have_count(1)
    await keys.press("Control+A")
    await keys.type("4.3")
    await expect(page.get_by_text("1 change, valid")).to_be_visible()
    await keys.press("Tab")
    await keys.press("Enter")
    await expect(page.get_by_role("heading", name="What will change")).to_be_visible()
    await page.get_by_role("button", name="Approve with these changes").focus()
    await keys.press("Enter")
    await expect(page.get_by_text("Approved with changes by ann")).to_be_visible()
    await keys.press("u")
    await page.get_by_role("heading", name="Inbox").wait_for()
    await keys.press("/")
    await expect(page.get_by_role("searchbox")).to_be_focused()

    statuses = [(await decided(program, ids[n]))["status"] for n in (0, 1)]
    assert statuses == ["approved", "rejected"]
    edited = await decided(program, opened)
    assert (edited["status"], edited["decisions"][0]["edits"]) == ("edited", {"version": "4.3"})


async def test_a_retry_by_keyboard_alone_and_no_key_decides_what_is_not_marked(office: Office) -> None:
    program, _, approval = await under_review(office, "response_review")
    page = await office.person()
    await page.keyboard.press("a")
    await expect(page.locator(".row.here a[data-row]")).to_be_focused()
    assert (await program.get(f"/hitl/approvals/{approval['approval_id']}")).json()["status"] == "pending"
    await page.keyboard.press("Enter")
    await page.wait_for_url("**/approvals/*")
    await page.keyboard.press("t")

    await expect(page.get_by_text("Tried again by ann")).to_be_visible()
    assert (await decided(program, approval["approval_id"]))["status"] == "retried"


async def test_an_edit_that_fails_validation_says_where_and_then_succeeds(office: Office) -> None:
    program, _, approval = await under_review(office)
    page = await office.person()
    await page.goto(f"/approvals/{approval['approval_id']}")
    outputs = page.get_by_label("Num outputs")
    await outputs.fill("9")
    await expect(page.locator("[data-fault='/num_outputs']")).to_contain_text("4")
    await page.locator("form#change").get_by_role("button", name="See what changes").click()
    await expect(page.locator("#problem")).to_contain_text("does not fit its schema")
    await expect(outputs).to_have_value("9")
    await expect(outputs).to_have_attribute("aria-invalid", "true")
    await outputs.fill("many")
    await page.locator("form#change").get_by_role("button", name="See what changes").click()
    await expect(page.locator("[data-fault='/num_outputs']")).to_contain_text("whole number")
    assert (await program.get(f"/hitl/approvals/{approval['approval_id']}")).json()["status"] == "pending"
    await outputs.fill("4")
    await page.locator("form#change").get_by_role("button", name="See what changes").click()
    await page.get_by_role("button", name="Approve with these changes").click()

    await expect(page.get_by_text("Approved with changes by ann")).to_be_visible()
    assert (await decided(program, approval["approval_id"]))["decisions"][0]["edits"] == {"num_outputs": 4}


async def test_an_edit_as_json_and_what_was_typed_is_not_approved_away(office: Office) -> None:
    program, _, approval = await under_review(office)
    page = await office.person()
    await page.goto(f"/approvals/{approval['approval_id']}")
    await page.get_by_label("Prompt").fill("two foxes")
    await page.get_by_role("button", name="Approve", exact=True).click()
    await expect(page.get_by_text("You have changed something")).to_be_visible()
    await page.get_by_label("Prompt").fill(approval["context"]["payload"]["prompt"])
    await page.get_by_text("As JSON", exact=True).click()
    await page.get_by_label("Payload as JSON").fill('{"prompt": "a fox", "num_outputs": 2, "new": {"a": [1, 2.5]}}')
    await page.locator("details form[data-change]").get_by_role("button").click()
    await page.get_by_role("button", name="Approve with these changes").click()

    await expect(page.get_by_text("Approved with changes by ann")).to_be_visible()
    edits = (await decided(program, approval["approval_id"]))["decisions"][0]["edits"]
    assert edits == {
        "prompt": "a fox",
        "num_outputs": 2,
        "new": {"a": [1, 2.5]},
        "size": None,
        "tags": None,
        "frame": None,
    }


async def test_the_output_is_edited_before_it_is_used(office: Office) -> None:
    program, run_id, approval = await under_review(office, "response_review")
    page = await office.person()
    await page.goto(f"/approvals/{approval['approval_id']}#change")
    await page.get_by_label("Output", exact=True).last.fill('{"kept": true}')
    await page.get_by_role("button", name="See what changes").click()
    await page.get_by_role("button", name="Approve with these changes").click()
    await expect(page.get_by_text("Approved with changes by ann")).to_be_visible()

    assert (await settled(program, run_id, "completed"))["result"] == {"kept": True}


async def test_two_race_for_one_approval_and_the_late_one_is_told_who_was_first(office: Office) -> None:
    program = await office.program()
    approval_id = await ask(program)
    ann, bob = await office.person("ann"), await office.person("bob")
    for page in (ann, bob):
        await page.route("**/live/**", lambda route: route.abort())  # neither hears of the other
        await page.goto(f"/approvals/{approval_id}")

    await ann.get_by_role("button", name="Approve").click()
    await expect(ann.get_by_text("Approved by ann")).to_be_visible()
    await bob.get_by_label("Reason").fill("no")
    await bob.get_by_role("button", name="Reject").click()

    await expect(bob.get_by_role("alert").first).to_contain_text("ann approved it at")
    assert len((await decided(program, approval_id))["decisions"]) == 1


async def test_the_inbox_follows_what_others_do(office: Office) -> None:
    program = await office.program()
    ann, bob = await office.person("ann"), await office.person("bob")
    await expect(ann.get_by_text("Nothing waits for you")).to_be_visible()

    await ask(program, "The new one")
    for page in (ann, bob):
        await expect(row(page, "The new one")).to_be_visible()
    await row(ann, "The new one").get_by_role("checkbox").check()
    await row(bob, "The new one").get_by_role("button", name="Claim").click()
    await expect(row(ann, "The new one").get_by_text("claimed by bob")).to_be_visible()
    await expect(row(ann, "The new one").get_by_role("checkbox")).to_be_checked()
    await expect(row(ann, "The new one").get_by_role("button", name="Approve")).to_be_disabled()
    await row(bob, "The new one").get_by_role("button", name="Approve").click()
    await expect(row(ann, "The new one")).to_have_count(0)


async def test_an_open_page_follows_the_decision_of_another_and_keeps_what_is_typed(office: Office) -> None:
    program = await office.program()
    approval_id = await ask(program, reviewers={"quorum": 2})
    ann, bob = await office.person("ann"), await office.person("bob")
    await ann.goto(f"/approvals/{approval_id}")
    await ann.get_by_label("Reason").fill("half a thought")

    await row(bob, "Deploy").get_by_role("button", name="Approve").click()

    await expect(ann.get_by_text("1 of 2")).to_be_visible()
    await expect(ann.get_by_label("Reason")).to_have_value("half a thought")
    await ann.get_by_role("button", name="Approve").click()
    await expect(ann.get_by_text("Approved by ann")).to_be_visible()


async def test_who_else_is_looking_is_seen_and_goes(office: Office) -> None:
    program = await office.program()
    approval_id = await ask(program)
    ann, bob = await office.person("ann"), await office.person("bob")
    await ann.goto(f"/approvals/{approval_id}")
    await bob.goto(f"/approvals/{approval_id}")

    await expect(ann.get_by_text("bob looks at it too")).to_be_visible()
    await expect(bob.get_by_text("ann looks at it too")).to_be_visible()
    await bob.goto("/")
    await expect(ann.get_by_text("bob looks at it too")).to_have_count(0)


async def test_a_countdown_that_ends_on_screen_ends_the_choice(office: Office) -> None:
    program = await office.program()
    approval_id = await ask(program, "Now or never", timeout_seconds=3600)
    page = await office.person()
    await page.clock.install()
    await page.goto(f"/approvals/{approval_id}")
    await expect(page.get_by_text("59 min")).to_be_visible()
    await expect(page.get_by_role("button", name="Approve")).to_be_enabled()

    await page.clock.fast_forward("01:00:01")

    await expect(page.get_by_text("time is out")).to_be_visible()
    await expect(page.get_by_role("button", name="Approve")).to_be_disabled()


async def test_what_expires_leaves_the_inbox_and_ends_its_page_while_people_look(office: Office) -> None:
    program = await office.program()
    page, inbox = await office.person("ann"), await office.person("bob")
    approval_id = await ask(program, "Now or never", timeout_seconds=8)
    await page.goto(f"/approvals/{approval_id}")
    await expect(page.locator("[data-until]").first).to_have_text(re.compile(r"\d s"))
    await expect(row(inbox, "Now or never")).to_be_visible()

    await expect(page.get_by_text("Expired").first).to_be_visible()
    await expect(page.get_by_role("button", name="Approve")).to_have_count(0)
    await expect(inbox.get_by_text("Nothing waits for you")).to_be_visible()
    assert (await decided(program, approval_id))["status"] == "expired"


async def test_what_happens_is_on_screen_within_a_second(office: Office) -> None:
    program = await office.program()
    page = await office.person("ann")
    bob = await office.secured.client("reviewer", tenant=office.tenant, subject="bob")

    async def seen_after(act: Any, there: Any, **state: Any) -> float:
        began = time.monotonic()
        await act
        await there.wait_for(**state)
        return time.monotonic() - began

    took: dict[str, list[float]] = {"new": [], "claimed": [], "decided": []}
    for n in range(3):
        one = page.locator(".row", has_text=f"Question {n}")
        took["new"].append(await seen_after(ask(program, f"Question {n}"), one))
        approval_id = await one.get_attribute("data-about")
        claim = bob.post(f"/hitl/approvals/{approval_id}/claim")
        took["claimed"].append(await seen_after(claim, one.get_by_text("claimed by bob")))
        answer = bob.post(f"/hitl/approvals/{approval_id}/decision", json={"action": "approve"})
        took["decided"].append(await seen_after(answer, one, state="detached"))

    assert {what: min(each) for what, each in took.items() if min(each) >= 1} == {}, "the machine may be slow once"


async def test_fifty_at_once_with_a_result_for_each(office: Office) -> None:
    program = await office.program()
    for n in range(50):
        await ask(program, f"Question {n}")
    page = await office.person()
    await expect(page.locator(".row")).to_have_count(50)
    await page.get_by_label("Select all 50").check()
    await expect(page.get_by_text("50 selected")).to_be_visible()
    await page.route("**/live/**", lambda route: route.abort())
    taken = (await page.locator(".row").first.get_attribute("data-about")) or ""
    bob = await office.secured.client("reviewer", tenant=office.tenant, subject="bob")
    await page.get_by_label("Reason for all").fill("all of them")
    held = await bob.post(f"/hitl/approvals/{taken}/claim")
    assert held.status_code == 200
    await page.get_by_role("button", name="Reject selected").click()

    await expect(page.get_by_role("heading", level=1)).to_have_text("49 of 50 decided")
    await expect(page.locator("tbody tr")).to_have_count(50)
    held_row = page.locator("tbody tr").filter(has=page.locator(f"a[href='/approvals/{taken}']"))
    await expect(held_row).to_contain_text("somebody else has claimed")
    left = (await program.get("/hitl/approvals/pending")).json()["approvals"]
    assert [one["approval_id"] for one in left] == [taken]


async def test_a_rejection_of_many_without_a_reason_loses_no_pick(office: Office) -> None:
    program = await office.program()
    for n in range(3):
        await ask(program, f"Question {n}")
    page = await office.person()
    await page.get_by_label("Select all 3").check()
    await page.get_by_role("button", name="Reject selected").click()
    await expect(page.get_by_text("A rejection needs a reason.")).to_be_visible()
    await expect(page.get_by_label("Reason for all")).to_be_focused()
    await expect(page.locator("input[name=pick]:checked")).to_have_count(3)
    await page.keyboard.type("not today")
    await page.get_by_role("button", name="Reject selected").click()

    await expect(page.get_by_role("heading", level=1)).to_have_text("3 of 3 decided")
    await expect(page.get_by_role("link", name="Question 2")).to_be_visible()


async def test_each_filter_narrows_to_what_it_names_and_chips_take_it_back(office: Office) -> None:
    program = await office.program()
    run = run_body(echo(), prompt="call 555 123 4567 at ann@example.com", policy="require_human",
                   allowed_steps=["payload_review"])  # fmt: skip
    await at(program, await start(program, run), "payload_review")
    await ask(program, "Of a session", session_id="s-7")
    await ask(program, "For sue", user_id="sue", checkpoint_type="refund")
    await ask(program, "For legal", reviewers={"groups": ["legal"]})
    old = await ask(program, "An old one")
    async with behind(office.secured.services.db) as conn:
        await conn.execute("update approvals set created_at = now() - interval '2 days' where id::text = $1", old)
    page = await office.person("lea", groups=("legal",))
    await expect(page.locator(".row")).to_have_count(5)
    for query, name in {
        "provider=echo": "May this payload", "reason=safety.": "May this payload", "session=s-7": "Of a session",
        "user=sue": "For sue", "checkpoint=refund": "For sue", "group=legal": "For legal", "age=1d": "An old one",
        "q=SUE": "For sue", f"q={old[-12:]}": "An old one",
    }.items():  # fmt: skip
        await page.goto(f"/?{query}")
        await expect(page.locator(".row")).to_have_count(1)
        await expect(row(page, name)).to_be_visible()
        await expect(page.locator("#count")).to_contain_text("1 open with these filters")
    await page.goto("/?user=sue&checkpoint=deploy")
    await expect(page.get_by_text("Nothing matches")).to_be_visible()
    await page.locator(".narrowing").get_by_role("link", name="Without: checkpoint deploy").click()
    await expect(row(page, "For sue")).to_be_visible()
    await page.locator("#kinds").get_by_role("link", name="refund").click()
    await expect(page).to_have_url(re.compile(r"\?checkpoint=refund&user=sue$"))


async def test_filters_stand_in_the_url_and_are_kept_as_views(office: Office) -> None:
    program = await office.program()
    await ask(program, "For sue", user_id="sue")
    await ask(program, "For tom", user_id="tom", session_id="s-9")
    page = await office.person()
    await page.get_by_text("Filters").click()
    await page.get_by_label("User").fill("tom")
    await page.get_by_role("button", name="Apply").click()
    await expect(page.locator(".row")).to_have_count(1)
    assert "user=tom" in page.url
    await page.get_by_label("Name of this view").fill("Tom's")
    await page.get_by_role("button", name="Keep").click()
    await page.goto("/")
    await expect(page.locator(".row")).to_have_count(2)
    await page.get_by_role("link", name="Tom's").click()
    await expect(page.locator(".row")).to_have_count(1)
    await page.get_by_role("button", name="Drop the view Tom's").click()
    await expect(page.get_by_role("link", name="Tom's")).to_have_count(0)
    await page.get_by_role("searchbox").fill("SUE")
    await page.get_by_role("button", name="Search").click()
    await expect(row(page, "For sue")).to_be_visible()
    await expect(page.locator(".row")).to_have_count(1)


async def test_only_what_this_person_may_decide_is_in_their_inbox(office: Office) -> None:
    program = await office.program()
    await ask(program, "For legal", reviewers={"groups": ["legal"]})
    await ask(program, "For ann", reviewers={"users": ["ann"]})
    await ask(program, "For all")
    ann, lea = await office.person("ann"), await office.person("lea", groups=("legal",))

    await expect(ann.locator(".row")).to_have_count(2)
    await expect(row(ann, "For ann")).to_be_visible()
    await expect(lea.locator(".row")).to_have_count(2)
    await expect(row(lea, "For legal")).to_be_visible()


async def test_it_works_without_script(office: Office) -> None:
    program, _, approval = await under_review(office)
    page = await office.person(java_script_enabled=False)
    await page.locator(".row a[data-row]").click()
    await page.get_by_label("Num outputs").fill("2")
    await page.locator("form#change").get_by_role("button", name="See what changes").click()
    await page.get_by_role("button", name="Approve with these changes").click()
    await expect(page.get_by_text("Approved with changes by ann")).to_be_visible()
    approval_id = await ask(program)
    await page.goto("/")
    await page.get_by_role("button", name="Approve: Deploy 4.2?").click()
    await expect(page.get_by_text("Nothing waits for you")).to_be_visible()

    assert (await decided(program, approval_id))["status"] == "approved"
    assert (await decided(program, approval["approval_id"]))["status"] == "edited"


@pytest.mark.parametrize(
    "path", ["/approvals/not-an-id", "/approvals/00000000-0000-7000-8000-000000000000", "/nowhere"]
)
async def test_what_is_not_there_is_said_in_a_page(office: Office, path: str) -> None:
    page = await office.person()
    answer = await page.goto(path)

    assert answer is not None and answer.status == 404
    await expect(page.get_by_role("heading", name="Not found")).to_be_visible()
