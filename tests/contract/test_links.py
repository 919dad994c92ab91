"""Contract, section 6: signed links. A person decides once on a page without a script, under all the same rules."""

import asyncio
import re
from collections import Counter
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest

from service.commands.keys import revoke_key
from service.domain.keyring import Keyring
from service.store.database import EVERY
from tests.conftest import WEB, Stack, at, decide, echo, free_port, process, run_body, settled, start, until_ready
from tests.contract.conftest import Secured

FORM = {"content-type": "application/x-www-form-urlencoded"}


class Page(HTMLParser):
    """What a person sees: the text, the fields of the form, and the answers that its buttons give."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.fields: dict[str, str] = {}
        self.answers: list[str] = []
        self.seen = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        given = dict(attrs)
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag in ("input", "textarea"):
            self.fields[given["name"]] = given.get("value", "")
        if tag == "button":
            self.answers.append(given["value"])

    def handle_data(self, data: str) -> None:
        self.seen += data


@dataclass
class Case:
    """An approval that waits, its admin, and one who has no key at all."""

    admin: httpx2.AsyncClient
    nobody: httpx2.AsyncClient
    approval: dict[str, Any]
    secured: Secured

    @property
    def approval_id(self) -> str:
        return str(self.approval["approval_id"])

    async def ask(self, reviewer: str = "ann", **more: Any) -> httpx2.Response:
        return await self.admin.post(f"/hitl/approvals/{self.approval_id}/link", json={"reviewer": reviewer, **more})

    async def link(self, reviewer: str = "ann", **more: Any) -> str:
        made = await self.ask(reviewer, **more)
        assert made.status_code == 200, made.text
        return str(made.json()["url"])

    async def nonce(self, url: str) -> str:
        return Page((await self.nobody.get(url)).text).fields["nonce"]

    async def answer(self, url: str, action: str = "approve", **more: str) -> httpx2.Response:
        """The form sent as a browser sends it."""
        form = {"action": action, "reason": "", "nonce": await self.nonce(url), **more}
        return await self.nobody.post(url, data=form)

    async def now(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.admin.get(f"/hitl/approvals/{self.approval_id}")).json()
        return found

    async def sql(self, statement: str, *args: Any) -> Any:
        async with self.secured.services.db.connection(EVERY) as conn:
            return await conn.fetchval(statement, UUID(self.approval_id), *args)


async def waiting(secured: Secured, step: str = "payload_review", tool: Any = None, **hitl: Any) -> Case:
    admin = await secured.client("admin")
    body = run_body(tool or echo(), policy="require_human", allowed_steps=[step], **hitl)
    return Case(admin, await secured.bearing(None), await at(admin, await start(admin, body), step), secured)


def is_page(answer: httpx2.Response, status: int) -> Page:
    """A page for a person, as strict as it can be."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "form-action 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert "script" not in policy
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    page = Page(answer.text)
    assert page.tags["script"] == page.tags["a"] == page.tags["img"] == page.tags["link"] == 0
    assert not [a for a in page.attributes if a[1].startswith("on") or a[1] in ("style", "src", "href")]
    assert 'name="viewport"' in answer.text
    return page


# Making one


async def test_a_link_decides_as_its_reviewer_over_its_own_channel(secured: Secured) -> None:
    case = await waiting(secured, reviewers={"users": ["ann"]})
    url = await case.link("ann")

    page = is_page(await case.nobody.get(url), 200)
    assert set(page.fields) == {"reason", "nonce"}
    assert page.answers == ["approve", "reject"]
    done = is_page(await case.answer(url, reason="looks fine"), 200)

    assert "approved" in done.seen
    decided = await case.now()
    assert decided["status"] == "approved"
    decision = decided["decisions"][0]
    assert (decision["actor"], decision["channel"], decision["reason"]) == ("ann", "link", "looks fine")
    assert (await settled(case.admin, case.approval["run_id"]))["status"] == "completed"
    events = (await case.admin.get(f"/hitl/runs/{case.approval['run_id']}/events")).json()["events"]
    decided_event = next(event for event in events if event["type"] == "approval.decided")
    assert (decided_event["actor"], decided_event["data"]["channel"]) == ("ann", "link")


async def test_whoever_may_not_decide_gets_no_link(secured: Secured) -> None:
    named = await waiting(secured, reviewers={"users": ["ann"], "allow_self_approval": False})
    banned = await waiting(secured, reviewers={"allow_self_approval": False})
    submitter = (await named.admin.get(f"/hitl/runs/{banned.approval['run_id']}")).json()["submitter"]

    assert (await named.ask("bob")).json()["code"] == "not_a_reviewer"
    assert (await banned.ask(submitter)).json()["code"] == "self_approval"
    only_submits = f"sub-{uuid4().hex[:6]}"
    await secured.key("submitter", subject=only_submits)
    assert (await banned.ask(only_submits)).status_code == 403
    for refused in (await named.ask("bob"), await banned.ask(submitter)):
        assert refused.status_code == 403
    assert (await named.ask("ann")).status_code == 200


async def test_a_group_is_what_the_reviewers_keys_say(secured: Secured) -> None:
    case = await waiting(secured, reviewers={"groups": ["legal"]})
    lea = f"lea-{uuid4().hex[:6]}"
    assert (await case.ask(lea)).json()["code"] == "not_a_reviewer"

    key_id, _ = await secured.key("reviewer", subject=lea, groups=("legal",))
    url = await case.link(lea)
    is_page(await case.nobody.get(url), 200)
    nonce = await case.nonce(url)

    await revoke_key(secured.services.db, key_id)
    is_page(await case.nobody.get(url), 403)
    is_page(await case.nobody.post(url, data={"action": "approve", "nonce": nonce}), 403)
    assert (await case.now())["status"] == "pending"


@pytest.mark.parametrize(
    "body",
    [None, {}, {"reviewer": ""}, {"reviewer": 1}, {"reviewer": "a\nb"}, {"reviewer": "system:timeout"},
     {"reviewer": "a", "expires_in_seconds": 0}, {"reviewer": "a", "expires_in_seconds": "9"},
     {"reviewer": "a", "expires": 9}],
)  # fmt: skip
async def test_a_link_that_cannot_be_meant_is_422(secured: Secured, body: Any) -> None:
    case = await waiting(secured)
    answer = await case.admin.post(f"/hitl/approvals/{case.approval_id}/link", json=body)
    assert (answer.status_code, bool(answer.json()["errors"])) == (422, True)


async def test_what_is_decided_or_unknown_has_no_link(secured: Secured) -> None:
    case = await waiting(secured)
    assert (await decide(case.admin, case.approval_id, "approve")).status_code == 200

    late = await case.ask()
    unknown = await case.admin.post(f"/hitl/approvals/{uuid4()}/link", json={"reviewer": "ann"})

    assert (late.status_code, late.json()["code"]) == (409, "approval_already_decided")
    assert late.json()["approval"]["status"] == "approved"
    assert unknown.status_code == 404


async def test_a_link_is_over_no_later_than_its_approval(secured: Secured) -> None:
    case = await waiting(secured, timeout_seconds=600)

    for asked_s, within in ((None, True), (60, False), (86_400, True)):
        made = (await case.ask(**({"expires_in_seconds": asked_s} if asked_s else {}))).json()
        assert (made["expires_at"] == case.approval["expires_at"]) is within
        assert made["expires_at"] <= case.approval["expires_at"]


# Opening it


async def test_opening_it_changes_nothing_however_often(secured: Secured) -> None:
    case = await waiting(secured)
    url = await case.link()
    before = await case.now()

    pages = await asyncio.gather(*(case.nobody.get(url) for _ in range(10)))
    head = await case.nobody.head(url)

    for page in pages:
        is_page(page, 200)
    assert (head.status_code, head.content) == (200, b"")
    assert len({page.text for page in pages}) == 1
    assert await case.now() == before
    assert (await case.nobody.request("PUT", url)).status_code == 405
    assert (await case.answer(url)).status_code == 200


async def test_the_page_says_why_what_until_when_and_what_silence_means(secured: Secured) -> None:
    case = await waiting(secured, "response_review", on_timeout="approve")
    page = is_page(await case.nobody.get(await case.link("ann")), 200)

    assert page.answers == ["approve", "retry", "reject"]
    until = case.approval["expires_at"][:19].replace("T", " ")
    for told in ("policy.require_human", "a red fox", "ann", until, "counts as approved", "Output", "/prompt"):
        assert told in page.seen, told

    for on_timeout, told in (("reject", "counts as rejected"), ("escalate", "zoe")):
        other = await waiting(secured, on_timeout=on_timeout, escalate_to={"users": ["zoe"]})
        assert told in is_page(await other.nobody.get(await other.link("ann")), 200).seen


async def test_what_a_stranger_wrote_is_text_and_hides_nothing(secured: Secured) -> None:
    admin = await secured.client("admin")
    evil = '</pre><script>alert(1)</script><img src=x onerror="x">&amp;\u202etxt.exe\u200b'
    context = {"payload": {evil: evil, "deep": [{"a": evil}]}, "form": evil, "diff": evil, evil: {"x": evil}}
    asked = await admin.post(
        "/hitl/approvals", json={"checkpoint_type": evil[:90], "message": evil, "context": context, "user_id": "u"}
    )
    assert asked.status_code == 201, asked.text
    case = Case(admin, await secured.bearing(None), asked.json(), secured)

    answer = await case.nobody.get(await case.link("<b>ann</b>"))

    page = is_page(answer, 200)
    assert page.seen.count("</pre><script>alert(1)</script>") >= 7
    assert "&amp;amp;" in answer.text
    assert "\u202e" not in answer.text
    assert "⟨U+202E⟩" in page.seen
    assert "⟨U+200B⟩" in page.seen


async def test_a_link_that_nobody_made_is_a_page_that_says_so(secured: Secured) -> None:
    client = await secured.bearing(None)
    for token in ("x", "A" * 43, "a" * 5000, "%00", "%ff"):
        answer = await client.get(f"/hitl/links/{token}")
        assert answer.status_code == 404
    is_page(await client.get("/hitl/links/unknown"), 404)
    is_page(await client.post("/hitl/links/unknown", data={"action": "approve", "nonce": "x"}), 404)


# Deciding by it


async def test_of_many_answers_by_one_link_one_is_taken(secured: Secured) -> None:
    case = await waiting(secured)
    url = await case.link()
    nonce = await case.nonce(url)

    answers = await asyncio.gather(
        *(case.nobody.post(url, data={"action": "approve", "nonce": nonce}) for _ in range(8))
    )

    assert Counter(answer.status_code for answer in answers) == {200: 1, 409: 7}
    assert len((await case.now())["decisions"]) == 1
    again = is_page(await case.nobody.post(url, data={"action": "approve", "nonce": nonce}), 409)
    assert "used" in again.seen
    assert "form" not in is_page(await case.nobody.get(url), 200).tags


async def test_of_two_links_of_two_reviewers_one_wins(secured: Secured) -> None:
    case = await waiting(secured)
    urls = [await case.link("ann"), await case.link("bob")]

    answers = await asyncio.gather(*(case.answer(url) for url in urls))

    assert sorted(answer.status_code for answer in answers) == [200, 409]
    loser = next(answer for answer in answers if answer.status_code == 409)
    is_page(loser, 409)


async def test_a_quorum_counts_links_like_everything_else(secured: Secured) -> None:
    case = await waiting(secured, reviewers={"quorum": 2})
    first, again, second = await case.link("ann"), await case.link("ann"), await case.link("bob")

    assert "more reviewers" in is_page(await case.answer(first), 200).seen
    assert (await case.now())["status"] == "pending"
    assert "2, so far 1" in is_page(await case.nobody.get(second), 200).seen
    assert (await case.answer(again, reason="once more")).status_code == 409
    assert "approved" in is_page(await case.answer(second), 200).seen
    assert [d["actor"] for d in (await case.now())["decisions"]] == ["ann", "bob"]


async def test_a_refused_answer_leaves_link_and_approval_as_they_were(secured: Secured) -> None:
    case = await waiting(secured)
    url = await case.link()

    page = is_page(await case.answer(url, "reject", reason="  "), 422)
    assert "needs a reason" in page.seen
    assert page.answers == ["approve", "reject"]
    for form in ({"action": "edit"}, {"action": "maybe"}, {"action": ""}, {"reason": "x" * 10_001}, {"more": "x"}):
        is_page(await case.answer(url, **form), 422)  # type: ignore[arg-type]
    is_page(await case.answer(url, reason="a\x00b"), 422)
    assert (await case.now())["status"] == "pending"
    assert (await case.answer(url, "reject", reason="no")).status_code == 200
    assert (await case.now())["status"] == "rejected"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "file://", ""])
async def test_a_form_from_elsewhere_is_refused(secured: Secured, origin: str) -> None:
    case = await waiting(secured)
    url = await case.link()
    form = {"action": "approve", "nonce": await case.nonce(url)}

    is_page(await case.nobody.post(url, data=form, headers={"Origin": origin}), 403)
    assert (await case.now())["status"] == "pending"
    headers = {"Origin": "null", "Sec-Fetch-Site": "cross-site"}
    is_page(await case.nobody.post(url, data=form, headers=headers), 403)
    assert (await case.nobody.post(url, data=form, headers={"Origin": secured.url})).status_code == 200


async def test_a_browser_that_names_no_origin_may_say_that_it_is_ours(secured: Secured) -> None:
    case = await waiting(secured)
    url = await case.link()
    form = {"action": "approve", "nonce": await case.nonce(url)}
    headers = {"Origin": "null", "Sec-Fetch-Site": "same-origin"}

    assert (await case.nobody.post(url, data=form, headers=headers)).status_code == 200


async def test_a_form_without_this_links_own_nonce_is_refused(secured: Secured) -> None:
    case = await waiting(secured)
    url, other = await case.link(), await case.link()

    for nonce in ("", "x", "é", await case.nonce(other)):
        is_page(await case.answer(url, nonce=nonce), 403)
    is_page(await case.nobody.post(url, data={"action": "approve"}), 403)
    assert (await case.now())["status"] == "pending"


async def test_what_is_no_form_is_refused(secured: Secured) -> None:
    case = await waiting(secured)
    url = await case.link()
    nonce = await case.nonce(url)

    is_page(await case.nobody.post(url, json={"action": "approve", "nonce": nonce}), 415)
    is_page(await case.nobody.post(url), 415)
    is_page(await case.nobody.post(url, content=b"reason=" + b"x" * 2**20, headers=FORM), 413)
    for raw in (b"action=approve&action=reject&nonce=" + nonce.encode(), b"\xff", b"reason=%ff", b"a=1&" * 50):
        is_page(await case.nobody.post(url, content=raw, headers=FORM), 422)
    assert (await case.now())["status"] == "pending"


async def test_what_is_over_is_410(secured: Secured) -> None:
    case = await waiting(secured)
    url, other = await case.link(), await case.link()
    nonces = [await case.nonce(url), await case.nonce(other)]

    await case.sql("update links set expires_at = now() - interval '1 second' where approval_id = $1 returning 1")
    is_page(await case.nobody.get(url), 410)
    is_page(await case.nobody.post(url, data={"action": "approve", "nonce": nonces[0]}), 410)
    assert (await case.now())["status"] == "pending"

    await case.sql("update links set expires_at = now() + interval '1 day' where approval_id = $1 returning 1")
    await case.sql("update approvals set expires_at = now() - interval '1 second' where id = $1 returning 1")
    is_page(await case.nobody.post(other, data={"action": "approve", "nonce": nonces[1]}), 410)


async def test_a_link_is_for_the_payload_that_it_was_made_for(secured: Secured) -> None:
    case = await waiting(secured, reviewers={"quorum": 2})
    url = await case.link("ann")
    nonce = await case.nonce(url)
    bob = await secured.client("reviewer", subject="bob-who-edits")
    assert (await decide(bob, case.approval_id, "edit", edits={"num_outputs": 3})).status_code == 200

    is_page(await case.nobody.get(url), 409)
    is_page(await case.nobody.post(url, data={"action": "approve", "nonce": nonce}), 409)
    assert (await case.now())["status"] == "pending"
    assert (await case.answer(await case.link("ann"))).status_code == 200
    assert (await case.now())["status"] == "edited"


async def test_a_link_ends_with_its_approval_and_follows_its_reviewers(secured: Secured) -> None:
    cancelled, handed_on, claimed, paused = [await waiting(secured) for _ in range(4)]
    urls = [await case.link("ann") for case in (cancelled, handed_on, claimed, paused)]
    nonces = [await cancelled.nonce(url) for url in urls]
    bob = await secured.client("reviewer", subject="bob-who-claims")

    await cancelled.admin.delete(f"/hitl/run/{cancelled.approval['run_id']}")
    delegate = f"/hitl/approvals/{handed_on.approval_id}/delegate"
    assert (await handed_on.admin.post(delegate, json={"user": "zoe"})).status_code == 200
    assert (await bob.post(f"/hitl/approvals/{claimed.approval_id}/claim")).status_code == 200
    assert (await paused.admin.post(f"/hitl/run/{paused.approval['run_id']}/pause")).status_code == 200

    for url, nonce, shown, answered in zip(urls, nonces, (200, 403, 200, 200), (409, 403, 409, 409), strict=True):
        assert "form" not in is_page(await cancelled.nobody.get(url), shown).tags
        is_page(await cancelled.nobody.post(url, data={"action": "approve", "nonce": nonce}), answered)
    assert [(await case.now())["decisions"] for case in (handed_on, claimed, paused)] == [[], [], []]


async def test_an_outcome_that_nobody_knows_is_not_waved_through_by_a_link(secured: Secured) -> None:
    case = await waiting(secured)
    await case.sql("update approvals set checkpoint_type = 'outcome_unknown' where id = $1 returning 1")
    url = await case.link()

    assert is_page(await case.nobody.get(url), 200).answers == ["retry", "reject"]
    is_page(await case.answer(url, "approve"), 422)


# Secrets


async def test_a_link_outlives_one_change_of_the_secret(secured: Secured, stack: Stack, tmp_path: Path) -> None:
    case = await waiting(secured)
    first, second = await case.link("ann"), await case.link("bob")
    old, port = stack.env["HITL_SECRET_KEY"], free_port()
    log = tmp_path / "log"
    for previous, status in ((old, 200), ("z" * 32, 404)):
        env = {
            **stack.env, "HITL_AUTH": "required", "HITL_PORT": str(port), "HITL_SECRET_KEY": "n" * 32,
            "HITL_SECRET_KEY_PREVIOUS": previous,
        }  # fmt: skip
        here = f"http://127.0.0.1:{port}"
        with process(*WEB, "--port", str(port), env=env, log=log) as child:
            until_ready(here, child, log)
            page = await case.nobody.get(here + httpx2.URL(first if status == 200 else second).path)
            is_page(page, status)
            if status == 200:
                form = {"action": "reject", "reason": "no", "nonce": Page(page.text).fields["nonce"]}
                decided = await case.nobody.post(here + httpx2.URL(first).path, data=form)
                assert decided.status_code == 200


async def test_neither_the_link_nor_what_it_shows_is_kept_in_the_clear_or_logged(
    secured: Secured, stack: Stack, tmp_path: Path
) -> None:
    case = await waiting(secured)
    url = await case.link("canary-reviewer")
    path = httpx2.URL(url).path
    token = path.rpartition("/")[2]
    port, log = free_port(), tmp_path / "log"
    env = {**stack.env, "HITL_AUTH": "required", "HITL_PORT": str(port)}
    bare = ("uvicorn", "--factory", "service.app:create_app")  # with the access log that is uvicorn's default

    with process(*bare, "--port", str(port), env=env, log=log) as child:
        here = f"http://127.0.0.1:{port}"
        until_ready(here, child, log)
        page = Page((await case.nobody.get(here + path)).text)
        form = {"action": "reject", "reason": "canary-reason", "nonce": page.fields["nonce"]}
        assert (await case.nobody.post(here + path, data=form)).status_code == 200

    lines = log.read_text()
    assert '"route": "/hitl/links/{token}"' in lines
    for secret in (token, page.fields["nonce"], "canary-reason", "a red fox"):
        assert secret not in lines
        assert secret not in (stack.folder / "secured.log").read_text()
    kept = await case.sql("select string_agg(to_jsonb(l)::text, '') from links l where approval_id = $1")
    assert token not in kept
    assert len(token) >= 43
    assert re.fullmatch(r"[A-Za-z0-9_-]+", token)


def test_a_nonce_is_for_one_link_and_survives_one_change_of_the_secret() -> None:
    nonce = Keyring("o" * 32).sign("link-nonce", "token")
    assert Keyring("n" * 32, "o" * 32).verify("link-nonce", "token", nonce)
    assert not Keyring("n" * 32).verify("link-nonce", "token", nonce)
    assert not Keyring("o" * 32).verify("callback", "token", nonce)
    assert not Keyring("o" * 32).verify("link-nonce", "other", nonce)
