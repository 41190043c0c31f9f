# SPDX-License-Identifier: MIT
"""Whether a worker process is dead: by the kernel, by loky, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from multiprocessing import Pipe
from time import monotonic

import pytest

from procbus.pool.loky_process import break_pipe, exit_code_in, wait_dead
from procbus.system.process import Probe
from tests.parts import BOUND_S


def test_a_zombie_is_dead_and_stays_one() -> None:
    process = subprocess.Popen([sys.executable, "-S", "-c", "import os; os._exit(7)"])

    exit_code = wait_dead(Probe(process.pid), threading.Event(), monotonic() + BOUND_S)

    assert exit_code == 7
    assert process.wait(BOUND_S) == 7, "who started it still gets its exit code"


def test_wait_ends_when_loky_reports_the_end() -> None:
    ended = threading.Event()
    ended.set()

    assert wait_dead(Probe(os.getpid()), ended, monotonic() + BOUND_S) is None


@pytest.mark.parametrize("probe", [None, Probe(os.getpid())], ids=["unknown", "alive"])
def test_a_process_that_lives_is_waited_for_until_the_deadline(probe: Probe | None) -> None:
    deadline = monotonic() + 0.02

    assert wait_dead(probe, threading.Event(), deadline) is None

    assert monotonic() >= deadline


@pytest.mark.parametrize(
    ("text", "exit_code"),
    [
        ("... The exit codes of the workers are {SIGKILL(-9)}", -9),
        ("... The exit codes of the workers are {EXIT(3)}", 3),
        ("something else", None),
    ],
)
def test_the_exit_code_in_the_words_of_loky(text: str, exit_code: int | None) -> None:
    assert exit_code_in(RuntimeError(text)) == exit_code


def test_without_an_error_there_is_no_exit_code() -> None:
    assert exit_code_in(None) is None


def test_broken_pipe_ends_even_if_a_process_holds_it_open() -> None:
    ours, theirs = Pipe()
    with ours, theirs:
        break_pipe(ours)
        with pytest.raises(EOFError):
            ours.recv_bytes()
    break_pipe(ours)
