"""The second wall: the narrow role that connections take on, and the tenant whose rows they see (migration 0010).

The first wall is that every query names its tenant. This one holds when a query forgets to.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal, TypeAlias

import asyncpg


class Every(Enum):
    """What works for all tenants by its job: worker, sweep, hub, operator, and whoever finds out who asks."""

    TENANT = "*"


EVERY: Final = Every.TENANT
ROLE_AGAIN_S: Final = 10.0
LOCK_TRIES: Final = 10
LOCK_PAUSE_S: Final = 1.0
Scope: TypeAlias = str | Every


@dataclass(slots=True)
class Sight:
    """What a connection's session sees (`seen` None: not known), what goes along with its next BEGIN, and its role.
    One that found none asks again at `ask_at`: the migration may have come since."""

    seen: Scope | None = None
    with_begin: str = ""
    role: str | None = None
    ask_at: float = 0.0


def local(scope: Scope, role: str | None = None) -> str:
    """The statements that say for one transaction whose rows are seen, and which role it takes on."""
    narrow = "" if role is None else 'set local role "' + role.replace('"', '""') + '"; '
    return f"{narrow}set local hitl.tenant = {_literal(said(scope))};"


def lasting(scope: Scope) -> str:
    """The same for a whole session."""
    return f"set hitl.tenant = {_literal(said(scope))}"


def said(scope: Scope) -> str:
    """The setting as the policies read it: a tenant may bear any name, also `*`."""
    return "=" + scope if isinstance(scope, str) else scope.value


def _literal(text: str) -> str:
    """A name is what a user or a token says. In E'' backslashes mean the same whatever the server's settings; NUL
    would end the message."""
    if "\x00" in text:
        raise ValueError("NUL")
    return "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


async def narrow(conn: Any, sight: Sight, *, lasting: bool) -> None:
    """Take on the role, unless that was done or found impossible a moment ago."""
    now = time.monotonic()
    if sight.role is None and now >= sight.ask_at:
        sight.ask_at = now + ROLE_AGAIN_S
        sight.role = await take_role(conn, lasting=lasting)


async def take_role(conn: Any, *, lasting: bool) -> str | None:
    """Take on the service's role, for the session or only to see whether it can be had. None: before the migration,
    or where no administrator has made the role; the login's own rights then hold."""
    try:
        async with conn.transaction():
            role: str | None = await conn.fetchval(
                """
                select set_config('role', rolname, $1) from pg_roles
                where rolname = hitl_role() and pg_has_role(rolname, 'MEMBER')
                """,
                not lasting,
            )
    except (asyncpg.UndefinedFunctionError, asyncpg.InsufficientPrivilegeError):
        return None
    return role


@dataclass(frozen=True, slots=True)
class Rights:
    """What holds for a connection. `wide`: what of the record it could change; `blind`: whether rows of other tenants
    are kept from it; `leaves`: whether its login could do more than its role."""

    role: str
    wide: Sequence[str]
    blind: bool
    leaves: bool


async def rights(conn: Any) -> Rights:
    """Of the role in force: for the doctor."""
    row = await conn.fetchrow(
        """
        select current_user::text as role,
               array(select p from unnest(array['update', 'delete', 'truncate']) as p
                     where has_table_privilege(current_user, 'events', p)) as wide,
               row_security_active('events') as blind,
               has_table_privilege(session_user, 'events', 'update') as leaves
        """
    )
    assert row is not None
    return Rights(**row)


async def put_up(conn: Any, tables: Sequence[str]) -> str | None:
    """Give the role what it needs and every table its policy, as the tables' owner. Does only what is missing, one
    table at a time, so that it never holds the locks of two. Returns what is in the way of the role, if anything."""
    missing: str | None = await conn.fetchval("select hitl_role_ready()")
    for table in tables:
        for left in reversed(range(LOCK_TRIES)):
            try:
                await _put_up(conn, table)
                break
            except asyncpg.LockNotAvailableError:  # somebody reads long; others must not queue up behind us for ever
                if not left:
                    raise
                await asyncio.sleep(LOCK_PAUSE_S)
    return missing


async def _put_up(conn: Any, table: str) -> None:
    async with conn.transaction():
        await conn.execute("set local lock_timeout = '2s'")
        await conn.execute("select hitl_wall(found) from to_regclass($1) as found where found is not null", table)


async def missing(conn: Any) -> str:
    """What an administrator does where the migrating login may not make the role or take it on."""
    role, login = await conn.fetchrow("select quote_ident(hitl_role()::text), quote_ident(session_user::text)")
    return f"as an administrator: create role {role} nologin; grant {role} to {login}; then `hitl migrate` once more"


async def verdict(conn: Any) -> tuple[Literal["ok", "warn"], str, str]:
    """Whether this connection is narrow, in words, and what to do about it: for the doctor."""
    found = await rights(conn)
    if found.blind and not found.wide:
        more = "; its login could do more" if found.leaves else ""
        return "ok", f"works as {found.role}: adds events and changes none, sees one tenant at a time{more}", ""
    can = [f"may {' and '.join(found.wide)} events"] if found.wide else []
    sees = [] if found.blind else ["is not held to one tenant's rows"]
    return "warn", f"works as {found.role}, which {' and '.join(can + sees)}", await missing(conn)
