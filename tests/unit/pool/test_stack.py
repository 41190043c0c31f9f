# SPDX-License-Identifier: MIT
"""The stack of a worker, asked from outside: the page that it writes to, and reading it."""

import faulthandler
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from procbus.pool.child import loop
from procbus.pool.stack import SIGNAL, StackPage, handler_stack
from procbus.system.cooperative import in_turn
from tests.parts import BOUND_S, in_thread

WORKER = loop.__file__


@pytest.fixture
def page() -> Iterator[StackPage]:
    page = StackPage.create()
    yield page
    page.close()


def dump(*threads: tuple[str, list[tuple[str, int, str]]]) -> str:
    """The output of faulthandler: each thread with its frames, the innermost first."""
    return "\n\n".join(
        f"{title} (most recent call first):\n"
        + "\n".join(f'  File "{file}", line {line} in {name}' for file, line, name in frames)
        for title, frames in threads
    )


# Reading.


def test_stack_of_the_handlers_thread_leaves_out_its_callers() -> None:
    text = dump(
        (
            "Current thread 0x00007f0000000001",
            [
                ("/home/me/resize.py", 12, "inner"),
                ("/home/me/resize.py", 3, "resize"),
                (WORKER, 250, "_run"),
                ("/site-packages/loky/process_executor.py", 490, "_process_worker"),
            ],
        )
    )

    assert handler_stack(text) == (
        "Stack (most recent call last):\n"
        '  File "/home/me/resize.py", line 3, in resize\n'
        '  File "/home/me/resize.py", line 12, in inner'
    )


def test_the_source_stands_under_each_frame_where_it_can_be_read(tmp_path: Path) -> None:
    script = tmp_path / "resize.py"
    script.write_text("def resize():\n    while True: pass\n")

    text = handler_stack(dump(("Thread 0x1", [(str(script), 2, "resize"), (WORKER, 1, "_run")])))

    assert text.splitlines()[1:] == [
        f'  File "{script}", line 2, in resize',
        "    while True: pass",
    ]


def test_other_threads_follow_the_handlers_own() -> None:
    text = dump(
        ("Thread 0x2", [("/home/me/background.py", 9, "poll"), ("/lib/threading.py", 1, "run")]),
        ("Current thread 0x1", [("/home/me/resize.py", 3, "resize"), (WORKER, 250, "_run")]),
    )

    lines = handler_stack(text).splitlines()

    assert lines == [
        "Stack (most recent call last):",
        '  File "/home/me/resize.py", line 3, in resize',
        "Thread 0x2 (most recent call last):",
        '  File "/lib/threading.py", line 1, in run',
        '  File "/home/me/background.py", line 9, in poll',
    ]


def test_a_recursion_too_deep_to_be_written_in_full_is_shown_all_the_same() -> None:
    frames = [("/home/me/resize.py", 5, "again")] * 100

    text = handler_stack(dump(("Current thread 0x1", frames)) + "\n  ...\n")

    assert text.count("in again") == 100


@pytest.mark.parametrize(
    "text",
    ["", "\n", "garbage", "Thread 0x1 (most recent call first):\n  <no Python frame>", "\n\n\n"],
)
def test_a_dump_without_frames_is_no_stack(text: str) -> None:
    assert handler_stack(text) == ""


def test_unwritten_page_is_no_stack(page: StackPage) -> None:
    assert page.read() == ""


# Asking. The test's own process writes.


def ask(page: StackPage, send: Callable[[int], bool], patience_s: float = BOUND_S) -> None:
    in_turn([page.ask(send, patience_s=patience_s)])


def send_to_self(number: int) -> bool:
    signal.raise_signal(number)
    return True


def test_stack_is_there_once_it_was_written(page: StackPage) -> None:
    assert SIGNAL is not None
    page.listen()
    try:
        ask(page, send_to_self)
        first = page.read()
        ask(page, send_to_self)
    finally:
        faulthandler.unregister(SIGNAL)

    name = "test_stack_is_there_once_it_was_written"
    assert f"in {name}" in first
    assert page.read().count(f"in {name}") == 1, "it does not hold the first one too"


def test_a_process_that_is_gone_is_not_waited_for(page: StackPage) -> None:
    waits = list(page.ask(lambda _: False))

    assert waits == []
    assert page.read() == ""


def test_a_process_that_writes_nothing_is_waited_for_a_while(
    page: StackPage,
) -> None:
    asked: list[int] = []

    def send(number: int) -> bool:
        asked.append(number)
        return True

    ask(page, send, patience_s=0.005)

    assert asked == [SIGNAL]
    assert page.read() == ""


def test_without_a_signal_no_stack_is_asked_for() -> None:
    page = StackPage.create(number=None)

    page.listen()
    ask(page, lambda _: pytest.fail("nothing to send"))

    assert page.read() == ""
    page.close()


# The end.


def test_page_may_be_closed_twice_and_asks_no_worker_then(page: StackPage) -> None:
    page.close()
    page.close()

    ask(page, lambda _: pytest.fail("nobody is asked"))
    assert page.read() == ""


def test_page_is_not_closed_while_it_is_read(
    page: StackPage,
) -> None:
    # The number of its file might be another file's by then, which would be truncated.
    asking, go_on, closed = threading.Event(), threading.Event(), threading.Event()

    def send(_: int) -> bool:
        asking.set()
        assert go_on.wait(BOUND_S)
        assert not closed.is_set()
        return True

    def close() -> None:
        page.close()
        closed.set()

    asker = in_thread(lambda: ask(page, send, patience_s=0.005))
    assert asking.wait(BOUND_S)
    closer = in_thread(close)
    go_on.set()
    asker.join(BOUND_S)
    closer.join(BOUND_S)
    assert closed.is_set()


SCRIPT = """
import os, re, sys
from procbus.pool.stack import StackPage
page = StackPage(int(sys.argv[1]))
page.listen()

def hold_the_gil():
    print("ready", flush=True)
    re.match(r"(a+)+$", "a" * 64 + "b")

hold_the_gil()
"""


def test_a_process_answers_though_c_code_holds_its_gil(
    page: StackPage,
) -> None:
    (number,) = [int(n) for n in os.listdir("/proc/self/fd") if "procbus-stack" in _target(n)]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(number)], pass_fds=[number], stdout=subprocess.PIPE
    )

    def send(signal_number: int) -> bool:
        process.send_signal(signal_number)
        return True

    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"

            ask(page, send)

            assert "in hold_the_gil" in page.read()
            assert process.poll() is None, "it goes on"
        finally:
            process.kill()


def _target(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:  # the descriptor of the listing itself
        return ""
