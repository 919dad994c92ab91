"""What a terminal gets beside the answer: completion of what is typed, and bars for long work."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest
import pytest_asyncio

from service.embedded import Servers
from service.store.migrate import migrate
from tests.conftest import base_env, new_database

BIN = Path(sys.executable).parent
HITL = BIN / "hitl"


def in_bash(*typed: str) -> list[set[str]]:
    """What bash offers for the last word of each of what was typed, with our script sourced."""
    script = f'source <("{HITL}" completion bash)\n'
    for line in typed:
        words = line.split(" ")
        script += f"COMP_WORDS=({' '.join(map(repr, words))}) COMP_CWORD={len(words) - 1} COMPREPLY=()\n"
        script += '_hitl_completion hitl; echo "${COMPREPLY[@]}"\n'
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert done.stderr == ""
    return [set(line.split()) for line in done.stdout.splitlines()]


@pytest.mark.skipif(shutil.which("bash") is None, reason="this is about bash")
def test_bash_completes_commands_options_and_their_values() -> None:
    found = in_bash("hitl que", "hitl runs ", "hitl audit export --format ")

    assert found == [{"queue"}, {"cancel", "list", "requeue", "show", "tail"}, {"csv", "jsonl"}]


@pytest.mark.parametrize(
    ("shell", "words", "offered"),
    [("bash", "hitl que", "plain,queue"), ("zsh", "hitl que", "plain\nqueue\n"), ("fish", "hitl que", "plain,queue")],
)
def test_each_shells_script_asks_us_and_we_answer(shell: str, words: str, offered: str) -> None:
    script = subprocess.run([HITL, "completion", shell], capture_output=True, text=True, timeout=60, check=True).stdout
    asked = {"_HITL_COMPLETE": f"{shell}_complete", "COMP_WORDS": words}
    asked["COMP_CWORD"] = "que" if shell == "fish" else "1"  # fish gives the word itself
    answer = subprocess.run([HITL], env={**os.environ, **asked}, capture_output=True, text=True, timeout=60, check=True)

    assert f"_HITL_COMPLETE={shell}_complete" in script
    assert answer.stdout.startswith(offered)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def env(servers: Servers) -> dict[str, str]:
    url = await new_database(servers, "terminal")
    await migrate(url)
    return {**base_env(servers, DATABASE_URL=url), "TERM": "xterm"}


def on_a_terminal(env: dict[str, str], *arguments: str) -> tuple[str, str]:
    """Standard output, which is a pipe, and what a terminal on standard error was shown."""
    ours, theirs = os.openpty()
    with subprocess.Popen([HITL, *arguments], env=env, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        shown = bytearray()
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # how Linux says that the other end is closed
            pass
        assert process.stdout
        return process.stdout.read(), shown.decode()


@pytest.mark.parametrize(
    ("command", "label"),
    [
        ("migrate", "migrating"),
        (f"runs requeue {UUID(int=1)} {UUID(int=2)} --json", "requeued"),
        ("purge --older-than 1 --tenant acme", "acme"),
    ],
)
def test_long_work_shows_how_far_it_is_on_a_terminal_only(env: dict[str, str], command: str, label: str) -> None:
    printed, shown = on_a_terminal(env, *command.split())
    piped = subprocess.run([HITL, *command.split()], env=env, capture_output=True, text=True, timeout=60, check=False)

    assert label in shown
    assert "\x1b" in shown
    assert "\x1b" not in printed + piped.stdout + piped.stderr
    assert piped.stdout == printed
