"""A local stand-in of an OpenAI-compatible chat server: its paths, events, errors and headers on a real socket.

Without a script it judges each request as the real one does and answers with the prompt's own words; a script
says otherwise, an entry a request. Everything that came is in `seen`.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import orjson

CREATED: Final = 1_700_000_000
_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "max_tokens": (1, 128_000),
    "max_completion_tokens": (1, 128_000),
    "top_logprobs": (0, 20),
    "n": (1, 128),
}
_KNOWN: Final = frozenset(
    {*_RANGES, "model", "messages", "stream", "stream_options", "seed", "stop", "response_format", "logprobs"}
    | {"reasoning_effort", "verbosity", "logit_bias"}
)


@dataclass(frozen=True, slots=True)
class Says:
    """A streamed answer, piece by piece. `then`: how the stream ends; an object is sent as an error event.

    `end` closes it in good order without `[DONE]`, `cut` in the middle of the transfer, `hang` not at all.
    """

    pieces: Sequence[str] = ()
    refusal: Sequence[str] = ()
    finish: str | None = "stop"
    usage: tuple[int, int] | None = (7, 5)
    pause_s: float = 0
    then: Literal["done", "end", "cut", "hang"] | Mapping[str, Any] = "done"


@dataclass(frozen=True, slots=True)
class Answers:
    """One whole answer: an error, or that of a server that does not stream. Bytes are sent as they are."""

    status: int
    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)


Entry = Says | Answers | Literal["cut", "hang"]


@dataclass(frozen=True, slots=True)
class Received:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


def error(message: str, *, kind: str = "invalid_request_error", **more: Any) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": None, "code": None, **more}}


@dataclass
class ChatServer:
    """`arrived` is set by each request, `hung_up` when a client left before its answer was over."""

    api_key: str = "sk-standin"
    models: Sequence[str] = ("gpt-standin",)
    counts_in_streams: bool = True  # older servers refuse `stream_options`
    url: str = ""
    script: list[Entry] = field(default_factory=list)
    seen: list[Received] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            received = await _received(reader)
            self.seen.append(received)
            self.arrived.set()
            await _Conversation(reader, writer, received).answer(self._judged(received))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.hung_up.set()
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def _judged(self, received: Received) -> Entry:
        if received.headers.get("authorization") != f"Bearer {self.api_key}":
            return Answers(401, error("Incorrect API key provided.", code="invalid_api_key"))
        if received.method != "POST" or not received.path.endswith("/v1/chat/completions"):
            return Answers(404, error(f"Invalid URL ({received.method} {received.path})"))
        fault = self._fault(received.json)
        if fault is not None:
            return fault
        if self.script:
            return self.script.pop(0)
        words = received.json["messages"][-1]["content"].split(" ")
        pieces = [word if nth == 0 else f" {word}" for nth, word in enumerate(words)]
        return Says(pieces, usage=(sum(len(m["content"].split()) for m in received.json["messages"]), len(pieces)))

    def _fault(self, body: Mapping[str, Any]) -> Answers | None:
        unknown = [
            name for name in body if name not in _KNOWN or (name == "stream_options" and not self.counts_in_streams)
        ]
        if unknown:
            text = f"Unrecognized request argument supplied: {unknown[0]}"
            return Answers(400, error(text, param=unknown[0], code="unknown_parameter"))
        if body.get("model") not in self.models:
            text = f"The model `{body.get('model')}` does not exist or you do not have access to it."
            return Answers(404, error(text, code="model_not_found"))
        for name, (low, high) in _RANGES.items():
            if name in body and not low <= body[name] <= high:
                text = f"Invalid '{name}': expected a value between {low} and {high}."
                return Answers(400, error(text, param=name, code="out_of_range"))
        return None


@dataclass
class _Conversation:
    """One request on its connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    received: Received

    async def answer(self, entry: Entry) -> None:
        match entry:
            case "cut":
                return
            case "hang":
                await self._until_left()
            case Answers():
                await self._whole(entry)
            case Says() if self.received.json.get("stream"):
                await self._stream(entry)
            case Says():
                await self._whole(Answers(200, self._completion(entry)))

    async def _whole(self, answer: Answers) -> None:
        body = answer.body if isinstance(answer.body, bytes) else orjson.dumps(answer.body)
        await self._head(answer.status, {"content-length": str(len(body)), **answer.headers})
        await self._write(body)

    async def _stream(self, says: Says) -> None:
        await self._head(200, {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"})
        await self._delta({"role": "assistant", "content": "", "refusal": None})
        for piece in says.refusal:
            await self._delta({"refusal": piece}, pause_s=says.pause_s)
        for piece in says.pieces:
            await self._delta({"content": piece}, pause_s=says.pause_s)
        match says.then:
            case "cut":
                return
            case "hang":
                await self._until_left()
            case "end" | "done":
                await self._finish(says)
            case told:
                await self._event({"error": told})
                await self._write(b"0\r\n\r\n")

    async def _finish(self, says: Says) -> None:
        if says.finish is not None:
            await self._delta({}, finish=says.finish)
        if says.usage and (self.received.json.get("stream_options") or {}).get("include_usage"):
            await self._event({**self._about("chat.completion.chunk"), "choices": [], "usage": _usage(says.usage)})
        if says.then == "done":
            await self._frame(b"data: [DONE]\n\n")
        await self._write(b"0\r\n\r\n")

    async def _delta(self, delta: Mapping[str, Any], *, finish: str | None = None, pause_s: float = 0) -> None:
        await asyncio.sleep(pause_s)
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        await self._event({**self._about("chat.completion.chunk"), "choices": [choice], "usage": None})

    async def _event(self, data: Any) -> None:
        await self._frame(b"data: " + orjson.dumps(data) + b"\n\n")

    async def _frame(self, data: bytes) -> None:
        await self._write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def _head(self, status: int, headers: Mapping[str, str]) -> None:
        fields = {"content-type": "application/json", "x-request-id": "req_standin", "connection": "close", **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        await self._write(f"HTTP/1.1 {status} Status\r\n{lines}\r\n".encode())

    async def _write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def _until_left(self) -> None:
        await self.reader.read()
        raise ConnectionResetError("the client left")

    def _completion(self, says: Says) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(says.pieces), "refusal": "".join(says.refusal) or None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": says.finish}
        return {**self._about("chat.completion"), "choices": [choice], "usage": _usage(says.usage or (0, 0))}

    def _about(self, kind: str) -> dict[str, Any]:
        model = self.received.json["model"]
        return {"id": "chatcmpl-standin", "object": kind, "created": CREATED, "model": model}


def _usage(counts: tuple[int, int]) -> dict[str, int]:
    return {"prompt_tokens": counts[0], "completion_tokens": counts[1], "total_tokens": sum(counts)}


async def _received(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in head[1:] if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    method, path, _ = head[0].split(" ", 2)
    return Received(method, path, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


@asynccontextmanager
async def chat_server(**about: Any) -> AsyncIterator[ChatServer]:
    """A stand-in on a port of its own; `url` is its base URL, `/v1` included."""
    standin = ChatServer(**about)
    server = await asyncio.start_server(standin.serve, "127.0.0.1", 0)
    standin.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield standin
    finally:
        server.close()
