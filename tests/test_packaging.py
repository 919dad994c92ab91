"""What is shipped: the wheel, the locks, the image's and Fly's commands, and what no file may name."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
LOCKS = ("requirements.txt", "requirements-dev.txt", "requirements-build.txt")
PIN = re.compile(r"(?P<name>[a-z0-9][a-z0-9._-]*)==(?P<version>[^\s;]+)( ; [^\\]+)? \\")
HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")
# Put together here, so that this file does not name them either.
UNWANTED = re.compile(
    "|".join([r"pypi" + r"\.org", r"python" + r"hosted\.org", r"registry\." + r"npmjs", r"/work" + "/", r"/root" + "/"])
)
# Folders of tools and data, for a tree that is no git checkout.
NOT_OURS = {".venv", ".data", ".git", "build", "dist", "__pycache__"}


def toml(name: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / name).read_text())


def fly_commands() -> dict[str, str]:
    fly = toml("fly.toml")
    return {**fly["processes"], "release": fly["deploy"]["release_command"]}


def pins(lock: str) -> dict[str, str]:
    found = (PIN.match(line) for line in (ROOT / lock).read_text().splitlines())
    return {match["name"]: match["version"] for match in found if match}


def our_files() -> list[Path]:
    """Every file that is or could be committed."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        if listed.returncode == 0:
            found = [ROOT / name for name in listed.stdout.split("\0") if name]
            return [path for path in found if path.is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and not _foreign(path.relative_to(ROOT))]


def _foreign(path: Path) -> bool:
    return any(part in NOT_OURS or part.endswith(("_cache", ".egg-info")) for part in path.parts) or path.name == ".env"


def run(*command: str | Path, cwd: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_wheel_holds_all_that_runs(tmp_path: Path) -> None:
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel")
    built = run(*pip, "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, ROOT)
    assert built.returncode == 0, built.stderr

    (wheel,) = tmp_path.glob("*.whl")
    held = set(ZipFile(wheel).namelist())

    sources = {path.relative_to(ROOT).as_posix() for path in our_files() if path.is_relative_to(ROOT / "service")}
    migrations = {f"service/migrations/{path.name}" for path in (ROOT / "migrations").glob("*.sql")}
    assert migrations
    assert sources | migrations | {"worker_settings.py"} <= held
    assert {name.split("/")[0] for name in held if ".dist-info/" not in name} == {"service", "worker_settings.py"}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_is_exact_hashed_and_names_no_host(lock: str) -> None:
    lines = [line for line in (ROOT / lock).read_text().splitlines() if not line.lstrip().startswith("#")]

    assert [line for line in lines if not (PIN.fullmatch(line) or HASH.fullmatch(line))] == []
    unhashed = [
        line for line, after in zip(lines, [*lines[1:], ""], strict=True) if PIN.match(line) and PIN.match(after)
    ]
    assert unhashed == []
    assert HASH.fullmatch(lines[-1])
    assert "://" not in (ROOT / lock).read_text()
    assert "--index" not in (ROOT / lock).read_text()


def test_the_locks_follow_the_project() -> None:
    project = toml("pyproject.toml")
    needed = project["project"]["dependencies"]
    extras = [each for extra in project["project"]["optional-dependencies"].values() for each in extra]
    tools = [*project["dependency-groups"]["dev"], *project["build-system"]["requires"]]

    assert unmet(needed, "requirements.txt") == []
    assert unmet([*needed, *extras, *tools], "requirements-dev.txt") == []
    assert unmet(project["build-system"]["requires"], "requirements-build.txt") == []
    shipped, tried = pins("requirements.txt"), pins("requirements-dev.txt")
    assert {name: tried.get(name) for name in shipped} == shipped


def unmet(requirements: list[str], lock: str) -> list[str]:
    locked = pins(lock)
    asked = [Requirement(each) for each in requirements]
    return [str(each) for each in asked if locked.get(canonicalize_name(each.name), "") not in each.specifier]


@pytest.mark.parametrize("process", ["web", "worker", "release"])
def test_flys_commands_are_there(process: str) -> None:
    program, *words = shlex.split(fly_commands()[process])

    helped = run(BIN / program, *words, "--help")

    assert helped.returncode == 0, helped.stderr


def test_the_image_starts_the_web_process() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()

    assert dockerfile.rstrip().endswith('CMD ["hitl", "web"]')
    assert "HITL_PORT=8080" in dockerfile


def test_the_workers_settings_and_log_set_up_import_from_any_directory(tmp_path: Path) -> None:
    _, settings, _, log_config = shlex.split(fly_commands()["worker"])
    names = [name.rpartition(".") for name in (settings, log_config)]
    code = "\n".join(f"from {module} import {name}" for module, _, name in names)

    imported = run(
        sys.executable,
        "-c",
        code,
        cwd=tmp_path,
        DATABASE_URL="postgresql://nowhere.invalid/hitl",
        REDIS_URL="redis://nowhere.invalid",
        HITL_SECRET_KEY="s" * 32,
    )

    assert imported.returncode == 0, imported.stderr


def test_fly_waits_for_a_draining_worker_and_routes_by_readiness() -> None:
    fly = toml("fly.toml")

    assert fly["kill_signal"] == "SIGTERM"
    assert fly["kill_timeout"] > int(fly["env"]["HITL_DRAIN_SECONDS"])
    assert fly["http_service"]["internal_port"] == int(fly["env"]["HITL_PORT"])
    assert [check["path"] for check in fly["http_service"]["checks"]] == ["/readyz"]
    assert {each["policy"] for each in fly["restart"]} == {"always"}


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def test_no_file_names_a_package_host_or_a_path_of_a_machine() -> None:
    named = {
        path.relative_to(ROOT).as_posix(): match[0]
        for path in our_files()
        if (match := UNWANTED.search(path.read_text(errors="replace")))
    }

    assert named == {}
