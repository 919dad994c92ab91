"""What there is to see and hear in a value: copies that are ours are shown, what lies elsewhere is only named."""

import mimetypes
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlsplit
from uuid import UUID

from service.domain.file import StoredFile
from service.domain.ids import parse_id

Kind = Literal["image", "audio", "video", "text", "link"]
_NO_TEXTS: Final[Mapping[UUID, str]] = {}
MAX_SHOWN: Final = 40
MAX_DATA: Final = 2_000_000
_FILE: Final = re.compile(r"/hitl/files/([0-9a-f-]{36})")
_URL: Final = re.compile(r"https?://[^\s<>\"'`{}|\\^]+")
_DATA: Final = re.compile(
    r"data:(image/(?:png|jpeg|gif|webp|avif)|audio/[\w.+-]+|video/[\w.+-]+);base64,[A-Za-z0-9+/=]+"
)


@dataclass(frozen=True, slots=True)
class Media:
    """`source` is where it lies; with a `host` that is elsewhere: a link that a person may follow, and nothing that
    the page loads. `text` is how a text begins."""

    kind: Kind
    source: str
    name: str
    host: str = ""
    text: str = ""


def media_of(value: Any, files: Sequence[StoredFile], texts: Mapping[UUID, str] = _NO_TEXTS) -> list[Media]:
    """In the order in which they stand, each once; `texts` are the beginnings of files by their ids."""
    known = {file.id: file for file in files}
    found = dict.fromkeys(one for text in _texts(value) for one in _in(text, known, texts))
    return list(found)[:MAX_SHOWN]


def _in(text: str, known: Mapping[Any, StoredFile], texts: Mapping[UUID, str]) -> Iterable[Media]:
    if text.startswith("data:"):
        data = _DATA.fullmatch(text) if len(text) <= MAX_DATA else None
        if data:
            yield Media(_kind(data[1]), text, data[1])
        return
    for match in _FILE.finditer(text):
        file = known.get(parse_id(match[1]))
        if file is not None:
            begins = texts.get(file.id)
            kind = _kind(file.media_type) if begins is None else "text"
            yield Media(kind, f"/files/{file.id}", file.name, text=begins or "")
    for match in _URL.finditer(text):
        url = match[0].rstrip(".,;:!?)]")
        host = _host(url)
        if host and not _FILE.search(url):
            yield Media("link", url, _kind(mimetypes.guess_type(urlsplit(url).path)[0] or ""), host)


def _kind(media_type: str) -> Kind:
    match media_type.partition("/")[0]:
        case "image":
            return "image"
        case "audio":
            return "audio"
        case "video":
            return "video"
        case _:
            return "link"


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _texts(value: Any) -> Iterable[str]:
    match value:
        case str():
            yield value
        case list():
            for item in value:
                yield from _texts(item)
        case Mapping():
            for item in value.values():
                yield from _texts(item)
        case _:
            return
