"""What a reader of many runs has seen: a Postgres snapshot, and the cursor that is handed out for it."""

import base64
import binascii
from dataclasses import dataclass
from uuid import UUID

START = (UUID(int=0), 0)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`pg_snapshot`, https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-PG-SNAPSHOT-PARTS :
    below `xmin` all is seen, from `xmax` on nothing, between them all but `running`."""

    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> "Snapshot":
        """Of `xmin:xmax:xip,…`. Raises `ValueError`."""
        low, high, between = text.split(":")
        found = cls(int(low), int(high), frozenset(int(xid) for xid in between.split(",") if xid))
        if not 0 < found.xmin <= found.xmax < 2**63 or not all(found.xmin <= x < found.xmax for x in found.running):
            raise ValueError("not a snapshot")
        return found

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, sorted(self.running)))}"

    def sees(self, xid: int) -> bool:
        return xid < self.xmin or (xid < self.xmax and xid not in self.running)


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a stream over many runs: all that `since` sees was told before; of what `until` sees beyond that,
    told in the order of run and seq, all up to `last`."""

    since: Snapshot
    until: Snapshot
    last: tuple[UUID, int] = START

    def encode(self) -> str:
        text = f"{self.since} {self.until} {self.last[0].hex} {self.last[1]}"
        return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()

    @classmethod
    def decode(cls, text: str) -> "Cursor":
        """Raises `ValueError` for what `encode` never made."""
        if len(text) > 20_000:
            raise ValueError("not a cursor of ours")
        try:
            raw = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4)).decode("ascii")
        except binascii.Error as error:
            raise ValueError("not a cursor of ours") from error
        since, until, run_id, seq = raw.split(" ")
        cursor = cls(Snapshot.parse(since), Snapshot.parse(until), (UUID(run_id), int(seq)))
        if cursor.encode() != text or not 0 <= cursor.last[1] < 2**63:
            raise ValueError("not a cursor of ours")
        return cursor
