"""A worker process that has no orders yet can be ended, and its command line is known."""

import re
import signal

import pytest

from procbus.pool.newborn import PROGRAM, Newborn
from procbus.system import freezing
from tests.cpu_stage import BOUND_S


def test_one_that_is_not_needed_is_ended() -> None:
    newborn = Newborn({}, None)
    newborn.abandon()
    newborn.abandon()
    assert newborn.process.returncode == -signal.SIGKILL


def test_one_that_is_dead_gets_no_orders() -> None:
    newborn = Newborn({}, None)
    newborn.order(b"orders")
    newborn.process.kill()
    newborn.deliver(lambda: pytest.fail("there is nobody to make anything ready for"))
    newborn.abandon()
    assert newborn.process.wait(BOUND_S) == -signal.SIGKILL


@pytest.mark.parametrize(
    "path", [[], ["/a", "/b c"], ["it's"], ['a"b', "c'd"], ["back\\slash"], ["\u00e9", "\udce9"]]
)
def test_a_frozen_program_knows_its_command_line_whatever_the_path(path: list[str]) -> None:
    line = PROGRAM.format(path=ascii(path), channel=5, parent=17)
    found = re.fullmatch(freezing.WORKER, line)
    assert found is not None
    assert found[2] == "loky.backend.popen_loky_posix"


def test_no_other_code_passes_for_that_command_line() -> None:
    path = "[]; import os; os.system('x'); sys.path[:] = []"
    line = PROGRAM.format(path=path, channel=5, parent=17)
    assert re.fullmatch(freezing.WORKER, line) is None
