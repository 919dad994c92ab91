"""Routes for those who run the service: queue, providers, health, and the callbacks of providers."""

import asyncio

from starlette.responses import Response

from service import metrics
from service.api.models import (
    CallbackQuery,
    Exposition,
    Health,
    ProviderList,
    QueueView,
    Readiness,
    Received,
    WebhookSecret,
)
from service.api.operation import Call, Operation, Reply
from service.commands import watch, webhooks
from service.commands.callbacks import take_callback
from service.domain.ids import parse_id
from service.domain.principal import Permission
from service.domain.view import when
from service.errors import BadSignature, HitlError
from service.store import deliveries, migrate, runs, workers
from service.store.database import EVERY


async def get_queue(call: Call) -> Reply:
    """What waits, what runs, and which workers are there."""
    async with call.services.db.connection(call.principal.tenant) as conn:
        figures = await runs.queue_figures(conn, call.principal.tenant)
        present = await workers.present(conn)
        messages = await deliveries.figures_of(conn, call.principal.tenant)
    return Reply(
        {**figures, **messages, "workers": [{**worker, "seen_at": when(worker["seen_at"])} for worker in present]}
    )


async def list_providers(call: Call) -> Reply:
    """The providers of this release."""
    found = [
        {"name": p.name, "tools": [p.tool], "capabilities": list(p.capabilities)} for p in call.services.registry.all()
    ]
    return Reply({"providers": found, "total": len(found)})


async def get_webhook_secret(call: Call) -> Reply:
    """The secret that signs the tenant's webhooks now."""
    return Reply({"key": await webhooks.secret(call.services, call.principal.tenant)})


async def take_http_callback(call: Call) -> Reply:
    """The late answer of an `http` provider. The URL carries its own signature; repeats change nothing."""
    query: CallbackQuery = call.query
    run_id = parse_id(call.path["run_id"])
    if run_id is None:
        raise BadSignature("the signature of the callback URL is not valid")
    await take_callback(call.services, run_id, query.call, query.signature, call.raw_body)
    return Reply({"received": True})


async def healthz(call: Call) -> Reply:
    """The process is alive."""
    return Reply({"status": "ok"})


async def readyz(call: Call) -> Reply:
    """Whether requests can be taken. Redis away only delays, so it is told but does not count; a process that was
    told to stop says so, for balancers to look elsewhere."""
    if call.services.notifier.leaving:
        return Reply({"status": "leaving", "dependencies": {}}, 503)
    postgres, redis = await asyncio.gather(_postgres(call), call.services.queue.ping())
    ready = postgres == "ok"
    states = {"postgres": postgres, "redis": "ok" if redis else "away"}
    return Reply({"status": "ready" if ready else "not_ready", "dependencies": states}, 200 if ready else 503)


async def _postgres(call: Call) -> str:
    try:
        async with asyncio.timeout(3), call.services.db.connection(EVERY) as conn:
            return "migrations pending" if await migrate.pending(conn) else "ok"
    except (HitlError, TimeoutError):
        return "away"


async def get_metrics(call: Call) -> Response:
    """What this process has counted, and the state of the service, for Prometheus."""
    return Response(await watch.exposition(call.services), media_type=metrics.CONTENT_TYPE)


OPERATIONS = (
    Operation("GET", "/hitl/queue", get_queue, QueueView, tag="operations"),
    Operation("GET", "/hitl/providers", list_providers, ProviderList, tag="operations"),
    Operation(
        "GET", "/hitl/webhooks/secret", get_webhook_secret, WebhookSecret, Permission.ADMIN, problems=(401, 403),
        tag="webhooks",
    ),
    Operation(
        "POST", "/hitl/webhooks/http/{run_id}", take_http_callback, Received, None, query=CallbackQuery,
        any_body=True, problems=(401, 413, 415, 422), tag="webhooks",
    ),
    Operation("GET", "/metrics", get_metrics, Exposition, media_types=("text/plain",), tag="operations"),
    Operation("GET", "/healthz", healthz, Health, None, tag="operations"),
    Operation("GET", "/readyz", readyz, Readiness, None, problems=(503,), tag="operations"),
)  # fmt: skip
