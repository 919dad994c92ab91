"""Names, media types, ranges and places of output files."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.file import (
    StoredFile,
    Unsatisfiable,
    asked_range,
    disposition,
    location_of,
    media_type_of,
    name_of,
    with_files,
)
from service.domain.ids import uuid7
from tests.domain.make import NOW, RUN_ID

FILE = StoredFile(uuid7(), "default", RUN_ID, "fox.webp", "image/webp", 10, "0" * 64, "aa/b", NOW)


@pytest.mark.parametrize(
    ("url", "stated", "kind", "name"),
    [
        ("https://a.example/x/out-0.webp", "image/webp; q=1", "image/webp", "out-0.webp"),
        ("https://a.example/x/out.png?sig=1", None, "image/png", "out.png"),
        ("https://a.example/x/out.mp4", "application/octet-stream", "video/mp4", "out.mp4"),
        ("https://a.example/", "text/plain", "text/plain", "file.txt"),
        ("https://a.example/a%2F..%2Fb%0a%22.txt", "nonsense\r\nX: 1", "text/plain", "b.txt"),
        ("https://a.example/..", None, "application/octet-stream", "file.bin"),
        ("https://a.example/%E7%8B%90.gif", "", "image/gif", "狐.gif"),
        ("data:image/png;base64,AA==", "image/png", "image/png", "file.png"),
    ],
)
def test_a_file_is_named_after_its_url_and_its_media_type(url: str, stated: str | None, kind: str, name: str) -> None:
    assert media_type_of(url, stated) == kind
    assert name_of(url, kind) == name


@given(st.text(max_size=300), st.sampled_from(["image/png", "text/html", "application/octet-stream"]))
def test_no_url_makes_a_name_that_leaves_its_folder_or_its_header(path: str, kind: str) -> None:
    name = name_of("https://a.example/" + path.replace("#", "").replace("?", ""), kind)
    assert name
    assert not set(name) & set('/\\"<>|\r\n\0')
    assert name not in (".", "..")
    header = disposition(replace(FILE, name=name))
    assert header.isascii()
    assert header.isprintable()


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("image/png", "inline"),
        ("audio/mpeg", "inline"),
        ("video/mp4", "inline"),
        ("text/plain", "inline"),
        ("text/html", "attachment"),
        ("image/svg+xml", "attachment"),
        ("application/pdf", "attachment"),
        ("text/xml", "attachment"),
    ],
)
def test_only_what_runs_nothing_is_shown_in_place(kind: str, how: str) -> None:
    assert disposition(replace(FILE, media_type=kind)).startswith(f"{how}; filename=")


@pytest.mark.parametrize(
    ("header", "size", "wanted"),
    [
        (None, 10, None),
        ("bytes=0-3", 10, (0, 4)),
        ("bytes=4-", 10, (4, 10)),
        ("bytes=-3", 10, (7, 10)),
        ("bytes=-30", 10, (0, 10)),
        ("bytes=8-99", 10, (8, 10)),
        ("bytes=0-3,5-6", 10, None),
        ("bytes=5-4", 10, None),
        ("bytes=-", 10, None),
        ("lines=1-2", 10, None),
        ("bytes=x-y", 10, None),
    ],
)
def test_one_range_is_served_and_what_is_none_is_ignored(header: str | None, size: int, wanted: Any) -> None:
    assert asked_range(header, size) == wanted


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-", 0), ("bytes=-1", 0)])
def test_a_range_outside_of_the_file_is_refused(header: str, size: int) -> None:
    with pytest.raises(Unsatisfiable):
        asked_range(header, size)


def test_urls_are_replaced_wherever_they_stand() -> None:
    paths = {"https://x/1": "/f/a", "https://x/12": "/f/b"}
    output = {"image": "https://x/1", "all": ["https://x/12", 3, None], "text": "see https://x/12 and https://x/1."}
    assert with_files(output, paths) == {
        "image": "/f/a",
        "all": ["/f/b", 3, None],
        "text": "see /f/b and /f/a.",
    }
    assert with_files("https://x/3", paths) == "https://x/3"


def test_locations_are_spread_and_unlike() -> None:
    places = {location_of(uuid7()) for _ in range(200)}
    assert len(places) == 200
    assert len({place.partition("/")[0] for place in places}) > 50
