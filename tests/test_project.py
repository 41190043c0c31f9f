"""The set-up of the project: the commands of `make`, and their messages about missing tools."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKEFILE = ROOT / "Makefile"

# Found by `make` on PATH when a test takes everything else away.
TOOLS_OF_THE_MAKEFILE = ["awk", "cat", "find", "rm", "sed", "touch"]

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="this machine has no make")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A directory with the tools that the Makefile uses and no Python: alone on PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for tool in ["make", *TOOLS_OF_THE_MAKEFILE]:
        found = shutil.which(tool)
        assert found, f"{tool} is not on PATH"
        (directory / tool).symlink_to(found)
    return directory


def add_program(path: Path, name: str, script: str) -> None:
    program = path / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def make(*arguments: str, path: Path | None = None, **variables: str) -> tuple[int, str]:
    """Run make as from a fresh shell, not as a part of the make that runs the tests."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MAKE", "MFLAGS", "PIP_")) and name not in {"PYTHON", "VENV"}
    }
    if path:
        environment["PATH"] = str(path)
    ran = subprocess.run(
        ["make", "--no-print-directory", "-C", str(ROOT), *arguments],
        env={**environment, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=150,
    )
    return ran.returncode, ran.stdout


@needs_make
def test_make_help_lists_every_target() -> None:
    text = MAKEFILE.read_text().replace("\\\n", "")  # a backslash continues a line
    phony = re.search(r"^\.PHONY: (.+)$", text, flags=re.MULTILINE)
    assert phony
    targets = phony[1].split()
    status, said = make("help")

    assert status == 0, said
    assert re.findall(r"^  make (\S+) +\S", said, flags=re.MULTILINE) == targets
    assert {"demo", "test", "lint", "types", "bench", "help"} <= set(targets)


@needs_make
def test_make_says_that_python_is_missing(path: Path, tmp_path: Path) -> None:
    status, said = make("test", f"VENV={tmp_path / 'venv'}", path=path)

    assert status != 0
    assert "needs Python 3.11 or later, and none was found on PATH" in said
    assert "make test PYTHON=" in said
    assert not (tmp_path / "venv").exists()


@needs_make
def test_make_passes_over_a_python_that_fails_when_it_is_run(path: Path, tmp_path: Path) -> None:
    add_program(path, "python3.13", "echo 'this version is not set' >&2; exit 127")
    (path / "python3").symlink_to(sys.executable)
    status, said = make("--dry-run", "demo", f"VENV={tmp_path / 'venv'}", path=path)

    assert status == 0, said
    assert f"python3 -m venv {tmp_path / 'venv'}" in said
    assert "python3.13 -m venv" not in said


@needs_make
def test_make_refuses_a_python_that_is_too_old(path: Path, tmp_path: Path) -> None:
    add_program(path, "python2", '[ "$1" = --version ] && echo "Python 2.7.18" || echo False')
    status, said = make("test", "PYTHON=python2", f"VENV={tmp_path / 'venv'}", path=path)

    assert status != 0
    assert "PYTHON=python2 is not one" in said
    assert "Python 2.7.18" in said


@needs_make
def test_make_says_that_the_modules_for_environments_are_missing(
    path: Path, tmp_path: Path
) -> None:
    without_ensurepip = f'case "$*" in *ensurepip*) exit 1;; esac; exec {sys.executable} "$@"'
    add_program(path, "python3", without_ensurepip)
    status, said = make("test", f"VENV={tmp_path / 'venv'}", path=path)

    assert status != 0
    assert "python3 lacks the modules that make environments" in said
    assert "apt install python3-venv" in said


@pytest.mark.slow
@needs_make
def test_make_says_that_no_package_index_was_reached(tmp_path: Path) -> None:
    status, said = make(
        "demo",
        f"PYTHON={sys.executable}",
        f"VENV={tmp_path / 'venv'}",
        PIP_CONFIG_FILE=os.devnull,
        PIP_NO_INDEX="1",
    )

    assert status != 0
    assert "No matching distribution found for" in said
    assert "pip could not install what is needed, its output is above" in said
    assert "PIP_INDEX_URL" in said
    assert not (tmp_path / "venv" / "installed-procbus").exists()


def test_the_page_of_the_live_view_is_in_the_wheel(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel")
    (built,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])

    with zipfile.ZipFile(built) as files:
        assert {"procbus/web/page.html", "procbus/py.typed"} <= set(files.namelist())


@pytest.mark.skipif(shutil.which("bash") is None, reason="this machine has no bash")
def test_the_script_of_all_checks_can_be_run() -> None:
    script = ROOT / ".ci" / "run"
    checked = subprocess.run(
        ["bash", "-n", str(script)], capture_output=True, text=True, timeout=150
    )

    assert checked.returncode == 0, checked.stderr
    assert os.access(script, os.X_OK)
