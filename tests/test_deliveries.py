"""Contract, section 9: webhooks, from the row that a transaction wrote to the receiver's 2xx or the dead letter."""

import asyncio
import base64
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import orjson
import pytest
import pytest_asyncio
from standardwebhooks.webhooks import Webhook

from service.commands import approvals, webhooks
from service.commands.approvals import Question
from service.commands.runs import cancel_run
from service.deliveries.sender import Sender
from service.deliveries.webhook import Webhooks
from service.domain.approval import Order
from service.domain.delivery import next_try
from service.domain.ids import uuid7
from service.domain.keyring import Keyring
from service.domain.policy import HitlConfig
from service.providers.guard import guarded_client
from service.runtime import Runtime
from service.store import deliveries, webhook_secrets
from service.store.database import EVERY
from tests.acting import begin, look, sql, worker
from tests.conftest import ASK_ALWAYS, DEV, Provider, Seen, echo

AUTO = HitlConfig(policy="auto")


@pytest_asyncio.fixture(loop_scope="session")
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with guarded_client({"loopback"}) as found:
        yield found


def at_once(tries: int) -> timedelta | None:
    """The service's schedule without its waits."""
    return timedelta(0) if next_try(tries, jitter=0) is not None else None


def sender(runtime: Runtime, client: httpx2.AsyncClient, **more: Any) -> Sender:
    channel = Webhooks(runtime.services, client, **{"pause": at_once, **more})
    return Sender(runtime.services, channel, poll_s=0.05)


async def send_all(runtime: Runtime, client: httpx2.AsyncClient, **more: Any) -> None:
    one = sender(runtime, client, **more)
    while await one.once():
        pass


async def rows(runtime: Runtime, **wanted: Any) -> list[dict[str, Any]]:
    async with runtime.services.db.connection(EVERY) as conn:
        return await deliveries.recent(conn, None, status=wanted.get("status"), limit=1000)


async def count(runtime: Runtime) -> int:
    found: int = await sql(runtime, "select count(*) from deliveries")
    return found


async def advanced(runtime: Runtime, url: str | None, config: HitlConfig = AUTO) -> UUID:
    """A run that its worker took as far as it goes."""
    run_id = await begin(runtime, echo(), config, callback_url=url)
    await worker(runtime).advance(run_id)
    return run_id


async def open_approval(runtime: Runtime, run_id: UUID) -> UUID:
    found: UUID = await sql(runtime, "select id from approvals where run_id = $1 and status = 'pending'", run_id)
    return UUID(str(found))


async def decided(runtime: Runtime, run_id: UUID, order: Order) -> None:
    approval_id = await open_approval(runtime, run_id)
    await approvals.decide(runtime.services, approval_id, order, DEV)
    await worker(runtime).advance(run_id)


def ids(provider: Provider) -> list[str]:
    return [seen.headers["webhook-id"] for seen in provider.seen]


def types(provider: Provider) -> list[str]:
    return [seen.json["type"] for seen in provider.seen]


def genuine(seen: Seen, secret: str) -> bool:
    return bool(Webhook(secret).verify(seen.body, seen.headers))


# what is written, and what is not


async def test_a_run_that_nobody_asked_about_writes_no_messages(empty: Runtime) -> None:
    run_id = await advanced(empty, None)
    assert (await look(empty, run_id)).status == "completed"
    assert await count(empty) == 0
    assert await sql(empty, "select count(*) from delivery_lines") == 0


async def test_a_run_tells_its_questions_answers_and_end_in_order(
    empty: Runtime, client: httpx2.AsyncClient, provider: Provider
) -> None:
    run_id = await advanced(empty, provider.url, ASK_ALWAYS)
    for _ in range(3):
        await decided(empty, run_id, Order("approve"))
    assert (await look(empty, run_id)).status == "completed"

    await send_all(empty, client)

    assert types(provider) == ["approval.requested", "approval.decided"] * 3 + ["run.completed"]
    seqs = [seen.json["data"]["seq"] for seen in provider.seen]
    assert seqs == sorted(seqs) and len(set(ids(provider))) == 7
    assert {seen.json["data"]["run_id"] for seen in provider.seen} == {str(run_id)}
    secret = await webhooks.secret(empty.services, "default")
    assert all(genuine(seen, secret) for seen in provider.seen)
    last = provider.seen[-1].json
    assert set(last) == {"type", "timestamp", "data"}
    assert last["data"]["run"]["status"] == "completed" and "result" in last["data"]["run"]
    assert provider.seen[0].json["data"]["approval"]["checkpoint_type"] == "information_review"
    assert provider.seen[0].headers["content-type"] == "application/json"


async def test_a_cancelled_run_tells_that_its_question_is_closed_and_that_it_ended(
    empty: Runtime, client: httpx2.AsyncClient, provider: Provider
) -> None:
    run_id = await advanced(empty, provider.url, ASK_ALWAYS)
    await cancel_run(empty.services, run_id, DEV, reason="no more")
    await send_all(empty, client)
    assert types(provider) == ["approval.requested", "approval.decided", "run.cancelled"]


async def test_a_programs_question_is_told_though_it_has_no_run(
    empty: Runtime, client: httpx2.AsyncClient, provider: Provider
) -> None:
    question = Question("deploy", "May I?", {"payload": {"to": "production"}}, callback_url=provider.url)
    asked, _ = await approvals.ask(empty.services, question, DEV)
    await send_all(empty, client)
    await approvals.decide(empty.services, asked.id, Order("reject", reason="not today"), DEV)
    silent, _ = await approvals.ask(empty.services, question, DEV)
    await sql(empty, "update approvals set expires_at = now() - interval '1 s' where id = $1", silent.id)
    await approvals.expire(empty.services, silent.id)
    await send_all(empty, client)

    mine = [seen.json for seen in provider.seen if seen.json["data"]["approval_id"] == str(asked.id)]
    assert [message["type"] for message in mine] == ["approval.requested", "approval.decided"]
    assert [message["data"]["status"] for message in mine] == ["pending", "rejected"]
    assert mine[0]["data"]["run_id"] is None and mine[0]["data"]["approval"]["context"] == question.context
    others = [seen.json["type"] for seen in provider.seen if seen.json["data"]["approval_id"] == str(silent.id)]
    assert others == ["approval.requested", "approval.expired"]


# tries


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_tries_grow_apart_over_a_day(jitter: float) -> None:
    waits = [next_try(n, jitter=jitter) for n in range(1, 10)]
    assert waits[-1] is None and None not in waits[:-1]
    gaps = [wait.total_seconds() for wait in waits if wait is not None]
    assert len(gaps) >= 8 and sum(gaps) >= 86_400
    assert gaps == sorted(gaps)
    assert gaps[0] <= 8 and gaps[0] + gaps[1] <= 55


async def test_four_500s_delay_every_message_and_lose_none(
    empty: Runtime, client: httpx2.AsyncClient, provider: Provider
) -> None:
    failures: dict[str, int] = {}

    def answer(seen: Seen) -> Any:
        key = seen.headers["webhook-id"]
        failures[key] = failures.get(key, 0) + 1
        return (500, {}) if failures[key] <= 4 else (204, b"")

    provider.answer = answer
    runs = [await advanced(empty, provider.url, ASK_ALWAYS) for _ in range(10)]
    for run_id in runs:
        await cancel_run(empty.services, run_id, DEV, reason="enough")

    await send_all(empty, client)

    assert len(failures) == 30 and set(failures.values()) == {5}
    for run_id in runs:
        mine = [seen.json for seen in provider.seen if seen.json["data"]["run_id"] == str(run_id)]
        seqs = [message["data"]["seq"] for message in mine]
        assert len(mine) == 15 and seqs == sorted(seqs)  # in order, and none before the one ahead was taken
    bodies: dict[str, set[bytes]] = {}
    for seen in provider.seen:
        bodies.setdefault(seen.headers["webhook-id"], set()).add(seen.body)
    assert all(len(same) == 1 for same in bodies.values())
    assert {row["status"] for row in await rows(empty)} == {"delivered"}
    assert await sql(empty, "select count(*) from deliveries where body is not null") == 0


async def test_nine_failures_are_a_dead_letter_that_is_redelivered_under_its_id(
    empty: Runtime, client: httpx2.AsyncClient, provider: Provider
) -> None:
    provider.script = [(500, {})] * 9
    await advanced(empty, provider.url)
    await send_all(empty, client)

    (dead,) = await rows(empty, status="dead")
    assert (dead["tries"], dead["error"], dead["due_at"]) == (9, "http_500", None)
    assert await sender(empty, client).once() == 0
    await webhooks.redeliver(empty.services, UUID(str(dead["id"])))
    await send_all(empty, client)

    assert len(provider.seen) == 10 and len(set(ids(provider))) == 1
    assert [row["status"] for row in await rows(empty)] == ["delivered"]
    await webhooks.redeliver(empty.services, UUID(str(dead["id"])))  # a delivered one too
    await send_all(empty, client)
    assert len(provider.seen) == 11 and len(set(ids(provider))) == 1


@pytest.mark.parametrize("status", [199, 302, 307, 400, 404, 410, 503])
async def test_only_2xx_acknowledges(
    empty: Runtime, client: httpx2.AsyncClient, provider: Provider, status: int
) -> None:
    provider.script = [(status, {}, {"location": provider.url})]
    await advanced(empty, provider.url)
    await sender(empty, client, pause=lambda _: timedelta(hours=1)).once()
    (row,) = await rows(empty)
    assert row["status"] == "waiting" and row["tries"] == 1
    assert len(provider.seen) == 1


@pytest.mark.parametrize(("entry", "code"), [("cut", "connection_broken"), ("hang", "timeout")])
async def test_a_receiver_that_cuts_or_hangs_is_tried_again(
    empty: Runtime, client: httpx2.AsyncClient, provider: Provider, entry: str, code: str
) -> None:
    provider.script = [entry]
    await advanced(empty, provider.url)
    one = sender(empty, client, answer_s=0.2)
    await one.once()
    assert [row["error"] for row in await rows(empty)] == [code]
    await one.once()
    assert [row["status"] for row in await rows(empty)] == ["delivered"]
    assert len(set(ids(provider))) == 1


async def test_a_sender_that_died_after_sending_leaves_the_same_message_to_another(
    empty: Runtime, client: httpx2.AsyncClient, provider: Provider
) -> None:
    await advanced(empty, provider.url)
    received = asyncio.Event()

    def answer(_: Seen) -> Any:
        received.set()
        return "hang"

    provider.answer = answer
    first = asyncio.create_task(sender(empty, client).once())
    async with asyncio.timeout(10):
        await received.wait()
    assert await sender(empty, client).once() == 0  # it is held
    # what is left of a killed process is its lease, which runs out
    await sql(empty, "update delivery_lines set lease_until = now() - interval '1 s'")
    provider.answer = None
    await send_all(empty, client)
    first.cancel()
    await asyncio.wait([first])

    assert len(provider.seen) == 2 and len(set(ids(provider))) == 1
    assert provider.seen[0].body == provider.seen[1].body
    assert [row["status"] for row in await rows(empty)] == ["delivered"]


async def test_a_sender_that_lost_its_lease_writes_nothing(
    empty: Runtime, client: httpx2.AsyncClient, provider: Provider
) -> None:
    await advanced(empty, provider.url)
    async with empty.services.db.transaction(EVERY) as conn:
        (line,) = await deliveries.claim(conn, "webhook", busy=[], lease_id=uuid7(), lease_s=0, limit=1)
    async with empty.services.db.transaction(EVERY) as conn:
        (stolen,) = await deliveries.claim(conn, "webhook", busy=[], lease_id=uuid7(), lease_s=60, limit=1)
    assert stolen.subject == line.subject
    await Webhooks(empty.services, client).send(line)
    assert provider.seen == []
    assert [row["tries"] for row in await rows(empty)] == [0]


async def test_a_stopped_sender_lets_its_lines_go(
    empty: Runtime, client: httpx2.AsyncClient, provider: Provider
) -> None:
    provider.script = ["hang"]
    await advanced(empty, provider.url)
    task = asyncio.create_task(sender(empty, client).once())
    async with asyncio.timeout(10):
        while not provider.seen:
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    await send_all(empty, client)
    assert len(set(ids(provider))) == 1 and len(provider.seen) == 2


async def test_many_senders_at_once_send_each_message_once_and_in_order(
    empty: Runtime, client: httpx2.AsyncClient, provider: Provider
) -> None:
    runs = [await advanced(empty, provider.url, ASK_ALWAYS) for _ in range(10)]
    for run_id in runs:
        await cancel_run(empty.services, run_id, DEV, reason="enough")
    await asyncio.gather(*(send_all(empty, client) for _ in range(4)))
    await send_all(empty, client)
    assert len(ids(provider)) == len(set(ids(provider))) == 30
    for run_id in runs:
        seqs = [seen.json["data"]["seq"] for seen in provider.seen if seen.json["data"]["run_id"] == str(run_id)]
        assert seqs == sorted(seqs)


async def test_a_target_that_hangs_does_not_hold_up_another(
    empty: Runtime, client: httpx2.AsyncClient, provider: Provider
) -> None:
    slow = Provider(answer=lambda _: "hang")
    server = await asyncio.start_server(slow.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    for _ in range(40):
        await advanced(empty, url)
    await advanced(empty, provider.url)
    task = asyncio.create_task(sender(empty, client).run())
    async with asyncio.timeout(20):
        while not provider.seen:
            await asyncio.sleep(0.01)
    held = await sql(empty, "select count(*) from delivery_lines where lease_until > now()")
    task.cancel()
    await asyncio.wait([task])
    server.close()
    assert held <= Webhooks.per_target + 1


async def test_a_hint_after_the_commit_sends_at_once(
    empty: Runtime, client: httpx2.AsyncClient, provider: Provider
) -> None:
    idle = Sender(empty.services, Webhooks(empty.services, client), poll_s=3600)
    async with empty.services.notifier.running():
        with empty.services.notifier.on_deliver(idle.wake):
            task = asyncio.create_task(idle.run())
            for count in range(1, 4):
                question = Question("deploy", "May I?", {}, callback_url=provider.url)
                await approvals.ask(empty.services, question, DEV)
                async with asyncio.timeout(10):
                    while len(provider.seen) < count:
                        await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])


# secrets


async def test_two_secrets_sign_while_one_is_rotated_and_one_afterwards(
    empty: Runtime, client: httpx2.AsyncClient, provider: Provider
) -> None:
    old = await webhooks.secret(empty.services, "default")
    new = await webhooks.secret(empty.services, "default", rotate=True)
    assert old != new == await webhooks.secret(empty.services, "default")
    assert len(base64.b64decode(new.removeprefix("whsec_"))) == 32
    await advanced(empty, provider.url)
    await send_all(empty, client)
    (seen,) = provider.seen
    assert genuine(seen, old) and genuine(seen, new)

    await sql(empty, "update webhook_secrets set retires_at = now() where retires_at is not null")
    await advanced(empty, provider.url)
    await send_all(empty, client)
    assert len(provider.seen[-1].headers["webhook-signature"].split()) == 1
    assert genuine(provider.seen[-1], new)


async def test_a_hundred_first_askers_get_one_secret(empty: Runtime) -> None:
    tenant = uuid7().hex
    found = await asyncio.gather(*(webhooks.secret(empty.services, tenant) for _ in range(100)))
    assert len(set(found)) == 1


async def test_a_secret_outlives_the_rotation_of_the_master_secret(empty: Runtime) -> None:
    tenant = uuid7().hex
    old, new, newest = "o" * 32, "n" * 32, "w" * 32
    made = Keyring(old).seal({"secret": "whsec_c2VjcmV0"})
    async with empty.services.db.transaction(EVERY) as conn:
        await webhook_secrets.insert_current(conn, uuid7(), tenant, made)
    for keyring in (Keyring(new, old), Keyring(newest, new)):
        services = replace(empty.services, keyring=keyring)
        assert await webhooks.secret(services, tenant) == "whsec_c2VjcmV0"


# where it may not go


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "10.0.0.1", "192.168.1.1", "[fd00::1]", "0.0.0.0"]
)
async def test_private_addresses_are_refused_at_the_moment_of_connecting(empty: Runtime, host: str) -> None:
    await advanced(empty, f"http://{host}:9/hook?token=secret")
    async with guarded_client(()) as strict:
        await sender(empty, strict, pause=lambda _: timedelta(hours=1)).once()
    assert [(row["status"], row["error"]) for row in await rows(empty)] == [("waiting", "address_blocked")]


async def test_a_name_that_changes_its_address_is_connected_where_it_was_checked(
    empty: Runtime, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resolver that says a public address first and ours ever after: the second is never asked for."""
    asked: list[str] = []

    async def lying(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        address = "192.0.9.1" if len(asked) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    port = provider.url.split(":")[2].split("/")[0]
    await advanced(empty, f"http://rebinding.example:{port}/hook")
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", lying)
    async with guarded_client(()) as strict:
        await sender(empty, strict, answer_s=0.3, pause=lambda _: timedelta(0)).once()
        assert asked == ["rebinding.example"] and provider.seen == []
        await sender(empty, strict, answer_s=0.3, pause=lambda _: timedelta(hours=1)).once()
    assert [row["error"] for row in await rows(empty)] == ["address_blocked"]
    assert provider.seen == []


async def test_a_redirect_to_a_private_address_is_not_followed(
    empty: Runtime, client: httpx2.AsyncClient, provider: Provider
) -> None:
    provider.script = [(301, {}, {"location": "http://169.254.169.254/latest/meta-data"})]
    await advanced(empty, provider.url)
    await sender(empty, client, pause=lambda _: timedelta(hours=1)).once()
    assert [row["error"] for row in await rows(empty)] == ["http_301"]


async def test_an_endless_answer_is_not_read(empty: Runtime, client: httpx2.AsyncClient, provider: Provider) -> None:
    provider.script = [(200, b"x" * 5_000_000)]
    await advanced(empty, provider.url)
    await sender(empty, client).once()
    assert [row["status"] for row in await rows(empty)] == ["delivered"]


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://user:p@ss@Hooks.Example.com:8443/path/secret?token=t#f", "hooks.example.com:8443"),
        ("http://[::1]:9/secret", "[::1]:9"),
        ("http://example.com?to=http://secret", "example.com"),
        ("http:/\t/example.com/secret", ""),
    ],
)
async def test_what_is_listed_names_the_host_and_nothing_else_of_the_url(empty: Runtime, url: str, host: str) -> None:
    await advanced(empty, url)
    (row,) = await rows(empty)
    assert row["host"] == host
    assert "secret" not in orjson.dumps(row, default=str).decode()


# operating it


def hitl(runtime: Runtime, *arguments: str) -> "subprocess.CompletedProcess[str]":
    settings = runtime.settings
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HITL_")},
        "DATABASE_URL": str(settings.database_url),
        "REDIS_URL": str(settings.redis_url),
        "HITL_SECRET_KEY": str(settings.hitl_secret_key),
    }
    command = [str(Path(sys.executable).parent / "hitl"), *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


async def test_an_operator_lists_dead_letters_redelivers_and_rotates(
    empty: Runtime, client: httpx2.AsyncClient, provider: Provider
) -> None:
    provider.script = [(500, {})] * 9
    await advanced(empty, provider.url)
    await send_all(empty, client)
    await advanced(empty, provider.url)

    async def printed(*arguments: str) -> Any:
        done = await asyncio.to_thread(hitl, empty, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return orjson.loads(done.stdout) if "--json" in arguments else done.stdout.strip()

    (dead,) = await printed("webhooks", "list", "--dead", "--json")
    assert (dead["status"], dead["error"], dead["type"]) == ("dead", "http_500", "run.completed")
    assert len(await printed("webhooks", "list", "--json")) == 2
    figures = {each["id"]: each for each in await printed("queue", "--json")}["default"]
    assert (figures["deliveries_waiting"], figures["deliveries_dead"]) == (1, 1)
    (again,) = await printed("webhooks", "redeliver", dead["id"], "--json")
    assert again["id"] == dead["id"]
    await send_all(empty, client)
    assert ids(provider).count(dead["id"]) == 10
    assert {row["status"] for row in await rows(empty)} == {"delivered"}

    secret = await printed("webhooks", "secret")
    assert genuine(provider.seen[-1], secret)
    assert await printed("webhooks", "secret", "--rotate") != secret

    failed = await asyncio.to_thread(hitl, empty, "webhooks", "redeliver", str(uuid7()))
    assert failed.returncode == 1 and failed.stderr.count("\n") == 1


async def test_the_claim_reads_an_index_whatever_is_kept(empty: Runtime) -> None:
    run_id = await advanced(empty, None)
    async with empty.services.db.transaction(EVERY) as conn:
        await conn.execute(
            """
            insert into delivery_lines (subject, kind, tenant, run_id, target, due_at)
            select gen_random_uuid(), 'webhook', 'default', $1, 'host' || n % 50,
                case when n % 1000 = 0 then now() + n * interval '1 ms' end from generate_series(1, 100000) n
            """,
            run_id,
        )
        await conn.execute("analyze delivery_lines")
        plan = await conn.fetch(
            """
            explain select subject, kind from delivery_lines
            where kind = 'webhook' and due_at <= now() and (lease_until is null or lease_until < now())
              and not (target = any(array['host1'])) order by due_at limit 32 for update skip locked
            """
        )
    assert "delivery_lines_due" in str(plan) and "Seq Scan" not in str(plan)
