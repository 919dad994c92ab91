"""An output file: its row, its place in an output, and how much of it is asked for."""

import mimetypes
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import quote, unquote, urlsplit
from uuid import UUID

from service.domain.canonical import JSON

OCTETS: Final = "application/octet-stream"
_MEDIA_TYPE: Final = re.compile(r"^[a-z0-9!#$&^_.+-]{1,80}/[a-z0-9!#$&^_.+-]{1,80}$")
_RANGE: Final = re.compile(r"^bytes=(\d{0,19})-(\d{0,19})$")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """`location` is the file's place in the store; `sha256` lower-case hex."""

    id: UUID
    tenant: str
    run_id: UUID
    name: str
    media_type: str
    size: int
    sha256: str
    location: str
    created_at: datetime

    @property
    def path(self) -> str:
        """Where it is served, under our own address."""
        return f"/hitl/files/{self.id}"


def location_of(file_id: UUID) -> str:
    """The end of an id of version 7 is random: it spreads the files over folders."""
    return f"{file_id.hex[-2:]}/{file_id}"


def media_type_of(url: str, stated: str | None) -> str:
    """The media type that its server states, else the one that its name speaks of."""
    given = (stated or "").partition(";")[0].strip().lower()
    if _MEDIA_TYPE.match(given) and given not in (OCTETS, "binary/octet-stream"):
        return given
    return mimetypes.guess_type(urlsplit(url).path)[0] or OCTETS


def name_of(url: str, media_type: str) -> str:
    """A file name from the URL's last part: without folders, controls and what a file system minds."""
    last = "" if url.startswith("data:") else unquote(urlsplit(url).path).replace("\\", "/").rpartition("/")[2]
    clean = "".join(c for c in last if c.isprintable() and c not in '<>:"|?*/').strip(" .")[-120:]
    return clean or "file" + (mimetypes.guess_extension(media_type) or "")


def with_files(output: JSON, paths: Mapping[str, str]) -> JSON:
    """The output with every URL in it, alone or inside a text, replaced by the path of its copy."""
    match output:
        case str():
            if output in paths:
                return paths[output]
            for url in sorted(paths, key=len, reverse=True):  # one may begin with another
                output = output.replace(url, paths[url])
            return output
        case list():
            return [with_files(item, paths) for item in output]
        case dict():
            return {name: with_files(value, paths) for name, value in output.items()}
        case _:
            return output


class Unsatisfiable(Exception):
    """The range lies outside of the file."""


def asked_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The one range that is asked for, as its first byte and the one after its last; None for the whole file, also
    where the header is none that we serve (RFC 9110, section 14.2). Raises `Unsatisfiable`."""
    found = _RANGE.match((header or "").replace(" ", ""))
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        if int(last) == 0 or size == 0:
            raise Unsatisfiable
        return max(0, size - int(last)), size
    start, end = int(first), int(last) + 1 if last else size
    if start >= size:
        raise Unsatisfiable
    return None if end <= start else (start, min(end, size))


def disposition(file: StoredFile) -> str:
    """`Content-Disposition`: shown in place only where a browser runs nothing of it (RFC 6266)."""
    kind = file.media_type.partition("/")[0]
    shown = file.media_type == "text/plain" or (kind in ("image", "audio", "video") and "svg" not in file.media_type)
    plain = re.sub(r"[^A-Za-z0-9._ -]", "_", file.name)
    how = "inline" if shown else "attachment"
    return f"{how}; filename=\"{plain}\"; filename*=UTF-8''{quote(file.name, safe='')}"
