"""The console's inbox with 100,000 open approvals: how long the server takes, and what it asks of Postgres.

`.venv/bin/python -m bench.inbox [--open N] [--looks N]` on a throw-away stack: one web process, auth off.
"""

import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import asyncpg
import click
import httpx2

from service.embedded import lease
from service.store.migrate import migrate
from tests.conftest import base_env, web

FILL = """
insert into approvals (id, tenant, checkpoint_type, status, reasons, message, context, user_id, session_id, submitter,
    reviewers, on_timeout, timeout_s, created_at, expires_at)
select gen_random_uuid(), 'default', (array['payload_review','response_review','information_review'])[n % 3 + 1],
    'pending', array['policy.require_human'], 'May payload ' || n || ' be sent?',
    json_build_object('payload', json_build_object('prompt', repeat('a red fox, watercolour ', 20), 'n', n)),
    'u' || n % 100, 's' || n % 5000, 'sue',
    jsonb_build_object('quorum', 1, 'allow_self_approval', null, 'users',
        case when n % 1000 = 7 then '["dev"]'::jsonb else '[]' end, 'groups', '[]'::jsonb),
    'reject', 86400, now() - n * interval '10 ms', now() + interval '1 day' + n * interval '1 second'
from generate_series(1, $1) n
"""
ASKED = {
    "all": "/",
    "by checkpoint": "/?checkpoint=payload_review",
    "by session": "/?session=s77",
    "by age": "/?age=10m",
    "search, few hits": "/?q=payload+99999",
    "500 on a page": "/?n=500",
}


async def fill(url: str, count: int) -> None:
    conn = await asyncpg.connect(url)
    await conn.execute("set synchronous_commit = off")
    await conn.execute(FILL, count)
    await conn.execute("vacuum analyze approvals")
    await conn.close()


async def measure(url: str, looks: int) -> None:
    async with httpx2.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        for name, path in ASKED.items():
            took = []
            for _ in range(looks):
                started = time.perf_counter()
                answer = await client.get(path)
                took.append((time.perf_counter() - started) * 1000)
                assert answer.status_code == 200
            told = f"median {statistics.median(took):6.0f} ms   worst {max(took):6.0f} ms   {len(answer.text)} bytes"
            print(f"{name:18} {told}")  # noqa: T201


@click.command()
@click.option("--open", "count", default=100_000, show_default=True)
@click.option("--looks", default=30, show_default=True)
def main(count: int, looks: int) -> None:
    folder = Path(tempfile.mkdtemp())
    with lease(folder) as servers:
        asyncio.run(migrate(servers.database_url))
        asyncio.run(fill(servers.database_url, count))
        with web(base_env(servers), folder) as url:
            asyncio.run(measure(url, looks))


if __name__ == "__main__":
    main()
