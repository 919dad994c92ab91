"""`http-agent-tool`: the approved payload as the JSON body of one request to any endpoint."""

import asyncio
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import httpx2
import orjson
from pydantic import AfterValidator, Field

from service import tracing
from service.domain.call import (
    Accepted,
    Answered,
    Description,
    InvalidInput,
    Outcome,
    OutcomeUnknown,
    Rejected,
    Unreachable,
)
from service.domain.canonical import JSON
from service.providers.config import Cost, Schema, ToolConfig, checked
from service.providers.guard import blocked
from service.providers.protocol import Provider, Request

MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
MAX_ANSWER_DEPTH: Final = 200  # what is written as JSON may be 254 deep, with all that is around it
_OURS: Final = frozenset({"content-length", "transfer-encoding", "host", "connection", "idempotency-key"})


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        spaced = any(char.isspace() or not char.isprintable() for char in value)
        usable = not spaced and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        httpx2.URL(value)
    except (ValueError, httpx2.InvalidURL):
        usable = False
    if not usable:
        raise ValueError("must be an http or https URL")
    return value


def _headers(value: dict[str, str]) -> dict[str, str]:
    for name, content in value.items():
        if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError("a header name is not valid")
        if any(ord(c) < 32 or ord(c) == 127 for c in content):
            raise ValueError("a header value holds a control character")
        if name.lower() in _OURS or name.lower().startswith("x-hitl-"):
            raise ValueError(f"the header {name} is set by us")
    return value


class HttpConfig(ToolConfig):
    url: Annotated[str, Field(max_length=2000), AfterValidator(_url)]
    method: str = Field(default="POST", pattern="^(POST|PUT|PATCH)$")
    headers: Annotated[dict[str, str], Field(max_length=50, repr=False), AfterValidator(_headers)] = {}
    timeout_seconds: float = Field(default=300, gt=0, le=7 * 86_400)
    schema_: Schema | None = Field(default=None, alias="schema")
    estimated_cost_usd: Cost | None = None


class HttpProvider(Provider):
    """`client` must be guarded: the address was chosen by whoever started the run."""

    name = "http"
    tool = "http-agent-tool"
    capabilities: tuple[str, ...] = ("schema", "sync", "callback", "idempotency_key")
    repeatable = True

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client

    def check(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        checked(HttpConfig, config, tool=self.tool)
        return config

    def secret_fields(self) -> tuple[str, ...]:
        return ("headers",)

    def timeout_s(self, config: Mapping[str, Any]) -> float:
        value = config.get("timeout_seconds", 300)
        return float(value)

    async def describe(self, config: Mapping[str, Any]) -> Description:
        return Description(
            schema=config.get("schema"),
            example=config.get("example_input"),
            estimated_cost_usd=config.get("estimated_cost_usd"),
        )

    async def call(self, request: Request) -> Outcome:
        try:
            async with asyncio.timeout(request.timeout_s):
                return await self._send(request)
        except TimeoutError:
            return OutcomeUnknown("no answer in time")
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            if blocked(error):
                return Rejected("the address may not be reached from here")
            return Unreachable("the connection was refused")
        except httpx2.RequestError:
            # sent and cut, or not to be decoded: the same idempotency key makes another try harmless
            return Unreachable("the connection broke before the answer")

    async def _send(self, request: Request) -> Outcome:
        headers = httpx2.Headers(request.secrets.get("headers", {}))
        headers.update(  # ours in place of theirs, however they spell the name
            {
                "Content-Type": "application/json",
                "Idempotency-Key": request.idempotency_key,
                "X-HITL-Run-Id": str(request.run_id),
                "X-HITL-Payload-SHA256": request.payload_sha256,
                "X-HITL-Callback-Url": request.callback_url,
                **tracing.headers(),
            }
        )
        config = request.config
        tracing.note(tracing.outgoing(config.get("method", "POST"), config["url"]))
        async with self._client.stream(
            config.get("method", "POST"), config["url"], content=request.body, headers=headers, timeout=None
        ) as response:
            tracing.note({"http.response.status_code": response.status_code})
            body = bytearray()
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > MAX_ANSWER_BYTES:
                    return Rejected(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")
            return _outcome(response, bytes(body))


def _outcome(response: httpx2.Response, body: bytes) -> Outcome:
    status = response.status_code
    answer = parsed(body)
    if status == 202:
        return Accepted()
    if 200 <= status < 300:
        return Answered(output=answer, raw=answer)
    if status == 422:
        return InvalidInput(issues_of(answer), raw=answer)
    if status == 429 or status >= 500:
        return Unreachable(f"the provider answered {status}", retry_after_s(response.headers.get("retry-after")))
    return Rejected(f"the provider answered {status}", raw=answer)


def parsed(body: bytes) -> JSON:
    """The body as JSON, or as text where it is none or is nested too deep to be stored and told again."""
    try:
        found: JSON = orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode("utf-8", "replace")
    return found if _is_flat(found) else body.decode("utf-8", "replace")


def _is_flat(value: JSON) -> bool:
    level: list[JSON] = [value]
    for _ in range(MAX_ANSWER_DEPTH):
        level = [inner for one in level for inner in _members(one) if isinstance(inner, dict | list)]
        if not level:
            return True
    return False


def _members(value: JSON) -> Iterable[JSON]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def issues_of(answer: JSON) -> list[dict[str, Any]]:
    """Every faulty field that the usual shapes of a 422 name: `{errors|detail|issues: [{field|loc|pointer|path,
    message|msg, allowed|enum}]}` or `{errors: {field: message}}`; else one issue without a field."""
    found = (
        next((answer[key] for key in ("errors", "detail", "issues", "invalid_fields") if answer.get(key)), None)
        if isinstance(answer, dict)
        else answer
    )
    if isinstance(found, dict):
        found = [{"field": name, "message": text} for name, text in found.items()]
    entries = found if isinstance(found, list) else [found]
    return [_issue(entry) for entry in entries if entry is not None] or [_issue(None)]


def _issue(entry: Any) -> dict[str, Any]:
    about = entry if isinstance(entry, dict) else {"message": entry}
    where = next((about[key] for key in ("field", "loc", "pointer", "path", "name", "param") if about.get(key)), "")
    if isinstance(where, str):
        where = where.replace(".", "/").split("/")
    parts = [str(part) for part in where if part not in ("", "body", "input")] if isinstance(where, list) else []
    text = next((about[key] for key in ("message", "msg", "issue", "description", "detail") if about.get(key)), None)
    allowed = next(
        (about[key] for key in ("allowed", "allowed_values", "enum", "suggested_fix") if about.get(key)), None
    )
    return {
        "field": ".".join(parts),
        "issue": _text(text) or "refused by the provider",
        "severity": "error",
        "suggested_fix": _text(allowed),
        "auto_fixable": False,
    }


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return orjson.dumps(value).decode()


def retry_after_s(value: str | None) -> float | None:
    """Seconds, from either form of the header (RFC 9110, section 10.2.3)."""
    if not value:
        return None
    try:
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
