"""Floor 4: past runs as a policy looks at them."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from service.domain.replay import Past
from service.store import content
from service.store.database import Conn
from service.store.runs import built_of


async def past_runs(conn: Conn, tenant: str | None, *, since: datetime, after: UUID, limit: int) -> Sequence[Past]:
    """The runs since then, in the order of their ids, which is that of their birth."""
    rows = await conn.fetch(
        """
        select r.id, r.estimated_usd, d.description, d.payload, k.wrapped,
               (select coalesce(json_agg(json_build_array(c.safety_flags, c.quality) order by c.number), '[]')
                  from provider_calls c where c.run_id = r.id and c.status = 'answered') as answers,
               (select coalesce(json_agg(json_build_array(a.checkpoint_type, a.reasons) order by a.created_at), '[]')
                  from approvals a where a.run_id = r.id) as asked
          from runs r join run_documents d on d.run_id = r.id left join content_keys k on k.subject = r.id
         where r.id > $1 and r.created_at >= $2 and ($3::text is null or r.tenant = $3)
           and not exists (select from erased_content e where e.subject = r.id)
         order by r.id limit $4
        """,
        after,
        since,
        tenant,
        limit,
    )
    return [
        Past(
            run_id=row["id"],
            estimated_usd=row["estimated_usd"],
            **built_of(content.reader(conn, row["id"], row["wrapped"]), row),
            answers=[(flags, quality) for flags, quality in row["answers"]],
            asked=[(checkpoint, reasons) for checkpoint, reasons in row["asked"]],
        )
        for row in rows
    ]
