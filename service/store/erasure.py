"""What an erasure takes of runs and of questions that belong to no run, and the record that it did."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from service.domain.erasure import Erasure
from service.store.database import Conn


@dataclass(frozen=True, slots=True)
class Owned:
    """What is not erased yet, oldest first."""

    runs: list[UUID]
    questions: list[UUID]


async def owned(conn: Conn, asked: Erasure) -> Owned:
    """The runs and questions that a person began or that are for them; of the runs named, where any are."""
    runs = await conn.fetch(
        """
        select id from runs r where tenant = $1 and (user_id = $2 or submitter = $2)
          and ($3::uuid[] is null or id = any($3)) and not exists (select from erased_content where subject = r.id)
        order by id
        """,
        asked.tenant,
        asked.user_id,
        asked.run_ids,
    )
    questions = await conn.fetch(
        """
        select id from approvals a where tenant = $1 and (user_id = $2 or submitter = $2) and run_id is null
          and $3::uuid[] is null and not exists (select from erased_content where subject = a.id)
        order by id
        """,
        asked.tenant,
        asked.user_id,
        asked.run_ids,
    )
    return Owned([row["id"] for row in runs], [row["id"] for row in questions])


async def known(conn: Conn, asked: Erasure) -> set[UUID]:
    """Those of the runs named that are the person's, erased or not."""
    rows = await conn.fetch(
        "select id from runs where tenant = $1 and (user_id = $2 or submitter = $2) and id = any($3)",
        asked.tenant,
        asked.user_id,
        asked.run_ids,
    )
    return {row["id"] for row in rows}


async def live(conn: Conn, found: Owned) -> int:
    """How many of them are not over."""
    count: int = await conn.fetchval(
        """
        select (select count(*) from runs where id = any($1) and status not in ('completed', 'failed', 'cancelled'))
             + (select count(*) from approvals where id = any($2) and status = 'pending')
        """,
        found.runs,
        found.questions,
    )
    return count


async def begin(conn: Conn, asked: Erasure) -> None:
    await conn.execute(
        """
        insert into erasures (id, tenant, user_id, actor, runs, questions, files) values ($1, $2, $3, $4, 0, 0, 0)
        on conflict (id) do nothing
        """,
        asked.id,
        asked.tenant,
        asked.user_id,
        asked.actor,
    )


async def count(conn: Conn, asked: Erasure, *, runs: int, questions: int, files: int) -> None:
    await conn.execute(
        "update erasures set runs = runs + $2, questions = questions + $3, files = files + $4 where id = $1",
        asked.id,
        runs,
        questions,
        files,
    )


async def lock_over(conn: Conn, run_ids: Sequence[UUID]) -> list[UUID]:
    """Those of the runs that are over, locked."""
    rows = await conn.fetch(
        """
        select id from runs where id = any($1) and status in ('completed', 'failed', 'cancelled') order by id for update
        """,
        run_ids,
    )
    return [row["id"] for row in rows]


async def lock_decided(conn: Conn, approval_ids: Sequence[UUID]) -> list[UUID]:
    """Those of the questions that are not open any more, locked."""
    rows = await conn.fetch(
        "select id from approvals where id = any($1) and status <> 'pending' order by id for update", approval_ids
    )
    return [row["id"] for row in rows]


async def lock_lines(conn: Conn, subjects: Sequence[UUID]) -> None:
    """Their messages to the outside: who is about to keep a body does so first."""
    await conn.execute("select from delivery_lines where subject = any($1) order by subject for update", subjects)


async def erase(conn: Conn, asked: Erasure, subjects: Sequence[UUID]) -> None:
    """Delete the keys, and what stands under them or was never sealed; what is left is who did what, when, to what
    hash. A failed run cannot be resumed any more: there is nothing to go on with."""
    await conn.execute(
        """
        with marked as (
            insert into erased_content (subject, tenant, erasure_id)
            select subject, $2, $3 from unnest($1::uuid[]) as s (subject) on conflict do nothing),
        keys as (delete from content_keys where subject = any($1)),
        documents as (
            update run_documents set run_input = '{}', tool_config = '{}', sealed = null, description = null,
                payload = null, output = null, raw_response = null, result = null, callback_url = null
            where run_id = any($1)),
        asked as (
            select id from approvals where run_id = any($1)
            union all select id from approvals where id = any($1) and run_id is null),
        shown as (
            update approvals set message = '', context = '{}', schema = null, callback_url = null
            where id in (select id from asked)),
        said as (
            update decisions set reason = null, edits = null, changes = null, nonce = null
            where approval_id in (select id from asked)),
        handed as (update delegations set reason = null where approval_id in (select id from asked)),
        answers as (
            update provider_calls set output = null, raw = null, issues = null, problem = null where run_id = any($1)),
        files as (delete from files where run_id = any($1)),
        messages as (
            update deliveries set body = null,
                status = case when kind = 'webhook' and status = 'waiting' then 'dead' else status end,
                error = case when kind = 'webhook' and status = 'waiting' then 'content_erased' else error end
            where subject = any($1))
        update runs set error = error || '{"message": null, "recoverable": false}', version = version + 1
        where id = any($1) and error is not null
        """,
        subjects,
        asked.tenant,
        asked.id,
    )


async def blank_progress(conn: Conn, run_ids: Sequence[UUID]) -> None:
    """What a provider told of its answer, in events of before content was sealed; of runs that `erase` has marked."""
    await conn.execute("select blank_progress($1)", run_ids)
