"""Use case of a signed webhook of a provider: who says so is checked, then the call that it names is looked at."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import orjson

from service.commands.callbacks import purpose, take_notice
from service.commands.context import Services
from service.domain.ids import parse_id
from service.domain.standard_webhooks import verify
from service.errors import BadSignature, InvalidJson
from service.store import runs
from service.store.database import EVERY

_REF: Final = re.compile(r"[\w-]{1,200}")


@dataclass(frozen=True, slots=True)
class Webhook:
    """One webhook as it came: `headers` by lower-case name, `body` byte for byte, the rest from its URL."""

    run_id: str
    call: str
    signature: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


async def take_webhook(services: Services, tool: str, webhook: Webhook) -> None:
    """Look again at the prediction that the webhook names. Repeats, and unknown or finished runs, change nothing.

    Its Standard Webhooks signature is enough; where there is no secret to check it by, the URL's own must hold.
    Raises `BadSignature`, `InvalidJson`.
    """
    provider = services.registry.by_tool(tool)
    run_id, number = parse_id(webhook.run_id), _number(webhook.call)
    by_url = services.keyring.verify(purpose(provider.name), f"{run_id}:{number}", webhook.signature)
    secrets = await provider.webhook_secrets()
    if not (verify(secrets, webhook.headers, webhook.body, now=time.time()) if secrets else by_url):
        raise BadSignature("the signature of the webhook is not valid")
    provider_ref = _reference(webhook.body)
    if run_id is None:
        return
    # a call number that our own signature does not vouch for is not believed
    about = number if by_url else await _current_call(services, run_id)
    if about is not None:
        await take_notice(services, run_id, about, provider_ref)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else None


def _reference(body: bytes) -> str:
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InvalidJson("the webhook is not JSON") from None
    ref = told.get("id") if isinstance(told, dict) else None
    if not isinstance(ref, str) or not _REF.fullmatch(ref):
        raise InvalidJson("the webhook names no prediction")
    return ref


async def _current_call(services: Services, run_id: UUID) -> int | None:
    async with services.db.connection(EVERY) as conn:
        run = await runs.find(conn, run_id)
    return run.call_no if run else None
