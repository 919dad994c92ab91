"""Whether a URL leads to a pooler in transaction mode: for the doctor."""

import asyncio
from contextlib import AsyncExitStack
from typing import Final

import asyncpg

from service.store.database import answering

CLIENTS: Final = 3
ROUNDS: Final = 4
TIMEOUT_S: Final = 20.0


async def shares_sessions(url: str) -> bool:
    """Whether clients that are connected at the same time are served by the same backend, or one by several. Each
    with a session of its own, as on a direct connection, cannot be. Raises `Unavailable`.

    Each look is a transaction, which such a pooler serves by one backend; between them the backend is free, and is
    given to whoever comes next.
    """
    seen: list[set[int]] = [set() for _ in range(CLIENTS)]
    with answering():
        async with asyncio.timeout(TIMEOUT_S), AsyncExitStack() as stack:
            clients = [await _connected(stack, url) for _ in range(CLIENTS)]
            for n in range(ROUNDS):
                # forth and back: one who hands sessions out in turn would give each client the same again
                for client, pids in list(zip(clients, seen, strict=True))[:: -1 if n % 2 else 1]:
                    async with client.transaction():
                        pids.add(await client.fetchval("select pg_backend_pid()"))
    return len(set.union(*seen)) < CLIENTS or any(len(pids) > 1 for pids in seen)


async def _connected(stack: AsyncExitStack, url: str) -> "asyncpg.Connection[asyncpg.Record]":
    conn = await asyncpg.connect(
        url, timeout=5, command_timeout=10, statement_cache_size=0, server_settings={"application_name": "hitl-doctor"}
    )
    stack.callback(conn.terminate)
    return conn
