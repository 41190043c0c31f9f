# SPDX-License-Identifier: MIT
"""A clock that tests turn."""

import pickle

import pytest

from procbus.testing import Clock
from procbus.testing.clock import TimeIsUp


class Alarm:
    """Rings at its times."""

    def __init__(self, clock: Clock, *times: float) -> None:
        self.clock, self.times = clock, list(times)
        self.rung: list[float] = []
        clock.attach(self)

    def run_due(self, now: float) -> bool:
        if not self.times or self.times[0] > now:
            return False
        self.clock.go_to(self.times.pop(0))
        self.rung.append(self.clock.now())
        return True


def test_time_passes_when_the_test_advances_it() -> None:
    clock = Clock()
    clock.advance(1.5)
    clock.advance(0)
    assert clock.now() == 1.5
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1)


def test_due_work_is_done_at_its_time() -> None:
    clock = Clock()
    alarm = Alarm(clock, 1, 2, 5)
    clock.advance(3)
    assert alarm.rung == [1, 2]
    assert clock.now() == 3


def test_time_in_a_handler_runs_nothing_and_ends_at_its_limit() -> None:
    clock = Clock()
    alarm = Alarm(clock, 1)
    clock.begin(3)
    clock.advance(2)
    with pytest.raises(TimeIsUp):
        clock.advance(2)
    assert clock.now() == 3
    assert clock.end() == 3
    assert alarm.rung == []
    clock.advance(0)
    assert alarm.rung == [3]


def test_the_time_of_a_handler_inside_another_is_its_own() -> None:
    clock = Clock()
    clock.begin(3)
    clock.advance(1)
    clock.begin(10)
    clock.advance(5)
    assert clock.end() == 5
    clock.advance(1)
    assert clock.end() == 2


def test_pickled_clock_stays_the_same_clock() -> None:
    clock = Clock()
    assert pickle.loads(pickle.dumps(clock)) is clock
