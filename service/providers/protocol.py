"""The one protocol of the house: what the orchestrator needs of a provider."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from service.domain.call import Description, Outcome


@dataclass(frozen=True, slots=True)
class Request:
    """One try of one call. `body` is the frozen payload as RFC 8785 JSON, its hash checked by the caller.

    `sent_before` counts the tries of this run before this one, over all its calls;
    `timeout_s` is what is left of the call's time; `secrets` are the write-only values of the tool's config.
    """

    run_id: UUID
    number: int
    sent_before: int
    idempotency_key: str
    body: bytes
    payload_sha256: str
    config: Mapping[str, Any]
    secrets: Mapping[str, Any]
    callback_url: str
    timeout_s: float


class Provider(Protocol):
    """`repeatable`: a call with the same idempotency key has one effect, so it may be sent again."""

    name: str
    tool: str
    capabilities: tuple[str, ...]
    repeatable: bool

    def check(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The config as it is kept. Raises `service.errors.Invalid` with pointers; unknown keys stay."""
        ...

    def secret_fields(self) -> tuple[str, ...]:
        """Members of the config whose values are write-only."""
        ...

    def timeout_s(self, config: Mapping[str, Any]) -> float:
        """How long one call may take, waiting for a callback included."""
        ...

    async def describe(self, config: Mapping[str, Any]) -> Description: ...

    async def call(self, request: Request) -> Outcome:
        """One try. Returns every outcome as a value; raises only for faults of our own."""
        ...
