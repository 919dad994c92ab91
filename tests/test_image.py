"""The image: its steps run, and what they install runs, unprivileged, from a root that nobody can write to."""

import json
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import httpx2
import pytest
from packaging.utils import canonicalize_name

from tests.conftest import DEADLINE_S, free_port
from tests.image import ROOT, Image, context, environment, image, stages, values  # noqa: F401  the fixture
from tests.test_packaging import pins

BIN = Path(sys.executable).parent
TOOLS = {"pip", "setuptools", "wheel", "hatchling", "pytest", "ruff", "mypy"}


def test_hadolint_finds_nothing() -> None:
    found = subprocess.run([BIN / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_image_has_two_stages_and_the_last_is_unprivileged_with_no_build_tools() -> None:
    build, final = stages()
    assert values(build, "FROM")[0].split()[:1] == values(final, "FROM")
    assert [text for text in values(final, "COPY") if not text.startswith("--from=build ")] == []
    (user,) = values(final, "USER")
    assert int(user) > 0
    assert "pip uninstall --yes" in values(final, "RUN")[0] and "apt-get" not in " ".join(values(final, "RUN"))
    assert values(final, "HEALTHCHECK") and values(final, "CMD") == ['["hitl", "web"]']
    installs = [text for each in values(build, "RUN") for text in re.findall(r"pip .*?install [^&]*", each)]
    assert all("--require-hashes" in text or "--no-deps --no-index" in text for text in installs)
    assert not set(environment(final)) & {"HITL_SECRET_KEY", "DATABASE_URL", "REDIS_URL"}


def test_the_build_is_sent_nothing_but_what_it_copies(tmp_path: Path) -> None:
    context(tmp_path)
    copied = {name for text in values(stages()[0], "COPY") for name in text.split()[:-1]}
    assert {path.name for path in tmp_path.iterdir()} == copied


@pytest.fixture
def frozen(image: Image) -> Iterator[Image]:  # noqa: F811
    """The image with nothing in it that its user could write, as under `--read-only`."""
    modes = {path: path.lstat().st_mode for path in (image.root, *image.root.rglob("*")) if not path.is_symlink()}
    for path, mode in modes.items():
        path.chmod(mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    yield image
    for path, mode in modes.items():
        path.chmod(mode)


@pytest.mark.timeout(600)  # of the image's installation
def test_what_is_installed_is_the_lock_and_nothing_else(image: Image) -> None:  # noqa: F811
    (site,) = (image.root / "venv" / "lib").glob("python3*/site-packages")
    found = {canonicalize_name(each.name): each.version for each in distributions(path=[str(site)])}
    assert not found.keys() & TOOLS and not (image.bin / "pip").exists()
    locked = pins("requirements.txt")
    ours = found.pop("hitl-service")
    assert ours and found.items() <= locked.items()  # some of the lock is for other machines


@pytest.mark.timeout(600)  # of the image's installation
def test_the_commands_and_the_web_process_run_read_only_and_unprivileged(frozen: Image) -> None:
    port = free_port()
    _, final = stages()
    env = {
        **environment(final),
        "PATH": f"{frozen.bin}:/usr/bin:/bin",
        "HOME": "/nonexistent",
        "HITL_HOST": "127.0.0.1",
        "HITL_PORT": str(port),
        "DATABASE_URL": f"postgresql://hitl@127.0.0.1:{free_port()}/hitl",  # nobody is there: the process lives
        "REDIS_URL": f"redis://127.0.0.1:{free_port()}",
        "HITL_SECRET_KEY": "s" * 32,
    }
    app = frozen.root / "venv"  # a working directory that cannot be written to

    assert "Usage: hitl" in frozen.run("hitl", "--help", cwd=app, env=env)
    assert '"openapi": "3.1' in frozen.run("hitl", "openapi", cwd=app, env=env)
    assert "Usage: arq" in frozen.run("arq", "worker_settings.WorkerSettings", "--help", cwd=app, env=env)
    tells = "import os, worker_settings as w; print(os.geteuid(), len(w.WorkerSettings.functions), w.__file__)"
    user, functions, where = frozen.run("python", "-c", tells, cwd=app, env=env).split()
    assert (int(user) != 0 or frozen.user is None) and int(functions) == 4
    assert Path(where).is_relative_to(frozen.root / "venv")

    (command,) = values(final, "CMD")
    (check,) = values(final, "HEALTHCHECK")
    with frozen.popen(json.loads(command), cwd=app, env=env, stdout=subprocess.DEVNULL) as child:
        url = f"http://127.0.0.1:{port}"
        until_answered(f"{url}/healthz", child)
        assert httpx2.get(f"{url}/openapi.json").status_code == 200
        assert httpx2.get(f"{url}/readyz").status_code == 503
        frozen.run(*json.loads(check.partition("CMD ")[2]), cwd=app, env=env)
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) in (0, -signal.SIGTERM)


def until_answered(url: str, child: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        assert child.poll() is None, "the process ended"
        try:
            assert httpx2.get(url).status_code == 200
        except httpx2.TransportError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"{url} did not answer")
