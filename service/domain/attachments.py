"""Files that come with a request: named by URL, told apart by kind, found in a prompt's text."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final, Literal, TypeAlias
from urllib.parse import urlsplit

Kind: TypeAlias = Literal["image", "audio", "video", "text", "file"]

BEGIN: Final = "---BEGIN_ATTACHMENTS---"
END: Final = "---END_ATTACHMENTS---"
_TRAILING: Final = ".,;:!?)]}'\""
# "a,https://b" are two: a comma before a scheme ends the first.
_URL: Final = re.compile(r"https?://(?:(?!,https?://)[^\s<>\"`{}|\\])+", re.IGNORECASE)
_DATA_TYPE: Final = re.compile(r"data:([\w.+-]+/[\w.+-]+)", re.IGNORECASE)
_FAMILIES: Final[dict[str, Kind]] = {"image": "image", "audio": "audio", "video": "video", "text": "text"}
_ENDINGS: Final[dict[Kind, str]] = {
    "image": "png jpg jpeg gif webp bmp tif tiff svg heic heif avif ico",
    "audio": "mp3 wav ogg oga flac m4a aac opus wma aiff",
    "video": "mp4 mov webm avi mkv m4v mpeg mpg wmv ogv",
    "text": "txt md csv tsv json jsonl xml html htm yaml yml srt vtt log",
}
_EXTENSIONS: Final = {ending: kind for kind, endings in _ENDINGS.items() for ending in endings.split()}


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file by its http(s) or `data:` URL, with its media type (`image/png`) and name where known."""

    url: str
    media_type: str | None = None
    name: str | None = None


def kind(attachment: Attachment) -> Kind:
    """What the file is: by media type, else by the extension of its name or URL path, else `file`."""
    typed = attachment.media_type or _data_type(attachment.url)
    family = typed.partition("/")[0].strip().lower() if typed else ""
    if family in _FAMILIES:
        return _FAMILIES[family]
    named = _by_extension(attachment.name or "")
    return named or _by_extension(_path(attachment.url)) or "file"


def urls_in(text: str) -> tuple[str, ...]:
    """The http(s) URLs of a text in order, each once, trailing punctuation trimmed."""
    found = (match.group().rstrip(_TRAILING) for match in _URL.finditer(text))
    return tuple(dict.fromkeys(url for url in found if "//" in url and not url.endswith("//")))


def unique(attachments: Iterable[Attachment]) -> tuple[Attachment, ...]:
    """The attachments in order, the first of each URL."""
    first: dict[str, Attachment] = {}
    for attachment in attachments:
        first.setdefault(attachment.url, attachment)
    return tuple(first.values())


def from_prompt(prompt: str) -> tuple[str, tuple[Attachment, ...]]:
    """The prompt without its attachment blocks, and what it names: the blocks' URLs, then others in it.

    A prompt without a whole block (contract section 10) comes back unchanged; other URLs stay in the text.
    """
    text, blocks = _cut(prompt)
    listed = [url for block in blocks for url in urls_in(block)]
    return text, unique(Attachment(url) for url in (*listed, *urls_in(text)))


def _cut(prompt: str) -> tuple[str, list[str]]:
    kept, blocks, at = [], [], 0
    while (begin := prompt.find(BEGIN, at)) >= 0 and (end := prompt.find(END, begin)) >= 0:
        kept.append(prompt[at:begin].strip())
        blocks.append(prompt[begin + len(BEGIN) : end])
        at = end + len(END)
    if not blocks:
        return prompt, []
    kept.append(prompt[at:].strip())
    return "\n".join(part for part in kept if part), blocks


def _data_type(url: str) -> str | None:
    match = _DATA_TYPE.match(url)
    return match.group(1) if match else None


def _by_extension(path: str) -> Kind | None:
    return _EXTENSIONS.get(PurePosixPath(path).suffix.lstrip(".").lower())


def _path(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError:
        return ""
