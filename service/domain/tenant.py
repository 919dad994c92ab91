"""What a tenant may start and store, and how long its record is kept."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tenant:
    """The row of `tenants`; None is no limit."""

    name: str
    starts_per_minute: int | None = None
    live_runs: int | None = None
    retention_days: int | None = None
    stored_bytes: int | None = None
    stored_bytes_now: int = 0
    """What was counted last, of a tenant with that limit."""
