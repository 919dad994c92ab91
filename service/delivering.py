"""Floor 6: the wiring of what a worker sends to the outside: webhooks, and the relay where one is set."""

import asyncio
from contextlib import AsyncExitStack

import httpx2

from service.deliveries.relay import PostingRelay, SocketRelay
from service.deliveries.sender import Sender
from service.deliveries.webhook import Webhooks
from service.providers.guard import guarded_client
from service.runtime import Runtime


async def deliver(runtime: Runtime) -> None:
    """Send what is due, until cancelled."""
    services, settings = runtime.services, runtime.settings
    poll_s = min(settings.hitl_sweep_seconds, 2.0)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        client = await stack.enter_async_context(guarded_client(settings.http_allow))
        senders = [Sender(services, Webhooks(services, client), poll_s=poll_s)]
        url, key = settings.websocket_url, settings.websocket_api_key
        if url is not None and url.startswith("http"):
            own = await stack.enter_async_context(httpx2.AsyncClient(trust_env=False, follow_redirects=False))
            senders.append(Sender(services, PostingRelay(services, own, url, key), poll_s=poll_s))
        elif url is not None:
            relay = SocketRelay(services, url, key)
            senders.append(Sender(services, relay, poll_s=poll_s))
            relay.on_ready = senders[-1].wake
            group.create_task(relay.run())
        for sender in senders:
            stack.enter_context(services.notifier.on_deliver(sender.wake))
            group.create_task(sender.run())
