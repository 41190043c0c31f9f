# SPDX-License-Identifier: MIT
"""Scripts with a journal, in processes of their own."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BOUND_S = 60.0

#: Begins a bus whose handler "hold" takes int, and never returns.
BEGIN = """
import os, sys, threading
from procbus import EventBus
bus = EventBus([], journal=sys.argv[1], io_workers=1)
bus.subscribe(int, lambda n: threading.Event().wait(60), name="hold", concurrency=1)
"""


def killed(path: Path, script: str) -> Path:
    """Run a script that goes on from `BEGIN`, and is killed at its end; give the journal."""
    code = BEGIN + textwrap.dedent(script) + "\nos.kill(os.getpid(), 9)\n"
    ended = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        timeout=BOUND_S,
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    return path


@contextmanager
def running(path: Path, script: str) -> Iterator[subprocess.Popen[str]]:
    """Run a script that goes on from `BEGIN`; wait until it says "ready", and end it at last."""
    code = BEGIN + textwrap.dedent(script)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def status(path: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `procbus journal` for a journal in a process of its own."""
    action, *rest = arguments
    return subprocess.run(
        [sys.executable, "-m", "procbus", "journal", action, str(path), *rest],
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )
