"""Use case of a look into text files: how each begins, for whoever reviews an output."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from service.commands.context import Services
from service.commands.files import read_file
from service.domain.file import StoredFile
from service.errors import FilesUnavailable, NotFound

MAX_FILES: Final = 5
MAX_BYTES: Final = 16_384
_TEXTS: Final = ("application/json", "application/xml", "application/yaml", "application/x-ndjson")


async def excerpts(services: Services, found: Sequence[StoredFile]) -> dict[UUID, str]:
    """How the first few text files begin, by id. What cannot be read is left out: its link still stands."""
    told = {}
    for file in [one for one in found if is_text(one.media_type)][:MAX_FILES]:
        try:
            pieces = await read_file(services, file, 0, min(file.size, MAX_BYTES))
            body = b"".join([piece async for piece in pieces])
        except (NotFound, FilesUnavailable):
            continue
        more = "\n…" if file.size > MAX_BYTES else ""
        told[file.id] = body.decode("utf-8", "replace").replace("\r\n", "\n") + more
    return told


def is_text(media_type: str) -> bool:
    return media_type.startswith("text/") or media_type in _TEXTS or media_type.endswith(("+json", "+xml"))
