"""`echo-agent-tool`: answers with the payload. Local, for trials and drills."""

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from service.domain.call import (
    Answered,
    Description,
    InvalidInput,
    Outcome,
    OutcomeUnknown,
    Rejected,
    Unreachable,
)
from service.domain.fields import prompt_path
from service.providers.config import Cost, Schema, ToolConfig, checked
from service.providers.protocol import Provider, Request


class EchoFailure(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    status: int = Field(ge=100, le=599)
    message: str | None = Field(default=None, max_length=1000)


class EchoConfig(ToolConfig):
    schema_: Schema | None = Field(default=None, alias="schema")
    latency_seconds: float = Field(default=0, ge=0, le=3600)
    confidence: float | None = Field(default=None, ge=0, le=1)
    safety_flags: list[str] = []
    quality: float | None = None
    cost_usd: Cost | None = None
    flag_words: dict[str, str] = {}
    fail: list[EchoFailure] = []


class EchoProvider(Provider):
    """`fail` is consumed one a call: try n of call m meets the entry that all tries before it have left."""

    name = "echo"
    tool = "echo-agent-tool"
    capabilities: tuple[str, ...] = ("schema", "sync", "drill")
    repeatable = True

    def check(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        checked(EchoConfig, config, tool=self.tool)
        return config

    def secret_fields(self) -> tuple[str, ...]:
        return ()

    def timeout_s(self, config: Mapping[str, Any]) -> float:
        return 300 + EchoConfig.model_validate(config).latency_seconds

    async def describe(self, config: Mapping[str, Any]) -> Description:
        echo = EchoConfig.model_validate(config)
        return Description(
            schema=echo.schema_,
            example=echo.example_input,
            estimated_cost_usd=echo.cost_usd,
            confidence=echo.confidence,
            flag_words=echo.flag_words,
        )

    async def call(self, request: Request) -> Outcome:
        echo = EchoConfig.model_validate(request.config)
        try:
            async with asyncio.timeout(request.timeout_s):
                await asyncio.sleep(echo.latency_seconds)
        except TimeoutError:
            return OutcomeUnknown("no answer in time")
        if (nth := request.sent_before) < len(echo.fail):
            return _failure(echo.fail[nth], prompt_path(echo.schema_, echo.example_input)[0])
        payload = orjson.loads(request.body)
        return Answered(
            output=payload,
            raw=payload,
            provider_ref=request.idempotency_key,
            quality=echo.quality,
            safety_flags=echo.safety_flags,
            cost_usd=echo.cost_usd,
        )


def _failure(failure: EchoFailure, prompt: str) -> Outcome:
    message = f"status {failure.status}"
    match failure.status:
        case 422:
            issue = {
                "field": prompt,
                "issue": failure.message or "refused by the provider",
                "severity": "error",
                "suggested_fix": None,
                "auto_fixable": False,
            }
            return InvalidInput([issue], raw={"message": failure.message})
        case status if status == 429 or status >= 500:
            return Unreachable(message)
        case 408:
            return OutcomeUnknown("no answer in time")
        case _:
            return Rejected(message, raw={"message": failure.message})
