"""Rows of `provider_calls`."""

from dataclasses import fields
from typing import Any, Final
from uuid import UUID

import asyncpg

from service.domain.altered import made
from service.domain.call import CallStatus, ProviderCall
from service.store import content
from service.store.database import Conn

_KNOWN: Final = tuple(field.name for field in fields(ProviderCall))  # a later release may have added columns


def of_row(conn: Conn, row: asyncpg.Record) -> ProviderCall:
    values = {name: row[name] for name in _KNOWN}
    read = content.reader(conn, row["run_id"], row["wrapped"])
    values |= read.values(row, _place(row["number"]), "output", ("output", "raw", "issues", "problem"))
    values["status"] = CallStatus(values["status"])
    return made(ProviderCall, values)


def _place(number: int) -> str:
    return f"provider_calls.output/{number}"


async def get(conn: Conn, run_id: UUID, number: int) -> ProviderCall | None:
    row = await conn.fetchrow(
        """
        select c.*, k.wrapped from provider_calls c left join content_keys k on k.subject = c.run_id
        where c.run_id = $1 and c.number = $2
        """,
        run_id,
        number,
    )
    return of_row(conn, row) if row else None


async def lock(conn: Conn, run_id: UUID, number: int) -> ProviderCall | None:
    row = await conn.fetchrow(
        """
        select c.*, k.wrapped from provider_calls c left join content_keys k on k.subject = c.run_id
        where c.run_id = $1 and c.number = $2 for update of c
        """,
        run_id,
        number,
    )
    return of_row(conn, row) if row else None


async def tries(conn: Conn, run_id: UUID) -> int:
    """How often this run has called its provider, over all its calls."""
    count: int = await conn.fetchval(
        "select coalesce(sum(tries), 0)::int from provider_calls where run_id = $1", run_id
    )
    return count


def values(pen: content.Pen, call: ProviderCall) -> list[Any]:
    """`number, idempotency_key … copy_tries` of the row, in the order of the table, as `changes` writes it."""
    return [
        call.number, call.idempotency_key, call.payload_sha256, call.status, call.tries, call.started_at,
        call.deadline_at, call.provider_ref, call.finished_at, _sealed(pen, call), call.quality,
        list(call.safety_flags), call.cost_usd, call.looks, call.copy_tries,
    ]  # fmt: skip


def _sealed(pen: content.Pen, call: ProviderCall) -> str | None:
    return pen.seal(_place(call.number), output=call.output, raw=call.raw, issues=call.issues, problem=call.problem)


async def save(conn: Conn, call: ProviderCall) -> None:
    sealed = _sealed(await content.pen(conn, call.run_id), call)
    await conn.execute(
        """
        update provider_calls set status = $3, provider_ref = $4, finished_at = $5, output = $6, raw = null,
            issues = null, problem = null, quality = $7, safety_flags = $8, cost_usd = $9, looks = $10,
            copy_tries = $11, tries = $12
        where run_id = $1 and number = $2
        """,
        call.run_id, call.number, call.status, call.provider_ref, call.finished_at, sealed, call.quality,
        list(call.safety_flags), call.cost_usd, call.looks, call.copy_tries, call.tries,
    )  # fmt: skip
