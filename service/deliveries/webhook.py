"""Signed webhooks: one POST of a run's or a question's next message to its `callback_url`."""

import asyncio
import random
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

import httpx2
import orjson

from service import __version__, tracing
from service.commands.context import Services
from service.commands.views import run_views
from service.commands.webhooks import signing_secrets
from service.deliveries.sender import MARGIN_S
from service.domain.delivery import WEBHOOK, next_try, webhook_body
from service.domain.standard_webhooks import sign
from service.domain.view import approval_view
from service.logs import get_logger
from service.providers.guard import blocked
from service.store import approvals, deliveries, runs
from service.store.database import Conn
from service.store.deliveries import Line, Message

ANSWER_S: Final = 15.0
ERASED: Final = "content_erased"
MAX_ANSWER_BYTES: Final = 64 * 1024

log = get_logger("deliveries.webhook")


class Webhooks:
    """`client` must be guarded: the address was chosen by whoever started the run."""

    kind = WEBHOOK
    ready = True
    at_once = 32
    per_target = 8
    lease_s = ANSWER_S + 2 * MARGIN_S

    def __init__(
        self,
        services: Services,
        client: httpx2.AsyncClient,
        *,
        answer_s: float = ANSWER_S,
        pause: Callable[[int], timedelta | None] | None = None,
    ) -> None:
        self._services = services
        self._client = client
        self._answer_s = answer_s
        self._pause = pause or _pause

    async def send(self, line: Line) -> None:
        taken = await self._take(line)
        if taken is None:
            return
        message, url, body, secrets = taken
        parent = await self._begun(line)
        with tracing.span("webhook", kind="client", parent=parent, **tracing.outgoing("POST", url)):
            started = time.monotonic()
            error = await self._post(url, message.id, body, secrets) if secrets else "secret_unreadable"
            await self._settle(line, message, error, round((time.monotonic() - started) * 1000))

    async def _begun(self, line: Line) -> str | None:
        """The span that the line's run began with: its webhooks are of its trace."""
        if line.run_id is None or not tracing.on():
            return None
        async with self._services.db.connection(line.tenant) as conn:
            run = await runs.find(conn, line.run_id)
        return run.traceparent if run else None

    async def _take(self, line: Line) -> tuple[Message, str, bytes, list[str]] | None:
        """What is first in the line, with the body that every try of it sends; None when there is nothing to send."""
        async with self._services.db.transaction(line.tenant) as conn:
            if not await deliveries.lock(conn, line):
                return None
            found = await deliveries.first(conn, line, limit=1)
            url = await deliveries.callback_url(conn, line)
            if not found or url is None:
                if found:  # its content was erased, and with it where it was to go
                    await deliveries.failed(conn, found[0].id, error=ERASED, dead=True)
                await deliveries.put_down(conn, line, wait=timedelta(0))
                return None
            message = found[0]
            body = message.body
            if body is None:
                body = orjson.dumps(await _body(conn, self._services, line, message))
                await deliveries.keep_body(conn, line, message.id, body)
            return message, url, body, await signing_secrets(conn, self._services, line.tenant)

    async def _post(self, url: str, message_id: UUID, body: bytes, secrets: list[str]) -> str | None:
        """One try. None when it was acknowledged, else a code for what went wrong."""
        now = int(self._services.db.now().timestamp())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"hitl-service/{__version__}",
            "webhook-id": str(message_id),
            "webhook-timestamp": str(now),
            "webhook-signature": " ".join(sign(secret, str(message_id), now, body) for secret in secrets),
            **tracing.headers(),
        }
        try:
            async with (
                asyncio.timeout(self._answer_s),
                self._client.stream("POST", url, content=body, headers=headers, timeout=None) as response,
            ):
                tracing.note({"http.response.status_code": response.status_code})
                if not 200 <= response.status_code < 300:
                    return f"http_{response.status_code}"
                await _drain(response)
                return None
        except TimeoutError:
            return "timeout"
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            return "address_blocked" if blocked(error) else "unreachable"
        except httpx2.TransportError:
            return "connection_broken"
        except (httpx2.InvalidURL, ValueError):
            return "url_invalid"

    async def _settle(self, line: Line, message: Message, error: str | None, took_ms: int) -> None:
        wait: timedelta | None = timedelta(0)
        tries = message.tries + 1
        async with self._services.db.transaction(line.tenant) as conn:
            if not await deliveries.lock(conn, line):
                return
            if error is None:
                await deliveries.delivered(conn, message.id)
            else:
                wait = self._pause(tries)
                await deliveries.failed(conn, message.id, error=error, dead=wait is None)
            await deliveries.put_down(conn, line, wait=wait or timedelta(0))
        about: dict[str, Any] = {
            "delivery_id": str(message.id), "type": message.type, "tenant": line.tenant, "host": line.target,
            "run_id": str(line.run_id) if line.run_id else None,
            "approval_id": str(message.approval_id) if message.approval_id else None,
            "tries": tries, "duration_ms": took_ms,
        }  # fmt: skip
        if error is None:
            log.info("webhook.delivered", **about)
        else:
            log.warning("webhook.failed", **about, code=error, dead=wait is None)


def _pause(tries: int) -> timedelta | None:
    return next_try(tries, jitter=random.random())  # noqa: S311  spread, not secrecy


async def _drain(response: httpx2.Response) -> None:
    """Read a small answer, so that the connection can be used again; leave a large one."""
    size = 0
    try:
        async for piece in response.aiter_raw():
            size += len(piece)
            if size > MAX_ANSWER_BYTES:
                return
    except (httpx2.TransportError, TimeoutError):
        return  # it said 2xx


async def _body(conn: Conn, services: Services, line: Line, message: Message) -> dict[str, Any]:
    run = approval = None
    if message.approval_id is not None:
        found = await approvals.some(conn, [message.approval_id])
        approval = approval_view(found[0]) if found else None
    elif line.run_id is not None:
        known = await runs.find(conn, line.run_id)
        run = (await run_views(conn, services, [known]))[0] if known else None
    return webhook_body(message.type, message.created_at, seq=message.seq, run=run, approval=approval)
