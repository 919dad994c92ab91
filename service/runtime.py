"""Floor 6: the wiring. Opens the pool, Redis and the providers, and closes them in reverse."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from arq.connections import ArqRedis

from service import queue
from service.commands.context import Services
from service.domain.keyring import Keyring
from service.notifier import Notifier
from service.oidc import Issuer
from service.providers.echo import EchoProvider
from service.providers.guard import guarded_client
from service.providers.http import HttpProvider
from service.providers.registry import Registry
from service.queue import RunQueue
from service.settings import Settings, require
from service.store.database import Database


@dataclass(frozen=True, slots=True)
class Runtime:
    settings: Settings
    services: Services
    redis: ArqRedis


@asynccontextmanager
async def open_runtime(settings: Settings, *, process: str, redis: ArqRedis | None = None) -> AsyncIterator[Runtime]:
    """The services of one process. Raises `SettingsError`; neither Postgres nor Redis need be there yet."""
    require(settings)
    assert settings.database_url and settings.redis_url and settings.hitl_secret_key
    own = queue.connect(settings.redis_url) if redis is None else redis
    db = Database(settings.database_url, pooler=settings.hitl_pg_pooler is not None, application=f"hitl-{process}")
    client = guarded_client(settings.http_allow)
    issuer = _issuer(settings)
    services = Services(
        db=db,
        queue=RunQueue(own, horizon_s=settings.hitl_timer_horizon_seconds),
        notifier=Notifier(own),
        registry=Registry([HttpProvider(client), EchoProvider()]),
        keyring=Keyring(settings.hitl_secret_key, settings.hitl_secret_key_previous),
        public_url=settings.public_url,
        horizon_s=settings.hitl_timer_horizon_seconds,
        issuer=issuer,
    )
    try:
        yield Runtime(settings, services, own)
    finally:
        if issuer is not None:
            await issuer.aclose()
        await client.aclose()
        if redis is None:
            await own.aclose(close_connection_pool=True)
        await db.close()


def _issuer(settings: Settings) -> Issuer | None:
    """Who signs bearer tokens, where the settings name one."""
    if settings.hitl_oidc_issuer is None or settings.hitl_oidc_audience is None:
        return None
    return Issuer(settings.hitl_oidc_issuer, settings.hitl_oidc_audience, settings.hitl_oidc_claims or {})
