"""An erasure: whose content is to go, and who asked for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Erasure:
    """`user_id`: who began the runs, or whom they are for. `run_ids`: only these of them; None: all, and the
    questions that belong to no run too."""

    id: UUID
    tenant: str
    user_id: str
    actor: str
    run_ids: Sequence[UUID] | None = None
