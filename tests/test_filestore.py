"""Both stores keep the same promises: whole or not at all, any part of it again, nothing in memory whole."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from service.filestore import PIECE, BucketStore, FileStore, FolderStore, Missing, StoreFailed, open_store


class Broke(Exception):
    pass


async def pieces(*given: bytes | Exception) -> AsyncIterator[bytes]:
    for piece in given:
        if isinstance(piece, Exception):
            raise piece
        yield piece


async def content(store: FileStore, location: str, start: int, end: int) -> bytes:
    return b"".join([piece async for piece in await store.open(location, start, end)])


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture(params=["folder", "bucket"])
def store(request: Any, tmp_path: Path) -> FileStore:
    return FolderStore(tmp_path) if request.param == "folder" else BucketStore(MemoryStore())


async def test_what_was_put_is_read_in_whole_and_in_part(store: FileStore) -> None:
    data = os.urandom(3 * PIECE + 17)
    await store.put("ab/one", pieces(data[:5], data[5:PIECE], data[PIECE:]))
    assert await content(store, "ab/one", 0, len(data)) == data
    assert await content(store, "ab/one", PIECE - 1, PIECE + 1) == data[PIECE - 1 : PIECE + 1]
    assert await content(store, "ab/one", len(data) - 1, len(data)) == data[-1:]
    assert await content(store, "ab/one", 4, 4) == b""


async def test_an_empty_file_is_a_file(store: FileStore) -> None:
    await store.put("ab/empty", pieces())
    assert await content(store, "ab/empty", 0, 0) == b""


async def test_what_is_cut_is_not_there(store: FileStore) -> None:
    with pytest.raises(Broke):
        await store.put("ab/cut", pieces(b"x" * 7 * PIECE, Broke()))
    for start, end in ((0, 1), (0, 0)):
        with pytest.raises(Missing):
            await store.open("ab/cut", start, end)


async def test_what_was_removed_is_gone_and_removing_it_again_is_fine(store: FileStore) -> None:
    await store.put("ab/gone", pieces(b"x"))
    for _ in range(2):
        await store.remove("ab/gone")
    with pytest.raises(Missing):
        await store.open("ab/gone", 0, 1)


async def test_a_folder_keeps_nothing_of_a_write_that_was_cancelled(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x" * PIECE
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(FolderStore(tmp_path).put("ab/x", slow()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert files_in(tmp_path) == []


async def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "ab").write_text("a file where a folder must be")
    with pytest.raises(StoreFailed):
        await FolderStore(tmp_path).put("ab/x", pieces(b"x"))


def test_an_address_chooses_the_store(tmp_path: Path) -> None:
    assert isinstance(open_store(str(tmp_path)), FolderStore)
    bucket = open_store("s3://outputs/a/b", endpoint="http://127.0.0.1:9")
    assert isinstance(bucket, BucketStore)


async def test_a_bucket_that_is_away_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    from obstore.store import S3Store

    away = BucketStore(
        S3Store(
            "outputs",
            endpoint="http://127.0.0.1:9",
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )
    )
    with pytest.raises(StoreFailed):
        await away.put("ab/x", pieces(b"x"))
    with pytest.raises(StoreFailed):
        await away.open("ab/x", 0, 1)
