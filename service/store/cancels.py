"""Rows of `provider_cancels`: what is to be ended at a provider."""

from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from service.domain.call import ProviderCall
from service.store.database import Conn


@dataclass(frozen=True, slots=True)
class Cancel:
    run_id: UUID
    number: int
    tenant: str
    provider_ref: str
    tries: int


async def add(conn: Conn, call: ProviderCall, provider_ref: str) -> None:
    """End this one, once: what was asked before stays as it is."""
    await conn.execute(
        """
        insert into provider_cancels (run_id, number, tenant, provider_ref, due_at) values ($1, $2, $3, $4, now())
        on conflict do nothing
        """,
        call.run_id,
        call.number,
        call.tenant,
        provider_ref,
    )


async def add_of_run(conn: Conn, run_id: UUID) -> bool:
    """End whatever the run's calls may still have going. Returns whether there was any."""
    added = await conn.fetch(
        """
        insert into provider_cancels (run_id, number, tenant, provider_ref, due_at)
        select run_id, number, tenant, provider_ref, now() from provider_calls
        where run_id = $1 and provider_ref is not null and status in ('accepted', 'unknown')
        on conflict do nothing returning number
        """,
        run_id,
    )
    return bool(added)


async def take(conn: Conn, *, run_id: UUID | None, hold_s: float, limit: int) -> list[Cancel]:
    """What is due, of one run or of all, kept from other workers for `hold_s`; its try counted."""
    rows = await conn.fetch(
        """
        update provider_cancels c set tries = c.tries + 1, due_at = now() + $2::interval
        from (select run_id, number, provider_ref from provider_cancels
              where due_at <= now() and ($1::uuid is null or run_id = $1)
              order by due_at limit $3 for update skip locked) as due
        where (c.run_id, c.number, c.provider_ref) = (due.run_id, due.number, due.provider_ref)
        returning c.run_id, c.number, c.tenant, c.provider_ref, c.tries
        """,
        run_id,
        timedelta(seconds=hold_s),
        limit,
    )
    return [Cancel(**row) for row in rows]


async def put_back(conn: Conn, cancel: Cancel, *, after: timedelta | None) -> None:
    """Try again after this long; None: never again."""
    await conn.execute(
        """
        update provider_cancels set due_at = now() + $4::interval
        where run_id = $1 and number = $2 and provider_ref = $3
        """,
        cancel.run_id,
        cancel.number,
        cancel.provider_ref,
        after,
    )
