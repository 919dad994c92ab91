"""Floor 6: the wiring. Opens the pool, Redis and the providers, and closes them in reverse."""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points

from arq.connections import ArqRedis

from service import queue
from service.commands.context import Services
from service.domain import detectors
from service.domain.keyring import Keyring
from service.filestore import open_store
from service.notifier import Notifier
from service.oidc import Issuer
from service.presence import Presence
from service.providers.echo import EchoProvider
from service.providers.guard import guarded_client
from service.providers.http import HttpProvider
from service.providers.openai import OpenAIProvider
from service.providers.registry import Registry
from service.providers.replicate import ReplicateProvider
from service.providers.replicate_api import ReplicateApi
from service.queue import RunQueue
from service.settings import Settings, SettingsError, require
from service.sign_on import SignOn
from service.signals import Signals
from service.store.content import Vault
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
    for own_detector in entry_points(group="hitl.detectors"):  # of packages installed beside this one
        detectors.register(own_detector.load())
    assert settings.database_url and settings.redis_url and settings.hitl_secret_key
    own = queue.connect(settings.redis_url) if redis is None else redis
    signals = Signals(own)
    keyring = Keyring(settings.hitl_secret_key, settings.hitl_secret_key_previous)
    db = Database(
        settings.database_url,
        pooler=settings.hitl_pg_pooler is not None,
        application=f"hitl-{process}",
        relays=settings.websocket_url is not None,
        vault=Vault(keyring),
    )
    client = guarded_client(settings.http_allow)
    issuer = _issuer(settings)
    sign_on = _sign_on(settings, issuer)
    chat = OpenAIProvider(settings.openai_api_key, settings.openai_base_url)
    try:
        files = open_store(settings.files, endpoint=settings.hitl_files_endpoint)
    except ImportError:
        raise SettingsError("HITL_FILES: got an s3:// address; allowed: a folder, or it with the extra `s3`") from None
    replicate = ReplicateProvider(
        ReplicateApi(settings.replicate_api_token, settings.replicate_base_url),
        webhook_secrets=settings.replicate_webhook_secret,
    )
    services = Services(
        db=db,
        queue=RunQueue(own, horizon_s=settings.hitl_timer_horizon_seconds, signals=signals),
        notifier=Notifier(own, signals),
        presence=Presence(own),
        registry=Registry([HttpProvider(client), EchoProvider(), replicate, chat]),
        keyring=keyring,
        public_url=settings.public_url,
        horizon_s=settings.hitl_timer_horizon_seconds,
        files=files,
        file_max_bytes=settings.hitl_file_max_bytes,
        client=client,
        issuer=issuer,
        sign_on=sign_on,
    )
    try:
        yield Runtime(settings, services, own)
    finally:
        if issuer is not None:
            await issuer.aclose()
        await replicate.aclose()
        await chat.aclose()
        await client.aclose()
        await signals.close()
        if redis is None:
            await own.aclose(close_connection_pool=True)
        await db.close()


def collect_rarely() -> None:
    """Look for cycles after 20,000 new objects, not after 700, and never again at what is loaded by now: a run makes
    thousands of objects, nearly all of which go by themselves."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _issuer(settings: Settings) -> Issuer | None:
    """Who signs bearer tokens, where the settings name one."""
    if settings.hitl_oidc_issuer is None or settings.hitl_oidc_audience is None:
        return None
    return Issuer(settings.hitl_oidc_issuer, settings.hitl_oidc_audience, settings.hitl_oidc_claims or {})


def _sign_on(settings: Settings, issuer: Issuer | None) -> SignOn | None:
    """Where people sign in to the console, where the settings say as which client."""
    if issuer is None or settings.hitl_oidc_client_id is None:
        return None
    return SignOn(issuer, settings.hitl_oidc_client_id, settings.hitl_oidc_client_secret)
