"""A deploy: every process is stopped and started again, one after another, while runs and decisions come in."""

import asyncio
import signal
from pathlib import Path

import httpx2
import pytest

from service.embedded import Servers
from tests.conftest import WEB, Provider, Stack, free_port, process, until_ready
from tests.image import Image, image  # noqa: F401  the fixture
from tests.rolling import deployed, roll


@pytest.mark.timeout(600)  # of the image's installation
async def test_a_rolling_deploy_of_the_image_fails_no_request_and_repeats_no_step(
    servers: Servers,
    provider: Provider,
    image: Image,  # noqa: F811
    tmp_path: Path,
) -> None:
    python = image.bin / "python"
    async with deployed(servers, tmp_path, python=python) as deploy:
        done = await roll(deploy, provider, rate=20)
    assert len(done) >= 80


async def test_a_web_process_that_is_told_to_stop_answers_those_who_wait(stack: Stack, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "web.log"
    env = {**stack.env, "HITL_PORT": str(port)}
    url = f"http://127.0.0.1:{port}"
    with process(*WEB, "--port", str(port), env=env, log=log) as child:
        until_ready(url, child, log)
        async with httpx2.AsyncClient(base_url=url, timeout=70, trust_env=False) as client:
            question = {"checkpoint_type": "deploy", "message": "May it go out?", "context": {}}
            asked = (await client.post("/hitl/approvals", json=question)).json()
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(client.get(f"/hitl/approvals/{asked['approval_id']}?wait=60"))
                await asyncio.sleep(0)
                assert (await client.get("/healthz")).status_code == 200  # sent after the long poll
                child.send_signal(signal.SIGTERM)
            answer = waiting.result()
        assert (answer.status_code, answer.json()["status"]) == (200, "pending")
        assert answer.headers["connection"] == "close"
        assert await asyncio.to_thread(child.wait, 30) in (0, -signal.SIGTERM)
