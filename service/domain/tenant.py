"""What a tenant may start, and how long its record is kept."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tenant:
    """The row of `tenants`; None is no limit."""

    name: str
    starts_per_minute: int | None = None
    live_runs: int | None = None
    retention_days: int | None = None
