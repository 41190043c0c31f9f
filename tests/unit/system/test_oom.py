# SPDX-License-Identifier: MIT
"""Whether the kernel killed a worker for want of memory: by a counter that a test makes up."""

import signal
from collections.abc import Iterator

import pytest

from procbus.core.errors import WorkerDied
from procbus.core.outcome import OutcomeKind
from procbus.pool.interface import NO_WORDS, WorkerGone
from procbus.system.memory import OomWatch
from tests.cpu_stage import Stage


class Counter:
    """The kernel's counter of such kills."""

    def __init__(self, value: int = 7) -> None:
        self.value = value

    def __call__(self) -> int:
        return self.value


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage(1)
    yield stage
    stage.finish()


def test_earlier_kills_do_not_count():
    watch = OomWatch(Counter(7))
    assert not watch.struck()
    watch.note()
    assert not watch.struck()


def test_a_kill_is_news_until_it_was_noted_twice():
    """So all workers that were killed at once get the same answer, whichever companion asks."""
    counter = Counter()
    watch = OomWatch(counter)
    watch.note()
    counter.value += 1
    assert watch.struck()
    assert watch.struck(), "each is told"
    watch.note()
    assert watch.struck()
    watch.note()
    assert not watch.struck()


def died(stage: Stage, exit_code: int | None) -> WorkerDied:
    """Make the error of a worker that died so."""
    (delivery,) = stage.put("event")
    stage.settled(delivery)
    outcome = stage.lane.died(delivery, WorkerGone(4711, exit_code, NO_WORDS), 0.5, 3 << 30)
    assert outcome.kind is OutcomeKind.WORKER_DIED
    assert isinstance(outcome.error, WorkerDied)
    return outcome.error


def test_a_worker_killed_while_the_counter_rose_is_said_to_be_out_of_memory(stage: Stage):
    counter = Counter()
    stage.lane.oom = OomWatch(counter)
    counter.value += 1
    error = died(stage, -signal.SIGKILL)
    assert error.out_of_memory
    assert "out-of-memory" in str(error)
    assert "it had 3 GiB when it was last measured" in str(error)


@pytest.mark.parametrize("exit_code", [-signal.SIGSEGV, 1, 0, None])
def test_worker_that_died_otherwise_was_not_out_of_memory(stage: Stage, exit_code: int | None):
    counter = Counter()
    stage.lane.oom = OomWatch(counter)
    counter.value += 1
    error = died(stage, exit_code)
    assert not error.out_of_memory
    assert "out-of-memory" not in str(error)


def test_worker_killed_by_another_program_was_not_out_of_memory(stage: Stage):
    stage.lane.oom = OomWatch(Counter())
    assert not died(stage, -signal.SIGKILL).out_of_memory


def test_without_a_note_of_the_counter_no_kill_is_reported(stage: Stage):
    assert stage.lane.oom is None
    assert not died(stage, -signal.SIGKILL).out_of_memory
