"""A Starlette app on a real socket inside this process's own loop, and a way to cut a connection in the middle."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import uvicorn
from starlette.responses import Response

HOST: Final = "127.0.0.1"


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The process's signals are not ours."""
        yield


class Cut(Response):
    """Promises a body and sends less: the connection breaks in the middle of the answer."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"1000")]
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"id": "', "more_body": True})


CUT: Final = Cut()


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """The app's base URL, while it is served."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, 0))
        config = uvicorn.Config(
            app, log_config=None, log_level="critical", access_log=False, lifespan="off", timeout_graceful_shutdown=1,
            ws="none",
        )  # fmt: skip
        server = _Server(config)
        serving_task = asyncio.get_running_loop().create_task(server.serve([listener]))
        try:
            while not server.started and not serving_task.done():
                await asyncio.sleep(0.005)
            yield f"http://{HOST}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving_task
