"""Opaque cursors: the sort key of the last row of a page."""

import base64
import binascii
from datetime import datetime
from uuid import UUID

from service.errors import Invalid


def encode(at: datetime, last: UUID) -> str:
    return base64.urlsafe_b64encode(f"{at.isoformat()} {last}".encode()).rstrip(b"=").decode()


def decode(cursor: str | None) -> tuple[datetime, UUID] | None:
    """Raises `Invalid` for a cursor that we did not give out."""
    if cursor is None:
        return None
    try:
        text = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)).decode("ascii")
        at, last = text.split(" ")
        moment = datetime.fromisoformat(at)
        if moment.tzinfo is None:
            raise ValueError(at)
        return moment, UUID(last)
    except (ValueError, binascii.Error):
        message = "not a cursor of ours"
        raise Invalid("the query is not valid", errors=[{"pointer": "/query/cursor", "message": message}]) from None
