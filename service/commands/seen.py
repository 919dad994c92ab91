"""Use case: note who opened an approval first, and when. A read is never held up or refused by it."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from service.commands.context import Services
from service.domain.approval import may_be_decided_by
from service.domain.principal import Permission, Principal, may
from service.logs import get_logger
from service.store import approvals, seen

NOTED_WITHIN_S: Final = 1.0

log = get_logger("commands.seen")


async def note_seen(services: Services, who: Principal, shown: Sequence[Mapping[str, Any]], channel: str) -> None:
    """Note that these approvals, in the contract's form, were shown to `who`, where they may decide them.

    Once for each person and approval; what is noted already costs nothing. The first one's moment and channel stay.
    """
    fresh = [UUID(view["approval_id"]) for view in shown if _counts(services, who, view)]
    if not fresh:
        return
    try:
        async with asyncio.timeout(NOTED_WITHIN_S), services.db.connection(who.tenant) as conn:
            found = await approvals.some(conn, fresh)
            theirs = [a.id for a in found if a.tenant == who.tenant and may_be_decided_by(a, who)]
            if theirs:
                await seen.note(conn, who.tenant, theirs, who.subject, channel)
    except Exception as error:  # a door of its own: whatever it is, the answer goes out
        log.warning("approval.view_not_noted", tenant=who.tenant, error=type(error).__name__)
    else:
        services.noted.add((approval_id, who.subject) for approval_id in theirs)


def _counts(services: Services, who: Principal, view: Mapping[str, Any]) -> bool:
    """Whether it may be new, by what is at hand: those who are not asked cost no query."""
    asked = view["reviewers"]
    named = who.subject in asked["users"] or not set(who.groups).isdisjoint(asked["groups"])
    return (
        view["status"] == "pending"
        and (who.role != "service" or who.proof.method != "api_key")  # a program that polls is nobody who looks
        and may(who.role, Permission.DECIDE)
        and (named or not (asked["users"] or asked["groups"]))
        and (UUID(view["approval_id"]), who.subject) not in services.noted
    )
