"""A worker process that has no orders yet can be ended, and its command line is known."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait

import psutil
import pytest

from procbus.pool.birth import PROGRAM, Newborn
from procbus.system import freezing
from procbus.system.no_fork import no_fork
from tests.cpu_stage import BOUND_S


def test_one_that_is_not_needed_is_ended() -> None:
    newborn = Newborn.start({}, None)
    newborn.abandon()
    newborn.abandon()
    assert newborn.returncode == -signal.SIGKILL


def test_no_fork_comes_while_it_is_launched() -> None:
    free: list[bool] = []

    def look_and_give_flags() -> list[str]:
        thread = threading.Thread(target=lambda: free.append(no_fork.acquire(blocking=False)))
        thread.start()
        thread.join(BOUND_S)
        return []

    Newborn.start({}, None, look_and_give_flags).abandon()
    assert free == [False]


def test_one_that_is_dead_gets_no_orders() -> None:
    newborn = Newborn.start({}, None)
    newborn.order(b"orders")
    newborn.kill()
    newborn.deliver(lambda: pytest.fail("there is nobody to make anything ready for"))
    newborn.abandon()
    assert newborn.wait(BOUND_S) == -signal.SIGKILL


@pytest.mark.parametrize(
    "path", [[], ["/a", "/b c"], ["it's"], ['a"b', "c'd"], ["back\\slash"], ["\u00e9", "\udce9"]]
)
def test_a_frozen_program_knows_its_command_line_whatever_the_path(path: list[str]) -> None:
    line = PROGRAM.format(path=ascii(path), channel=5, parent=17, end=6)
    assert re.fullmatch(freezing.WORKER, line) is not None


def test_no_other_code_passes_for_that_command_line() -> None:
    path = "[]; import os; os.system('x'); sys.path[:] = []"
    line = PROGRAM.format(path=path, channel=5, parent=17, end=6)
    assert re.fullmatch(freezing.WORKER, line) is None


def test_a_module_path_of_any_length_fits_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    far = [f"/far/{'x' * 90}/{number}" for number in range(2000)]
    monkeypatch.setattr(sys, "path", [*far, *sys.path])
    newborn = Newborn.start({}, None)  # else the system refuses it
    try:
        newborn.order(b"no orders")
        ready: list[bool] = []
        newborn.deliver(lambda: ready.append(True))
        assert ready == [True], "it has found all its modules"
    finally:
        newborn.kill()
        newborn.wait(BOUND_S)


@contextmanager
def family(siblings: int) -> Iterator[list[Newborn]]:
    """One, and siblings of it; ended in the end."""
    stem = Newborn.start({}, None)
    made = [stem, *(stem.sibling() for _ in range(siblings))]
    try:
        yield made
    finally:
        for each in made[::-1]:
            each.abandon()


def test_one_that_is_ready_forks_others_that_are_children_of_the_script() -> None:
    with family(2) as made:
        assert [each.born() for each in made] == [True, True, True]
        assert len({each.pid for each in made}) == 3
        assert {psutil.Process(each.pid).ppid() for each in made} == {os.getpid()}
    assert [each.returncode for each in made] == [-signal.SIGKILL] * 3


def test_a_forked_one_forks_others_after_the_end_of_the_first() -> None:
    with family(1) as (first, second):
        third = second.sibling()
        try:
            assert second.born()
            first.abandon()
            assert third.born()
        finally:
            third.abandon()


def test_the_end_of_a_forked_one_can_be_seen_while_the_others_live() -> None:
    with family(2) as (first, second, third):
        assert second.born()
        assert third.born()
        ends = [each.sentinel for each in (first, second, third)]
        assert not wait(ends, 0)
        third.kill()
        assert wait(ends, BOUND_S) == [third.sentinel]
        first.kill()
        assert wait([first.sentinel, second.sentinel], BOUND_S) == [first.sentinel]


def test_one_that_has_other_threads_forks_none() -> None:
    program = (
        "import threading; from procbus.pool.child.sibling import fork_sibling; "
        "threading.Thread(target=threading.Event().wait, daemon=True).start(); fork_sibling()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "OSError: this process cannot fork a sibling" in done.stderr


def test_a_dead_one_has_no_sibling() -> None:
    dead = Newborn.start({}, None)
    asked = dead.sibling()
    dead.kill()
    dead.wait(BOUND_S)
    dead.abandon()
    try:
        assert not asked.born()
    finally:
        asked.abandon()
    with pytest.raises(OSError, match="descriptor"):
        dead.sibling()
