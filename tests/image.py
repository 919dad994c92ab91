"""The image without a container engine: the Dockerfile's own steps, in a folder in place of the root of a file system,
with only what .dockerignore lets through, and as an unprivileged user where this one may become one."""

import fcntl
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOBODY = "nobody"


@dataclass(frozen=True, slots=True)
class Instruction:
    name: str
    text: str


def stages() -> list[list[Instruction]]:
    """The instructions of each stage of the Dockerfile, lines that go on joined."""
    text = re.sub(r"\\\n", " ", "\n".join(_without_comments()))
    found: list[list[Instruction]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            found.append([])
        found[-1].append(Instruction(name, " ".join(rest.split())))
    return found


def _without_comments() -> list[str]:
    return [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]


def values(stage: Sequence[Instruction], name: str) -> list[str]:
    return [each.text for each in stage if each.name == name]


def environment(stage: Sequence[Instruction]) -> dict[str, str]:
    pairs = (word.partition("=") for text in values(stage, "ENV") for word in shlex.split(text))
    return {name: value for name, _, value in pairs}


def context(folder: Path) -> None:
    """What .dockerignore leaves of the tree, in this folder."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines, "everything is left out that is not named"
    for name in (line[1:] for line in lines if line.startswith("!")):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)


@dataclass(frozen=True, slots=True)
class Image:
    """`root` stands for the image's `/`; `user` is whom its processes run as here."""

    root: Path
    user: int | None

    @property
    def bin(self) -> Path:
        return self.root / "venv" / "bin"

    def popen(self, command: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str], **more: Any) -> Any:
        """A process of the image's user, with nothing of the tester's environment."""
        groups: dict[str, Any] = {} if self.user is None else {"extra_groups": []}
        return subprocess.Popen(command, cwd=cwd, env=dict(env), user=self.user, group=self.user, **groups, **more)

    def run(self, *command: str | Path, cwd: Path, env: Mapping[str, str]) -> str:
        with self.popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            out, err = child.communicate(timeout=240)
        assert child.returncode == 0, f"{command}: {out[-2000:]}{err[-2000:]}"
        return str(out)


def python_for(user: int | None) -> str | None:
    """An interpreter in place of the base image's, that this user may run; with what venv needs."""
    ready = "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))"
    for python in (getattr(sys, "_base_executable", sys.executable), "/usr/bin/python3"):
        groups: dict[str, Any] = {} if user is None else {"extra_groups": []}
        try:
            done = subprocess.run(
                [python, "-c", ready], cwd="/", env={}, user=user, group=user, **groups, check=False, timeout=30,
                capture_output=True,
            )  # fmt: skip
        except OSError:
            continue
        if done.returncode == 0:
            return str(python)
    return None


def build(root: Path) -> Image:
    """Run the first stage's steps, as they stand, with `/` moved."""
    user = pwd.getpwnam(NOBODY).pw_uid if os.geteuid() == 0 else None
    python = python_for(user)
    if python is None:
        user, python = None, python_for(None)
    assert python is not None
    first, _ = stages()
    (source,) = values(first, "WORKDIR")
    sent = root / "context"
    sent.mkdir(parents=True)
    context(sent)
    image, work = Image(root, user), _moved(root, source)
    work.mkdir()
    bin_dir = root / "bin"
    bin_dir.mkdir()
    (bin_dir / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(python)} "$@"\n')
    (bin_dir / "python").chmod(0o755)
    index = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.endswith("_proxy")}
    env = {**index, **environment(first), "PATH": f"{bin_dir}:/usr/bin:/bin", "HOME": str(root), "TMPDIR": str(root)}
    if user is not None:
        shutil.chown(root, user)
        shutil.chown(work, user)
    for each in first:
        if each.name == "COPY":
            *names, target = each.text.split()
            for name in names:
                _copy(sent / name, work / target, user)
        elif each.name == "RUN":
            image.run("/bin/sh", "-c", _in(root, each.text), cwd=work, env=env)
    return image


def _copy(source: Path, target: Path, user: int | None) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
    for path in (target, *target.rglob("*")) if source.is_dir() else (target / source.name,):
        if user is not None:
            shutil.chown(path, user)


def _moved(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _in(root: Path, command: str) -> str:
    """The command with each absolute path that it names below `root`."""
    return re.sub(r"(?<![\w./])/(venv|build|dist|src)\b", lambda match: f"{root}/{match[1]}", command)


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """Built once for all processes of the test run, in a folder that every user may look into; the last one that
    needed it takes it away."""
    shared = tmp_path_factory.getbasetemp().parent
    root = Path(tempfile.gettempdir()) / f"hitl-image-{os.getppid()}"
    with (shared / "image.used").open("w") as used, (shared / "image.built").open("w") as building:
        fcntl.flock(used, fcntl.LOCK_SH)
        fcntl.flock(building, fcntl.LOCK_EX)
        done = root / "built"
        if not done.exists():
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir(mode=0o755)
            user = build(root).user
            done.write_text("" if user is None else str(user))
        fcntl.flock(building, fcntl.LOCK_UN)
        user_id = done.read_text()
        yield Image(root, int(user_id) if user_id else None)
        with suppress(BlockingIOError):
            fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(root)
