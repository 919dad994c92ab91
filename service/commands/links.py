"""Use cases of signed links: make one, look at what it shows, decide by it.

A link is 256 random bits, of which only a keyed hash is kept: whoever reads the database cannot decide. The hash
is found under the current secret and the previous one, so that a change of the secret breaks no link.
"""

import secrets
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from service.commands.approvals import Decided, decide, naming
from service.commands.context import Services
from service.domain.approval import Approval, Order, check_open, may_decide
from service.domain.link import Link, check_good, latest_end
from service.domain.principal import Permission, Principal, Proof, demand, may, reserved
from service.errors import BadNonce, Conflict, Forbidden, Invalid, LinkUsed, NotFound, PayloadChanged
from service.store import approvals, keys, links, runs
from service.store.database import EVERY, Conn

NONCE: Final = "link-nonce"


@dataclass(frozen=True, slots=True)
class Shown:
    """What a link shows, and to whom. `nonce` proves that a form came from this page."""

    link: Link
    approval: Approval
    reviewer: Principal
    nonce: str = field(repr=False)


async def make_link(
    services: Services, approval_id: UUID, reviewer: str, principal: Principal, *, expires_in_s: float | None
) -> tuple[str, datetime]:
    """The URL by which this reviewer may decide once, and when it is over.

    Raises `NotFound`, `Forbidden` (also for a reviewer who may not decide), and a 409 for what is decided.
    """
    demand(principal, Permission.ADMIN)
    if reserved(reviewer) or not reviewer.isprintable():
        raise Invalid("the reviewer is not valid", errors=[{"pointer": "/reviewer", "message": "is no name of a user"}])
    token = secrets.token_urlsafe(32)
    async with services.db.transaction(principal.tenant) as conn:
        approval = await approvals.get(conn, principal.tenant, approval_id)
        if approval is None:
            raise NotFound("no such approval")
        may_decide(approval, await _reviewer(conn, principal.tenant, reviewer))
        now = services.db.now()
        try:
            check_open(approval, now=now)
        except Conflict as refusal:
            run = await runs.get(conn, approval.tenant, approval.run_id) if approval.run_id else None
            raise naming(refusal, approval, run) from None
        end = latest_end(approval, now=now)
        over_at = end if expires_in_s is None else min(end, now + timedelta(seconds=expires_in_s))
        sha = approval.payload_sha256
        link = Link(approval.tenant, approval.id, reviewer, sha, principal.subject, now, over_at, None)
        await links.insert(conn, link, services.keyring.hashes("link", token)[0])
    return f"{services.public_url}/hitl/links/{token}", over_at


async def open_link(services: Services, token: str) -> Shown:
    """What the link shows; nothing changes. Raises `NotFound`, `LinkExpired`, `Forbidden`, `PayloadChanged`."""
    async with services.db.connection(EVERY) as conn:
        link, approval, reviewer = await _known(conn, services, token)
    may_decide(approval, reviewer)
    if link.used_at is None:
        check_good(link, now=services.db.now())
        if approval.is_open and approval.payload_sha256 != link.payload_sha256:
            raise PayloadChanged("the payload was changed since this link was made")
    return Shown(link, approval, reviewer, services.keyring.sign(NONCE, token))


async def decide_by_link(services: Services, token: str, order: Order, *, nonce: str) -> Decided:
    """Decide as the link's reviewer: once, under all the rules of `decide`, in the transaction that uses it up.

    Raises as `decide`, and `BadNonce`, `LinkUsed`, `LinkExpired`. A refusal leaves the link as it was.
    """
    async with services.db.connection(EVERY) as conn:
        link, _, reviewer = await _known(conn, services, token)
    if not services.keyring.verify(NONCE, token, nonce):
        raise BadNonce("the form is not one of this page")
    check_good(link, now=services.db.now())

    async def use(conn: Conn) -> None:
        if not await links.use(conn, services.keyring.hashes("link", token)):
            raise LinkUsed("the link was used")

    bound = Order(order.action, order.edits, order.reason, link.payload_sha256)
    return await decide(services, link.approval_id, bound, reviewer, channel="link", within=use)


async def _known(conn: Conn, services: Services, token: str) -> tuple[Link, Approval, Principal]:
    link = await links.find(conn, services.keyring.hashes("link", token))
    if link is None:
        raise NotFound("no such link")
    approval = await approvals.get(conn, link.tenant, link.approval_id)
    assert approval is not None
    reviewer = await _reviewer(conn, link.tenant, link.reviewer)
    return link, approval, replace(reviewer, shown=Proof("link", link.made_by))


async def _reviewer(conn: Conn, tenant: str, subject: str) -> Principal:
    """The reviewer with the groups that their keys give them. Whoever never had a key may decide where anybody
    may or where they are named; whose keys are all over, or let them not decide, may not."""
    known = await keys.of_subject(conn, tenant, subject)
    good = [key for key in known if key.live and may(key.role, Permission.DECIDE)]
    if known and not good:
        raise Forbidden("this reviewer may not decide")
    groups = {group for key in good for group in key.groups}
    return Principal(subject, tenant, "reviewer", tuple(sorted(groups)))
