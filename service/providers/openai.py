"""`openai-agent-tool`: one chat completion of any OpenAI-compatible server, streamed inside the worker.

The SDK costs a quarter of a second and 14 MiB to import, so `openai_chat`, which knows it, is loaded by the
first call: a web process never pays.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Final

import orjson
from pydantic import BaseModel, ConfigDict, Field

from service.domain import form
from service.domain.call import Description, InvalidInput, Outcome, Rejected
from service.errors import Invalid
from service.providers.config import Cost, ToolConfig, checked
from service.providers.openai_schema import OURS, SCHEMA, TOOLS
from service.providers.protocol import Provider, Request

Send = Callable[[Request], Awaitable[Outcome]]
Close = Callable[[], Awaitable[None]]

NO_KEY: Final = "OPENAI_API_KEY is not set: this service cannot call an OpenAI-compatible server"


class Prices(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)
    input_per_million_usd: Cost
    output_per_million_usd: Cost


class ChatConfig(ToolConfig):
    model: str = Field(min_length=1, max_length=200)
    system: str | None = Field(default=None, max_length=100_000)
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 600
    estimated_cost_usd: Cost | None = None
    prices: Prices | None = None


class OpenAIProvider(Provider):
    """One client for all calls, opened by the first and closed with the runtime.

    Not repeatable: chat servers take an `Idempotency-Key` and promise nothing for it.
    """

    name = "openai"
    tool = "openai-agent-tool"
    capabilities: tuple[str, ...] = ("schema", "sync", "progress", "cost")
    repeatable = False

    def __init__(self, api_key: str | None, base_url: str) -> None:
        self._api_key = api_key
        self._base_url = base_url
        self._opening = asyncio.Lock()
        self._open: tuple[Send, Close] | None = None

    def check(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        chat = checked(ChatConfig, config, tool=self.tool)
        at = f"/run_input/agent_tool_config/{self.tool}/example_input"
        errors = [
            {"pointer": f"{at}/{name}", "message": "tools are not called from here"}
            for name in TOOLS
            if (chat.example_input or {}).get(name)
        ]
        if errors:
            raise Invalid("the tool's config is not valid", errors=errors)
        return config

    def timeout_s(self, config: Mapping[str, Any]) -> float:
        return ChatConfig.model_validate(config).timeout_seconds

    async def describe(self, config: Mapping[str, Any]) -> Description | Rejected:
        if self._api_key is None:
            return Rejected(NO_KEY)
        chat = ChatConfig.model_validate(config)
        example = {name: value for name, value in (chat.example_input or {}).items() if name not in (*OURS, *TOOLS)}
        return Description(schema=dict(SCHEMA), example=example, estimated_cost_usd=_estimate(chat, example))

    async def call(self, request: Request) -> Outcome:
        if self._api_key is None:
            return Rejected(NO_KEY)
        faults = form.issues(orjson.loads(request.body), SCHEMA)
        if faults:  # before a byte is sent: no approval makes a tool call of a payload
            return InvalidInput(faults)
        send, _ = await self._opened(self._api_key)
        return await send(request)

    async def aclose(self) -> None:
        if self._open is not None:
            await self._open[1]()

    async def _opened(self, api_key: str) -> tuple[Send, Close]:
        async with self._opening:
            if self._open is None:
                self._open = await asyncio.to_thread(_load, api_key, self._base_url)  # too long for the loop
            return self._open


def _load(api_key: str, base_url: str) -> tuple[Send, Close]:
    from service.providers.openai_chat import Chat

    chat = Chat(api_key, base_url)
    return chat.send, chat.aclose


def _estimate(chat: ChatConfig, example: Mapping[str, Any]) -> float | None:
    """The configured cost; else, by the configured prices, the most that the answer's tokens may cost."""
    limit = example.get("max_completion_tokens", example.get("max_tokens"))
    if chat.estimated_cost_usd is not None or chat.prices is None or not isinstance(limit, int):
        return chat.estimated_cost_usd
    return chat.prices.output_per_million_usd * limit / 1_000_000
