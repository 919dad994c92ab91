"""Floor 4: where output files lie: a folder, or a bucket of an S3-compatible store.

A file is written once under a new location, whole or not at all, and never changed. It is never in memory whole.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final, TypeVar
from urllib.parse import urlsplit

PIECE: Final = 1024 * 1024
T = TypeVar("T")


class StoreFailed(Exception):
    """The store did not take the file, or could not be reached."""


class Missing(Exception):
    """There is no such file in the store."""


async def _disk(work: Callable[..., T], *args: Any) -> T:
    """Disk work in a thread, the one place where the house has them: a full page cache or an fsync stops a process
    for seconds, and with its loop the heartbeat of every run that it holds. It is never abandoned half way, or a
    closed descriptor's number could be written to that is somebody else's by then.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


class FolderStore:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, location: str, pieces: AsyncIterator[bytes]) -> None:
        """Write it under another name, and rename it once it is on the disk. Raises `StoreFailed`, and whatever
        `pieces` raises."""
        path = self._folder / location
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            file = await _disk(_begin, part)
        except OSError as error:
            raise StoreFailed(type(error).__name__) from error
        try:
            async for piece in pieces:
                await _stored(file.write, piece)
            await _stored(_finish, file, part, path)
        except BaseException:
            with suppress(OSError):  # what is not written yet need not be
                file.close()
            part.unlink(missing_ok=True)
            raise

    async def open(self, location: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from `start` to before `end`. Raises `Missing` before the first of them."""
        path = self._folder / location
        if not await _disk(path.is_file):
            raise Missing
        return self._read(path, start, end)

    async def remove(self, location: str) -> None:
        """It may be gone already. Raises `StoreFailed`."""
        await _stored(lambda: (self._folder / location).unlink(missing_ok=True))

    async def _read(self, path: Path, start: int, end: int) -> AsyncIterator[bytes]:
        file = await _disk(lambda: path.open("rb", buffering=0))
        try:
            await _disk(file.seek, start)
            while start < end and (piece := await _disk(file.read, min(PIECE, end - start))):
                start += len(piece)
                yield piece
        finally:
            file.close()


class BucketStore:
    """`store` is one of obstore's; its own client streams, signs and retries."""

    def __init__(self, store: Any) -> None:
        import obstore  # the extra `s3`

        self._obstore = obstore
        self._store = store
        self._failed: type[Exception] = obstore.exceptions.BaseError

    async def put(self, location: str, pieces: AsyncIterator[bytes]) -> None:
        """Upload in parts; it appears with the last of them. Raises `StoreFailed`, and whatever `pieces` raises."""
        try:
            await self._obstore.put_async(self._store, location, pieces, max_concurrency=2)
        except (self._failed, OSError) as error:
            raise StoreFailed(type(error).__name__) from error

    async def open(self, location: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes from `start` to before `end`. Raises `Missing` or `StoreFailed` before the first of them."""
        try:
            if start >= end:
                await self._obstore.head_async(self._store, location)
                return _nothing()
            found = await self._obstore.get_async(self._store, location, options={"range": (start, end)})
        except FileNotFoundError:
            raise Missing from None
        except (self._failed, OSError) as error:
            raise StoreFailed(type(error).__name__) from error
        return _bytes(found.stream())

    async def remove(self, location: str) -> None:
        """It may be gone already. Raises `StoreFailed`."""
        try:
            await self._obstore.delete_async(self._store, location)
        except FileNotFoundError:
            return
        except (self._failed, OSError) as error:
            raise StoreFailed(type(error).__name__) from error


FileStore = FolderStore | BucketStore


def open_store(where: str, *, endpoint: str | None = None) -> FileStore:
    """A folder, or `s3://bucket/prefix`; what signs its requests is read by its client from `AWS_…`.

    Raises `ImportError` where the extra `s3` is not installed.
    """
    if not where.startswith("s3://"):
        return FolderStore(Path(where))
    from obstore.store import S3Store

    parts = urlsplit(where)
    options: dict[str, Any] = {}
    if endpoint is not None:
        options = {"endpoint": endpoint, "client_options": {"allow_http": endpoint.startswith("http://")}}
    return BucketStore(S3Store(parts.netloc, prefix=parts.path.strip("/") or None, **options))


async def _stored(work: Callable[..., Any], *args: Any) -> None:
    try:
        await _disk(work, *args)
    except OSError as error:
        raise StoreFailed(type(error).__name__) from error


def _begin(part: Path) -> IO[bytes]:
    part.parent.mkdir(parents=True, exist_ok=True)
    return part.open("xb", buffering=PIECE)


def _finish(file: IO[bytes], part: Path, path: Path) -> None:
    """On the disk first, then under its name, then its name on the disk too."""
    file.flush()
    os.fsync(file.fileno())
    file.close()
    part.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


async def _bytes(stream: Any) -> AsyncIterator[bytes]:
    async for piece in stream:
        yield bytes(piece)
