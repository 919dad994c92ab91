"""The SDK's side of the `openai` provider: one streamed chat call, every outcome of it a value.

Loaded by the first call only (see `providers.openai`). The SDK's own retries are off, it follows no redirect
and takes no proxy from the environment, so that the key goes to the configured server and nowhere else.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import httpx2
import orjson
from openai import APIConnectionError, APIError, APIStatusError, AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

from service.domain.call import Outcome, OutcomeUnknown, ProviderFailed, Unreachable
from service.domain.canonical import JSON
from service.providers.http import MAX_ANSWER_BYTES, parsed
from service.providers.openai_answer import Answer, broken_off, read, refused
from service.providers.openai_schema import SCHEMA
from service.providers.protocol import Request

CONNECT_TIMEOUT_S: Final = 10.0
TELL_EVERY_S: Final = 0.05  # whoever listens thins it further; joining the text for each token costs its square

_BODY: Final = "hitl_body"
_DONE: Final = re.compile(rb"[\r\n]data: ?\[DONE\]")
# Nothing has been sent yet when these come.
_UNSENT: Final = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


class TooLarge(Exception):
    """The answer is larger than we take."""


class _Body(httpx2.AsyncByteStream):
    """A body as the SDK reads it: a line, or an error, whole. So it ends with `TooLarge`, a stream of events by
    its longest line and all else by its length; and it sees what the SDK keeps to itself, the mark of a good end.
    """

    def __init__(self, inner: httpx2.AsyncByteStream, *, by_line: bool) -> None:
        self._inner = inner
        self._by_line = by_line
        self.done = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        held, tail = 0, b"\n"
        async for piece in self._inner:
            self.done = self.done or _DONE.search(tail + piece) is not None
            tail = (tail + piece)[-16:]
            ends = piece.rfind(b"\n") + 1 if self._by_line else 0
            held = len(piece) - ends if ends else held + len(piece)
            if held > MAX_ANSWER_BYTES:
                raise TooLarge
            yield piece

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Transport(httpx2.AsyncHTTPTransport):
    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        body = _Body(response.stream, by_line=response.status_code == 200 and _is_events(response.headers))
        response.stream = response.extensions[_BODY] = body
        return response


class Chat:
    def __init__(self, api_key: str, base_url: str) -> None:
        # No connection is kept for the next call: one that the server closes just then would look like a
        # call that was sent and never answered, and ask a human.
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        self._sdk = AsyncOpenAI(
            api_key=api_key,
            base_url=base_url,
            max_retries=0,
            timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S),  # the call as a whole is bounded by its own
            http_client=httpx2.AsyncClient(
                transport=_Transport(trust_env=False, retries=0, limits=limits),
                headers={"Accept-Encoding": "identity"},  # what is measured is what is kept
                trust_env=False,
                follow_redirects=False,
            ),
        )
        self._completions = self._sdk.chat.completions.with_streaming_response  # loads the rest of it
        self._counts = True

    async def aclose(self) -> None:
        await self._sdk.close()

    async def send(self, request: Request) -> Outcome:
        payload = orjson.loads(request.body)
        prices = request.config.get("prices")
        answer = Answer()
        try:
            async with asyncio.timeout(request.timeout_s):
                return await self._send(request, payload, answer)
        except TimeoutError:
            return OutcomeUnknown("no answer in time")
        except TooLarge:
            return ProviderFailed(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")
        except APIStatusError as error:
            body = parsed(error.response.content)
            return refused(error.status_code, error.response.headers, body, payload=payload, schema=SCHEMA)
        except APIConnectionError as error:
            if isinstance(error.__cause__, _UNSENT):
                return Unreachable("the connection was refused")
            # what ends after the reason why it ends is whole, and lacks its usage at most
            return answer.answered(prices) if answer.whole else OutcomeUnknown("the answer was cut off")
        except APIError as error:
            return broken_off(error.body, answer, prices)
        except (ValueError, RecursionError):  # no JSON, no UTF-8, or of no shape that can be followed
            return OutcomeUnknown("the answer cannot be read")

    async def _send(self, request: Request, payload: Mapping[str, JSON], answer: Answer) -> Outcome:
        if not self._counts:
            return await self._once(request, payload, answer, counts=False)
        try:
            return await self._once(request, payload, answer, counts=True)
        except APIStatusError as error:
            if error.status_code not in (400, 422) or "stream_options" not in error.response.text:
                raise
        # a server that does not know how to count in a stream did nothing yet: ask it without
        outcome = await self._once(request, payload, answer, counts=False)
        self._counts = False
        return outcome

    async def _once(self, request: Request, payload: Mapping[str, JSON], answer: Answer, *, counts: bool) -> Outcome:
        settings: dict[str, Any] = {name: value for name, value in payload.items() if name != "prompt"}
        if counts:
            settings["stream_options"] = {"include_usage": True}
        prices = request.config.get("prices")
        async with self._completions.create(
            model=request.config["model"],
            messages=_messages(request.config.get("system"), payload["prompt"]),
            stream=True,
            extra_body=settings,
            extra_headers={"Idempotency-Key": request.idempotency_key},
        ) as response:
            if not _is_events(response.headers):
                return read(parsed(await response.read()), prices)
            try:
                await _take(await response.parse(), answer, request)
                answer.done = response.http_response.extensions[_BODY].done
            finally:  # of a stream that was cut, too: somebody will be asked what became of it
                if answer.text:
                    request.progress({"text": answer.text})
        if not answer.whole:
            return OutcomeUnknown("the answer was cut off")
        return answer.answered(prices)


async def _take(stream: AsyncStream[ChatCompletionChunk], answer: Answer, request: Request) -> None:
    now = asyncio.get_running_loop().time
    told_at = 0.0
    async for chunk in stream:
        if not isinstance(chunk, ChatCompletionChunk):
            continue  # the SDK checks nothing, and hands on whatever JSON came
        grew = answer.add(chunk.to_dict(mode="python", warnings=False))
        if answer.size > MAX_ANSWER_BYTES:
            raise TooLarge
        if grew and now() - told_at >= TELL_EVERY_S:
            request.progress({"text": answer.text})
            told_at = now()


def _is_events(headers: Mapping[str, str]) -> bool:
    """Whether a body is a stream of events; a server that names no type is believed to do as asked."""
    return headers.get("content-type", "text/plain").lower().startswith(("text/event-stream", "text/plain"))


def _messages(system: str | None, prompt: str) -> list[ChatCompletionMessageParam]:
    said: list[ChatCompletionMessageParam] = [{"role": "system", "content": system}] if system else []
    return [*said, {"role": "user", "content": prompt}]
