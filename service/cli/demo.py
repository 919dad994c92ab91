"""`hitl demo`: the main job from start to result, on a throw-away stack, against a provider on a real socket."""

import asyncio
import difflib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import click
import httpx2
import orjson
from rich.console import Console
from rich.text import Text

from service.cli.demo_trials import EDIT, PROMPT, TRIALS, Json, Trial
from service.cli.embed import await_gone, given, migration_url
from service.cli.output import cell, dumps
from service.cli.processes import Child, address, kept_alive, reserved, until_ready, web_command, worker_command
from service.embedded import lease
from service.settings import Settings, load_settings, may_embed, require
from service.store.migrate import migrate

HOST: Final = "127.0.0.1"
PATIENCE_S: Final = 60.0
TAIL_LINES: Final = 20
_OURS: Final = (
    "HITL_",
    "DATABASE_",
    "DIRECT_DATABASE_",
    "REDIS_",
    "LOG_",
    "SENTRY_",
    "OTEL_",
    "WEBSOCKET_",
    "REPLICATE_",
    "OPENAI_",
)


class DemoFailed(click.ClickException):
    """Something was not as it is promised; the message is one line."""


@click.command()
@click.option(
    "--provider", type=click.Choice(sorted(TRIALS)), default="http", help="who does the work", show_default=True
)
@click.option("--log", type=click.Path(dir_okay=False, path_type=Path), help="keep the log lines of the service here")
def demo(provider: str, log: Path | None) -> None:
    """The main job once, shown step by step, on a throw-away stack.

    A run is started against a provider on a real local socket; its payload is reviewed, edited and approved, sent,
    its answer reviewed; result and timeline are shown.
    """
    if not may_embed():
        require(load_settings())
    signal.signal(signal.SIGTERM, _leave)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hitl-demo-", ignore_cleanup_errors=True) as folder:
        data_dir = Path(folder) / "data"
        try:
            _stage(data_dir, provider, log.absolute() if log else Path(folder) / "service.log")
        finally:
            await_gone(data_dir)
            shutil.rmtree((data_dir / "run").resolve(), ignore_errors=True)  # the sockets' directory is elsewhere
    _heading(f"done in {time.monotonic() - started:.1f} s, nothing is left behind")


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(1)


def _stage(data_dir: Path, provider: str, log: Path) -> None:
    """The throw-away servers and a free port, then the demo on them."""
    with lease(data_dir) as servers, reserved(HOST, 0) as port:
        env = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        env |= given(servers) | {"HITL_HOST": HOST, "HITL_PORT": str(port), "HITL_AUTH": "off"}
        env |= {"HITL_HTTP_ALLOW": "loopback", "LOG_FORMAT": "json", "HITL_DRAIN_SECONDS": "5"}
        settings = Settings(
            database_url=servers.database_url, redis_url=servers.redis_url, hitl_host=HOST, hitl_port=port
        )
        try:
            asyncio.run(_demo(settings, env, data_dir, log, provider))
        except Exception:
            _print_tail(log)
            raise


async def _demo(settings: Settings, env: Mapping[str, str], data_dir: Path, log: Path, provider: str) -> None:
    await migrate(migration_url(settings))
    with log.open("ab") as file:
        async with TRIALS[provider]() as trial:
            own = {**env, **trial.env}
            # the folder has no .env
            children = [
                Child("web", web_command(settings), own, file.fileno(), data_dir),
                Child("worker", worker_command(), own, file.fileno(), data_dir),
            ]
            async with kept_alive(children, grace_s=10):
                await _ready(address(settings))
                async with httpx2.AsyncClient(base_url=address(settings), timeout=70, trust_env=False) as client:
                    await Story(client, trial).tell()


async def _ready(url: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            await until_ready(url)
    except TimeoutError:
        raise DemoFailed(f"the service was not ready within {PATIENCE_S:g} s") from None


# --- the story ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Story:
    """The main job as a client sees it: only HTTP, and each promise checked as it is shown."""

    client: httpx2.AsyncClient
    trial: Trial

    async def tell(self) -> None:
        run_id = await self._start()
        await self._information_review(run_id)
        await self._payload_review(run_id)
        await self._response_review(run_id)
        run = await self._wait(run_id, "completed")
        _expect(self.trial.is_answer(run["result"]), "the result is not what the provider answered")
        _heading("the result")
        _json(run["result"])
        await self._files()
        await self._timeline(run_id)

    async def _start(self) -> str:
        _heading("a run is started: POST /hitl/run, policy require_human")
        body = {
            "run_input": {"prompt": PROMPT, "agent_tool_config": self.trial.tool},
            "hitl_config": {"policy": "require_human"},
            "user_id": "demo",
            "session_id": "demo",
        }
        _json(body)
        run = await self._send("POST", "/hitl/run", body, expected=202)
        _line("run", run["run_id"])
        return str(run["run_id"])

    async def _information_review(self, run_id: str) -> None:
        approval = await self._checkpoint(run_id, "information_review")
        await self._decide(run_id, approval, "approve", becomes="approved")

    async def _payload_review(self, run_id: str) -> None:
        approval = await self._checkpoint(run_id, "payload_review")
        before = approval["context"]["payload"]
        _expect(before == {**self.trial.example, "prompt": PROMPT}, "the payload is not the example with the prompt")
        _expect(not self.trial.sent(), "the provider was called before the payload was approved")
        _json(before)
        after = {**before, **EDIT}
        _say("the reviewer edits it:")
        _diff(before, after)
        await self._decide(run_id, approval, "edit", edits=dict(EDIT), becomes="edited")

        run, answer = await self._waiting(run_id, "response_review")
        self._show_call(run, after)
        _review(answer)

    def _show_call(self, run: Json, approved: Json) -> None:
        calls = self.trial.sent()
        _expect(len(calls) == 1, f"the provider received {len(calls)} calls instead of one")
        call = calls[0]
        digest = sha256(call.payload).hexdigest()
        _heading("the call, as the provider received it")
        for name, value in call.about.items():
            _line(name, value)
        _line(self.trial.part, call.payload.decode())
        _line(f"sha256 of the {self.trial.part}", digest)
        _line("payload_sha256", str(run["payload_sha256"]))
        _expect(orjson.loads(call.payload) == approved, "the provider received another payload than the approved one")
        _expect(digest == run["payload_sha256"], "the hash of the received payload is not the approved payload_sha256")
        _say("what was approved is what was sent", "green")

    async def _response_review(self, run_id: str) -> None:
        _, approval = await self._waiting(run_id, "response_review")
        _expect(self.trial.is_answer(approval["context"]["output"]), "the output under review is not the answer")
        _json(approval["context"]["output"])
        await self._decide(run_id, approval, "approve", becomes="approved")

    async def _files(self) -> None:
        """The output's files, as this service serves them when the provider has deleted its own."""
        for path, body in self.trial.files().items():
            answer = await self.client.get(path)
            _expect(answer.status_code == 200 and answer.content == body, f"the copy at {path} is not the file")
            _line("copied file", f"{path}, {answer.headers.get('content-type')}, {len(body)} bytes")

    async def _timeline(self, run_id: str) -> None:
        _heading("the timeline")
        events = (await self._send("GET", f"/hitl/runs/{run_id}/events?limit=200"))["events"]
        _expect([e["seq"] for e in events] == list(range(1, len(events) + 1)), "the events have gaps")
        begin = datetime.fromisoformat(events[0]["at"])
        for event in events:
            after_s = (datetime.fromisoformat(event["at"]) - begin).total_seconds()
            data = event["data"]
            about = [str(data[name]) for name in ("step", "checkpoint_type", "action", "status") if data.get(name)]
            actor, kind = cell(event["actor"]), cell(event["type"])
            _say(f"{event['at']}  +{after_s:6.3f} s  {kind:<19} {actor:<16} {cell(' '.join(about))}".rstrip())

    async def _checkpoint(self, run_id: str, name: str) -> Json:
        _, approval = await self._waiting(run_id, name)
        _review(approval)
        return approval

    async def _waiting(self, run_id: str, checkpoint: str) -> tuple[Json, Json]:
        run = await self._wait(run_id, "awaiting_human")
        pending = run["pending_actions"]
        found = ", ".join(action["checkpoint_type"] for action in pending) or "nothing"
        _expect(found == checkpoint, f"the run waits at {found} instead of {checkpoint}")
        return run, pending[0]

    async def _wait(self, run_id: str, status: str) -> Json:
        run: Json = {"status": "unknown"}
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            run = await self._send("GET", f"/hitl/runs/{run_id}?wait=10")
            if run["status"] in ("awaiting_human", "completed", "failed", "cancelled"):
                break
        cause = f": {run['error']['code']}" if run.get("error") else ""
        _expect(run["status"] == status, f"the run is {run['status']} instead of {status}{cause}")
        return run

    async def _decide(
        self, run_id: str, approval: Json, action: str, *, becomes: str, edits: Json | None = None
    ) -> None:
        body = {"approval_id": approval["approval_id"], "action": action}
        if approval["context"]["payload_sha256"]:
            body["payload_sha256"] = approval["context"]["payload_sha256"]
        if edits is not None:
            body |= {"edits": edits}
        answer = await self._send("POST", f"/hitl/run/{run_id}/approve", body)
        _expect(answer["status"] == becomes, f"the approval is {answer['status']} instead of {becomes}")
        _line("decision", f"{action}, the approval is {answer['status']}")

    async def _send(self, method: str, path: str, body: Json | None = None, *, expected: int = 200) -> Json:
        try:
            answer = await self.client.request(method, path, json=body)
        except httpx2.HTTPError as error:
            raise DemoFailed(f"{method} {path}: {type(error).__name__}") from error
        _expect(answer.status_code == expected, f"{method} {path}: {answer.status_code} instead of {expected}")
        found: Json = answer.json()
        return found


def _expect(fulfilled: bool, otherwise: str) -> None:
    if not fulfilled:
        raise DemoFailed(f"the demo failed: {otherwise}")


# --- how it looks -------------------------------------------------------------------------------------------

_console: Final = Console(highlight=False, soft_wrap=True)


def _say(text: str, style: str = "") -> None:
    _console.print(Text(f"  {text}", style=style))


def _heading(text: str) -> None:
    _console.print(Text(f"\n{text}", style="bold"))


def _line(name: str, value: str) -> None:
    _console.print(Text(f"  {name}: ", style="dim").append(value, style="not dim"))


def _json(value: Any) -> None:
    for line in dumps(value).splitlines():
        _say(line, "cyan")


def _review(approval: Json) -> None:
    _heading(f"checkpoint {approval['checkpoint_type']}")
    _line("approval", approval["approval_id"])
    _line("question", cell(approval["message"]))
    _line("reasons", ", ".join(approval["reasons"]))


def _diff(before: Json, after: Json) -> None:
    lines = difflib.unified_diff(dumps(before).splitlines(), dumps(after).splitlines(), "shown", "edited", lineterm="")
    for line in lines:
        _say(line, {"+": "green", "-": "red", "@": "dim"}.get(line[:1], ""))


def _print_tail(log: Path) -> None:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    for line in lines[-TAIL_LINES:]:
        click.echo(line)
