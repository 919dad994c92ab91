"""What stands behind the stand-in of Replicate: models, predictions and their lives, webhooks, faults, what came.

What it does is scripted by its fields, which a test changes as it goes: the next answers of a kind of request,
how long a prediction takes, how its webhooks come.
"""

import asyncio
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Final
from uuid import uuid4

import httpx2
import orjson

from service.domain.standard_webhooks import sign
from service.standins.replicate_models import FLUX, PNG, Json, Model

TOKEN: Final = "r8_stand_in"  # noqa: S105  opens nothing
SECRET: Final = "whsec_c3RhbmQtaW4tZm9yLXJlcGxpY2F0ZQ=="  # noqa: S105  signs nothing real
OVER: Final = frozenset({"succeeded", "failed", "canceled", "aborted"})


@dataclass(frozen=True, slots=True)
class Fault:
    """A scripted answer in place of the real one. `status` None: the connection is cut in the middle; 0: the real
    answer, only late.

    `effect`: what was asked for happens all the same. `after_s`: the answer takes that long.
    """

    status: int | None = 500
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    effect: bool = False
    after_s: float = 0


def late(seconds: float) -> Fault:
    return Fault(0, effect=True, after_s=seconds)


def throttled(seconds: float) -> Fault:
    detail = f"Request was throttled. Your rate limit resets in ~{seconds:g}s."
    return Fault(429, {"title": "Too many requests", "detail": detail, "status": 429})


@dataclass(frozen=True, slots=True)
class Received:
    kind: str
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


@dataclass(slots=True)
class Prediction:
    id: str
    model: Model
    input: Mapping[str, Any]
    base_url: str
    webhook: str | None = None
    events: tuple[str, ...] = ("start", "output", "logs", "completed")
    status: str = "starting"
    output: Any = None
    error: str | None = None
    logs: str = ""
    metrics: Json = field(default_factory=dict)
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started_at: datetime | None = None
    completed_at: datetime | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def over(self) -> bool:
        return self.status in OVER

    def wire(self) -> Json:
        at = f"{self.base_url}/v1/predictions/{self.id}"
        return {
            "id": self.id,
            "model": self.model.name,
            "version": "hidden" if self.model.official else self.model.version,
            "input": dict(self.input),
            "logs": self.logs,
            "output": self.output,
            "error": self.error,
            "status": self.status,
            "source": "api",
            "data_removed": False,
            "created_at": self.created_at.isoformat(),
            "started_at": self.started_at.isoformat() if self.started_at else None,
            "completed_at": self.completed_at.isoformat() if self.completed_at else None,
            "metrics": self.metrics,
            "urls": {"get": at, "cancel": f"{at}/cancel", "web": f"https://replicate.com/p/{self.id}"},
        }


@dataclass(slots=True)
class Replicate:
    """The stand-in. `faults`: the next answers by kind of request: model, create, get, cancel, secret, file.

    `runs_by_itself` false: a prediction stays as it is until `go_on` or `finish`. Webhooks come `copies` times each;
    `before_answer`: the create is answered only after its first webhook; `reversed_order`: the last one first.
    """

    url: str = ""
    token: str = TOKEN
    secret: str = SECRET
    models: dict[str, Model] = field(default_factory=lambda: {FLUX.name: FLUX})
    deployments: dict[str, str] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    starting_s: float = 0.02
    processing_s: float = 0.05
    runs_by_itself: bool = True
    fails_with: str | None = None
    webhooks: bool = True
    copies: int = 1
    before_answer: bool = False
    reversed_order: bool = False
    file: bytes = PNG
    received: list[Received] = field(default_factory=list)
    predictions: dict[str, Prediction] = field(default_factory=dict)
    delivered: list[int] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def reset(self) -> None:
        """As it was made, but for its address and models; what is under way is dropped."""
        for task in self._tasks:
            task.cancel()
        for one in fields(self):
            if one.name not in ("url", "models", "deployments", "_tasks"):
                factory = one.default_factory
                setattr(self, one.name, one.default if factory is MISSING else factory())

    def seen(self, kind: str) -> list[Received]:
        return [one for one in self.received if one.kind == kind]

    # a prediction's life

    def begin(self, model: Model, order: Mapping[str, Any], lasts_s: float | None, **about: Any) -> Prediction:
        made = Prediction(uuid4().hex[:26], model, order, self.url, **about)
        self.predictions[made.id] = made
        self._own(self._live(made, lasts_s))
        return made

    async def _live(self, made: Prediction, lasts_s: float | None) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(lasts_s):
                if self.runs_by_itself:
                    await asyncio.sleep(self.starting_s)
                    self.go_on(made)
                    await asyncio.sleep(self.processing_s)
                    self.finish(made)
                while not made.over:
                    made.changed.clear()
                    await made.changed.wait()
        self.end(made, "aborted" if made.status == "starting" else "canceled")

    def go_on(self, made: Prediction) -> None:
        if made.status == "starting":
            made.status, made.started_at = "processing", datetime.now(UTC)
            self._tell(made, "start")

    def finish(self, made: Prediction) -> None:
        """Succeed, or fail where `fails_with` says so."""
        self.go_on(made)
        if self.fails_with is not None:
            self.end(made, "failed", error=self.fails_with)
        else:
            output = made.model.answer(made.input, lambda name: f"{self.url}/files/{made.id}/{name}")
            self.end(made, "succeeded", output=output)

    def end(self, made: Prediction, status: str, *, output: Any = None, error: str | None = None) -> None:
        """The first end stands."""
        if made.over:
            return
        made.status, made.output, made.error, made.completed_at = status, output, error, datetime.now(UTC)
        began = made.started_at or made.completed_at
        made.metrics = {"predict_time": max(0.001, (made.completed_at - began).total_seconds())}
        made.changed.set()
        self._tell(made, "completed")

    # webhooks

    def _tell(self, made: Prediction, event: str) -> None:
        if self.webhooks and made.webhook and event in made.events:
            if self.reversed_order and event == "start":
                self._own(self._after_end(made, orjson.dumps(made.wire())))
            else:
                self._own(self._deliver(made.webhook, orjson.dumps(made.wire())))

    async def _after_end(self, made: Prediction, body: bytes) -> None:
        count = len(self.delivered)
        while not made.over or len(self.delivered) == count:
            await asyncio.sleep(0.01)
        await self._deliver(made.webhook or "", body)

    async def _deliver(self, url: str, body: bytes) -> None:
        """At least once: until it is taken, a few times at most."""
        message_id = f"msg_{uuid4().hex}"
        async with httpx2.AsyncClient(trust_env=False, timeout=10) as client:
            for _ in range(self.copies):
                for wait_s in (0.1, 0.5, 2, 5):
                    with suppress(httpx2.TransportError):
                        answer = await client.post(url, content=body, headers=self.signed(message_id, body))
                        self.delivered.append(answer.status_code)
                        if answer.is_success:
                            break
                    await asyncio.sleep(wait_s)

    def signed(self, message_id: str, body: bytes) -> dict[str, str]:
        """The headers of a webhook."""
        at = int(time.time())
        return {
            "content-type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(at),
            "webhook-signature": sign(self.secret, message_id, at, body),
        }

    def _own(self, life: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(life)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
