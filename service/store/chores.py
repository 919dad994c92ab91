"""Turns of chores that need doing once in a while, by one worker of all."""

from datetime import timedelta

from service.store.database import Conn


async def take_turn(conn: Conn, name: str, *, every_s: float) -> bool:
    """Whether it is due, and now ours: nobody else gets this turn. One who dies in it leaves the rest to the next."""
    taken = await conn.fetchval(
        """
        insert into chores (name, due_at) values ($1, now() + $2)
        on conflict (name) do update set due_at = excluded.due_at where chores.due_at <= now()
        returning true
        """,
        name,
        timedelta(seconds=every_s),
    )
    return bool(taken)
