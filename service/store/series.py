"""What happened when, for charts: each query walks one index, in windows of time, and none further than a limit."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from service.domain.chart import Found, Wait, Window
from service.store.database import Conn

Series = dict[int, list[Found]]
"""What was found by the place of its window."""
LONG_AGO: Final = datetime(2000, 1, 1, tzinfo=UTC)


async def starts(conn: Conn, tenant: str, windows: Sequence[Window], *, at_most: int) -> Series:
    """Runs by when they were started: one more than `at_most` of a window says that there are more."""
    rows = await conn.fetch(
        """
        select w.place::int as place, c.n, c.last
        from unnest($2::timestamptz[], $3::timestamptz[]) with ordinality as w (since, until, place)
        cross join lateral (
            select count(*) as n, max(created_at) as last from (
                select created_at from runs
                where tenant = $1 and created_at >= w.since and created_at < w.until
                order by created_at limit $4 + 1) as r) as c
        where c.n > 0
        """,
        tenant, [w.since for w in windows], [w.until for w in windows], at_most,
    )  # fmt: skip
    return {row["place"] - 1: [Found(*list(row.values())[1:])] for row in rows}


async def decided(
    conn: Conn, tenant: str, windows: Sequence[Window], edges: Sequence[datetime], *, at_most: int
) -> Series:
    """Approvals by when they were closed, and in which bar they had been opened. A decision closes one; so do a
    timeout and its run's end, which are none."""
    rows = await conn.fetch(
        """
        select w.place::int as place, count(*) as n, max(r.decided_at) as last,
               count(*) filter (where r.status in ('approved', 'edited', 'rejected', 'retried')) as decisions,
               width_bucket(r.created_at, $4::timestamptz[]) as opened,
               extract(epoch from sum(r.created_at - ($4::timestamptz[])[1]))::float8 as opened_s,
               extract(epoch from sum(r.decided_at - ($4::timestamptz[])[1]))::float8 as closed_s
        from unnest($2::timestamptz[], $3::timestamptz[]) with ordinality as w (since, until, place)
        cross join lateral (
            select created_at, decided_at, status from approvals
            where tenant = $1 and decided_at >= w.since and decided_at < w.until
            order by decided_at limit $5 + 1) as r
        group by w.place, opened
        """,
        tenant, [w.since for w in windows], [w.until for w in windows], list(edges), at_most,
    )  # fmt: skip
    found: Series = defaultdict(list)
    for row in rows:
        found[row["place"] - 1].append(Found(*list(row.values())[1:]))
    return found


async def pending(
    conn: Conn, tenant: str, edges: Sequence[datetime], *, now: datetime, at_most: int
) -> tuple[list[Wait], bool]:
    """Open approvals by the bar they were opened in, as if they were closed now; and whether a bar has more than
    `at_most`, which are not told."""
    rows = await conn.fetch(
        """
        select b.opened::int - 1 as opened, c.n, c.opened_s
        from unnest($2::timestamptz[], $3::timestamptz[]) with ordinality as b (since, until, opened)
        cross join lateral (
            select count(*) as n, extract(epoch from sum(created_at - $4))::float8 as opened_s from (
                select created_at from approvals
                where tenant = $1 and status = 'pending' and created_at >= b.since and created_at < b.until
                limit $5 + 1) as r) as c
        where c.n > 0
        """,
        tenant, [LONG_AGO, *edges[:-1]], list(edges), edges[0], at_most,
    )  # fmt: skip
    now_s, last = (now - edges[0]).total_seconds(), len(edges) - 2
    waits = [Wait(last, row["opened"], row["n"], row["opened_s"], row["n"] * now_s) for row in rows]
    return waits, any(wait.n > at_most for wait in waits)
