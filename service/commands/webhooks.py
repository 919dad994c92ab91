"""Use cases of webhooks: the secrets that sign them, and sending one again."""

import base64
import secrets
from uuid import UUID

from cryptography.fernet import InvalidToken

from service.commands.context import Services
from service.domain.delivery import ROTATION
from service.domain.ids import uuid7
from service.domain.standard_webhooks import PREFIX
from service.errors import Conflict, NotFound
from service.store import deliveries, webhook_secrets
from service.store.database import EVERY, Conn


async def secret(services: Services, tenant: str, *, rotate: bool = False) -> str:
    """The tenant's current secret, made when it is first asked for. With `rotate` a new one; the one before it signs
    beside it for a day. Raises `Conflict`."""
    async with services.db.transaction(tenant) as conn:
        if rotate:
            await webhook_secrets.retire(conn, tenant, after=ROTATION)
            await _make(conn, services, tenant)
        readable = await signing_secrets(conn, services, tenant)
    if not readable:
        raise Conflict("the secret was sealed by a master secret that is not set any more: rotate it")
    return readable[0]


async def signing_secrets(conn: Conn, services: Services, tenant: str) -> list[str]:
    """All that sign for the tenant now and can be read, the current one first.

    What the previous master secret sealed is sealed anew, so that the rotation after this one does not lose it.
    """
    found = await webhook_secrets.signing(conn, tenant)
    if not found:
        await _make(conn, services, tenant)
        found = await webhook_secrets.signing(conn, tenant)
    readable: list[str] = []
    for row in found:
        try:
            readable.append(services.keyring.unseal(row.sealed)["secret"])
        except InvalidToken:  # sealed before the previous master secret
            continue
        anew = services.keyring.resealed(row.sealed)
        if anew is not None:
            await webhook_secrets.reseal(conn, row.id, anew)
    return readable


async def _make(conn: Conn, services: Services, tenant: str) -> None:
    made = PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()
    await webhook_secrets.insert_current(conn, uuid7(), tenant, services.keyring.seal({"secret": made}))


async def redeliver(services: Services, message_id: UUID, tenant: str | None = None) -> None:
    """Send a webhook again, under the same id, with all its tries. Raises `NotFound`."""
    async with services.db.transaction(EVERY if tenant is None else tenant) as conn:
        if not await deliveries.again(conn, message_id, tenant):
            raise NotFound("no such webhook")
    await services.notifier.notify(deliver=True)
