"""Output files: copied before the run completes, and served to those who may see its run."""

import asyncio
import base64
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest
import pytest_asyncio

from service.commands import files as copying
from service.commands.callbacks import take_notice
from service.commands.context import Services
from service.commands.keys import NewKey, create_key
from service.commands.runs import cancel_run
from service.domain.call import Accepted, Answered
from service.embedded import Servers
from service.errors import FilesUnavailable
from service.filestore import FolderStore, StoreFailed
from service.providers.guard import guarded_client
from service.runtime import Runtime
from service.store import calls
from service.store.database import EVERY
from tests.acting import begin, docs_of, look, sql, within, worker
from tests.conftest import DEV, Provider, base_env, web
from tests.contract.test_conventions import check_problem
from tests.scripting import TOOL, Gate, Scripted, serving

PNG = os.urandom(100_000)
HEADERS = {"content-type": "image/png"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def answer(*urls: str, ref: str | None = "p1") -> Answered:
    raw = {"id": ref, "output": list(urls)}
    return Answered(list(urls), raw, provider_ref=ref, cost_usd=0.25, files=urls)


async def ran(runtime: Runtime, folder: Path, outcome: Any, *, limit: int = 10**6) -> tuple[Services, Scripted, UUID]:
    """A run whose provider answers this at once."""
    provider = Scripted(creates=[outcome], looks=[outcome])
    services = serving(runtime, provider, files=FolderStore(folder), file_max_bytes=limit)
    run_id = await begin(runtime, TOOL, services=services)
    await worker(runtime, services=services).advance(run_id)
    return services, provider, run_id


async def output(runtime: Runtime, run_id: UUID) -> Any:
    return (await docs_of(runtime, run_id)).output


async def raw(runtime: Runtime, run_id: UUID) -> Any:
    return (await docs_of(runtime, run_id)).raw_response


async def rows(runtime: Runtime) -> int:
    found: int = await sql(runtime, "select count(*) from files")
    return found


def stored(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


async def make_due(runtime: Runtime, run_id: UUID) -> None:
    await sql(runtime, "update runs set due_at = now() where id = $1 and due_at is not null", run_id)


# ---- copies


async def test_files_are_copied_before_the_run_completes(empty: Runtime, provider: Provider, tmp_path: Path) -> None:
    provider.answer = lambda seen: (200, PNG + seen.path.encode(), HEADERS)
    one, two = provider.url + "/1.png", provider.url + "/2.png"
    _, _, run_id = await ran(empty, tmp_path, answer(one, two))
    assert (await look(empty, run_id)).status == "completed"
    shown = await output(empty, run_id)
    assert await raw(empty, run_id) == {"id": "p1", "output": [one, two]}
    for path, url in zip(shown, (one, two), strict=True):
        assert path.startswith("/hitl/files/")
        row = await sql(empty, "select row_to_json(f) from files f where id = $1", UUID(path.rpartition("/")[2]))
        data = (tmp_path / row["location"]).read_bytes()
        assert data == PNG + url.removeprefix(provider.url.removesuffix("/predict")).encode()
        assert (row["size"], row["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
        assert (row["media_type"], row["name"], row["tenant"]) == ("image/png", url[-5:], "default")
    assert len(stored(tmp_path)) == 2


async def test_a_file_that_is_named_twice_is_copied_once(empty: Runtime, provider: Provider, tmp_path: Path) -> None:
    provider.answer = lambda _: (200, PNG, HEADERS)
    _, _, run_id = await ran(empty, tmp_path, answer(provider.url, provider.url))
    assert len(set(await output(empty, run_id))) == 1
    assert (len(provider.seen), len(stored(tmp_path))) == (1, 1)


async def test_a_data_uri_is_decoded_and_stored(empty: Runtime, tmp_path: Path) -> None:
    uri = "data:image/png;base64," + base64.b64encode(PNG).decode()
    _, _, run_id = await ran(empty, tmp_path, answer(uri, "data:,plain%20text"))
    assert [path.read_bytes() for path in stored(tmp_path)] in ([PNG, b"plain text"], [b"plain text", PNG])
    assert all(path.startswith("/hitl/files/") for path in await output(empty, run_id))
    kinds = await sql(empty, "select array_agg(media_type order by media_type) from files")
    assert kinds == ["image/png", "text/plain"]


async def test_an_answer_without_files_is_left_as_it_is(empty: Runtime, tmp_path: Path) -> None:
    _, _, run_id = await ran(empty, tmp_path, Answered("https://a.example/x.png", 1))
    assert await output(empty, run_id) == "https://a.example/x.png"


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ((200, b"x" * 5000, {}), "a whole answer that says how long it is"),
        ((200, b"x" * 5000, {"content-length": "99999999999"}), "one that says it is longer"),
    ],
)
async def test_a_file_over_the_limit_fails_the_run_and_keeps_the_raw_answer(
    empty: Runtime, provider: Provider, tmp_path: Path, entry: Any, why: str
) -> None:
    provider.script = [(200, b"small", {}), entry]
    urls = (provider.url + "/1", provider.url + "/2")
    _, _, run_id = await ran(empty, tmp_path, answer(*urls), limit=4999)
    run = await look(empty, run_id)
    assert run.error is not None
    assert (run.status, run.error["code"], run.error["recoverable"]) == ("failed", "provider_failed", False)
    assert run.error["message"].startswith("output_too_large: ")
    assert "HITL_FILE_MAX_BYTES" in run.error["message"]
    async with empty.services.db.connection(EVERY) as conn:
        call = await calls.get(conn, run_id, 1)
    assert call is not None
    assert call.problem == run.error["message"]
    assert await raw(empty, run_id) == {"id": "p1", "output": list(urls)}
    assert (await output(empty, run_id), run.actual_usd) == (None, 0.25)
    assert (stored(tmp_path), await rows(empty)) == ([], 0)


async def test_a_file_at_the_limit_is_copied(empty: Runtime, provider: Provider, tmp_path: Path) -> None:
    provider.script = [(200, b"x" * 5000, {})]
    _, _, run_id = await ran(empty, tmp_path, answer(provider.url), limit=5000)
    assert (await look(empty, run_id)).status == "completed"


async def test_a_data_uri_over_the_limit_fails_the_run_too(empty: Runtime, tmp_path: Path) -> None:
    _, _, run_id = await ran(empty, tmp_path, answer("data:," + "x" * 50), limit=49)
    assert (await look(empty, run_id)).status == "failed"


async def test_too_many_files_fail_the_run(empty: Runtime, tmp_path: Path) -> None:
    uris = [f"data:,{n}" for n in range(copying.MAX_FILES + 1)]
    _, _, run_id = await ran(empty, tmp_path, answer(*uris))
    assert (await look(empty, run_id)).error is not None
    assert stored(tmp_path) == []


CUT = (200, b"only a part", {"content-length": "5000"})


@pytest.mark.parametrize("first", ["cut", CUT, (503, {}), (404, {}), (302, b"", {"location": "http://a.example/x"})])
async def test_a_file_that_is_not_to_be_had_is_tried_again_by_a_later_look(
    empty: Runtime, provider: Provider, tmp_path: Path, first: Any
) -> None:
    provider.script = [first, (200, PNG, HEADERS)]
    services, scripted, run_id = await ran(empty, tmp_path, answer(provider.url))
    run = await look(empty, run_id)
    assert (run.status, run.actual_usd) == ("awaiting_provider", None)
    assert run.due_at is not None
    assert stored(tmp_path) == []
    await make_due(empty, run_id)
    assert await worker(empty, services=services).advance(run_id) == "completed"
    assert (await look(empty, run_id)).actual_usd == 0.25
    assert (len(scripted.requests), len(stored(tmp_path))) == (1, 1)


async def test_a_file_that_is_never_to_be_had_fails_the_run(empty: Runtime, provider: Provider, tmp_path: Path) -> None:
    provider.answer = lambda _: (404, {})
    services, _, run_id = await ran(empty, tmp_path, answer(provider.url))
    for _ in range(copying.MAX_COPY_TRIES - 1):
        await make_due(empty, run_id)
        await worker(empty, services=services).advance(run_id)
    run = await look(empty, run_id)
    assert run.error is not None
    assert (run.error["code"], run.error["message"]) == ("provider_failed", "a file of the answer could not be copied")
    assert await raw(empty, run_id) == {"id": "p1", "output": [provider.url]}
    assert len(provider.seen) == copying.MAX_COPY_TRIES


async def test_what_cannot_be_looked_at_again_is_fetched_again_at_once(
    empty: Runtime, provider: Provider, tmp_path: Path
) -> None:
    provider.script = ["cut", (200, PNG, HEADERS)]
    _, _, run_id = await ran(empty, tmp_path, answer(provider.url, ref=None))
    assert (await look(empty, run_id)).status == "completed"


async def test_a_redirect_within_the_same_origin_is_followed(
    empty: Runtime, provider: Provider, tmp_path: Path
) -> None:
    provider.script = [(302, b"", {"location": "/elsewhere/x.png"}), (200, PNG, HEADERS)]
    _, _, run_id = await ran(empty, tmp_path, answer(provider.url))
    assert (await look(empty, run_id)).status == "completed"
    assert [seen.path for seen in provider.seen] == ["/predict", "/elsewhere/x.png"]


async def test_an_address_that_may_not_be_reached_is_not_fetched(
    empty: Runtime, provider: Provider, tmp_path: Path
) -> None:
    client = guarded_client(())
    scripted = Scripted(creates=[answer(provider.url, ref=None)])
    services = serving(empty, scripted, files=FolderStore(tmp_path), client=client)
    run_id = await begin(empty, TOOL, services=services)
    assert await worker(empty, services=services).advance(run_id) == "failed"
    assert provider.seen == []
    await client.aclose()


async def test_a_run_that_is_cancelled_while_its_files_are_copied_keeps_none(
    empty: Runtime, provider: Provider, tmp_path: Path
) -> None:
    arrived, opened = asyncio.Event(), asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        await opened.wait()
        writer.write(b"HTTP/1.1 200 X\r\ncontent-length: 1\r\nconnection: close\r\n\r\nx")
        writer.close()

    server = await asyncio.start_server(slow, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
    scripted = Scripted(creates=[answer(url)])
    services = serving(empty, scripted, files=FolderStore(tmp_path))
    run_id = await begin(empty, TOOL, services=services)
    hand = worker(empty, services=services)
    task = asyncio.create_task(hand.advance(run_id))
    await within(arrived)
    await cancel_run(services, run_id, DEV, reason=None)
    opened.set()
    assert await task == "lease_lost"
    await hand.close()
    assert (stored(tmp_path), await rows(empty)) == ([], 0)
    server.close()


async def test_copies_made_twice_leave_no_wrong_reference(empty: Runtime, provider: Provider, tmp_path: Path) -> None:
    """A worker dies with the files copied and nothing written; the next one copies them anew."""
    provider.answer = lambda _: (200, PNG, HEADERS)
    gate = Gate(Accepted("p1"))
    scripted = Scripted(creates=[gate], looks=[answer(provider.url)])
    services = serving(empty, scripted, files=FolderStore(tmp_path))
    run_id = await begin(empty, TOOL, services=services)
    hand = worker(empty, services=services)
    gate.opened.set()
    await hand.advance(run_id)
    await (FolderStore(tmp_path)).put("00/orphan", _once(PNG))
    await take_notice(services, run_id, 1, "p1")
    assert await hand.advance(run_id) == "completed"
    [path] = await output(empty, run_id)
    assert await rows(empty) == 1
    location = await sql(empty, "select location from files where id = $1", UUID(path.rpartition("/")[2]))
    assert (tmp_path / location).read_bytes() == PNG


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_a_large_file_is_streamed(empty: Runtime, tmp_path: Path) -> None:
    """40 MB pass without being in memory whole: what is waiting between source and store stays small."""
    most = 0

    class Counting(FolderStore):
        async def put(self, location: str, pieces: AsyncIterator[bytes]) -> None:
            async def counted() -> AsyncIterator[bytes]:
                nonlocal most
                async for piece in pieces:
                    most = max(most, len(piece))
                    yield piece

            await super().put(location, counted())

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:

        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 X\r\nconnection: close\r\n\r\n")
        for _ in range(400):
            writer.write(b"x" * 100_000)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x.bin"
    scripted = Scripted(creates=[answer(url)])
    services = serving(empty, scripted, files=Counting(tmp_path), file_max_bytes=10**9)
    run_id = await begin(empty, TOOL, services=services)
    assert await worker(empty, services=services).advance(run_id) == "completed"
    assert (most < 4 * 1024 * 1024, stored(tmp_path)[0].stat().st_size) == (True, 40_000_000)
    server.close()


# ---- serving


async def test_a_store_that_is_away_is_503(empty: Runtime, folder: Path, provider: Provider) -> None:
    class Away(FolderStore):
        async def open(self, location: str, start: int, end: int) -> AsyncIterator[bytes]:
            raise StoreFailed("away")

    path = await one_file(empty, provider, folder)
    file = await copying.find_file(empty.services, "default", UUID(path.rpartition("/")[2]))
    with pytest.raises(FilesUnavailable) as refused:
        await copying.read_file(replace(empty.services, files=Away(folder)), file, 0, 1)
    assert (refused.value.status, refused.value.retry_after_s) == (503, 5)


@pytest.fixture(scope="session")
def door(servers: Servers, quiet: Runtime, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A web process with auth, on the database and the folder of these tests."""
    assert quiet.settings.database_url
    assert quiet.settings.redis_url
    env = base_env(
        servers,
        DATABASE_URL=quiet.settings.database_url,
        REDIS_URL=quiet.settings.redis_url,
        HITL_AUTH="required",
        HITL_FILES=str(folder),
    )
    with web(env, tmp_path_factory.mktemp("door")) as url:
        yield url


@pytest_asyncio.fixture(loop_scope="session")
async def hers(door: str, quiet: Runtime) -> AsyncIterator[httpx2.AsyncClient]:
    async with await client_of(door, quiet, "default") as found:
        yield found


async def client_of(door: str, runtime: Runtime, tenant: str, role: Any = "reviewer") -> httpx2.AsyncClient:
    _, key = await create_key(runtime.services.db, runtime.services.keyring, NewKey(uuid4().hex, role, tenant))
    return httpx2.AsyncClient(base_url=door, headers={"Authorization": f"Bearer {key}"}, trust_env=False)


async def one_file(
    runtime: Runtime, provider: Provider, folder: Path, body: bytes = PNG, kind: str = "image/png"
) -> str:
    provider.answer = lambda _: (200, body, {"content-type": kind})
    _, _, run_id = await ran(runtime, folder, answer(provider.url + "/fox.png"))
    [path] = await output(runtime, run_id)
    return str(path)


async def test_a_file_is_served_whole_with_headers_that_protect_and_keep_it(
    empty: Runtime, provider: Provider, folder: Path, hers: httpx2.AsyncClient
) -> None:
    got = await hers.get(await one_file(empty, provider, folder))
    assert (got.status_code, got.content) == (200, PNG)
    told = got.headers
    assert told["content-type"] == "image/png"
    assert told["content-length"] == str(len(PNG))
    assert told["etag"] == f'"{hashlib.sha256(PNG).hexdigest()}"'
    assert told["content-disposition"].startswith('inline; filename="fox.png"')
    assert told["x-content-type-options"] == "nosniff"
    assert told["content-security-policy"] == "sandbox; default-src 'none'"
    assert told["cache-control"] == "private, max-age=31536000, immutable"
    assert told["accept-ranges"] == "bytes"
    assert len(told.get_list("cache-control")) == 1


async def test_a_page_is_never_shown_in_place(
    empty: Runtime, provider: Provider, folder: Path, hers: httpx2.AsyncClient
) -> None:
    got = await hers.get(await one_file(empty, provider, folder, b"<script>1</script>", "text/html; charset=utf-8"))
    assert got.headers["content-disposition"].startswith("attachment")
    assert got.headers["content-type"].startswith("text/html")


async def test_one_range_is_served(empty: Runtime, provider: Provider, folder: Path, hers: httpx2.AsyncClient) -> None:
    path = await one_file(empty, provider, folder)
    for asked, start, end in (("0-9", 0, 10), ("99990-", 99_990, 100_000), ("-5", 99_995, 100_000)):
        got = await hers.get(path, headers={"Range": f"bytes={asked}"})
        assert (got.status_code, got.content) == (206, PNG[start:end])
        assert got.headers["content-range"] == f"bytes {start}-{end - 1}/100000"
        assert got.headers["content-length"] == str(end - start)
    refused = await hers.get(path, headers={"Range": "bytes=100000-"})
    check_problem(refused, 416, "range_not_satisfiable")
    assert refused.headers["content-range"] == "bytes */100000"
    assert (await hers.get(path, headers={"Range": "bytes=0-1", "If-Range": '"other"'})).status_code == 200
    assert (await hers.get(path, headers={"Range": "bytes=0-1,3-4"})).status_code == 200


async def test_a_file_that_the_caller_has_is_not_sent_again(
    empty: Runtime, provider: Provider, folder: Path, hers: httpx2.AsyncClient
) -> None:
    path = await one_file(empty, provider, folder)
    etag = (await hers.head(path)).headers["etag"]
    got = await hers.get(path, headers={"If-None-Match": etag})
    assert (got.status_code, got.content) == (304, b"")


async def test_head_tells_of_the_file_without_it(
    empty: Runtime, provider: Provider, folder: Path, hers: httpx2.AsyncClient
) -> None:
    got = await hers.head(await one_file(empty, provider, folder))
    assert (got.status_code, got.content, got.headers["content-length"]) == (200, b"", "100000")


async def test_a_file_is_of_its_tenant(
    empty: Runtime, provider: Provider, folder: Path, hers: httpx2.AsyncClient, door: str
) -> None:
    path = await one_file(empty, provider, folder)
    async with await client_of(door, empty, "another", "admin") as other:
        check_problem(await other.get(path), 404)
    async with httpx2.AsyncClient(base_url=door, trust_env=False) as nobody:
        check_problem(await nobody.get(path), 401)
    async with await client_of(door, empty, "default", "submitter") as submitter:
        assert (await submitter.get(path)).status_code == 200
    for unknown in (f"/hitl/files/{uuid4()}", "/hitl/files/no-id", "/hitl/files/..%2f..%2fetc%2fpasswd"):
        check_problem(await hers.get(unknown), 404)


async def test_a_file_that_the_store_has_lost_is_404(
    empty: Runtime, provider: Provider, folder: Path, hers: httpx2.AsyncClient
) -> None:
    path = await one_file(empty, provider, folder)
    location = await sql(empty, "select location from files where id = $1", UUID(path.rpartition("/")[2]))
    (folder / location).unlink()
    check_problem(await hers.get(path), 404)
