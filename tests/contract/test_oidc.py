"""Contract, section 1: bearer tokens of an OIDC provider, against one that really listens."""

import asyncio
import hashlib
import hmac
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import orjson
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from websockets.exceptions import InvalidStatus

from service import oidc
from service.domain.claims import principal_of
from service.domain.principal import Principal, Proof
from service.errors import HitlError, IssuerUnavailable, Unauthenticated
from service.oidc import Issuer
from tests.conftest import Stack, at, decide, echo, run_body, start, web
from tests.contract.issuer import AUDIENCE, StandIn, ed_key, forged, jwk_of, rsa_key, stand_in
from tests.following import socket, stream, told


@pytest_asyncio.fixture(loop_scope="session")
async def provider_of_tokens() -> AsyncIterator[StandIn]:
    async with stand_in() as issuer:
        yield issuer


@pytest_asyncio.fixture(loop_scope="session")
async def issuer(provider_of_tokens: StandIn) -> AsyncIterator[Issuer]:
    made = Issuer(provider_of_tokens.url, AUDIENCE, {})
    yield made
    await made.aclose()


async def refused(issuer: Issuer, token: str, error: type[HitlError] = Unauthenticated) -> None:
    with pytest.raises(error):
        await issuer.principal(token)


# Whose


async def test_a_good_token_says_who_of_which_tenant_in_which_role(issuer: Issuer, provider_of_tokens: StandIn) -> None:
    token = provider_of_tokens.token(tenant="acme", groups=["legal", "ops"], aud=["other", AUDIENCE])

    shown = Proof("oidc", provider_of_tokens.url)
    assert await issuer.principal(token) == Principal("ann", "acme", "reviewer", ("legal", "ops"), shown=shown)


@pytest.mark.parametrize(
    ("claims", "names", "expected"),
    [
        ({"sub": "a", "role": "admin"}, {}, Principal("a", "default", "admin")),
        ({"sub": "a", "role": "admin", "groups": "one"}, {}, Principal("a", "default", "admin", ("one",))),
        ({"email": "a@b.c", "r": "admin", "sub": "x"}, {"subject": "email", "role": "r"},
         Principal("a@b.c", "default", "admin")),
        ({"sub": "a", "realm": {"role": "service"}}, {"role": "realm.role"}, Principal("a", "default", "service")),
        ({"sub": "a", "https://x.y/role": "admin"}, {"role": "https://x.y/role"}, Principal("a", "default", "admin")),
        ({"sub": "a", "role": ["offline_access", "reviewer"]}, {}, Principal("a", "default", "reviewer")),
        ({"sub": "a", "role": "admin", "org": "acme"}, {"tenant": "org"}, Principal("a", "acme", "admin")),
        ({"sub": "a", "role": "admin"}, {"tenant": "org"}, None),
        ({"sub": "a", "role": "admin", "tenant": ""}, {}, None),
        ({"sub": "a", "role": "admin", "tenant": ["t"]}, {}, None),
        ({"sub": "a", "role": "owner"}, {}, None),
        ({"sub": "a", "role": "Admin"}, {}, None),
        ({"sub": "a", "role": None}, {}, None),
        ({"sub": "a", "role": {"admin": 1}}, {}, None),
        ({"sub": "a", "role": ["reviewer", "admin"]}, {}, None),
        ({"sub": "a"}, {}, None),
        ({"role": "admin"}, {}, None),
        ({"sub": "", "role": "admin"}, {}, None),
        ({"sub": 7, "role": "admin"}, {}, None),
        ({"sub": "a\x00b", "role": "admin"}, {}, None),
        ({"sub": "x" * 201, "role": "admin"}, {}, None),
        ({"sub": "system:timeout", "role": "admin"}, {}, None),
        ({"sub": "a", "role": "admin", "groups": {"g": 1}}, {}, None),
        ({"sub": "a", "role": "admin", "groups": ["g", 1]}, {}, None),
    ],
)  # fmt: skip
def test_claims_name_a_principal_or_nobody(claims: Any, names: Any, expected: Principal | None) -> None:
    if expected is not None:
        assert principal_of(claims, names) == expected
        return
    with pytest.raises(Unauthenticated):
        principal_of(claims, names)


# What is no token


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": None}, {"exp": 1}, {"exp": "soon"}, {"aud": "other"}, {"aud": None}, {"aud": []},
        {"iss": "http://127.0.0.1:1"}, {"iss": None}, {"role": "nobody"}, {"sub": None}, {"nbf": 2**40},
        {"iat": 2**40},
    ],
    ids=str,
)  # fmt: skip
async def test_a_claim_that_does_not_fit_lets_nobody_in(
    issuer: Issuer, provider_of_tokens: StandIn, changes: Any
) -> None:
    await refused(issuer, provider_of_tokens.token(**changes))
    assert await issuer.principal(provider_of_tokens.token())


async def test_a_token_that_is_over_for_longer_than_clocks_differ_is_refused(
    issuer: Issuer, provider_of_tokens: StandIn
) -> None:
    now = int(time.time())
    await refused(issuer, provider_of_tokens.token(exp=now - 10))
    assert await issuer.principal(provider_of_tokens.token(exp=now - 1))


async def test_the_key_says_which_algorithms_may_be_used(issuer: Issuer, provider_of_tokens: StandIn) -> None:
    there, rsa = provider_of_tokens, rsa_key()
    there.keys += [jwk_of(rsa, "rsa", alg="RS256"), jwk_of(rsa, "any"), jwk_of(rsa_key(1024), "weak")]
    there.keys += [jwk_of(ed := ed_key(), "ed"), {**jwk_of(rsa, "enc"), "use": "enc"}]
    there.keys += [jwk_of(p384 := ec.generate_private_key(ec.SECP384R1()), "p384")]
    there.keys += [{"kty": "oct", "k": "c2VjcmV0", "kid": "oct"}, {"kty": "RSA", "kid": "half"}, 7]

    for algorithm, key, kid in (
        ("RS256", rsa, "rsa"), ("PS256", rsa, "any"), ("RS512", rsa, "any"), ("EdDSA", ed, "ed"),
        ("ES384", p384, "p384"), ("ES256", there.signing, "one"),
    ):  # fmt: skip
        assert await issuer.principal(there.token(algorithm=algorithm, key=key, kid=kid))
    for algorithm, key, kid in (
        ("RS512", rsa, "rsa"), ("PS256", rsa, "rsa"), ("RS256", rsa, "enc"), ("RS256", rsa, "one"),
        ("ES256", there.signing, "rsa"), ("RS256", rsa, "half"),
    ):  # fmt: skip
        await refused(issuer, there.token(algorithm=algorithm, key=key, kid=kid))


async def test_neither_none_nor_a_public_key_as_a_shared_secret_is_a_signature(
    issuer: Issuer, provider_of_tokens: StandIn
) -> None:
    there = provider_of_tokens
    public = there.signing.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head = {"alg": "HS256", "kid": "one"}
    bare = forged(head, there.claims()).rpartition(".")[0]
    mac = hmac.digest(public, bare.encode(), hashlib.sha256)

    await refused(issuer, forged(head, there.claims(), mac))
    for header in (
        {"alg": "none"}, {"alg": "none", "kid": "one"}, {"alg": "None", "kid": "one"}, {"kid": "one"},
        {"alg": ["ES256"], "kid": "one"}, {"alg": "ES256", "kid": 1}, {"alg": "ES256", "kid": ["one"]},
        {"alg": "ES256", "kid": "one"}, {"alg": "ES256", "kid": "one", "crit": ["exp"]},
        {"alg": "ES256", "jwk": jwk_of(ed_key(), "x")}, {"alg": "ES256", "jku": "http://127.0.0.1/keys"},
    ):  # fmt: skip
        await refused(issuer, forged(header, there.claims()))
        await refused(issuer, forged(header, there.claims(), b""))


@pytest.mark.parametrize("token", ["..", "a.b.c", "e30.e30.", "eyJ.eyJ.x", "é.é.é", "[.[.[", "." + "[" * 99_999 + "."])
async def test_what_is_no_token_at_all_is_refused_without_asking_anybody(
    issuer: Issuer, provider_of_tokens: StandIn, token: str
) -> None:
    await refused(issuer, token)
    assert provider_of_tokens.seen["/keys"] == 0


async def test_a_changed_token_is_refused(issuer: Issuer, provider_of_tokens: StandIn) -> None:
    head, body, signature = provider_of_tokens.token().split(".")
    other = provider_of_tokens.token(role="admin").split(".")[1]

    await refused(issuer, f"{head}.{other}.{signature}")
    await refused(issuer, f"{head}.{body}.{signature[:-8]}AAAAAAAA")
    await refused(issuer, provider_of_tokens.token(key=ec.generate_private_key(ec.SECP256R1())))


async def test_without_a_name_the_key_must_be_the_only_one_it_can_be(
    issuer: Issuer, provider_of_tokens: StandIn
) -> None:
    assert await issuer.principal(provider_of_tokens.token(kid=None))
    provider_of_tokens.keys.append(jwk_of(ec.generate_private_key(ec.SECP256R1()), "two"))
    issuer._loaded_at = None
    await refused(issuer, provider_of_tokens.token(kid=None))


# Whose keys


async def test_keys_are_fetched_once_and_again_for_an_unknown_one_at_most_once_a_minute(
    issuer: Issuer, provider_of_tokens: StandIn
) -> None:
    there = provider_of_tokens
    await asyncio.gather(*(issuer.principal(there.token()) for _ in range(20)))
    assert there.seen["/keys"] == 1

    old = there.token()
    there.rotate("two")
    answers = await asyncio.gather(*(issuer.principal(there.token()) for _ in range(20)))
    assert {p.subject for p in answers} == {"ann"}
    await refused(issuer, old)
    there.rotate("three")
    for n in range(20):
        await refused(issuer, there.token(kid=f"guess-{n}"))
    await refused(issuer, there.token())
    assert there.seen["/keys"] == 2

    issuer._asked_again_at = time.monotonic() - oidc.AGAIN_S - 1
    assert await issuer.principal(there.token())
    assert there.seen["/keys"] == 3


async def test_a_key_that_the_provider_took_back_is_forgotten(issuer: Issuer, provider_of_tokens: StandIn) -> None:
    taken_back = provider_of_tokens.token()
    assert await issuer.principal(taken_back)
    provider_of_tokens.rotate("two")
    issuer._loaded_at = time.monotonic() - oidc.FRESH_S - 1

    await refused(issuer, taken_back)


async def test_a_provider_that_is_away_delays_newcomers_only(issuer: Issuer, provider_of_tokens: StandIn) -> None:
    there = provider_of_tokens
    there.broken = True
    for _ in range(5):
        await refused(issuer, there.token(), IssuerUnavailable)
    assert sum(there.seen.values()) == 1, "it is left alone for a while"
    there.broken = False
    issuer._failed_at = float("-inf")
    assert await issuer.principal(there.token())

    there.broken = True
    issuer._loaded_at = time.monotonic() - oidc.FRESH_S - 1
    assert await issuer.principal(there.token())
    await refused(issuer, there.token(kid="unknown"))


@pytest.mark.parametrize(
    "about",
    [{"issuer": "http://127.0.0.1:1"}, {"issuer": None}, {"jwks_uri": None}, {"jwks_uri": "http://example.com/keys"},
     {"jwks_uri": "file:///etc/passwd"}, {"jwks_uri": "/keys"}],
)  # fmt: skip
async def test_a_discovery_document_that_does_not_fit_gives_no_keys(
    issuer: Issuer, provider_of_tokens: StandIn, about: Any
) -> None:
    provider_of_tokens.about = about
    for _ in range(3):
        await refused(issuer, provider_of_tokens.token())
    assert provider_of_tokens.seen["/keys"] == 0


# Over real HTTP


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.mktemp("oidc")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def trusted() -> AsyncIterator[StandIn]:
    async with stand_in() as issuer:
        yield issuer


@pytest.fixture(scope="module")
def trusting(stack: Stack, trusted: StandIn, folder: Any) -> Iterator[str]:
    """The URL of a web process that takes this provider's tokens."""
    oidc_env = {
        "HITL_OIDC_ISSUER": trusted.url,
        "HITL_OIDC_AUDIENCE": AUDIENCE,
        "HITL_OIDC_CLAIMS": '{"subject": "sub", "role": "hitl.role", "groups": "hitl.groups"}',
    }
    with web({**stack.env, "HITL_AUTH": "required", **oidc_env}, folder, "trusting") as url:
        yield url


def bearing(url: str, token: str) -> Any:
    return httpx2.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=70, trust_env=False)


async def test_tokens_start_and_decide_as_their_roles_and_groups_allow(trusting: str, trusted: StandIn) -> None:
    def token(sub: str, role: str, *groups: str) -> str:
        return trusted.token(sub=sub, hitl={"role": role, "groups": list(groups)}, role=None)

    async with (
        bearing(trusting, token("sue", "submitter")) as sue,
        bearing(trusting, token("rob", "reviewer")) as rob,
        bearing(trusting, token("lea", "reviewer", "legal")) as lea,
        bearing(trusting, trusted.token(role="admin")) as nobody,
        bearing(trusting, token("sue", "submitter").replace(".", ".x", 1)) as forger,
    ):
        hitl = {"allowed_steps": ["payload_review"], "reviewers": {"groups": ["legal"]}}
        run_id = await start(sue, run_body(echo(), policy="require_human", **hitl))
        approval_id = (await at(sue, run_id, "payload_review"))["approval_id"]
        by_role = await decide(sue, approval_id, "approve")
        by_group = await decide(rob, approval_id, "approve")
        decided = await decide(lea, approval_id, "approve")
        events = (await rob.get(f"/hitl/runs/{run_id}/events")).json()["events"]
        unknown = [await client.get("/hitl/runs") for client in (nobody, forger)]

    assert (by_role.status_code, by_group.status_code, decided.status_code) == (403, 403, 200)
    assert by_group.json()["code"] == "not_a_reviewer"
    assert (events[0]["actor"], events[0]["type"]) == ("sue", "run.created")
    for answer in unknown:
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
        assert "www-authenticate" in answer.headers


async def test_what_is_open_ends_when_the_token_is_over(trusting: str, trusted: StandIn) -> None:
    def headers(lasts_s: int) -> dict[str, str]:
        token = trusted.token(hitl={"role": "reviewer"}, exp=int(time.time()) + lasts_s)
        return {"Authorization": f"Bearer {token}"}

    short = headers(3)
    async with bearing(trusting, short["Authorization"].removeprefix("Bearer ")) as client:
        ticket = (await client.post("/hitl/ws/ticket")).json()["ticket"]
        unused = (await client.post("/hitl/ws/ticket")).json()["ticket"]
        async with (
            socket(trusting, additional_headers=short) as by_header,
            socket(trusting, "hitl.v1", f"hitl.ticket.{ticket}") as by_ticket,
            socket(trusting, additional_headers=headers(300)) as other,
            stream(client, "/hitl/events", session_id="s") as line,
        ):
            assert (await by_header.ask("ping"))["type"] == "pong"
            assert (await by_ticket.ask("ping"))["type"] == "pong"
            assert [await by_header.ended(), await by_ticket.ended()] == [1008, 1008]
            assert await told(line) == []
            assert (await other.ask("ping"))["type"] == "pong"
    for late in (unused, ticket, f"{unused.partition('.')[0]}.{int(time.time()) + 300}", "x.y", "."):
        with pytest.raises(InvalidStatus) as refusal:
            async with socket(trusting, "hitl.v1", f"hitl.ticket.{late}"):
                pass
        assert refusal.value.response.status_code == 401


async def test_a_token_may_be_good_for_longer_than_there_are_years(issuer: Issuer, provider_of_tokens: StandIn) -> None:
    assert (await issuer.principal(provider_of_tokens.token(exp=10**30))).until is not None


async def test_neither_token_nor_claim_reaches_the_log(trusting: str, trusted: StandIn, folder: Any) -> None:
    canary = "canary-of-the-token"
    token = trusted.token(sub=canary, hitl={"role": "owner"})
    async with bearing(trusting, token) as client:
        answer = await client.get("/hitl/runs")

    assert answer.status_code == 401
    assert canary not in answer.text
    log = (folder / "trusting.log").read_text()
    assert canary not in log
    assert token.split(".")[2] not in log
    assert [line for line in log.splitlines() if orjson.loads(line)["event"] == "http.request"]
