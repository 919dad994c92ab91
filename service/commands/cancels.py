"""Use case of what nobody wants any more: ending it at its provider, until it is over or has been tried enough."""

import asyncio
from typing import Final
from uuid import UUID

from service.commands.context import Services
from service.domain.call import cancel_again
from service.errors import NoProvider, Unavailable
from service.logs import get_logger
from service.store import cancels, runs
from service.store.cancels import Cancel
from service.store.database import EVERY

BATCH: Final = 50
AT_ONCE: Final = 10
TRY_S: Final = 10.0

log = get_logger("commands.cancels")


async def cancel_due(services: Services, *, run_id: UUID | None = None) -> int:
    """End what is due to be ended, of one run or of all. Returns how many were tried. Raises `Unavailable`.

    A worker that dies on the way has only delayed it: a taken row is due again by itself.
    """
    hold_s = TRY_S * (BATCH / AT_ONCE) + TRY_S
    async with services.db.transaction(EVERY) as conn:
        due = await cancels.take(conn, run_id=run_id, hold_s=hold_s, limit=BATCH)
    gate = asyncio.Semaphore(AT_ONCE)
    async with asyncio.TaskGroup() as group:
        for cancel in due:
            group.create_task(_cancel(services, cancel, gate))
    return len(due)


async def _cancel(services: Services, cancel: Cancel, gate: asyncio.Semaphore) -> None:
    try:
        async with gate:
            over = await _try(services, cancel)
        after = None if over else cancel_again(cancel.tries)
        async with services.db.transaction(cancel.tenant) as conn:
            await cancels.put_back(conn, cancel, after=after)
    except Unavailable:
        return
    if over:
        log.info("provider.cancelled", run_id=str(cancel.run_id), tenant=cancel.tenant, call=cancel.number)
    elif after is None:
        log.warning("provider.cancel_failed", run_id=str(cancel.run_id), tenant=cancel.tenant, call=cancel.number)


async def _try(services: Services, cancel: Cancel) -> bool:
    async with services.db.connection(cancel.tenant) as conn:
        run = await runs.find(conn, cancel.run_id)
        docs = await runs.documents(conn, cancel.run_id) if run else None
    if run is None or docs is None:
        return True
    try:
        provider = services.registry.by_tool(run.tool)
        secrets = services.keyring.unseal(docs.sealed)
        async with asyncio.timeout(TRY_S):
            return await provider.cancel(docs.tool_config, secrets, cancel.provider_ref)
    except (NoProvider, TimeoutError):
        return False
    except Exception as error:
        log.error("http.error", run_id=str(cancel.run_id), error=type(error).__name__)
        return False
