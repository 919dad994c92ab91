"""Both stores keep the same promises: whole or not at all, any part of it again, nothing in memory whole."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from obstore.store import MemoryStore

from service.filestore import PIECE, BucketStore, FileStore, FolderStore, Missing, StoreFailed, open_store

NOW = "Tue, 24 Nov 2026 12:00:00 GMT"


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


class Bucket:
    """As much of S3's HTTP as a client needs to put, read in part and delete: objects by path."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.signed = True

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.signed &= headers.get("authorization", "").startswith("AWS4-HMAC-SHA256 Credential=the-key/")
        url = urlsplit(target)
        status, more, answer = self.answer(method, url.path, parse_qs(url.query, True), headers.get("range"), body)
        length = more.pop("content-length", str(len(answer)))
        fields = {"content-length": length, "connection": "close", "last-modified": NOW, "etag": '"e"', **more}
        lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        writer.write("\r\n".join(lines).encode() + answer)
        await writer.drain()
        writer.close()

    def answer(
        self, method: str, path: str, query: dict[str, list[str]], asked: str | None, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        match method:
            case "POST" if "uploads" in query:
                return 200, {}, b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
            case "POST" if "delete" in query:
                keys = re.findall(rb"<Key>([^<]+)</Key>", body)
                for key in keys:
                    self.objects.pop(f"{path}/{key.decode()}", None)
                gone = b"".join(b"<Deleted><Key>" + key + b"</Key></Deleted>" for key in keys)
                return 200, {}, b"<DeleteResult>" + gone + b"</DeleteResult>"
            case "POST":
                parts = sorted(n for where, n in self.parts if where == path)
                self.objects[path] = b"".join(self.parts.pop((path, n)) for n in parts)
                return 200, {}, b"<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>"
            case "PUT" if "partNumber" in query:
                self.parts[path, int(query["partNumber"][0])] = body
                return 200, {}, b""
            case "PUT":
                self.objects[path] = body
                return 200, {}, b""
            case _ if path not in self.objects:
                return 404, {}, b""
            case "HEAD":
                return 200, {"content-length": str(len(self.objects[path]))}, b""
            case _:
                assert asked is not None
                start, end = (int(at) for at in asked.removeprefix("bytes=").split("-"))
                whole = self.objects[path]
                told = f"bytes {start}-{min(end, len(whole) - 1)}/{len(whole)}"
                return 206, {"content-range": told}, whole[start : end + 1]


async def test_a_bucket_behind_an_endpoint_is_spoken_to_as_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = {"AWS_ACCESS_KEY_ID": "the-key", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}
    for name, value in credentials.items():
        monkeypatch.setenv(name, value)
    bucket = Bucket()
    server = await asyncio.start_server(bucket.serve, "127.0.0.1", 0)
    store = open_store("s3://outputs/a/b", endpoint=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    data = os.urandom(6 * PIECE)
    await store.put("ab/large", pieces(*(data[n : n + PIECE] for n in range(0, len(data), PIECE))))
    await store.put("ab/small", pieces(b"small"))
    assert set(bucket.objects) == {"/outputs/a/b/ab/large", "/outputs/a/b/ab/small"}
    assert await content(store, "ab/large", 0, len(data)) == data
    assert await content(store, "ab/small", 1, 3) == b"ma"
    await store.remove("ab/small")
    with pytest.raises(Missing):
        await store.open("ab/small", 0, 1)
    assert bucket.signed
    server.close()


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
