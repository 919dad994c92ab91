"""An approval on its way between people: handed on, claimed and free again, escalated, paused and gone on."""

from typing import Any

from playwright.async_api import expect

from tests.conftest import at, behind, echo, run_body, start
from tests.console.conftest import Office, ask, row


async def reviewers(program: Any, approval_id: str) -> dict[str, Any]:
    found: dict[str, Any] = (await program.get(f"/hitl/approvals/{approval_id}")).json()["reviewers"]
    return found


async def test_a_person_hands_it_on_by_mouse_and_the_other_has_it_at_once(office: Office) -> None:
    program = await office.program()
    approval_id = await ask(program)
    ann, bob = await office.person("ann"), await office.person("bob")
    await ann.goto(f"/approvals/{approval_id}")
    await ann.get_by_text("Hand it on to others").click()
    await ann.get_by_label("Name", exact=True).fill("bob")
    await ann.get_by_label("Why optional").fill("he knows the harbour")
    await ann.get_by_role("button", name="Hand it on").click()

    await expect(ann.get_by_text("ann handed it on to bob")).to_contain_text("he knows the harbour")
    await expect(ann.locator(".note").first).to_contain_text("not one of the reviewers")
    await expect(ann.get_by_role("button", name="Approve")).to_have_count(0)
    assert await reviewers(program, approval_id) == {"users": ["bob"], "groups": [], "quorum": 1}
    await ann.goto("/")
    await expect(ann.get_by_text("Nothing waits for you")).to_be_visible()
    await row(bob, "Deploy").get_by_role("button", name="Approve").click()
    await expect(row(bob, "Deploy")).to_have_count(0)


async def test_a_person_hands_it_on_to_a_group_by_keyboard_alone(office: Office) -> None:
    program = await office.program()
    approval_id = await ask(program)
    lea = await office.person("lea", groups=("legal",))
    page = await office.person("ann")
    await page.goto(f"/approvals/{approval_id}")
    keys = page.keyboard
    await keys.press("d")
    await keys.press("Shift+Tab")
    await keys.press("ArrowDown")
    await expect(page.get_by_label("a group")).to_be_checked()
    await expect(page.get_by_label("Name", exact=True)).to_have_attribute("list", "known-groups")
    assert await page.locator("#known-groups option[value=legal]").count() == 1
    await keys.press("Tab")
    await keys.type("legal")
    await keys.press("Enter")

    await expect(page.get_by_text("ann handed it on to legal")).to_be_visible()
    await expect(row(lea, "Deploy")).to_be_visible()
    assert (await reviewers(program, approval_id))["groups"] == ["legal"]


async def test_a_hand_over_that_could_not_decide_is_refused_and_what_was_typed_stays(office: Office) -> None:
    program = await office.program()
    approval_id = await ask(program, reviewers={"quorum": 2})
    page = await office.person("ann")
    await page.goto(f"/approvals/{approval_id}")
    await page.get_by_text("Hand it on to others").click()
    await page.get_by_label("Name", exact=True).fill("bob")
    await page.get_by_label("Why optional").fill("a holiday")
    await page.get_by_role("button", name="Hand it on").click()

    await expect(page.get_by_role("alert").first).to_contain_text("one user cannot make up the quorum")
    await expect(page.get_by_label("Name", exact=True)).to_have_value("bob")
    await expect(page.get_by_label("Why optional")).to_have_value("a holiday")
    assert (await reviewers(program, approval_id))["users"] == []


async def test_who_may_not_decide_cannot_hand_on(office: Office) -> None:
    program = await office.program()
    approval_id = await ask(program, reviewers={"users": ["bob"]})
    page = await office.person("ann")
    await page.goto(f"/approvals/{approval_id}")
    await expect(page.get_by_text("Hand it on to others")).to_have_count(0)
    token = await page.locator("input[name=csrf]").first.get_attribute("value")
    form: dict[str, str | float | bool] = {"csrf": token or "", "to": "user", "name": "ann"}

    answer = await page.request.post(f"/approvals/{approval_id}/delegation", form=form)

    assert answer.status == 403
    assert (await reviewers(program, approval_id))["users"] == ["bob"]


async def test_a_claim_counts_down_and_its_end_frees_the_others_without_reload(office: Office) -> None:
    program = await office.program()
    approval_id = await ask(program)
    ann, bob, inbox = await office.person("ann"), await office.person("bob"), await office.person("cy")
    for page in (ann, bob):
        await page.goto(f"/approvals/{approval_id}")
    await bob.keyboard.press("c")
    await expect(bob.get_by_text("Nobody else can decide for")).to_contain_text("min")
    await expect(ann.locator(".note")).to_contain_text("bob has claimed it")
    await expect(ann.locator(".note")).to_contain_text("free again in")
    await expect(row(inbox, "Deploy").get_by_text("claimed by bob")).to_contain_text("min")
    async with behind(office.secured.services.db) as conn:
        await conn.execute(
            "update approvals set claimed_until = now() + interval '2 s' where id::text = $1", approval_id
        )

    await expect(ann.get_by_role("button", name="Approve")).to_be_enabled()
    await expect(row(inbox, "Deploy").get_by_text("claimed by bob")).to_have_count(0)
    await expect(bob.get_by_role("button", name="Claim for ten minutes")).to_be_visible()


async def test_what_nobody_answered_comes_to_others_and_says_so(office: Office) -> None:
    program = await office.program()
    page = await office.person("ann")
    run_id = await start(
        program,
        run_body(echo(), policy="require_human", allowed_steps=["payload_review"], timeout_seconds=1,
                 on_timeout="escalate", escalate_to={"users": ["ann"]}, reviewers={"users": ["bob"]},
                 checkpoints={}),
    )  # fmt: skip
    approval = await at(program, run_id, "payload_review")
    async with behind(office.secured.services.db) as conn:  # so that it stays long enough to be looked at
        await conn.execute("update approvals set timeout_s = 600 where id::text = $1", approval["approval_id"])

    await expect(row(page, "May this payload").get_by_text("escalated")).to_be_visible()
    await page.locator(".row a[data-row]").click()
    await expect(page.get_by_text("Nobody answered in time.")).to_contain_text("ann is asked since")
    await expect(page.get_by_text("then it is rejected")).to_be_visible()
    await page.get_by_role("button", name="Approve").click()
    await expect(page.get_by_text("Approved by ann")).to_be_visible()


async def test_a_paused_run_stops_clock_and_choice_and_gives_both_back(office: Office) -> None:
    program = await office.program()
    run_id = await start(program, run_body(echo(), policy="require_human", allowed_steps=["payload_review"]))
    approval = await at(program, run_id, "payload_review")
    page, inbox = await office.person("ann"), await office.person("bob")
    await page.goto(f"/approvals/{approval['approval_id']}")
    await program.post(f"/hitl/run/{run_id}/pause")

    await expect(page.get_by_text("The run is paused: it can be answered once it goes on")).to_be_visible()
    await expect(page.get_by_role("button", name="Approve")).to_have_count(0)
    await expect(row(inbox, "May this payload").locator(".when")).to_contain_text("the clock stands still with 23 h")
    await expect(row(inbox, "May this payload").get_by_role("button", name="Approve")).to_be_disabled()
    await program.post(f"/hitl/run/{run_id}/resume")
    await expect(page.get_by_role("button", name="Approve")).to_be_enabled()


async def test_ones_own_vote_is_shown_until_the_others_have_voted(office: Office) -> None:
    program = await office.program()
    approval_id = await ask(program, reviewers={"quorum": 2})
    page = await office.person("ann")
    await page.goto(f"/approvals/{approval_id}")
    await page.get_by_role("button", name="Approve").click()

    await expect(page.locator("#mine")).to_contain_text("1 of 2 votes are in")
