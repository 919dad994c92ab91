"""Contract, section 3, and what a service at the edge of a network has to bear: too much, too slow, too curious."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import httpx2
import orjson
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn.server import ServerState

from service.api.edges import MAX_HEADER_BYTES, MAX_HEADERS, Edges
from service.api.gate import Gate, SocketGate
from service.api.problems import on_refusal
from service.api.routes import TABLE, routes
from service.border.body import MAX_BYTES, MAX_DEPTH, read_bytes
from service.domain.ids import uuid7
from service.errors import HitlError
from tests.conftest import DEADLINE_S, Stack, echo, run_body, web

MAX: Final = 1024 * 1024
OF_THE_APP: Final = ("/openapi.json", "/asyncapi.json", "/docs", "/docs/static/docs.js")
PATHS = sorted({r.path for r in routes() if isinstance(r, Route)} | {*OF_THE_APP, "/nowhere", "/docs/static/nowhere"})


async def said(url: str, *pieces: bytes) -> bytes:
    """Send pieces to the server as they are; what it answers until it closes."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(DEADLINE_S):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def head(method: str, path: str, *lines: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "host: h", *lines, "", ""]).encode("latin-1")


def parts(answer: bytes) -> tuple[int, dict[str, str], Any]:
    """Status, headers and the JSON of the first answer."""
    top, _, body = answer.partition(b"\r\n\r\n")
    lines = top.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    length = int(headers.get("content-length", len(body)))
    return int(lines[0].split()[1]), headers, orjson.loads(body[:length])


def filled(size: int) -> bytes:
    """A start whose body has exactly this size."""
    empty = orjson.dumps(run_body(echo(), prompt=""))
    return orjson.dumps(run_body(echo(), prompt="x" * (size - len(empty))))


# Bodies


async def test_a_body_of_a_mebibyte_is_read_and_one_byte_more_is_not(client: httpx2.AsyncClient) -> None:
    async def pieces(body: bytes) -> AsyncIterator[bytes]:
        for n in range(0, len(body), 65_536):
            yield body[n : n + 65_536]

    for size, status, code in ((MAX, 422, "validation_failed"), (MAX + 1, 413, "body_too_large")):
        body = filled(size)
        assert len(body) == size
        whole = await client.post("/hitl/run", content=body, headers={"content-type": "application/json"})
        chunked = await client.post("/hitl/run", content=pieces(body), headers={"content-type": "application/json"})
        assert "content-length" not in chunked.request.headers
        for answer in (whole, chunked):
            assert (answer.status_code, answer.json()["code"]) == (status, code)  # a prompt has 100,000 characters


JSON: Final = ("content-type: application/json", "connection: close")


async def test_a_length_that_is_too_large_is_refused_before_anything_is_sent(stack: Stack) -> None:
    for line in (f"content-length: {MAX_BYTES + 1}", f"content-length: {10**18}"):
        answer = parts(await said(stack.base_url, head("POST", "/hitl/run", line, *JSON)))
        assert (answer[0], answer[2]["code"]) == (413, "body_too_large")


async def test_an_endless_body_is_refused_when_it_is_too_much(stack: Stack) -> None:
    piece = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    answer = await said(
        stack.base_url, head("POST", "/hitl/run", "transfer-encoding: chunked", *JSON), *[piece] * 17
    )  # and no end
    assert parts(answer)[0] == 413


@pytest.mark.parametrize(
    "request_",
    [
        head("POST", "/hitl/run", "content-length: -1", *JSON),
        head("POST", "/hitl/run", "content-length: 1x", *JSON),
        head("POST", "/hitl/run", "content-length: 2", "content-length: 3", *JSON) + b"{}",
        head("POST", "/hitl/run", "transfer-encoding: gzip, chunked", *JSON) + b"0\r\n\r\n",
        head("POST", "/hitl/run", "transfer-encoding: chunked", *JSON) + b"zz\r\n",
        head("GET", "/healthz", "no colon"),
        head("GET", "/healthz", "x: a\x00b"),
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
    ids=range(10),
)
async def test_what_is_no_http_is_a_problem_and_the_end_of_the_connection(stack: Stack, request_: bytes) -> None:
    answer = await said(stack.base_url, request_)
    if answer.startswith(b"HTTP/1.1 501"):
        return
    status, headers, body = parts(answer)

    assert status in (400, 413, 501)
    assert headers["content-type"] == "application/problem+json"
    assert body["code"] in ("bad_request", "body_too_large")
    assert headers["x-content-type-options"] == "nosniff"


async def test_more_body_than_was_announced_is_never_read_as_a_request(stack: Stack) -> None:
    """The rest is the beginning of another request, which it is not."""
    answer = await said(
        stack.base_url,
        head("POST", "/hitl/run", "content-length: 2", JSON[0]) + b"{}{}\r\n\r\n",
    )

    assert answer.startswith(b"HTTP/1.1 422")
    assert answer.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 400" in answer


async def test_less_body_than_was_announced_starts_nothing_and_is_no_fault_of_ours(stack: Stack) -> None:
    host, port = stack.base_url.removeprefix("http://").split(":")
    before = stack.log("web").count('"status": 499')
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(head("POST", "/hitl/run", "content-length: 100", "content-type: application/json") + b'{"run_input"')
    await writer.drain()
    writer.close()
    async with asyncio.timeout(DEADLINE_S):
        while stack.log("web").count('"status": 499') == before:
            await asyncio.sleep(0.02)

    faults = [line for line in stack.log("web").splitlines() if '"event": "http.error"' in line]
    assert not [line for line in faults if "ClientDisconnect" in line]


async def test_a_body_that_turns_out_to_be_none_is_answered_once_and_is_no_fault_of_ours(stack: Stack) -> None:
    before = stack.log("web").count('"level": "error"')
    for rest in (b"zz\r\n", b"x" * 100_000):
        answer = await said(stack.base_url, head("POST", "/hitl/run", "transfer-encoding: chunked", JSON[0]), b"", rest)
        assert answer.count(b"HTTP/1.1 ") <= 1
    assert stack.log("web").count('"level": "error"') == before


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
async def test_json_is_nested_to_a_bound(client: httpx2.AsyncClient, opening: bytes) -> None:
    kind = {"content-type": "application/json"}

    async def code(depth: int) -> Any:
        closing = b"]" if opening == b"[" else b"}"
        raw = b'{"type": "ping", "data": ' + opening * (depth - 1) + b"1" + closing * (depth - 1) + b"}"
        return (await client.post("/hitl/websocket/message", content=raw, headers=kind)).json().get("code")

    assert await code(MAX_DEPTH - 2) != "invalid_json"
    for depth in (MAX_DEPTH + 2, 1000, 100_000, 170_000):
        assert await code(depth) == "invalid_json"


# Headers


UPGRADE: Final = (
    "connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", f"sec-websocket-key: {'A' * 22}==",
)  # fmt: skip


@pytest.mark.parametrize(
    "headers",
    [
        {"x-one": "x" * (MAX_HEADER_BYTES + 1)},
        {f"x-{n}": "x" * 12_000 for n in range(6)},
        {f"x-{n}": "1" for n in range(MAX_HEADERS + 1)},
        {"x-one": "x" * 300_000},
        {"authorization": "Bearer " + "x" * 20_000},
    ],
    ids=["one", "all", "many", "huge", "key"],
)
async def test_too_many_or_too_large_headers_are_431(stack: Stack, headers: dict[str, str]) -> None:
    lines = [f"{name}: {value}" for name, value in headers.items()]
    status, told, body = parts(await said(stack.base_url, head("GET", "/healthz", *lines)))

    assert (status, body["code"], body["status"]) == (431, "headers_too_large", 431)
    assert told["content-type"] == "application/problem+json"
    assert told["connection"] == "close"


async def test_a_large_header_is_fine_as_long_as_it_is_within_bounds(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/healthz", headers={"x-one": "x" * (MAX_HEADER_BYTES - 10)})

    assert answer.status_code == 200


async def test_a_handshake_with_too_large_headers_is_answered_too(stack: Stack) -> None:
    for more in (["x: " + "x" * 9000], [f"x-{n}: 1" for n in range(200)], ["x: " + "x" * 100_000]):
        status, _, body = parts(await said(stack.base_url, head("GET", "/hitl/ws", *UPGRADE, *more)))
        assert (status, body["code"]) == (431, "headers_too_large")


# What every answer carries


SAFE: Final = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}


def requests() -> Iterator[tuple[str, str]]:
    for path in PATHS:
        for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            yield method, path.format(**{name: uuid7() for name in ("run_id", "approval_id", "file_id", "job_id")},
                                      token="t" * 43, session_id="s")  # fmt: skip


async def test_every_answer_whatever_it_says_carries_the_headers_of_safety_and_none_of_cors(
    client: httpx2.AsyncClient,
) -> None:
    foreign = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    seen = set()
    for method, path in requests():
        async with client.stream(method, path, headers=foreign, params={"session_id": "s"}) as answer:
            seen.add(answer.status_code)
            told = answer.headers
        where = f"{method} {path} {answer.status_code}"
        assert SAFE.items() <= dict(told).items(), where
        assert "frame-ancestors 'none'" in told["content-security-policy"], where
        assert not [name for name in told if name.startswith("access-control-")], where
        assert "server" not in told, where
        assert "strict-transport-security" not in told, where
        if not path.startswith(("/docs/static", "/hitl/files")):
            assert "no-store" in told["cache-control"], where
        if method == "OPTIONS":
            assert answer.status_code in (404, 405), where
    assert {200, 404, 405, 422} <= seen


async def test_a_fault_of_ours_and_a_refused_handshake_carry_them_too(stack: Stack, client: httpx2.AsyncClient) -> None:
    answer = await said(stack.base_url, head("GET", "/hitl/ws", *UPGRADE, "origin: https://evil.example"))

    status, headers, _ = parts(answer)
    assert status == 403
    assert SAFE.items() <= headers.items()


async def test_browsers_stay_with_https_where_that_is_how_they_come(stack: Stack, tmp_path: Any) -> None:
    with web({**stack.env, "HITL_PUBLIC_URL": "https://hitl.example"}, tmp_path, "https") as url:
        async with httpx2.AsyncClient(base_url=url, trust_env=False) as client:
            for path in ("/healthz", "/nowhere", "/docs"):
                assert "max-age=" in (await client.get(path)).headers["strict-transport-security"]


async def test_what_a_page_says_itself_stands() -> None:
    async def page(request: Request) -> Response:
        own = {"Content-Security-Policy": "script-src 'self'", "Cache-Control": "public"}
        return PlainTextResponse("", headers=own)

    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(Edges(Starlette(routes=[Route("/", page)]), public_url="http://h")),
        base_url="http://h",
    ) as client:
        headers = (await client.get("/")).headers

    assert headers.get_list("content-security-policy") == ["script-src 'self'"]
    assert headers.get_list("cache-control") == ["public"]
    assert headers["x-content-type-options"] == "nosniff"


# Slow clients: a server with the same gate, whose patience is short


class Hasty(Gate):
    HEAD_S = 0.2
    REST_S = 0.2
    STUCK_S = 0.2


class HastySocket(SocketGate):
    STUCK_S = 0.2


async def _floods(live: WebSocket) -> None:
    await live.accept()
    with suppress(WebSocketDisconnect):
        while True:
            await live.send_text("x" * 100_000)


async def _reads(request: Request) -> Response:
    return PlainTextResponse(str(len(await read_bytes(request))))


async def _ignores(request: Request) -> Response:
    return PlainTextResponse("ignored")


async def _large(request: Request) -> Response:
    return PlainTextResponse("x" * 50_000_000)


@asynccontextmanager
async def hasty(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[str, ServerState]]:
    monkeypatch.setattr("service.border.body.BODY_S", 0.2)
    app = Starlette(
        routes=[
            Route("/reads", _reads, methods=["POST"]),
            Route("/ignores", _ignores, methods=["POST", "GET"]),
            Route("/large", _large),
            WebSocketRoute("/floods", _floods),
        ],
        exception_handlers={HitlError: on_refusal},
    )

    async def with_id(scope: Any, receive: Any, send: Any) -> None:
        scope.setdefault("state", {})["request_id"] = "r"
        await app(scope, receive, send)

    config = uvicorn.Config(with_id, timeout_keep_alive=60, log_config=None, lifespan="off")
    config.load()
    config.ws_protocol_class = HastySocket
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Hasty(config, state, {}), "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", state
    server.close()


async def nobody_is_left(state: ServerState) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while state.connections or state.tasks:
            await asyncio.sleep(0.01)


async def trickled(url: str, first: bytes, drop: bytes) -> bytes:
    """Send the first bytes, then a drop at a time for as long as the server takes it; what it answers."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    heard = bytearray()

    async def hear() -> None:
        with suppress(ConnectionError):
            while piece := await reader.read(65_536):
                heard.extend(piece)

    hearing = asyncio.create_task(hear())
    async with asyncio.timeout(DEADLINE_S):
        writer.write(first)
        while not hearing.done():
            writer.write(drop)
            await asyncio.wait([hearing], timeout=0.02)
    writer.close()
    return bytes(heard)


CHUNKED: Final = head("POST", "/{}", "transfer-encoding: chunked")


@pytest.mark.parametrize(
    ("first", "drop", "told"),
    [
        (b"", b"", b""),  # never says anything
        (b"GET /ignores HTTP/1.1\r\nhost: h\r\nx: ", b"x", b"HTTP/1.1 408"),
        (head("GET", "/ignores") + b"GET /ignores HTTP/1.1\r\nx: ", b"x", b"ignored"),
        (CHUNKED.replace(b"{}", b"reads"), b"1\r\nx\r\n", b"HTTP/1.1 408"),
        (head("POST", "/reads", "content-length: 9"), b"", b"HTTP/1.1 408"),
        (CHUNKED.replace(b"{}", b"ignores"), b"1\r\nx\r\n", b"ignored"),
    ],
    ids=["silent", "head", "second head", "body", "stalled body", "body that nobody wants"],
)
async def test_a_request_that_comes_by_the_letter_is_ended(
    monkeypatch: pytest.MonkeyPatch, first: bytes, drop: bytes, told: bytes
) -> None:
    async with hasty(monkeypatch) as (url, state):
        answer = await trickled(url, first, drop)
        await nobody_is_left(state)
        assert told in answer or not answer  # what is sent after the end may take back what was not read yet
        if answer.startswith(b"HTTP/1.1 408"):
            assert parts(answer)[2]["code"] == "request_timeout"


async def test_an_answer_that_nobody_reads_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async with hasty(monkeypatch) as (url, state):
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(head("GET", "/large"))
        await writer.drain()
        async with asyncio.timeout(DEADLINE_S):
            while not state.connections:
                await asyncio.sleep(0.01)
        await nobody_is_left(state)
        writer.transport.abort()


async def test_a_socket_that_nobody_reads_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async with hasty(monkeypatch) as (url, state):
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(head("GET", "/floods", *UPGRADE))
        assert b" 101 " in await reader.readline()
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await nobody_is_left(state)
        writer.transport.abort()


async def test_a_connection_between_two_requests_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is not in the middle of something has uvicorn's keep-alive, which is longer here than every other time."""
    async with hasty(monkeypatch) as (url, state):
        async with httpx2.AsyncClient(base_url=url, trust_env=False) as client:
            await client.get("/ignores")
            (kept,) = state.connections
            async with asyncio.timeout(DEADLINE_S):
                while kept._deadline is not None or kept.timeout_keep_alive_task is None:  # type: ignore[union-attr]
                    await asyncio.sleep(0.01)
            await client.post("/reads", content=b"12")
            assert state.connections == {kept}


def test_every_route_of_the_table_was_asked() -> None:
    assert {operation.path for operation in TABLE} <= set(PATHS)
