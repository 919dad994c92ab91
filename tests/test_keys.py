"""API keys: shown once, kept as a keyed hash, refused the moment they are revoked or over."""

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest

from service.commands.keys import NewKey, authenticate, create_key, revoke_key
from service.domain.keyring import Keyring
from service.domain.principal import Principal
from service.errors import Forbidden, Invalid, NotFound, Unauthenticated
from service.runtime import Runtime
from service.store import keys
from service.store.database import EVERY
from tests.acting import begin, sql
from tests.conftest import echo

OLD, NEW = "o" * 32, "n" * 32


async def row(runtime: Runtime, key_id: object) -> keys.ApiKey:
    async with runtime.services.db.connection(EVERY) as conn:
        return next(key for key in await keys.all_keys(conn) if key.id == key_id)


async def test_a_key_is_256_bits_of_which_only_a_keyed_hash_and_a_few_letters_are_kept(empty: Runtime) -> None:
    services = empty.services
    made, secret = await create_key(services.db, services.keyring, NewKey("ci", "reviewer", groups=("a",)))
    other = (await create_key(services.db, services.keyring, NewKey("ci", "reviewer")))[1]

    assert len(secret) - len("hitl_") >= 256 / 6
    assert secret != other
    assert made.prefix is not None
    assert secret.startswith(made.prefix)
    assert len(secret) - len(made.prefix) >= 192 / 6, "what is shown leaves nothing to guess from"
    stored = await sql(empty, "select to_jsonb(k)::text from api_keys k where id = $1", made.id)
    assert secret not in str(stored)
    found = await authenticate(services.db, services.keyring, secret)
    assert found == Principal("ci", "default", "reviewer", ("a",), made.id)


async def test_a_key_outlives_one_change_of_the_secret_and_not_two(empty: Runtime) -> None:
    db = empty.services.db
    _, secret = await create_key(db, Keyring(OLD), NewKey("ci", "admin"))

    assert (await authenticate(db, Keyring(NEW, OLD), secret)).subject == "ci"
    for keyring in (Keyring(NEW), Keyring("x" * 32, NEW)):
        with pytest.raises(Unauthenticated):
            await authenticate(db, keyring, secret)


async def test_what_is_revoked_or_over_is_refused_by_the_next_request(empty: Runtime) -> None:
    services = empty.services
    revoked, first = await create_key(services.db, services.keyring, NewKey("a", "admin"))
    _, second = await create_key(services.db, services.keyring, NewKey("b", "admin", expires_in_s=3600))
    for secret in (first, second):
        assert await authenticate(services.db, services.keyring, secret)

    await revoke_key(services.db, revoked.id)
    await sql(empty, "update api_keys set expires_at = now() where name = 'b' returning true")

    for secret in (first, second, first[:-1], first.upper(), "", "hitl_"):
        with pytest.raises(Unauthenticated):
            await authenticate(services.db, services.keyring, secret)
    with pytest.raises(NotFound):
        await revoke_key(services.db, uuid4())


async def test_the_last_use_is_noted_at_most_once_a_minute_and_waits_for_nobody(empty: Runtime) -> None:
    services = empty.services
    made, secret = await create_key(services.db, services.keyring, NewKey("ci", "admin"))
    assert (await row(empty, made.id)).used_at is None

    async with services.db.transaction(EVERY) as conn:  # somebody is busy with the row
        await conn.execute("select from api_keys where id = $1 for update", made.id)
        async with asyncio.timeout(5):
            await authenticate(services.db, services.keyring, secret)
    assert (await row(empty, made.id)).used_at is None

    await asyncio.gather(*(authenticate(services.db, services.keyring, secret) for _ in range(8)))
    first = (await row(empty, made.id)).used_at
    assert first is not None
    await authenticate(services.db, services.keyring, secret)
    assert (await row(empty, made.id)).used_at == first
    await sql(empty, "update api_keys set used_at = $2 where id = $1", made.id, first - timedelta(minutes=1))
    await authenticate(services.db, services.keyring, secret)
    again = (await row(empty, made.id)).used_at
    assert again is not None
    assert again >= first


@pytest.mark.parametrize("subject", ["system:timeout", "provider:echo"])
async def test_nobody_bears_a_name_of_the_services_own(empty: Runtime, subject: str) -> None:
    services = empty.services
    for wanted in (NewKey("ci", "admin", subject=subject), NewKey(subject, "admin")):
        with pytest.raises(Invalid):
            await create_key(services.db, services.keyring, wanted)


async def test_a_use_case_asks_for_the_role_whatever_the_door(empty: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.acting.DEV", Principal("rob", "default", "reviewer"))
    with pytest.raises(Forbidden):
        await begin(empty, echo())
