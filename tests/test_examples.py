"""The programs of examples/, run for real: they ask, a human decides meanwhile, and they do what was decided."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from tests.conftest import DEADLINE_S, Provider, Stack, decide, eventually

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


class Asking:
    """A program of examples/, and the question that it put."""

    def __init__(self, client: httpx2.AsyncClient, stack: Stack, session: str) -> None:
        self._client = client
        self._session = session
        self._env = {**os.environ, "HITL_URL": stack.base_url, "HITL_SESSION": session, "DEPLOY_ID": session}
        self._env.pop("HITL_KEY", None)

    async def run(self, *command: str) -> None:
        self._process = await asyncio.create_subprocess_exec(*command, env=self._env, stdout=PIPE, stderr=PIPE)

    async def question(self) -> dict[str, Any]:
        found: dict[str, Any] = (await eventually(self._pending, "the question"))[0]
        return found

    async def ended(self) -> tuple[int | None, str, str]:
        async with asyncio.timeout(DEADLINE_S):
            out, err = await self._process.communicate()
        return self._process.returncode, out.decode(), err.decode()

    async def _pending(self) -> list[dict[str, Any]]:
        answer = await self._client.get("/hitl/approvals/pending", params={"session_id": self._session})
        pending: list[dict[str, Any]] = answer.json()["approvals"]
        return pending


@pytest.fixture
def asking(client: httpx2.AsyncClient, stack: Stack) -> Asking:
    return Asking(client, stack, uuid4().hex)


async def shop(asking: Asking, provider: Provider) -> dict[str, Any]:
    """A browser agent that wants two lamps of the scripted shop, and what it asks."""
    await asking.run(
        sys.executable, str(EXAMPLES / "browser_agent.py"), "--item", "lamp", "--price", "49.9", "--quantity", "2",
        "--checkout", provider.url, "--session", asking._session, "--order", asking._session,
    )  # fmt: skip
    return await asking.question()


async def test_the_browser_agent_buys_what_was_approved(
    asking: Asking, client: httpx2.AsyncClient, provider: Provider
) -> None:
    asked = await shop(asking, provider)
    assert asked["context"]["payload"] == {"item": "lamp", "price": 49.9, "quantity": 2}
    assert provider.seen == []

    await decide(client, asked["approval_id"], "edit", edits={"quantity": 1})

    status, out, err = await asking.ended()
    assert (status, err) == (0, "")
    assert f"asked: {asked['approval_id']}; if nobody answers: rejected at" in out
    assert "bought: 1 of lamp at 49.9" in out
    (order,) = provider.seen
    assert order.json == {"item": "lamp", "price": 49.9, "quantity": 1}


async def test_the_browser_agent_buys_nothing_that_was_rejected(
    asking: Asking, client: httpx2.AsyncClient, provider: Provider
) -> None:
    asked = await shop(asking, provider)

    await decide(client, asked["approval_id"], "reject", reason="too dear")

    status, out, _ = await asking.ended()
    assert status == 1 and "not bought: rejected (too dear)" in out
    assert provider.seen == []


async def test_the_browser_agent_started_again_asks_no_second_time(
    asking: Asking, client: httpx2.AsyncClient, provider: Provider
) -> None:
    first = await shop(asking, provider)
    asking._process.kill()
    await asking.ended()

    again = await shop(asking, provider)
    assert again["approval_id"] == first["approval_id"]
    await decide(client, first["approval_id"], "approve")

    assert (await asking.ended())[0] == 0
    assert len(provider.seen) == 1


async def test_the_deploy_script_runs_its_command_with_the_approved_version(
    asking: Asking, client: httpx2.AsyncClient, tmp_path: Path
) -> None:
    await asking.run(str(EXAMPLES / "deploy.sh"), "v1.4.2", "sh", "-c", f'echo "$VERSION" > {tmp_path}/deployed')
    asked = await asking.question()
    assert asked["message"] == "May v1.4.2 go to production?"

    await decide(client, asked["approval_id"], "edit", edits={"version": "v1.4.3"})

    status, out, err = await asking.ended()
    assert (status, err) == (0, "")
    assert "edited: v1.4.3" in out
    assert (tmp_path / "deployed").read_text() == "v1.4.3\n"


async def test_the_deploy_script_runs_nothing_when_the_answer_is_no(
    asking: Asking, client: httpx2.AsyncClient, tmp_path: Path
) -> None:
    await asking.run(str(EXAMPLES / "deploy.sh"), "v1.4.2", "touch", f"{tmp_path}/deployed")
    asked = await asking.question()

    await decide(client, asked["approval_id"], "reject", reason="not on a friday")

    status, _, err = await asking.ended()
    assert (status, err) == (1, "not deployed: rejected\n")
    assert not (tmp_path / "deployed").exists()


@pytest.mark.parametrize("arguments", [[], ["v1"], ['v1"; rm', "true"]])
async def test_the_deploy_script_refuses_wrong_usage(asking: Asking, arguments: list[str]) -> None:
    await asking.run(str(EXAMPLES / "deploy.sh"), *arguments)

    status, out, _ = await asking.ended()
    assert (status, out) == (2, "")
