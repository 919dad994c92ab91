"""Use cases of tickets: a browser cannot send a header with its WebSocket handshake, so it shows a ticket once."""

import secrets
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final

from service.domain.principal import Permission, Principal, demand
from service.errors import Unauthenticated
from service.store import tickets
from service.store.database import EVERY, Database

TICKET_S: Final = 60


async def issue(db: Database, principal: Principal) -> str:
    """A ticket for one handshake as this principal, at any web process.

    When the principal's token is over stands in the ticket itself, of which the hash is kept: it cannot be changed.
    """
    demand(principal, Permission.READ)
    ticket = secrets.token_urlsafe(32)
    lasts_s: float = TICKET_S
    if principal.until is not None:
        ticket += f".{int(principal.until.timestamp())}"
        lasts_s = min(lasts_s, (principal.until - db.now()).total_seconds())
    async with db.connection(principal.tenant) as conn:
        await tickets.insert(conn, _hash(ticket), principal, lasts_s=lasts_s)
    return ticket


async def redeem(db: Database, ticket: str) -> Principal:
    """Raises `Unauthenticated` for a ticket that is unknown, used or too old."""
    async with db.connection(EVERY) as conn:
        principal = await tickets.take(conn, _hash(ticket))
    if principal is None:
        raise Unauthenticated("the ticket is unknown, used or too old")
    _, dot, end = ticket.partition(".")
    return replace(principal, until=datetime.fromtimestamp(int(end), UTC)) if dot else principal


def _hash(ticket: str) -> bytes:
    """Plain: 256 random bits that live a minute need no pepper."""
    return sha256(ticket.encode("utf-8", "surrogatepass")).digest()
