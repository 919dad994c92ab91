"""A run's life in any order: people, workers, clocks and deaths as hypothesis has it, on the real use cases.

After every step the record is read and held against what must be so whatever happened: one winner an approval, no
call without its approval, one effect a key, a chain that verifies, an end that stays.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, ClassVar, Final
from uuid import UUID, uuid4

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from service.commands.approvals import claim, decide, expire
from service.commands.context import Services
from service.commands.delegation import delegate
from service.commands.runs import Idempotency, StartRun, cancel_run, pause_run, resume_run, start_run
from service.commands.timers import sweep
from service.domain.approval import Approval, Order
from service.domain.audit import check
from service.domain.call import Accepted, Answered, InvalidInput, Outcome, OutcomeUnknown, Rejected, Unreachable
from service.domain.event import Event, wire
from service.domain.policy import EscalateTo, HitlConfig
from service.domain.principal import Principal
from service.domain.run import Run
from service.embedded import Servers
from service.errors import HitlError
from service.orchestrator import LEASE_LOST, HITLOrchestrator
from service.providers.protocol import Request
from service.runtime import Runtime
from service.store import approvals, audit, runs
from tests.acting import sql
from tests.conftest import DEADLINE_S, own_runtime
from tests.scripting import TOOL, Gate, Scripted, serving

SEARCH: Final = os.environ.get("HYPOTHESIS_PROFILE") == "search"
EXAMPLES: Final = 400 if SEARCH else 20
STEPS: Final = 50 if SEARCH else 25
# Two that race are not run the same way twice: a step that was made smaller would prove nothing, and take long.
PLAIN: Final[dict[str, Any]] = {
    "suppress_health_check": list(HealthCheck),
    "phases": [Phase.explicit, Phase.reuse, Phase.generate],
}

PEOPLE: Final = ("ann", "bob", "sue")  # sue starts the runs
PEOPLE_ = st.sampled_from(PEOPLE)
WHICH = st.integers(0, 2)
ORDER: Final[dict[str, st.SearchStrategy[Any]]] = {
    "human": st.booleans(),
    "quorum": st.integers(1, 2),
    "on_timeout": st.sampled_from(["reject", "approve", "escalate"]),
    "key": st.sampled_from([None, "k1", "k2"]),
}
ISSUE: Final = {"field": "prompt", "issue": "is odd", "severity": "error", "suggested_fix": None, "auto_fixable": False}
OUTCOMES: Final[dict[str, Outcome]] = {
    "answered": Answered({"image": "fox"}, {"output": "fox"}, provider_ref="p1"),
    "flagged": Answered({"image": "fox"}, {"output": "fox"}, provider_ref="p1", safety_flags=["nsfw"]),
    "accepted": Accepted("p1"),
    "unknown": OutcomeUnknown("no answer"),
    "invalid": InvalidInput([ISSUE]),
    "unreachable": Unreachable("connection refused"),
    "rejected": Rejected("not like this"),
}
HAPPENED: Final = ("answered", "flagged", "accepted", "unknown", "died")  # or may have


class Paid(Scripted):
    """It does what the rule says, and keeps for each key what it did for it."""

    def __init__(self) -> None:
        super().__init__()
        self.does = "answered"
        self.gate = Gate(None)
        self.sent: list[tuple[Request, str]] = []

    async def call(self, request: Request) -> Outcome:
        self.sent.append((request, self.does))
        if self.does == "died":
            await self.gate(request)
            return OUTCOMES["unknown"]
        return OUTCOMES[self.does]

    async def poll(self, request: Request, provider_ref: str) -> Outcome:
        return OUTCOMES[self.does if self.does in ("answered", "flagged", "accepted") else "unreachable"]


@dataclass
class World:
    """The service's inside on a loop of its own, for machines that know nothing of loops."""

    portal: BlockingPortal
    runtime: Runtime

    def do(self, work: Callable[[], Awaitable[Any]]) -> Any:
        return self.portal.call(work)


@dataclass
class Seen:
    """What the record of one run said when it was last read."""

    run: Run
    approvals: dict[UUID, Approval]
    events: list[Event]


@contextmanager
def world_on(servers: Servers) -> Iterator[World]:
    with start_blocking_portal() as portal:
        with portal.wrap_async_context_manager(own_runtime(servers, "histories", redis_db=11)) as runtime:
            yield World(portal, runtime)


@pytest.fixture(scope="session")
def world(servers: Servers) -> Iterator[World]:
    with world_on(servers) as found:
        yield found


class Histories(RuleBasedStateMachine):
    world: ClassVar[World]

    def __init__(self) -> None:
        super().__init__()
        self.tenant = f"t-{uuid4().hex[:12]}"
        self.provider = Paid()
        self.services: Services = serving(self.world.runtime, self.provider)
        self.hand = HITLOrchestrator(self.services, worker_id="w1", lease_s=30)
        self.runs: list[UUID] = []
        self.human: dict[UUID, bool] = {}  # whether a human must have looked
        self.ended: dict[UUID, int] = {}
        self.closed: dict[UUID, tuple[str, int]] = {}
        self.keys: dict[str, UUID] = {}
        self.waiting: dict[UUID, Approval] = {}  # the open approval of each run that has one

    # ---- what may be done

    @initialize(repeatable=st.booleans(), orders=st.lists(st.fixed_dictionaries(ORDER), min_size=1, max_size=3))
    def opens(self, repeatable: bool, orders: list[dict[str, Any]]) -> None:
        self.provider.repeatable = repeatable
        for order in orders:
            self.begin(**order)

    @rule(order=st.fixed_dictionaries(ORDER))
    def start(self, order: dict[str, Any]) -> None:
        if len(self.runs) < 3 or order["key"] in self.keys:
            self.begin(**order)

    def begin(self, human: bool, quorum: int, on_timeout: Any, key: str | None) -> None:
        config = HitlConfig.model_validate(
            {
                "policy": "require_human" if human else "auto",
                "reviewers": {"quorum": quorum},
                "on_timeout": on_timeout,
                "escalate_to": {"users": ["ann", "bob"]} if on_timeout == "escalate" else None,
            }
        )
        order = StartRun(
            {"prompt": "a red fox", "agent_tool_config": TOOL},
            config,
            idempotency=Idempotency(key, "the same body") if key else None,
        )
        started = self.world.do(lambda: start_run(self.services, order, self.person("sue")))
        assert started.replayed == (key in self.keys)
        if key is not None:
            assert self.keys.setdefault(key, started.run_id) == started.run_id
        if not started.replayed:
            self.runs.append(started.run_id)
            self.human[started.run_id] = human

    @rule(which=WHICH, who=PEOPLE_, action=st.sampled_from(["approve", "edit", "reject", "retry"]), right=st.booleans())
    def answer(self, which: int, who: str, action: Any, right: bool) -> None:
        if (approval := self.asked(which)) is not None:
            self.tried(
                lambda: decide(self.services, approval.id, self.order(approval, action, right), self.person(who))
            )

    @rule(
        which=WHICH,
        first=st.sampled_from(["approve", "edit", "retry"]),
        other=st.sampled_from(["reject", "cancel", "expire", "pause"]),
    )
    def race(self, which: int, first: Any, other: str) -> None:
        """Two at the same moment, on connections of their own."""
        if (approval := self.asked(which)) is None or (run_id := approval.run_id) is None:
            return

        async def both() -> None:
            one = decide(self.services, approval.id, self.order(approval, first, True), self.person("ann"))
            match other:
                case "reject":
                    two: Awaitable[Any] = decide(
                        self.services, approval.id, self.order(approval, "reject", True), self.person("bob")
                    )
                case "cancel":
                    two = cancel_run(self.services, run_id, self.person("sue"), reason=None)
                case "pause":
                    two = pause_run(self.services, run_id, self.person("sue"))
                case _:
                    two = self.run_out(approval.id)
            told = await asyncio.gather(one, two, return_exceptions=True)
            assert all(isinstance(t, HitlError) for t in told if isinstance(t, BaseException)), told

        self.world.do(both)

    @rule(which=WHICH, who=PEOPLE_, release=st.booleans())
    def claim(self, which: int, who: str, release: bool) -> None:
        if (approval := self.asked(which)) is not None:
            self.tried(lambda: claim(self.services, approval.id, self.person(who), release=release))

    @rule(which=WHICH, who=PEOPLE_, to=PEOPLE_)
    def delegate(self, which: int, who: str, to: str) -> None:
        if (approval := self.asked(which)) is not None:
            target = EscalateTo(users=[to, "cat"])
            self.tried(lambda: delegate(self.services, approval.id, target, self.person(who), reason=None))

    @rule(which=WHICH)
    def time_runs_out(self, which: int) -> None:
        if (approval := self.asked(which)) is not None:
            self.world.do(lambda: self.run_out(approval.id))

    @rule(which=WHICH, what=st.sampled_from([pause_run, resume_run]))
    def steer(self, which: int, what: Any) -> None:
        run_id = self.run_of(which)
        self.tried(lambda: what(self.services, run_id, self.person("sue")))

    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        run_id = self.run_of(which)
        self.tried(lambda: cancel_run(self.services, run_id, self.person("sue"), reason="changed my mind"))

    @rule(which=WHICH, does=st.sampled_from(sorted(OUTCOMES)), hurry=st.booleans())
    def work(self, which: int, does: str, hurry: bool) -> None:
        """A worker takes the run as far as it goes; in a hurry, whatever waits for its moment is due now."""
        run_id = self.run_of(which)
        self.provider.does = does

        async def advance() -> None:
            if hurry:
                await self.sql("update runs set due_at = now() where id = $1 and due_at is not null", run_id)
            assert await self.hand.advance(run_id) != "internal_error"

        self.world.do(advance)

    @rule(which=WHICH)
    def die(self, which: int) -> None:
        """A worker is killed while the provider has the call; if it calls nobody it lives."""
        run_id = self.run_of(which)
        self.provider.does, self.provider.gate = "died", Gate(None)
        gate = self.provider.gate

        async def advance() -> None:
            task = asyncio.create_task(self.hand.advance(run_id))
            arrived = asyncio.create_task(gate.arrived.wait())
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.wait({task, arrived}, return_when=asyncio.FIRST_COMPLETED)
            if gate.arrived.is_set():
                gate.opened.set()
                task.cancel(LEASE_LOST)
                await self.sql("update runs set lease_until = now() - interval '1 s' where id = $1", run_id)
            arrived.cancel()
            assert await task != "internal_error"

        self.world.do(advance)

    @rule(which=WHICH)
    def time_passes(self, which: int) -> None:
        """The call's deadline is over, and the time in which it could have been adopted."""
        past = "started_at = now() - interval '1 h', deadline_at = now() - interval '1 s'"
        run_id = self.run_of(which)
        self.world.do(lambda: self.sql(f"update provider_calls set {past} where run_id = $1", run_id))

    @rule()
    def sweep(self) -> None:
        self.world.do(lambda: sweep(self.services))

    # ---- what must be so

    @invariant()
    def the_record_is_right(self) -> None:
        for run_id in self.runs:
            seen = self.look(run_id)
            self.ends_stay(seen)
            self.one_winner(seen)
            self.no_call_without_approval(seen, human=self.human[run_id])
            self.one_effect_a_key(seen)

    def ends_stay(self, seen: Seen) -> None:
        run = seen.run
        waiting = [a for a in seen.approvals.values() if a.is_open]
        if run.final:
            assert waiting == [], "an approval of a run that is over is open"
            assert run.lease_until is None
        assert len(waiting) <= 1
        assert run.status != "awaiting_human" or len(waiting) == 1
        if run.id in self.ended:
            assert (run.status in ("completed", "cancelled"), run.event_seq) == (True, self.ended[run.id])
        if run.status in ("completed", "cancelled"):
            self.ended[run.id] = run.event_seq

    def one_winner(self, seen: Seen) -> None:
        ends = Counter(
            event.data["approval_id"]
            for event in seen.events
            if event.type == "approval.expired"
            or (event.type == "approval.decided" and event.data["status"] != "pending")
        )
        assert max(ends.values(), default=1) == 1, "an approval was decided twice"
        for approval in seen.approvals.values():
            stands = (approval.status.value, approval.version)
            if approval.is_open:
                assert approval.id not in self.closed, "an approval was opened again"
            else:
                assert self.closed.setdefault(approval.id, stands) == stands, "a decided approval was changed"
                assert ends[str(approval.id)] == 1

    def no_call_without_approval(self, seen: Seen, *, human: bool) -> None:
        """Walk the events: whatever is submitted was let through since it was last asked about, by its hash."""
        waiting: set[str] = set()
        let_through: set[str] = set()
        submitted: dict[int, str] = {}
        answers = 0  # that let something go on, since the last new call
        for event in seen.events:
            about = event.data
            match event.type:
                case "approval.requested":
                    waiting.add(about["approval_id"])
                case "approval.decided" | "approval.expired" if about["status"] != "pending":
                    waiting.discard(about["approval_id"])
                    if about["status"] in ("approved", "edited", "retried"):
                        let_through.add(about["payload_sha256"])
                        answers += 1
                case "provider.submitted":
                    assert not waiting, "a call was made while a human was asked"
                    new = about["call"] not in submitted
                    if human:
                        assert about["payload_sha256"] in let_through, "a call was made that nobody approved"
                    if new:
                        assert answers or not (submitted or human), "a new call was made that nobody asked for"
                        answers = 0
                    assert submitted.setdefault(about["call"], about["payload_sha256"]) == about["payload_sha256"]
                case _:
                    pass
        mine = [request for request, _ in self.provider.sent if request.run_id == seen.run.id]
        told = [e for e in seen.events if e.type == "provider.submitted"]
        assert [(r.number, r.payload_sha256) for r in mine] == [
            (e.data["call"], e.data["payload_sha256"]) for e in told
        ], "what the provider got is not what the record says"
        assert all(sha256(r.body).hexdigest() == r.payload_sha256 for r in mine)

    def one_effect_a_key(self, seen: Seen) -> None:
        numbers: dict[str, int] = {}
        done: Counter[str] = Counter()
        for request, did in self.provider.sent:
            if request.run_id != seen.run.id:
                continue
            assert numbers.setdefault(request.idempotency_key, request.number) == request.number
            assert self.provider.repeatable or not done[request.idempotency_key], "it was sent again under its key"
            done[request.idempotency_key] += did in HAPPENED
        assert len(set(numbers.values())) == len(numbers)

    # ---- how

    def person(self, name: str) -> Principal:
        return Principal(name, self.tenant, "admin")

    def run_of(self, which: int) -> UUID:
        return self.runs[which % len(self.runs)]

    def asked(self, which: int) -> Approval | None:
        """The open approval of the run; where it has none, a worker is let at it first."""
        run_id = self.run_of(which)
        if run_id not in self.waiting:
            self.provider.does = "flagged"
            self.world.do(lambda: self.hand.advance(run_id))
            self.look(run_id)
        return self.waiting.get(run_id)

    def look(self, run_id: UUID) -> Seen:
        seen: Seen = self.world.do(lambda: self.read(run_id))
        self.waiting.pop(run_id, None)
        for approval in seen.approvals.values():
            if approval.is_open:
                self.waiting[run_id] = approval
        return seen

    def order(self, approval: Approval, action: Any, right: bool) -> Order:
        response = approval.checkpoint_type in ("response_review", "outcome_unknown")
        edits: Any = {"response": {"image": "owl"}} if response else {"prompt": "a blue fox"}
        given = (
            edits
            if action == "edit" or (approval.checkpoint_type == "outcome_unknown" and action == "approve")
            else None
        )
        return Order(action, given, "because", approval.payload_sha256 if right else "0" * 64)

    def tried(self, work: Callable[[], Awaitable[Any]]) -> None:
        """It may be refused; then nothing is different from before."""

        async def attempt() -> None:
            before = await self.versions()
            try:
                await work()
            except HitlError:
                assert await self.versions() == before, "it was refused and changed something"

        self.world.do(attempt)

    async def versions(self) -> Any:
        return await self.sql(
            "select json_agg(v order by v.id)::text from (select id, version from runs where tenant = $1 "
            "union all select id, version from approvals where tenant = $1) v",
            self.tenant,
        )

    async def sql(self, statement: str, *args: Any) -> Any:
        return await sql(self.world.runtime, statement, *args)

    async def run_out(self, approval_id: UUID) -> None:
        await self.sql("update approvals set expires_at = now() - interval '1 s' where id = $1", approval_id)
        await expire(self.services, approval_id)

    async def read(self, run_id: UUID) -> Seen:
        async with self.services.db.reading(self.tenant) as conn:
            chains = [found async for found in audit.chains(conn, tenant=self.tenant, run_id=run_id)]
            run = await runs.find(conn, run_id)
            asked = await conn.fetch("select id from approvals where run_id = $1", run_id)
            found = await approvals.some(conn, [row["id"] for row in asked])
        ((head, events),) = chains
        assert check(head, [wire(event) for event in events]) is None
        assert run is not None and head.seq == run.event_seq
        return Seen(run, {approval.id: approval for approval in found}, events)

    def teardown(self) -> None:
        """Nothing is left for the sweeps of the next one."""

        async def end() -> None:
            for run_id in self.runs:
                try:
                    await cancel_run(self.services, run_id, self.person("sue"), reason=None)
                except HitlError:
                    continue
            await self.hand.close()

        self.world.do(end)


@pytest.mark.timeout(1800 if SEARCH else 300)
def test_whatever_happens_in_whatever_order_the_record_is_right(world: World) -> None:
    machine = type("Bound", (Histories,), {"world": world})
    given = settings(max_examples=EXAMPLES, stateful_step_count=STEPS, **PLAIN)
    run_state_machine_as_test(machine, settings=given)
