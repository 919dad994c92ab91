"""A provider in this process that does what a test says: creates, looks, cancels, descriptions by script."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from service.commands.context import Services
from service.domain.call import Accepted, Description, Outcome, Rejected, Unreachable
from service.providers.protocol import Provider, Request
from service.providers.registry import Registry
from service.runtime import Runtime

TOOL = {"scripted-agent-tool": {"data": {"x": 1}}}


class Gate:
    """An entry of a script: arrives, and answers once it is opened."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome
        self.arrived = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, request: Request) -> Any:
        self.arrived.set()
        await self.opened.wait()
        return self.outcome


class Scripted(Provider):
    """Each script is consumed from the front; its last entry stands."""

    name, tool, capabilities = "scripted", "scripted-agent-tool", ("async",)
    repeatable = False
    poll_s = 30.0
    adopt_s = 60.0

    def __init__(self, **scripts: list[Any]) -> None:
        self.creates = scripts.get("creates", [Accepted("p1")])
        self.looks = scripts.get("looks", [Accepted("p1")])
        self.cancels = scripts.get("cancels", [True])
        self.descriptions = scripts.get("descriptions", [Description(example={"prompt": "x"})])
        self.requests: list[Request] = []
        self.looked: list[str] = []
        self.cancelled: list[str] = []
        self.described = 0

    def check(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        return config

    def timeout_s(self, config: Mapping[str, Any]) -> float:
        return 1800

    async def describe(self, config: Mapping[str, Any]) -> Description | Unreachable | Rejected:
        self.described += 1
        return await _next(self.descriptions, None)

    async def call(self, request: Request) -> Outcome:
        self.requests.append(request)
        return await _next(self.creates, request)

    async def poll(self, request: Request, provider_ref: str) -> Outcome:
        self.looked.append(provider_ref)
        return await _next(self.looks, request)

    async def cancel(self, config: Mapping[str, Any], secrets: Mapping[str, Any], provider_ref: str) -> bool:
        self.cancelled.append(provider_ref)
        return await _next(self.cancels, None)


async def _next(script: list[Any], request: Any) -> Any:
    entry = script.pop(0) if len(script) > 1 else script[0]
    return await entry(request) if callable(entry) else entry


def serving(runtime: Runtime, provider: Provider, **changes: Any) -> Services:
    """The services with this provider only."""
    return replace(runtime.services, registry=Registry([provider]), **changes)
