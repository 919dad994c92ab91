"""Everybody who may come to a door, in a world of their own: what the matrices are tried with."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import httpx2
import pytest
import pytest_asyncio

from service.commands.keys import NewKey, create_key, revoke_key
from service.commands.links import make_link, open_link
from service.commands.runs import StartRun, pause_run, start_run
from service.domain.file import StoredFile, location_of
from service.domain.ids import uuid7
from service.domain.policy import HitlConfig
from service.domain.principal import Principal
from service.embedded import Servers
from service.filestore import FolderStore
from service.runtime import Runtime
from service.store import approvals, files
from service.store.database import EVERY
from tests.acting import worker
from tests.conftest import base_env, echo, own_runtime, web
from tests.contract.issuer import AUDIENCE, StandIn, stand_in

MINE, OTHER = "matrix-mine", "matrix-other"
SUBMITTER, REVIEWER = "sue", "rob"
EVERYBODY: Final = "none bad over revk  subm revw admn serv  nogr self  othr  oidc oold"
"""No key, one that nobody made, an expired and a revoked one; each role, in the group that the approval asks; a
reviewer without the group; who started the run, with the role `service`; the admin of another tenant; a bearer token
of the OIDC provider for a reviewer in the group, and one that is over."""


@dataclass
class World:
    """A web process with a database of its own that no worker looks at, and everybody's keys and clients."""

    url: str
    runtime: Runtime
    keys: Mapping[str, str | None]
    clients: Mapping[str, httpx2.AsyncClient]
    files: Path

    async def ids(self, path: str = "", *, paused: bool = False) -> dict[str, str]:
        """A fresh run that waits for its reviewers, and whatever else the request speaks of."""
        services = self.runtime.services
        sue, config = (
            Principal(SUBMITTER, MINE, "submitter"),
            HitlConfig.model_validate(
                {
                    "policy": "require_human",
                    "allowed_steps": ["payload_review"],
                    "reviewers": {"groups": ["legal"], "allow_self_approval": False},
                }
            ),
        )
        session = f"s-{uuid4().hex[:8]}"
        run_input = {"prompt": "a red fox", "agent_tool_config": echo()}
        run_id = (await start_run(services, StartRun(run_input, config, session_id=session), sue)).run_id
        await worker(self.runtime).advance(run_id)
        async with services.db.connection(EVERY) as conn:
            approval = (await approvals.open_of_run(conn, run_id))[0]
        ids = {
            "run_id": str(run_id),
            "approval_id": str(approval.id),
            "session_id": session,
            "job_id": f"run:{run_id}:1",
        }
        if "{token}" in path:
            admin = Principal("root", MINE, "admin")
            url, _ = await make_link(services, approval.id, REVIEWER, admin, expires_in_s=None)
            ids["token"] = url.rpartition("/")[2]
            ids["nonce"] = (await open_link(services, ids["token"])).nonce
        if "{file_id}" in path:
            ids["file_id"] = await self.file(run_id)
        if paused:
            await pause_run(services, run_id, sue)
        return ids

    async def file(self, run_id: UUID) -> str:
        file_id = uuid7()
        content, location = b"a picture", location_of(file_id)

        async def pieces() -> AsyncIterator[bytes]:
            yield content

        await FolderStore(self.files).put(location, pieces())
        stored = StoredFile(
            file_id, MINE, run_id, "a.png", "image/png", len(content), sha256(content).hexdigest(), location,
            self.runtime.services.db.now(),
        )  # fmt: skip
        async with self.runtime.services.db.transaction(EVERY) as conn:
            await files.insert(conn, [stored])
        return str(file_id)

    async def versions(self, ids: Mapping[str, str]) -> Any:
        """What changes with every change of the run or its approval."""
        async with self.runtime.services.db.connection(EVERY) as conn:
            return await conn.fetchrow(
                "select r.version, a.version, a.status from runs r join approvals a on a.run_id = r.id where r.id = $1",
                UUID(ids["run_id"]),
            )


async def keys(runtime: Runtime, issuer: StandIn) -> dict[str, str | None]:
    """Everybody's key by their name in EVERYBODY."""
    services = runtime.services

    async def key(role: Any, subject: str, *groups: str, tenant: str = MINE) -> tuple[UUID, str]:
        wanted = NewKey(f"{role}-{subject}", role, tenant, subject, groups)
        made, secret = await create_key(services.db, services.keyring, wanted)
        return made.id, secret

    async def over() -> str:
        key_id, secret = await key("admin", "old", "legal")
        async with services.db.connection(EVERY) as conn:
            await conn.execute("update api_keys set expires_at = now() where id = $1", key_id)
        return secret

    async def revoked() -> str:
        key_id, secret = await key("admin", "gone", "legal")
        await revoke_key(services.db, key_id)
        return secret

    return {
        "none": None,
        "bad": "hitl_" + "x" * 43,
        "over": await over(),
        "revk": await revoked(),
        "subm": (await key("submitter", "sam", "legal"))[1],
        "revw": (await key("reviewer", REVIEWER, "legal"))[1],
        "admn": (await key("admin", "root", "legal"))[1],
        "serv": (await key("service", "bot", "legal"))[1],
        "nogr": (await key("reviewer", "nob", "ops"))[1],
        "self": (await key("service", SUBMITTER, "legal"))[1],
        "othr": (await key("admin", "root", "legal", tenant=OTHER))[1],
        "oidc": issuer.token(sub="olga", role="reviewer", groups=["legal"], tenant=MINE, exp=int(time.time()) + 86_400),
        "oold": issuer.token(sub="olga", role="admin", groups=["legal"], tenant=MINE, exp=int(time.time()) - 60),
    }


@asynccontextmanager
async def a_world(
    servers: Servers,
    folder: Path,
    name: str,
    *,
    redis_db: int,
    before: Callable[[Runtime], Awaitable[None]] | None = None,
) -> AsyncIterator[World]:
    """A world with a database of its own; `before` is done to it before the web process starts."""
    async with AsyncExitStack() as opened:
        runtime = await opened.enter_async_context(own_runtime(servers, name, redis_db=redis_db))
        if before is not None:
            await before(runtime)
        issuer = await opened.enter_async_context(stand_in())
        assert runtime.settings.database_url and runtime.settings.redis_url
        env = base_env(
            servers, HITL_AUTH="required", DATABASE_URL=runtime.settings.database_url,
            REDIS_URL=runtime.settings.redis_url, HITL_FILES=str(folder / "files"), HITL_OIDC_ISSUER=issuer.url,
            HITL_OIDC_AUDIENCE=AUDIENCE,
        )  # fmt: skip
        url = opened.enter_context(web(env, folder))
        clients, everybodys = {}, await keys(runtime, issuer)
        for who, key in everybodys.items():
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            client = httpx2.AsyncClient(base_url=url, headers=headers, timeout=70, trust_env=False)
            clients[who] = await opened.enter_async_context(client)
        yield World(url, runtime, everybodys, clients, folder / "files")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def world(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with a_world(servers, tmp_path_factory.mktemp("matrix"), "matrix", redis_db=9) as found:
        yield found
