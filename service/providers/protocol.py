"""The one protocol of the house: what the orchestrator needs of a provider."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

from service.domain.call import Description, Outcome, Rejected, Unreachable
from service.domain.canonical import JSON


@dataclass(frozen=True, slots=True)
class Request:
    """One try of one call. `body` is the frozen payload as RFC 8785 JSON, its hash checked by the caller.

    `sent_before` counts the tries of this run before this one, over all its calls;
    `timeout_s` is what is left of the call's time, `run_left_s` of the run's own, where it has a deadline;
    `secrets` are the write-only values of the tool's config. `progress` takes what is known of the answer so
    far, as often as the provider likes: what is told is thinned out by the caller, and the last one counts.
    """

    run_id: UUID
    number: int
    sent_before: int
    idempotency_key: str
    body: bytes = field(repr=False)
    payload_sha256: str
    config: Mapping[str, Any]
    secrets: Mapping[str, Any] = field(repr=False)
    callback_url: str = field(repr=False)
    timeout_s: float
    run_left_s: float | None = None
    progress: Callable[[Mapping[str, JSON]], None] = lambda _: None


class Provider(Protocol):
    """What runs a call. Subclass it: what not every provider has is answered here.

    `repeatable`: a call with the same idempotency key has one effect, so it may be sent again. `poll_s`: the
    longest time between two looks at an accepted call, None where only a callback can tell. `adopt_s`: how long
    a call that was sent and never answered may still be claimed by its webhook before a human is asked.
    """

    name: str
    tool: str
    capabilities: tuple[str, ...]
    repeatable: bool
    poll_s: float | None = None
    adopt_s: float = 0

    def check(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The config as it is kept. Raises `service.errors.Invalid` with pointers; unknown keys stay."""
        ...

    def secret_fields(self) -> tuple[str, ...]:
        """Members of the config whose values are write-only."""
        return ()

    def timeout_s(self, config: Mapping[str, Any]) -> float:
        """How long one call may take, waiting for a callback included."""
        ...

    async def describe(self, config: Mapping[str, Any]) -> Description | Unreachable | Rejected:
        """What is known of the tool before it is called: asked once a run, before its payload is built."""
        ...

    async def call(self, request: Request) -> Outcome:
        """One try. Returns every outcome as a value; raises only for faults of our own."""
        ...

    async def poll(self, request: Request, provider_ref: str) -> Outcome:
        """One look at a call that was accepted. `Accepted`: it goes on; `Unreachable`: look again later."""
        raise AssertionError(f"{self.name} has nothing to look at")

    async def cancel(self, config: Mapping[str, Any], secrets: Mapping[str, Any], provider_ref: str) -> bool:
        """End an accepted call at the provider. False: it could not be reached, try again; True: over, or never was."""
        return True

    async def webhook_secrets(self) -> Sequence[str]:
        """Whose Standard Webhooks signature its webhooks bear; none where only the URL's own signature tells."""
        return ()
