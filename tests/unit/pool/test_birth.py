"""A worker process that has no orders yet can be ended, and its command line is known."""

import re
import signal
import sys
import threading

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
