"""A program that was frozen starts itself as its workers: refused without `freeze_support`."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from procbus.system import freezing
from tests.integration.helpers import PATIENCE_S, ROOT

#: A namespace of processes of its own: when its first one ends, the kernel ends all others, however
#: many there are.
NAMESPACE = ["unshare", "-p", "-f", "--kill-child", "--mount-proc"]
if os.geteuid() != 0:
    NAMESPACE.insert(1, "-r")

#: The Python that has PyInstaller.
BUILDER = os.environ.get("PROCBUS_PYINSTALLER", sys.executable)

SCRIPT = """
import sys
import procbus

if __name__ == "__main__" and {supported}:
    procbus.freeze_support()
print("began", flush=True)

def square(n):
    return n * n

with procbus.EventBus(handlers=[], cpu_workers=2) as bus:
    bus.subscribe("n", square, kind="cpu")
    print([bus.publish("n", n).result({patience}) for n in range(4)])
"""


def namespaces() -> bool:
    """Whether there may be such a namespace here."""
    try:
        return (
            subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0
        )
    except FileNotFoundError:
        return False


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not namespaces(), reason="needs a namespace of processes"),
]


def contained(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a program that may start itself again and again, in a place where that does no harm."""
    limited = f'ulimit -u 300; exec timeout -s KILL {PATIENCE_S} "$@"'
    # The shell stays the first process of the namespace, whose end ends them all.
    return subprocess.run(
        [*NAMESPACE, "bash", "-c", f"({limited}); exit $?", "bash", *command],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def as_if_frozen(directory: Path, *, supported: bool) -> str:
    """Make a program that behaves as a frozen one: whatever its arguments, it runs its script."""
    program = directory / "program"
    script = directory / "script.py"
    head = f"import sys; sys.frozen = True; sys.executable = {str(program)!r}\n"
    script.write_text(head + SCRIPT.format(supported=supported, patience=PATIENCE_S))
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    program.chmod(0o755)
    return str(program)


def built(directory: Path, *, supported: bool) -> str:
    """Freeze the script."""
    script = directory / "script.py"
    script.write_text(SCRIPT.format(supported=supported, patience=PATIENCE_S))
    paths = ["--distpath", "dist", "--workpath", "build", "--specpath", str(directory)]
    subprocess.run(
        [
            BUILDER,
            "-m",
            "PyInstaller",
            "-y",
            "--log-level=ERROR",
            f"-p={ROOT}",
            *paths,
            str(script),
        ],
        cwd=directory,
        check=True,
    )
    return str(directory / "dist" / "script" / "script")


def check_works(program: str) -> None:
    ended = contained(program)
    assert (ended.stdout, ended.returncode) == ("began\n[0, 1, 4, 9]\n", 0), ended.stderr
    assert ended.stderr == ""


def check_refuses(program: str) -> None:
    ended = contained(program)
    assert ended.stdout == "began\n", "it started itself"
    assert ended.returncode == 1
    assert "procbus.freeze_support() first in the script" in ended.stderr


def test_a_program_that_starts_itself_as_its_workers_works(tmp_path: Path) -> None:
    check_works(as_if_frozen(tmp_path, supported=True))


def test_a_program_that_would_start_itself_again_and_again_is_refused(tmp_path: Path) -> None:
    check_refuses(as_if_frozen(tmp_path, supported=False))


@pytest.mark.skipif(
    sys.executable == BUILDER and importlib.util.find_spec("PyInstaller") is None,
    reason="PyInstaller is not here; PROCBUS_PYINSTALLER may name a Python that has it",
)
@pytest.mark.timeout(300)
def test_a_program_made_by_pyinstaller_works_or_is_refused(tmp_path: Path) -> None:
    for supported, check in ((True, check_works), (False, check_refuses)):
        directory = tmp_path / str(supported)
        directory.mkdir()
        check(built(directory, supported=supported))


def test_a_program_that_runs_threads_only_needs_no_support(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            sys.frozen = True
            import procbus

            with procbus.EventBus(handlers=[]) as bus:
                bus.subscribe("n", abs)
                print(bus.publish("n", -3).result())
            """
        )
    )
    ended = contained(sys.executable, str(script))
    assert (ended.stdout, ended.stderr) == ("3\n", "")


def test_a_frozen_program_may_have_arguments_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(freezing, "_called", False)
    for arguments in (
        ["-m", "pytest"],
        ["-c", "print('no')"],
        ["-c", "from os import system; system('x')"],
        ["input.txt", "-m", "loky.backend.popen_loky_posix"],
        ["-m"],
        [],
    ):
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        freezing.freeze_support()  # returns
        assert sys.argv == ["program", *arguments]
    freezing.check_can_start()
