"""Who is authenticated on a request, and what their role lets them do.

`demand` is the one place that says what a role may; `approval.may_decide` asks it, and adds what an approval says of
its reviewers. Use cases ask them, so that every door does: HTTP, WebSocket, signed link, command line, relay.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Final, Literal
from uuid import UUID

from service.errors import Forbidden

Role = Literal["submitter", "reviewer", "admin", "service"]


AuthMethod = Literal["api_key", "oidc", "actor", "link", "relay", "cli", "off", "unknown"]


@dataclass(frozen=True, slots=True)
class Proof:
    """How somebody showed who they are. `credential`: the key's id, the token's issuer, who made the link.

    `actor`: a service named them, and vouches for it by the credential of its own.
    """

    method: AuthMethod
    credential: str | None = None


class Permission(StrEnum):
    READ = "read"
    SUBMIT = "submit"
    DECIDE = "decide"
    ASK = "ask"
    ADMIN = "admin"


_P = Permission
_MAY: Final[dict[Role, frozenset[Permission]]] = {
    "submitter": frozenset({_P.READ, _P.SUBMIT}),
    "reviewer": frozenset({_P.READ, _P.DECIDE}),
    "service": frozenset({_P.READ, _P.SUBMIT, _P.DECIDE, _P.ASK}),
    "admin": frozenset(_P),
}


@dataclass(frozen=True, slots=True)
class Principal:
    """`key_id` is the key that was shown, if it was one: what stays open ends with it. `shown`: what else was. `until`:
    when what was shown is over by itself, where that is known without asking again."""

    subject: str
    tenant: str
    role: Role
    groups: tuple[str, ...] = ()
    key_id: UUID | None = None
    shown: Proof | None = None
    until: datetime | None = field(default=None, compare=False)

    @property
    def proof(self) -> Proof:
        if self.shown is not None:
            return self.shown
        return Proof("api_key", str(self.key_id)) if self.key_id is not None else Proof("unknown")


def demand(principal: Principal, permission: Permission) -> None:
    """Raises `Forbidden` when the role does not hold the permission, and for a name of the service's own."""
    if reserved(principal.subject):
        raise Forbidden("names that begin with system: or provider: are the service's own")
    if not may(principal.role, permission):
        raise Forbidden(f"the role {principal.role} may not do this")


def may(role: Role, permission: Permission) -> bool:
    return permission in _MAY[role]


def acting_for(principal: Principal, named: str) -> Principal:
    """Who it is that a request names as acting. The name counts from the role `service` only, and gains nothing: role,
    groups and tenant stay the key's."""
    if principal.role != "service" or not named:
        return principal
    return replace(principal, subject=named, shown=Proof("actor", principal.proof.credential))


def reserved(subject: str) -> bool:
    """Whether it is a name that the service itself goes by in its events: nobody else may bear one."""
    return subject.startswith(("system:", "provider:"))
