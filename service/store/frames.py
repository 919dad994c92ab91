"""What a batch of events needs to become frames, in one query for each kind of thing."""

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from service.domain.event import Event
from service.domain.frame import Needs, NeedsApproval, NeedsOutput, NeedsResult, frame, needs
from service.domain.view import approval_view
from service.store import approvals, calls, runs
from service.store.database import Conn

Key = tuple[UUID, Needs]


async def of_events(conn: Conn, told: Sequence[Event]) -> list[dict[str, Any]]:
    """The frame of each event."""
    wanted = {(event.run_id, need) for event in told if (need := needs(event)) is not None}
    found = await _found(conn, wanted) if wanted else {}
    return [frame(event, found.get((event.run_id, need)) if (need := needs(event)) else None) for event in told]


async def _found(conn: Conn, wanted: Iterable[Key]) -> dict[Key, Any]:
    asked: dict[UUID, Key] = {}
    outputs: list[Key] = []
    results: list[Key] = []
    for key in wanted:
        match key[1]:
            case NeedsApproval(approval_id):
                asked[approval_id] = key
            case NeedsOutput():
                outputs.append(key)
            case NeedsResult():
                results.append(key)
    found: dict[Key, Any] = {}
    if asked:
        found |= {asked[a.id]: approval_view(a) for a in await approvals.some(conn, list(asked))}
    if outputs:
        found |= await _outputs(conn, outputs)
    if results:
        found |= await _results(conn, results)
    return found


async def _outputs(conn: Conn, wanted: Sequence[Key]) -> dict[Key, Any]:
    rows = await conn.fetch(
        """
        select c.*, k.wrapped from provider_calls c
        join unnest($1::uuid[], $2::integer[]) as w (run_id, number) using (run_id, number)
        left join content_keys k on k.subject = c.run_id
        """,
        [run_id for run_id, _ in wanted],
        [need.call for _, need in wanted if isinstance(need, NeedsOutput)],
    )
    found = [calls.of_row(conn, row) for row in rows]
    return {(call.run_id, NeedsOutput(call.number)): call.output for call in found}


async def _results(conn: Conn, wanted: Sequence[Key]) -> dict[Key, Any]:
    """The result as it was set, or the output that it is until then."""
    found = await runs.documents_of(conn, [run_id for run_id, _ in wanted])
    return {
        (run_id, NeedsResult()): docs.output if docs.result is None else docs.result["response"]
        for run_id, docs in found.items()
    }
