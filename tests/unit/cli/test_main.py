# SPDX-License-Identifier: MIT
"""The command line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from procbus import EventBus
from procbus.cli import main


def procbus(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line as a person would."""
    return subprocess.run(
        [sys.executable, "-m", "procbus", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=150,
    )


def test_help_names_the_commands() -> None:
    run = procbus("--help")
    assert run.returncode == 0
    assert "demo" in run.stdout
    assert "bench" in run.stdout


def test_no_command_prints_the_help() -> None:
    run = procbus()
    assert run.returncode == 0
    assert run.stdout == procbus("--help").stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_of_a_shell_knows_all_commands(shell: str) -> None:
    run = procbus("completion", shell)
    assert run.returncode == 0, run.stderr
    assert {"demo", "journal", "serve", "top"} <= set(re.findall(r"\w+", run.stdout))


def test_completion_in_bash_completes_a_command(tmp_path: Path) -> None:
    script = tmp_path / "completion.bash"
    script.write_text(procbus("completion", "bash").stdout)
    ask = (
        f"source {script}; COMP_WORDS=(procbus jo); COMP_CWORD=1; COMP_LINE='procbus jo'; "
        'complete -p procbus | grep -o "_shtab[a-z_]*" > name; $(cat name) procbus jo; '
        'echo "${COMPREPLY[@]}"'
    )
    run = subprocess.run(
        ["bash", "-c", ask], capture_output=True, text=True, cwd=tmp_path, timeout=150
    )
    assert run.stdout.split() == ["journal"], run.stderr


def test_completion_without_shtab_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main.main(["completion", "bash"]) == 2
    assert "pip install 'procbus[completion]'" in capsys.readouterr().err


def test_bench_hands_its_arguments_to_the_benchmarks_beside_it() -> None:
    run = procbus("bench", "--list")
    assert run.returncode == 0, run.stderr
    assert "tiny_cpu" in run.stdout
    refused = procbus("bench", "--only", "nothing")
    assert refused.returncode == 2
    assert "invalid choice: 'nothing'" in refused.stderr


@pytest.mark.bench
def test_bench_prints_plain_tables_without_rich(tmp_path: Path) -> None:
    script = (
        "import sys; from importlib import util; find = util.find_spec\n"
        "util.find_spec = lambda name, *about: None if name == 'rich' else find(name, *about)\n"
        "sys.modules['rich'] = None\n"
        "from procbus.cli.main import main\n"
        "main(['bench', '--quick', '--only', 'tiny_io', '--json', sys.argv[1]])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "results.json")],
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert run.returncode == 0, run.stderr
    head = next(line for line in run.stdout.splitlines() if line.startswith("measurement"))
    assert {"procbus", "ratio", "target", "reached"} <= set(head.split())
    assert "Targets reached: " in run.stdout
    assert "[" not in head


def test_version_is_printed() -> None:
    run = procbus("--version")
    assert run.returncode == 0
    assert run.stdout.startswith("procbus ")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["dmeo"], "invalid choice: 'dmeo'; did you mean demo?"),
        (["journal", "lst"], "invalid choice: 'lst'; did you mean list?"),
        (["journal", "list", "a.db", "--jsno"], "--jsno; did you mean --json?"),
        (["--versoin"], "unrecognized arguments: --versoin; did you mean --version?"),
        (["journal"], "required: ACTION"),
        (["demo", "--limit", "0"], "argument --limit: must be at least 1, not 0"),
        (["demo", "--cpu-workers", "two"], "argument --cpu-workers: must be at least 1, not two"),
        (["top", "--interval", "no"], "argument --interval: must be from 0.1 to 3600 seconds"),
        (["serve", "--port", "-1"], "argument --port: must be from 0 to 65535, not -1"),
        (["demo", "--no-such-option"], "unrecognized arguments: --no-such-option"),
    ],
)
def test_wrong_arguments_are_refused_with_the_reason(arguments: list[str], complaint: str) -> None:
    run = procbus(*arguments)
    assert run.returncode == 2
    assert complaint in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom procbus.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'rich', 'sqlite3', 'loky', 'psutil', 'asyncio'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=150, check=True
    )
    assert run.stdout.splitlines()[-1] == "[]"


def test_the_handler_of_sigterm_is_put_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert main.main(["demo", str(tmp_path / "nowhere")]) == 2
    assert signal.getsignal(signal.SIGTERM) is before
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["journal", "status"], ["journal", "export"]])
def test_reader_that_stops_gets_no_traceback(tmp_path: Path, arguments: list[str]) -> None:
    path = tmp_path / "run.db"
    with EventBus([], journal=path) as bus:
        bus.subscribe("works", abs)
        bus.publish("works", 5, id="five")
    reading, writing = os.pipe()
    os.close(reading)
    try:
        run = subprocess.run(
            [sys.executable, "-m", "procbus", *arguments, path],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=150,
        )
    finally:
        os.close(writing)
    assert (run.returncode, run.stderr) == (141, "")
