"""Use case of a policy: try it on runs that are over. Reads only."""

from collections.abc import Callable
from datetime import timedelta
from typing import Final

from service.commands.context import Services
from service.domain.ids import uuid7
from service.domain.policy import HitlConfig
from service.domain.replay import Trial
from service.store import replay
from service.store.database import EVERY

BATCH: Final = 500
CLOCKS_APART: Final = timedelta(hours=1)  # an id bears the time of the machine that made it


async def try_policy(
    services: Services,
    config: HitlConfig,
    *,
    window: timedelta,
    tenant: str | None,
    progress: Callable[[int], None],
    batch: int = BATCH,
) -> Trial:
    """What this config would have done to the runs of that time. Each batch is a read-only transaction of its own,
    so that a long look back holds up nothing; `progress` is told how many runs are done."""
    since = services.db.now() - window
    after = uuid7(round((since - CLOCKS_APART).timestamp() * 1000), bytes(10))
    trial = Trial()
    while True:
        async with services.db.reading(EVERY if tenant is None else tenant) as conn:
            found = await replay.past_runs(conn, tenant, since=since, after=after, limit=batch)
        for past in found:
            trial.add(config, past)
        if len(found) < batch:
            return trial
        after = found[-1].run_id
        progress(trial.runs)
