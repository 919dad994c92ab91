"""Use cases of output files: copied before an answer is stored, and given to those who may see its run."""

import asyncio
import base64
import binascii
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from urllib.parse import unquote_to_bytes, urljoin, urlsplit
from uuid import UUID

import httpx2

from service.commands.context import Services
from service.domain.call import Accepted, Answered, Outcome, ProviderCall, ProviderFailed
from service.domain.file import StoredFile, location_of, media_type_of, name_of, with_files
from service.domain.ids import uuid7
from service.domain.run import Run
from service.errors import FilesUnavailable, NotFound, Unavailable
from service.filestore import PIECE, Missing, StoreFailed
from service.logs import get_logger
from service.store import files

MAX_FILES: Final = 100
MAX_COPY_TRIES: Final = 6  # looks at a call whose answer is there and whose files are not to be had
TRIES_IN_PLACE: Final = 3
REDIRECTS: Final = 3
FETCH_S: Final = 600.0
READ_S: Final = 30.0

log = get_logger("commands.files")


class NotCopied(Exception):
    """A file could not be fetched or stored; it may be later."""


class OutputTooLarge(Exception):
    """One line that names the limit."""


@dataclass(frozen=True, slots=True)
class Copies:
    """What came of the files of an answer: the outcome that counts now, the rows that go with it, and whether the
    call is to be looked at again because they were not to be had."""

    outcome: Outcome
    files: Sequence[StoredFile] = ()
    again: bool = False


async def copied(services: Services, run: Run, call: ProviderCall, outcome: Outcome, *, polls: bool) -> Copies:
    """Copy what the provider will delete. The rows are to be written with the answer: a worker that dies before has
    left bytes in the store that nobody refers to, and the next one copies anew."""
    if not isinstance(outcome, Answered) or not outcome.files:
        return Copies(outcome)
    looks_again = polls and bool(outcome.provider_ref or call.provider_ref)
    in_time = call.deadline_at is None or call.deadline_at > services.db.now()
    for n in range(1 if looks_again else TRIES_IN_PLACE):
        if n:
            await asyncio.sleep(2.0 ** (n - 1))
        try:
            return await _copy_all(services, run, outcome)
        except OutputTooLarge as error:
            return Copies(ProviderFailed(f"output_too_large: {error}", raw=outcome.raw))
        except (NotCopied, StoreFailed) as error:
            log.warning("file.copy_failed", run_id=str(run.id), tenant=run.tenant, error=str(error))
    if looks_again and in_time and call.copy_tries + 1 < MAX_COPY_TRIES:
        return Copies(Accepted(outcome.provider_ref or call.provider_ref), again=True)
    return Copies(ProviderFailed("a file of the answer could not be copied", raw=outcome.raw))


async def discard(services: Services, unwanted: Sequence[StoredFile]) -> None:
    """Remove copies whose rows were never written: that is looked up, as a commit that was cut off may have happened.
    What is left of them costs only space."""
    for file in unwanted:
        try:
            async with services.db.connection(file.tenant) as conn:
                wanted = await files.get(conn, file.tenant, file.id)
            if wanted is None:
                await services.files.remove(file.location)
        except (StoreFailed, Unavailable):
            continue


async def find_file(services: Services, tenant: str, file_id: UUID) -> StoredFile:
    """Raises `NotFound` for one that is unknown, or of another tenant."""
    async with services.db.connection(tenant) as conn:
        found = await files.get(conn, tenant, file_id)
    if found is None:
        raise NotFound("no such file")
    return found


async def read_file(services: Services, file: StoredFile, start: int, end: int) -> AsyncIterator[bytes]:
    """Its bytes from `start` to before `end`. Raises `NotFound` where the store has it no more, `FilesUnavailable`."""
    try:
        return await services.files.open(file.location, start, end)
    except Missing:
        raise NotFound("no such file") from None
    except StoreFailed:
        raise FilesUnavailable from None


async def _copy_all(services: Services, run: Run, answer: Answered) -> Copies:
    urls = list(dict.fromkeys(answer.files))
    if len(urls) > MAX_FILES:
        raise OutputTooLarge(f"the answer has more than {MAX_FILES} files")
    done: list[StoredFile] = []
    try:
        async with asyncio.timeout(FETCH_S):
            for url in urls:
                done.append(await _copy(services, run, url))  # noqa: PERF401  what is done so far is discarded
    except BaseException as error:
        await discard(services, done)
        if isinstance(error, TimeoutError):
            raise NotCopied("timeout") from error
        raise
    paths = {url: file.path for url, file in zip(urls, done, strict=True)}
    return Copies(replace(answer, output=with_files(answer.output, paths), files=()), done)


async def _copy(services: Services, run: Run, url: str) -> StoredFile:
    file_id = uuid7()
    location = location_of(file_id)
    stated: str | None
    if url.startswith("data:"):
        stated, body = _decoded(url)
        measured = Measured(_once(body), services.file_max_bytes)
        await services.files.put(location, measured.pieces())
    else:
        async with _fetched(services.client, url) as response:
            stated = response.headers.get("content-type")
            length = response.headers.get("content-length", "")
            measured = Measured(_body(response), services.file_max_bytes)
            measured.refuse_over(int(length) if length.isdigit() and len(length) < 19 else 0)
            await services.files.put(location, measured.pieces())
    return _row(run, file_id, url, stated, measured, services.db.now())


def _row(run: Run, file_id: UUID, url: str, stated: str | None, measured: "Measured", now: datetime) -> StoredFile:
    media_type = media_type_of("" if url.startswith("data:") else url, stated)
    return StoredFile(
        id=file_id,
        tenant=run.tenant,
        run_id=run.id,
        name=name_of(url, media_type),
        media_type=media_type,
        size=measured.size,
        sha256=measured.sha256.hexdigest(),
        location=location_of(file_id),
        created_at=now,
    )


class Measured:
    """Pieces on their way into the store: gathered, counted, hashed, and refused over the limit."""

    def __init__(self, source: AsyncIterator[bytes], limit: int) -> None:
        self._source = source
        self._limit = limit
        self.size = 0
        self.sha256 = hashlib.sha256()

    def refuse_over(self, size: int) -> None:
        """Raises `OutputTooLarge`."""
        if size > self._limit:
            raise OutputTooLarge(f"a file of the answer is larger than {self._limit} bytes (HITL_FILE_MAX_BYTES)")

    async def pieces(self) -> AsyncIterator[bytes]:
        waiting = bytearray()
        async for piece in self._source:
            self.size += len(piece)
            self.refuse_over(self.size)
            self.sha256.update(piece)
            waiting += piece
            if len(waiting) >= PIECE:
                yield bytes(waiting)
                waiting.clear()
        if waiting:
            yield bytes(waiting)


@asynccontextmanager
async def _fetched(client: httpx2.AsyncClient, url: str) -> AsyncIterator[httpx2.Response]:
    """The answer to a GET of a checked address, redirects within its own origin followed. Raises `NotCopied`."""
    origin = urlsplit(url)[:2]
    for _ in range(REDIRECTS + 1):
        try:
            async with client.stream("GET", url, headers={"Accept-Encoding": "identity"}, timeout=READ_S) as response:
                if response.status_code == 200:
                    yield response
                    return
                moved = response.headers.get("location") if response.is_redirect else None
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError, ValueError) as error:
            raise NotCopied(type(error).__name__) from error
        if moved is None:
            raise NotCopied(f"status {response.status_code}")
        url = urljoin(url, moved)
        if urlsplit(url)[:2] != origin:
            raise NotCopied("redirect to elsewhere")
    raise NotCopied("too many redirects")


async def _body(response: httpx2.Response) -> AsyncIterator[bytes]:
    try:
        async for piece in response.aiter_bytes():
            yield piece
    except httpx2.HTTPError as error:
        raise NotCopied(type(error).__name__) from error


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _decoded(uri: str) -> tuple[str, bytes]:
    """Media type and bytes of a `data:` URI (RFC 2397). Raises `NotCopied`."""
    head, comma, body = uri.removeprefix("data:").partition(",")
    if not comma:
        raise NotCopied("data URI without data")
    raw = unquote_to_bytes(body)
    if not head.endswith(";base64"):
        return head or "text/plain", raw
    try:
        return head.removesuffix(";base64"), base64.b64decode(raw, validate=True)
    except binascii.Error as error:
        raise NotCopied("data URI that is not base64") from error
