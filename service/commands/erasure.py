"""Use case: erase one person's content. The keys go, and what no key protected; the record of who decided stays.

What is live is cancelled first: a run without its content could not go on, and nobody may be asked about nothing.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final
from uuid import UUID

from service.commands.cancels import cancel_due
from service.commands.context import After, Services, carry_out
from service.commands.runs import cancel_in
from service.commands.withdraw import close_question
from service.domain.erasure import Erasure
from service.domain.principal import Principal
from service.errors import AlreadyDecided, Conflict, FilesUnavailable, NotFound
from service.filestore import StoreFailed
from service.logs import get_logger
from service.store import content, purge, runs
from service.store import erasure as store
from service.store.database import EVERY, Conn

BATCH: Final = 50
REASON: Final = "the content was erased"

log = get_logger("commands.erasure")


async def count(services: Services, asked: Erasure) -> dict[str, int]:
    """What an erasure would take: `{runs, questions, live}`. Raises `NotFound` for a run named that is not theirs."""
    async with services.db.connection(asked.tenant) as conn:
        if asked.run_ids is not None:
            strange = set(asked.run_ids) - await store.known(conn, asked)
            if strange:
                raise NotFound(f"not a run of theirs: {', '.join(sorted(map(str, strange)))}")
        found = await store.owned(conn, asked)
        live = await store.live(conn, found)
    return {"runs": len(found.runs), "questions": len(found.questions), "live": live}


async def erase(services: Services, asked: Erasure, *, told: Callable[[int], None] = lambda _: None) -> dict[str, int]:
    """Erase, in batches; `told` hears how many each took. Returns `{runs, questions, files}`.

    Dying on the way leaves a batch as it was or erased whole; doing it again takes the rest. Raises `Conflict` where
    something of it does not come to an end, and `FilesUnavailable`: what is erased by then stays so.
    """
    taken: Counter[str] = Counter(runs=0, questions=0, files=0)
    while True:
        async with services.db.connection(asked.tenant) as conn:
            found = await store.owned(conn, asked)
        if not found.runs and not found.questions:
            break
        before = taken.total()
        for batch in _batches(found.runs):
            erased, files = await _erase_runs(services, asked, batch)
            taken.update(runs=erased, files=files)
            told(erased)
        for batch in _batches(found.questions):
            erased = await _erase_questions(services, asked, batch)
            taken.update(questions=erased)
            told(erased)
        if taken.total() == before:
            raise Conflict("what is left is being worked on: try again")
    if taken.total():
        log.info("content.erased", erasure_id=str(asked.id), tenant=asked.tenant, actor=asked.actor, **taken)
    return dict(taken)


async def rewrap(services: Services) -> int:
    """Wrap every content key by the current master secret, so that the rotation after this one loses none."""
    if not services.keyring.rotating:
        return 0
    done, last = 0, UUID(int=0)
    while True:
        async with services.db.transaction(EVERY) as conn:
            found, wrapped = await content.rewrap(conn, services.keyring, after=last, limit=500)
        done += wrapped
        if not found:
            break
        last = found[-1]
    if done:
        log.info("content.rewrapped", keys=done)
    return done


async def _erase_runs(services: Services, asked: Erasure, run_ids: Sequence[UUID]) -> tuple[int, int]:
    """How many runs and files. Files go before the rows that say where they are: what dies in between is found."""
    for run_id in run_ids:
        await _end(services, asked, run_id)
    async with services.db.connection(asked.tenant) as conn:
        removed = await purge.locations(conn, asked.tenant, run_ids)
    try:
        for place in removed:
            await services.files.remove(place)
    except StoreFailed:
        raise FilesUnavailable from None
    async with services.db.transaction(asked.tenant) as conn:
        over = await store.lock_over(conn, run_ids)
        places = await purge.locations(conn, asked.tenant, over)
        if not over or not set(places) <= set(removed):  # a run that went on meanwhile: the next pass has it
            return 0, 0
        await _erase(conn, asked, over)
        await store.blank_progress(conn, over)
        await store.count(conn, asked, runs=len(over), questions=0, files=len(places))
    return len(over), len(places)


async def _erase_questions(services: Services, asked: Erasure, approval_ids: Sequence[UUID]) -> int:
    for approval_id in approval_ids:
        with suppress(AlreadyDecided):
            await close_question(services, approval_id, Principal(asked.actor, asked.tenant, "admin"))
    async with services.db.transaction(asked.tenant) as conn:
        over = await store.lock_decided(conn, approval_ids)
        if not over:
            return 0
        await _erase(conn, asked, over)
        await store.count(conn, asked, runs=0, questions=len(over), files=0)
    return len(over)


def _batches(ids: Sequence[UUID]) -> Iterator[Sequence[UUID]]:
    for start in range(0, len(ids), BATCH):
        yield ids[start : start + BATCH]


async def _erase(conn: Conn, asked: Erasure, subjects: Sequence[UUID]) -> None:
    await store.lock_lines(conn, subjects)
    await store.begin(conn, asked)
    await store.erase(conn, asked, subjects)


async def _end(services: Services, asked: Erasure, run_id: UUID) -> None:
    """Cancel a live run, and what it has going at its provider while we still know where that is."""
    after = After.nothing()
    async with services.db.transaction(asked.tenant) as conn:
        run = await runs.lock_any(conn, run_id)
        if run is None or run.final:
            return
        await cancel_in(conn, run, actor=asked.actor, reason=REASON, after=after, now=services.db.now())
    await carry_out(services, after)
    if after.cancelling:
        await cancel_due(services, run_id=run_id)
