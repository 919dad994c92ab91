"""Use cases of API keys: create, revoke, authenticate."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from service.domain.ids import uuid7
from service.domain.keyring import Keyring, new_api_key
from service.domain.principal import Principal, Role, reserved
from service.errors import Invalid, NotFound, Unauthenticated
from service.store import keys
from service.store.database import EVERY, Database

SHOWN: Final = 13  # characters of a key that a list shows: enough to tell keys apart, nothing to guess from
USE_NOTED_EVERY: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class NewKey:
    name: str
    role: Role
    tenant: str = "default"
    subject: str | None = None
    groups: tuple[str, ...] = ()
    expires_in_s: int | None = None


async def create_key(db: Database, keyring: Keyring, wanted: NewKey) -> tuple[keys.ApiKey, str]:
    """The key's row, and the key itself, which is never to be had again. Raises `Invalid`."""
    subject = wanted.subject or wanted.name
    if reserved(subject):
        message = "names that begin with system: or provider: are the service's own"
        raise Invalid("the subject is not valid", errors=[{"pointer": "/subject", "message": message}])
    secret = new_api_key()
    async with db.transaction(wanted.tenant) as conn:
        now = db.now()
        row = keys.ApiKey(
            uuid7(), wanted.tenant, wanted.name, wanted.role, subject, wanted.groups, now,
            now + timedelta(seconds=wanted.expires_in_s) if wanted.expires_in_s else None, None, None,
            secret[:SHOWN],
        )  # fmt: skip
        await keys.insert(conn, row, keyring.key_hashes(secret)[0])
    return row, secret


async def revoke_key(db: Database, key_id: UUID) -> None:
    """Raises `NotFound`. The key is refused from the commit on: each request looks it up."""
    async with db.transaction(EVERY) as conn:
        if not await keys.revoke(conn, key_id):
            raise NotFound("no such key")


async def authenticate(db: Database, keyring: Keyring, api_key: str) -> Principal:
    """Raises `Unauthenticated` for a key that is unknown, expired or revoked. Nothing is remembered in between:
    what is revoked or over is refused at once, by every process."""
    async with db.connection(EVERY) as conn:
        found = await keys.find(conn, keyring.key_hashes(api_key))
        if found is not None and (found.used_at is None or db.now() - found.used_at >= USE_NOTED_EVERY):
            await keys.note_use(conn, found.id, every=USE_NOTED_EVERY)
    if found is None:
        raise Unauthenticated("the key is unknown, expired or revoked")
    return Principal(found.subject, found.tenant, found.role, tuple(found.groups), found.id)
