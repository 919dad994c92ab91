"""Who does the work in `hitl demo`: providers on real local sockets that keep what they received."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from service.standins.replicate import Replicate
from service.standins.replicate_models import FLUX
from service.standins.replicate_server import replicate_standin
from service.standins.server import HOST

Json = dict[str, Any]
PROMPT: Final = "a red fox, watercolour"
EXAMPLE: Final[Mapping[str, Any]] = {"prompt": "sample", "num_outputs": 1, "guidance": 3.5}
EDIT: Final[Mapping[str, Any]] = {"prompt": "two red foxes in the snow, watercolour", "num_outputs": 2}
ANSWER: Final[Mapping[str, Any]] = {"images": ["fox-1.png", "fox-2.png"], "seed": 42}


@dataclass(frozen=True, slots=True)
class Sent:
    """One call as it came over the wire: what is worth showing, and the payload byte for byte."""

    about: Mapping[str, str]
    payload: bytes


@dataclass(frozen=True, slots=True)
class Trial:
    """`example`: what the payload holds beside the prompt. `part`: where in a call it stands. `files`: what is to be
    read at which path of ours."""

    tool: Json
    example: Mapping[str, Any]
    env: Mapping[str, str]
    sent: Callable[[], list[Sent]]
    is_answer: Callable[[Any], bool]
    part: str = "body"
    files: Callable[[], Mapping[str, bytes]] = dict


# --- an HTTP endpoint ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Endpoint:
    """A small real provider: it keeps what it received and answers JSON."""

    url: str = ""
    received: list[Sent] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, _, _ = head[0].split(" ")
            headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            about = {"request": f"{method} {self.url}", "idempotency-key": headers.get("idempotency-key", "")}
            self.received.append(Sent(about, body))
            answer = orjson.dumps(ANSWER)
            lines = ["HTTP/1.1 200 OK", "content-type: application/json", f"content-length: {len(answer)}"]
            writer.write("\r\n".join([*lines, "connection: close", "", ""]).encode() + answer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            pass  # not a request; the story notices that none came
        finally:
            writer.close()


@asynccontextmanager
async def _http() -> AsyncIterator[Trial]:
    endpoint = Endpoint()
    server = await asyncio.start_server(endpoint.serve, HOST, 0)
    endpoint.url = f"http://{HOST}:{server.sockets[0].getsockname()[1]}/predict"
    async with server:
        yield Trial(
            tool={"http-agent-tool": {"data": {"url": endpoint.url, "example_input": EXAMPLE}}},
            example=EXAMPLE,
            env={},
            sent=lambda: endpoint.received,
            is_answer=lambda output: output == ANSWER,
        )


# --- Replicate ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def _replicate() -> AsyncIterator[Trial]:
    """The stand-in: the payload comes from the model's own schema, the answer by a signed webhook, as files."""
    async with replicate_standin() as standin:
        standin.starting_s = standin.processing_s = 0.3
        copies: list[str] = []

        def is_answer(output: Any) -> bool:
            copies[:] = output if isinstance(output, list) else []
            return len(copies) == EDIT["num_outputs"] and all(path.startswith("/hitl/files/") for path in copies)

        def files() -> Mapping[str, bytes]:
            standin.predictions.clear()  # Replicate deletes its own after an hour
            return dict.fromkeys(copies, standin.file)

        yield Trial(
            tool={"replicate-agent-tool": {"data": {"name": FLUX.name}}},
            example={"aspect_ratio": "1:1", "num_outputs": 1},
            env={"REPLICATE_API_TOKEN": standin.token, "REPLICATE_BASE_URL": standin.url},
            sent=lambda: _creates(standin),
            is_answer=is_answer,
            part="input",
            files=files,
        )


def _creates(standin: Replicate) -> list[Sent]:
    return [
        Sent(
            {"request": f"{one.method} {standin.url}{one.path}", "webhook": one.json["webhook"].partition("?")[0]},
            one.body.removeprefix(b'{"input":').rpartition(b',"webhook":')[0],
        )
        for one in standin.seen("create")
    ]


TRIALS: Final[Mapping[str, Callable[[], AbstractAsyncContextManager[Trial]]]] = {
    "http": _http,
    "replicate": _replicate,
}
