"""Identifiers: UUIDv7 (RFC 9562), so that ids sort by their time of birth."""

import os
import time
import uuid


def uuid7(now_ms: int | None = None, random: bytes | None = None) -> uuid.UUID:
    """A UUIDv7 of the given millisecond (default: now) and 10 random bytes."""
    ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    tail = int.from_bytes(random or os.urandom(10), "big")
    value = (ms & (1 << 48) - 1) << 80 | 0x7 << 76 | (tail >> 68 & 0xFFF) << 64 | 0b10 << 62 | tail & (1 << 62) - 1
    return uuid.UUID(int=value)


def parse_id(text: str) -> uuid.UUID | None:
    """The id in its canonical form, or None: an id that we never gave out is simply unknown."""
    try:
        value = uuid.UUID(text)
    except ValueError:
        return None
    return value if str(value) == text.lower() else None


def job_id(run_id: uuid.UUID, token: int) -> str:
    """The id of one wake-up of a run; the token grows, so no two are alike."""
    return f"run:{run_id}:{token}"


def parse_job_id(text: str) -> tuple[uuid.UUID, int] | None:
    """The run and token of a job id, or None."""
    kind, _, rest = text.partition(":")
    run, _, token = rest.partition(":")
    run_id = parse_id(run)
    if kind != "run" or run_id is None or not token.isascii() or not token.isdigit() or len(token) > 9:
        return None
    return run_id, int(token)
