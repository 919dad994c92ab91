"""Signing in and out: sessions end when they must, and forms are taken from nowhere else."""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
import pytest_asyncio

from service.commands.keys import revoke_key
from service.store.database import EVERY
from tests.conftest import Stack, eventually, web
from tests.console.conftest import csrf, new_tenant, sign_in
from tests.console.issuer import CLIENT, SECRET, SignsIn, signing_in
from tests.contract.conftest import Secured
from tests.contract.issuer import AUDIENCE

Make = Callable[..., Any]


async def test_a_key_signs_in_and_is_kept_nowhere(secured: Secured, browserless: Make) -> None:
    _, key = await secured.key("reviewer", tenant=new_tenant(), subject="ann")
    person = await browserless()

    refused = await person.get("/?checkpoint=x")
    answer = await sign_in(person, key, next="/?checkpoint=x")
    inbox = await person.get(answer.headers["location"])

    assert (refused.status_code, refused.headers["location"]) == (303, "/signin?next=%2F%3Fcheckpoint%3Dx")
    assert (answer.status_code, answer.headers["location"]) == (303, "/?checkpoint=x")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "hitl_session=" in cookie
    assert inbox.status_code == 200 and "ann" in inbox.text
    async with secured.services.db.connection(EVERY) as conn:
        rows = await conn.fetch("select * from console_sessions")
    assert person.cookies["hitl_session"] not in repr(rows) and key not in repr(rows)


@pytest.mark.parametrize("key", ["", "hitl_wrong", "a.b.c"])
async def test_a_bad_key_is_refused_in_words(browserless: Make, key: str) -> None:
    answer = await sign_in(await browserless(), key)

    assert answer.status_code == 401
    assert 'role="alert"' in answer.text
    assert "hitl_session" not in answer.headers.get("set-cookie", "")


async def test_signing_out_ends_the_session_for_whoever_has_its_cookie(secured: Secured, browserless: Make) -> None:
    _, key = await secured.key("reviewer", tenant=new_tenant())
    person, thief = await browserless(), await browserless()
    await sign_in(person, key)
    thief.cookies.set("hitl_session", person.cookies["hitl_session"], domain="127.0.0.1")
    assert (await thief.get("/")).status_code == 200

    out = await person.post("/signout", data={"csrf": csrf(await person.get("/"))})

    assert (out.status_code, out.headers["location"]) == (303, "/signin")
    assert (await person.get("/")).status_code == 303
    assert (await thief.get("/")).status_code == 303


async def test_a_session_ends_with_its_key(secured: Secured, browserless: Make) -> None:
    key_id, key = await secured.key("reviewer", tenant=new_tenant())
    person = await browserless()
    await sign_in(person, key)

    async with person.stream("GET", "/live/inbox") as news:
        assert news.status_code == 200
        await revoke_key(secured.services.db, key_id)
        told = "".join([piece async for piece in news.aiter_text()])

    assert "event: gone" in told
    assert (await person.get("/")).status_code == 303


async def test_a_form_needs_its_token_and_its_origin(secured: Secured, browserless: Make) -> None:
    _, key = await secured.key("reviewer", tenant=new_tenant())
    person, other = await browserless(), await browserless()
    await sign_in(person, key)
    await sign_in(other, key)
    good = csrf(await person.get("/"))

    async def tried(token: str, **headers: str) -> int:
        answer = await person.post("/views", data={"csrf": token, "name": "v"}, headers=headers)
        return int(answer.status_code)

    assert await tried("") == 403
    assert await tried(csrf(await other.get("/"))) == 403
    assert await tried(good, Origin="https://evil.example") == 403
    assert await tried(good, Origin="null") == 403
    assert await tried(good, Origin=secured.url) == 303
    assert await tried(good) == 303
    assert (await person.post("/views", json={"csrf": good})).status_code == 415
    bare = await browserless()
    assert (await bare.post("/signin", data={"key": key})).status_code == 403


@pytest.mark.parametrize(
    "where", ["//evil.example", "/\\evil.example", "https://evil.example", "javascript:alert(1)", "x"]
)
async def test_signing_in_leads_nowhere_else(secured: Secured, browserless: Make, where: str) -> None:
    _, key = await secured.key("reviewer", tenant=new_tenant())

    assert (await sign_in(await browserless(), key, next=where)).headers["location"] == "/"


async def test_no_page_runs_or_loads_what_is_not_ours(secured: Secured, browserless: Make) -> None:
    person = await browserless()
    page = await person.get("/signin")

    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert "<style" not in page.text and "style=" not in page.text and "onclick" not in page.text
    assert page.headers["cache-control"] == "no-store"
    styles = page.text.split('rel="stylesheet" href="')[1].split('"')[0]
    sheet = await person.get(styles)
    assert "immutable" in sheet.headers["cache-control"] and sheet.headers["content-type"].startswith("text/css")
    assert (await person.get("/static/console.000000000000.css")).status_code == 404


async def test_over_tls_the_cookie_is_of_this_host_only(
    stack: Stack, secured: Secured, browserless: Make, tmp_path: Path
) -> None:
    env = {**stack.env, "HITL_AUTH": "required", "HITL_PUBLIC_URL": "https://hitl.example"}
    _, key = await secured.key("reviewer", tenant=new_tenant())
    with web(env, tmp_path) as url:
        page = await (await browserless(url)).get("/signin")
        started = page.headers["set-cookie"].split(";")[0]
        answer = await (await browserless(url)).post(
            "/signin", data={"csrf": csrf(page), "key": key}, headers={"Cookie": started}
        )

    assert answer.status_code == 303
    cookie = next(c for c in answer.headers.get_list("set-cookie") if "session" in c)
    assert cookie.startswith("__Host-hitl_session=") and "Secure" in cookie and "Domain" not in cookie


async def test_without_authentication_everybody_is_dev(client: httpx2.AsyncClient) -> None:
    page = await client.get("/")

    assert page.status_code == 200
    assert "Sign out" not in page.text
    assert (await client.post("/views", data={"name": "v"})).status_code == 403


# At the provider


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def provider_of_people() -> AsyncIterator[SignsIn]:
    async with signing_in() as issuer:
        yield issuer


@pytest.fixture(scope="module")
def organised(stack: Stack, provider_of_people: SignsIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    oidc = {
        "HITL_OIDC_ISSUER": provider_of_people.url,
        "HITL_OIDC_AUDIENCE": AUDIENCE,
        "HITL_OIDC_CLIENT_ID": CLIENT,
        "HITL_OIDC_CLIENT_SECRET": SECRET,
    }
    with web({**stack.env, "HITL_AUTH": "required", **oidc}, tmp_path_factory.mktemp("organised")) as url:
        yield url


async def there_and_back(person: httpx2.AsyncClient, where: str = "/") -> httpx2.Response:
    """The person's way over the provider, one redirect after the other."""
    out = await person.get("/signin/provider", params={"next": where})
    assert out.status_code == 303, out.text
    async with httpx2.AsyncClient(trust_env=False) as browser:
        back = (await browser.get(out.headers["location"])).headers["location"]
    return await person.get(back)


async def test_the_provider_signs_people_in(organised: str, provider_of_people: SignsIn, browserless: Make) -> None:
    provider_of_people.who = {"sub": "lea", "role": "reviewer", "tenant": new_tenant(), "groups": ["legal"]}
    person = await browserless(organised)
    assert "Sign in with your organisation" in (await person.get("/signin")).text

    answer = await there_and_back(person, "/?age=1h")

    assert (answer.status_code, answer.headers["location"]) == (303, "/?age=1h")
    assert "lea" in (await person.get("/")).text
    assert provider_of_people.redeemed[-1]["redirect_uri"] == f"{organised}/signin/callback"


async def test_a_session_of_the_provider_ends_with_its_token(
    organised: str, provider_of_people: SignsIn, browserless: Make
) -> None:
    provider_of_people.changes = {"exp": int(time.time()) + 2}
    person = await browserless(organised)
    await there_and_back(person)
    assert (await person.get("/")).status_code == 200
    kept = person.cookies["hitl_session"]

    async def over() -> bool:
        answer = await person.get("/", headers={"Cookie": f"hitl_session={kept}"})
        return bool(answer.status_code == 303)

    await eventually(over)


@pytest.mark.parametrize(
    "changes", [{"nonce": "another"}, {"aud": AUDIENCE}, {"iss": "http://127.0.0.1:1"}, {"role": "owner"}, {"exp": 1},
                {"azp": "another"}]
)  # fmt: skip
async def test_a_token_that_is_not_of_this_sign_in_opens_nothing(
    organised: str, provider_of_people: SignsIn, browserless: Make, changes: dict[str, Any]
) -> None:
    provider_of_people.changes = changes

    answer = await there_and_back(await browserless(organised))

    assert answer.status_code == 401
    assert "hitl_session=" not in str(answer.headers.get_list("set-cookie"))


async def test_a_code_of_another_browser_opens_nothing(
    organised: str, provider_of_people: SignsIn, browserless: Make
) -> None:
    victim, attacker = await browserless(organised), await browserless(organised)
    out = await attacker.get("/signin/provider")
    async with httpx2.AsyncClient(trust_env=False) as browser:
        back = (await browser.get(out.headers["location"])).headers["location"]
    await victim.get("/signin/provider")

    assert (await victim.get(back)).status_code == 401
    query = {name: values[0] for name, values in parse_qs(urlsplit(back).query).items()}
    assert (await attacker.get("/signin/callback", params={**query, "iss": "https://evil.example"})).status_code == 401
    assert (await attacker.get("/signin/callback", params={**query, "code": "guessed"})).status_code == 401


async def test_whom_the_provider_does_not_let_in_may_try_again(
    organised: str, provider_of_people: SignsIn, browserless: Make
) -> None:
    provider_of_people.denies = True
    answer = await there_and_back(await browserless(organised))
    provider_of_people.denies = False

    assert answer.status_code == 401
    assert "Sign in with your organisation" in answer.text
