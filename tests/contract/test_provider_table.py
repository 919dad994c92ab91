"""One table of behaviours over the providers: what each of them does, and what becomes of a run then.

A provider has a bench, which makes the real thing or a server like it behave; the table says how the run goes.
A provider that cannot behave so (an echo is never cut) says why in that row.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import orjson
import pytest
import pytest_asyncio

from service.commands.callbacks import take_callback
from service.commands.cancels import cancel_due
from service.commands.context import Services
from service.commands.notices import Webhook, take_webhook
from service.commands.runs import cancel_run
from service.providers.http import MAX_ANSWER_BYTES
from service.runtime import Runtime, open_runtime
from service.standins.openai import Answers, ChatServer, Entry, Says, chat_server, error
from service.standins.replicate import TOKEN, Fault, Prediction, Replicate, throttled
from service.standins.replicate_models import Model
from service.standins.replicate_server import replicate_standin
from service.store import approvals, events
from service.store.database import EVERY
from tests.acting import begin, look, sql, worker
from tests.conftest import DEV, Seen, echo, eventually, free_port, http_tool
from tests.contract.endpoint import endpoint

TIMEOUT_S: Final = 1
RESET_S: Final = 90
SHORT_RESET_S: Final = 3  # the limiter of a process holds everybody back for as long, whatever a row of ours says
FIELDS: Final = ("temperature", "max_tokens")
PROVIDERS: Final = ["http", "echo", "openai", "replicate"]
SAMPLE: Final = {"prompt": "sample", "temperature": 1, "max_tokens": 5}
WEBHOOK: Final = "webhook"
STALE: Final = "an older webhook"
ENDS: Final = "the provider is done"
TIME: Final = "time for the next look"
UNCLAIMED: Final = "no webhook claims it"
OVERDUE: Final = "the call's own time is over"


@dataclass(frozen=True, slots=True)
class Goes:
    """What each look of a worker brings, and what happens between them; how often the provider was called; how it
    ends."""

    steps: tuple[str, ...]
    calls: int
    code: str | None = None
    checkpoint: str | None = None
    fields: tuple[str, ...] = ()
    waits_s: float = 0


@dataclass(frozen=True, slots=True)
class Never:
    """By its nature the provider cannot behave so."""

    why: str


DONE: Final = Goes(("completed",), 1)
REJECTED: Final = Goes(("failed",), 1, code="provider_rejected")
FAILED: Final = Goes(("failed",), 1, code="provider_failed")
AWAY: Final = Goes((*["retry_later"] * 4, "failed"), 0, code="provider_unavailable")
LATER: Final = Goes((*["retry_later"] * 3, "completed"), 4)
LIMITED: Final = Goes(("retry_later", "completed"), 2, waits_s=RESET_S)
MENDED: Final = Goes(("awaiting_human",), 1, checkpoint="error_recovery", fields=FIELDS)
UNKNOWN: Final = Goes(("awaiting_human",), 1, checkpoint="outcome_unknown")
AGAIN: Final = Goes(("retry_later", "completed"), 2)

# a prediction is accepted first, and looked at later
ACCEPTED: Final = "awaiting_provider"
LOOKED: Final = (ACCEPTED, ENDS, TIME, "completed")
LOCAL: Final = Never("nothing is sent: it answers in the worker itself")
UNANNOUNCED: Final = Never("it calls nobody back: the answer comes on the call's own connection")

TABLE: Final[dict[str, dict[str, Goes | Never]]] = {
    "success": {"http": DONE, "echo": DONE, "openai": DONE, "replicate": Goes(LOOKED, 1)},
    "slow success": {
        "http": DONE,
        "echo": DONE,
        "openai": DONE,
        "replicate": Goes((ACCEPTED, TIME, ACCEPTED, *LOOKED[1:]), 1),
    },
    "401": {"http": REJECTED, "echo": REJECTED, "openai": REJECTED, "replicate": REJECTED},
    "404": {"http": REJECTED, "echo": REJECTED, "openai": REJECTED, "replicate": REJECTED},
    "422 with two fields": {
        "http": MENDED,
        "echo": Goes(("awaiting_human",), 1, checkpoint="error_recovery", fields=("prompt",)),  # it has no others
        "openai": MENDED,
        "replicate": MENDED,
    },
    "429 with reset": {
        "http": LIMITED,
        "echo": Never("there is no limit to reset: its 429 is a scripted failure without a time"),
        "openai": LIMITED,
        "replicate": Goes(("retry_later", *LOOKED), 2, waits_s=SHORT_RESET_S),
    },
    "500 three times, then success": {
        "http": LATER,
        "echo": LATER,
        "openai": LATER,
        "replicate": Goes((*["retry_later"] * 3, *LOOKED), 4),
    },
    "connection refused": {"http": AWAY, "echo": LOCAL, "openai": AWAY, "replicate": AWAY},
    # the idempotency key of `http` makes another try harmless; nobody else promises that
    "cut before the answer": {
        "http": AGAIN,
        "echo": LOCAL,
        "openai": UNKNOWN,
        "replicate": Goes((ACCEPTED, UNCLAIMED, "awaiting_human"), 1, checkpoint="outcome_unknown"),
    },
    # the prediction stands, and its webhook says so
    "cut in the middle": {
        "http": AGAIN,
        "echo": LOCAL,
        "openai": UNKNOWN,
        "replicate": Goes((ACCEPTED, WEBHOOK, "completed"), 1),
    },
    "timeout": {
        "http": UNKNOWN,
        "echo": UNKNOWN,
        "openai": UNKNOWN,
        "replicate": Goes((ACCEPTED, OVERDUE, "awaiting_human"), 1, checkpoint="outcome_unknown"),
    },
    "output over the limit": {
        "http": REJECTED,
        "echo": Never("its output is its payload, and no request may be as large as the limit"),
        "openai": FAILED,
        "replicate": Goes((ACCEPTED, ENDS, TIME, "failed"), 1, code="provider_rejected"),
    },
    "webhook before the answer": {
        "http": DONE,
        "echo": LOCAL,
        "openai": UNANNOUNCED,
        "replicate": Goes((ACCEPTED, TIME, "completed"), 1),
    },
    "webhook before the poll": {
        "http": Goes((ACCEPTED, WEBHOOK, "completed"), 1),
        "echo": LOCAL,
        "openai": UNANNOUNCED,
        "replicate": Goes((ACCEPTED, WEBHOOK, "completed"), 1),
    },
    "webhook after the poll": {
        "http": Never("nothing is polled: its callback is the answer"),
        "echo": LOCAL,
        "openai": UNANNOUNCED,
        "replicate": Goes((*LOOKED, WEBHOOK), 1),
    },
    "duplicated webhooks": {
        "http": Goes((ACCEPTED, WEBHOOK, WEBHOOK, "completed", WEBHOOK), 1),
        "echo": LOCAL,
        "openai": UNANNOUNCED,
        "replicate": Goes((ACCEPTED, WEBHOOK, WEBHOOK, "completed", WEBHOOK), 1),
    },
    "reordered webhooks": {
        "http": Never("it calls back once, with the answer"),
        "echo": LOCAL,
        "openai": UNANNOUNCED,
        "replicate": Goes((ACCEPTED, WEBHOOK, STALE, "completed", STALE), 1),
    },
}


@dataclass
class Bench:
    """A provider made to behave. `calls` counts what reached it, where that is to be known."""

    provider: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    def behave(self, behaviour: str) -> None:
        raise NotImplementedError

    def tool(self) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def calls(self) -> int | None:
        return None

    @property
    def keys(self) -> set[str]:
        """The idempotency keys that the calls bore."""
        return set()

    async def webhook(self, services: Services, run_id: UUID) -> None:
        raise NotImplementedError

    async def stale_webhook(self, services: Services, run_id: UUID) -> None:
        """What it said earlier, and arrives now."""
        raise NotImplementedError

    def end(self) -> None:
        """The provider is done with what it accepted."""
        raise NotImplementedError


@dataclass
class EchoBench(Bench):
    provider: str = "echo"
    config: dict[str, Any] = field(default_factory=dict)

    def behave(self, behaviour: str) -> None:
        configs: dict[str, dict[str, Any]] = {
            "success": {},
            "slow success": {"latency_seconds": 0.1},
            "401": {"fail": [{"status": 401}]},
            "404": {"fail": [{"status": 404}]},
            "422 with two fields": {"fail": [{"status": 422}]},
            "500 three times, then success": {"fail": [{"status": 500}] * 3},
            "timeout": {"fail": [{"status": 408}]},
            "hang": {"latency_seconds": 3600},
        }
        self.config = configs[behaviour]

    def tool(self) -> dict[str, Any]:
        return echo(SAMPLE, **self.config)


Act = tuple[Any, ...] | str | Callable[[Seen], Awaitable[tuple[Any, ...]]]


@dataclass
class HttpBench(Bench):
    provider: str = "http"
    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    script: list[Act] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    services: Services | None = None

    async def handle(self, seen: Seen) -> Any:
        act = self.script.pop(0) if self.script else (200, {"ok": True})
        match act:
            case "cut":
                raise ConnectionResetError
            case "hang":
                await self.over.wait()
                return 200, {}
            case tuple():
                return act
            case _:
                assert callable(act)
                return await act(seen)

    def behave(self, behaviour: str) -> None:
        faults = {"errors": [{"field": name, "message": "bad"} for name in FIELDS]}
        acts: dict[str, list[Act]] = {
            "success": [],
            "slow success": [self._slowly],
            "401": [(401, {})],
            "404": [(404, {})],
            "422 with two fields": [(422, faults)],
            "429 with reset": [(429, {}, {"retry-after": str(RESET_S)})],
            "500 three times, then success": [(500, {})] * 3,
            "connection refused": [],
            "cut before the answer": ["cut"],
            "cut in the middle": [(200, b"{", {"content-length": "100"})],
            "timeout": ["hang"],
            "hang": ["hang"],
            "output over the limit": [(200, b"x" * (MAX_ANSWER_BYTES + 1))],
            "webhook before the answer": [self._webhook_first],
            "webhook before the poll": [(202, {})],
            "duplicated webhooks": [(202, {})],
        }
        self.script = acts[behaviour]
        if behaviour == "connection refused":
            self.url = f"http://127.0.0.1:{free_port()}/"

    def tool(self) -> dict[str, Any]:
        return http_tool(self.url, SAMPLE, timeout_seconds=TIMEOUT_S if "hang" in self.script else 60)

    @property
    def calls(self) -> int:
        return len(self.seen)

    @property
    def keys(self) -> set[str]:
        return {one.headers["idempotency-key"] for one in self.seen}

    async def webhook(self, services: Services, run_id: UUID) -> None:
        query = parse_qs(urlsplit(self.seen[-1].headers["x-hitl-callback-url"]).query)
        await take_callback(services, run_id, int(query["call"][0]), query["signature"][0], {"ok": True})

    async def _slowly(self, _: Seen) -> tuple[int, Any]:
        await asyncio.sleep(0.1)
        return 200, {"ok": True}

    async def _webhook_first(self, seen: Seen) -> tuple[int, Any]:
        assert self.services is not None
        await self.webhook(self.services, UUID(seen.headers["x-hitl-run-id"]))
        return 202, {}


@dataclass
class OpenAIBench(Bench):
    provider: str = "openai"
    server: ChatServer = field(default_factory=ChatServer)
    timeout_s: float = 60

    def behave(self, behaviour: str) -> None:
        reset = {"x-ratelimit-reset-requests": f"{RESET_S // 60}m{RESET_S % 60}s"}
        faults = {"detail": [{"loc": ["body", name], "msg": "bad"} for name in FIELDS]}
        scripts: dict[str, list[Entry]] = {
            "success": [],
            "slow success": [Says(["A ", "fox."], pause_s=0.05)],
            "401": [Answers(401, error("no", code="invalid_api_key"))],
            "404": [Answers(404, error("no", code="model_not_found"))],
            "422 with two fields": [Answers(422, faults)],
            "429 with reset": [Answers(429, error("slow down"), reset)],
            "500 three times, then success": [Answers(500, error("oops"))] * 3,
            "connection refused": [],
            "cut before the answer": ["cut"],
            "cut in the middle": [Says(["half"], then="cut")],
            "timeout": [Says(["half"], then="hang")],
            "hang": [Says(["half"], then="hang")],
            "output over the limit": [Says(["x" * (1 << 20)] * 9)],
        }
        self.server.script = scripts[behaviour]
        self.timeout_s = TIMEOUT_S if behaviour == "timeout" else 60
        url = f"http://127.0.0.1:{free_port()}/v1" if behaviour == "connection refused" else self.server.url
        self.settings = {"openai_api_key": self.server.api_key, "openai_base_url": url}

    def tool(self) -> dict[str, Any]:
        data = {"model": "gpt-standin", "example_input": SAMPLE, "timeout_seconds": self.timeout_s}
        return {"openai-agent-tool": {"data": data}}

    @property
    def calls(self) -> int:
        return len(self.server.seen)

    @property
    def keys(self) -> set[str]:
        return {one.headers["idempotency-key"] for one in self.server.seen}


WORDS: Final = Model(
    "acme/words",
    {
        "type": "object",
        "required": ["prompt"],
        "properties": {
            "prompt": {"type": "string"},
            "temperature": {"type": "number"},
            "max_tokens": {"type": "integer"},
        },
    },
    version="w1",
    answer=lambda order, _: {"words": order["prompt"]},
)
HUGE: Final = Model("acme/huge", WORDS.input_schema, version="h1", answer=lambda *_: "x" * (MAX_ANSWER_BYTES + 1))


@dataclass
class ReplicateBench(Bench):
    """The stand-in's webhooks are carried by hand, but for the one that comes before the create is answered."""

    provider: str = "replicate"
    standin: Replicate = field(default_factory=Replicate)
    services: Services | None = None
    model: Model = WORDS
    timeout_s: float = 60

    def behave(self, behaviour: str) -> None:
        faults = [{"type": "x", "field": f"input.{name}", "description": "bad"} for name in FIELDS]
        scripts: dict[str, list[Fault]] = {
            "401": [Fault(401, {"title": "Unauthenticated"})],
            "404": [Fault(404, {"title": "Not found"})],
            "422 with two fields": [Fault(422, {"status": 422, "invalid_fields": faults})],
            "429 with reset": [throttled(SHORT_RESET_S)],
            "500 three times, then success": [Fault(500)] * 3,
            "cut before the answer": [Fault(None)],
            "cut in the middle": [Fault(None, effect=True)],
        }
        self.standin.faults["create"] = scripts.get(behaviour, [])
        self.standin.runs_by_itself = False
        self.standin.webhooks = self.standin.before_answer = behaviour == "webhook before the answer"
        self.model = HUGE if behaviour == "output over the limit" else WORDS
        refused = behaviour == "connection refused"
        url = f"http://127.0.0.1:{free_port()}" if refused else self.standin.url
        self.settings |= {"replicate_api_token": TOKEN, "replicate_base_url": url}

    def tool(self) -> dict[str, Any]:
        return {"replicate-agent-tool": {"data": {"name": self.model.name, "timeout_seconds": self.timeout_s}}}

    @property
    def calls(self) -> int:
        return len(self.standin.seen("create"))

    @property
    def prediction(self) -> Prediction:
        (made,) = self.standin.predictions.values()
        return made

    async def webhook(self, services: Services, run_id: UUID) -> None:
        self.end()
        await self._carry(services, self.prediction.wire())

    async def stale_webhook(self, services: Services, run_id: UUID) -> None:
        await self._carry(services, {**self.prediction.wire(), "status": "processing", "output": None})

    def end(self) -> None:
        self.standin.finish(self.prediction)

    async def take(self, seen: Seen) -> tuple[int, Any]:
        """One that the stand-in sends by itself."""
        assert self.services is not None
        await self._take(self.services, seen.path, seen.headers, seen.body)
        return 200, {}

    async def _carry(self, services: Services, said: dict[str, Any]) -> None:
        body = orjson.dumps(said)
        await self._take(services, self.prediction.webhook or "", self.standin.signed("msg_1", body), body)

    async def _take(self, services: Services, url: str, headers: Mapping[str, str], body: bytes) -> None:
        at, query = urlsplit(url), parse_qs(urlsplit(url).query)
        run_id, call, signature = at.path.rpartition("/")[2], query["call"][0], query["signature"][0]
        await take_webhook(services, "replicate-agent-tool", Webhook(run_id, call, signature, headers, body))


@asynccontextmanager
async def bench_of(provider: str) -> AsyncIterator[Bench]:
    match provider:
        case "echo":
            yield EchoBench()
        case "http":
            bench = HttpBench()
            async with endpoint(bench.handle) as (bench.url, bench.seen):
                try:
                    yield bench
                finally:
                    bench.over.set()
        case "openai":
            async with chat_server() as server:
                yield OpenAIBench(server=server)
        case "replicate":
            async with replicate_standin() as standin:
                standin.models = {WORDS.name: WORDS, HUGE.name: HUGE}
                found = ReplicateBench(standin=standin)
                async with endpoint(found.take) as (url, _):
                    found.settings["hitl_public_url"] = url.rpartition("/")[0]
                    yield found
        case _:
            raise AssertionError(provider)


@pytest_asyncio.fixture(loop_scope="session")
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    async with bench_of(request.param) as found:
        yield found


@asynccontextmanager
async def wired(empty: Runtime, bench: Bench) -> AsyncIterator[Runtime]:
    """A runtime as the settings wire it for this bench, with nobody at work."""
    settings = empty.settings.model_copy(update=bench.settings)
    async with open_runtime(settings, process="test", redis=empty.redis) as runtime:
        if isinstance(bench, HttpBench | ReplicateBench):
            bench.services = runtime.services
        yield runtime


ROWS: Final = [
    (provider, behaviour, goes)
    for behaviour, row in TABLE.items()
    for provider, goes in row.items()
    if isinstance(goes, Goes)
]


def test_every_row_speaks_of_every_provider() -> None:
    for behaviour, row in TABLE.items():
        assert list(row) == PROVIDERS, behaviour


@pytest.mark.parametrize(("bench", "behaviour", "goes"), ROWS, ids=[f"{p}-{b}" for p, b, _ in ROWS], indirect=["bench"])
async def test_a_run_goes_as_the_table_says(empty: Runtime, bench: Bench, behaviour: str, goes: Goes) -> None:
    bench.behave(behaviour)
    async with wired(empty, bench) as runtime:
        run_id = await begin(runtime, bench.tool())

        assert await walked(runtime, bench, run_id, goes) == goes.steps

        run = await look(runtime, run_id)
        assert (run.error or {}).get("code") == goes.code
        assert await asked(runtime, run_id) == (goes.checkpoint, set(goes.fields))
        assert bench.calls in (goes.calls, None)
        assert len(bench.keys) <= 1


@pytest.mark.parametrize("bench", ["http", "echo", "openai"], indirect=True)
async def test_a_cancelled_run_leaves_its_provider(empty: Runtime, bench: Bench) -> None:
    bench.behave("hang")
    async with wired(empty, bench) as runtime:
        hand = worker(runtime)
        run_id = await begin(runtime, bench.tool())
        work = asyncio.create_task(hand.advance(run_id))
        await eventually(lambda: submitted(runtime, bench, run_id), "the call")

        await cancel_run(runtime.services, run_id, DEV, reason=None)
        hand.drop(run_id)

        assert await work == "lease_lost"
        assert (await look(runtime, run_id)).status == "cancelled"
        assert bench.calls in (1, None)


@pytest.mark.parametrize("bench", ["replicate"], indirect=True)
async def test_a_cancelled_run_ends_what_its_provider_has_accepted(empty: Runtime, bench: ReplicateBench) -> None:
    bench.behave("success")
    async with wired(empty, bench) as runtime:
        run_id = await begin(runtime, bench.tool())
        assert await worker(runtime).advance(run_id) == ACCEPTED

        await cancel_run(runtime.services, run_id, DEV, reason=None)
        assert await cancel_due(runtime.services, run_id=run_id) == 1

        assert (await look(runtime, run_id)).status == "cancelled"
        assert (bench.prediction.status, bench.calls) == ("canceled", 1)


async def walked(runtime: Runtime, bench: Bench, run_id: UUID, goes: Goes) -> tuple[str, ...]:
    """What every look of a worker brought, each as though its time had come."""
    found: list[str] = []
    for step in goes.steps:
        if await happened(runtime, bench, run_id, step):
            found.append(step)
            continue
        found.append(await worker(runtime).advance(run_id))
        run = await look(runtime, run_id)
        if found[-1] == "retry_later":
            assert run.due_at is not None
            assert (run.due_at - run.updated_at).total_seconds() >= goes.waits_s - 1
            await make_due(runtime, run_id)
    return tuple(found)


async def happened(runtime: Runtime, bench: Bench, run_id: UUID, step: str) -> bool:
    """Let happen what comes between two looks of a worker; False where the step is a look."""
    match step:
        case "webhook":
            await bench.webhook(runtime.services, run_id)
        case "an older webhook":
            await bench.stale_webhook(runtime.services, run_id)
        case "the provider is done":
            bench.end()
        case "time for the next look":
            await make_due(runtime, run_id)
        case "no webhook claims it":
            back = timedelta(seconds=31)
            await sql(
                runtime,
                "update provider_calls set started_at = started_at - $2::interval where run_id = $1",
                run_id,
                back,
            )
            await make_due(runtime, run_id)
        case "the call's own time is over":
            await sql(runtime, "update provider_calls set deadline_at = now() where run_id = $1", run_id)
            await make_due(runtime, run_id)
        case _:
            return False
    return True


async def make_due(runtime: Runtime, run_id: UUID) -> None:
    await sql(runtime, "update runs set due_at = now() where id = $1", run_id)


async def asked(runtime: Runtime, run_id: UUID) -> tuple[str | None, set[str]]:
    """What a human is asked, and the faulty fields that are shown."""
    async with runtime.services.db.connection(EVERY) as conn:
        found = await approvals.open_of_run(conn, run_id)
    if not found:
        return None, set()
    shown = found[0].context["validation_issues"]
    return found[0].checkpoint_type, {issue["field"] for issue in shown}


async def submitted(runtime: Runtime, bench: Bench, run_id: UUID) -> bool:
    async with runtime.services.db.connection(EVERY) as conn:
        told = {event.type for event in await events.after(conn, "default", run_id, 0, limit=100)}
    return "provider.submitted" in told and bench.calls != 0
