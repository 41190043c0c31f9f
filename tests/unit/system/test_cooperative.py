# SPDX-License-Identifier: MIT
"""Work that waits, done in turn: all of it, in the time of the longest, whatever one raises."""

from __future__ import annotations

import pytest

from procbus.system import cooperative
from procbus.system.cooperative import Task, in_turn


def count(log: list[str], name: str, steps: int) -> Task[str]:
    for step in range(steps):
        log.append(f"{name}{step}")
        yield
    return name


def fail(log: list[str], error: Exception) -> Task[str]:
    log.append("fails")
    yield
    raise error


def test_tasks_without_a_wait_end_without_sleeping() -> None:
    waits: list[float] = []
    none: list[Task[str]] = []
    assert in_turn(none, sleep=waits.append) == []
    assert in_turn([count([], "a", 0)], sleep=waits.append) == ["a"]
    assert waits == []


def test_each_task_runs_to_its_next_wait_in_each_turn() -> None:
    log: list[str] = []

    assert in_turn([count(log, "a", 3), count(log, "b", 1), count(log, "c", 2)]) == ["a", "b", "c"]

    assert log == ["a0", "b0", "c0", "a1", "c1", "a2"]


def test_one_wait_between_two_turns_serves_all_tasks() -> None:
    waits: list[float] = []

    in_turn([count([], "a", 3), count([], "b", 3)], sleep=waits.append)

    assert waits == [cooperative.TURN_S] * 3


def test_task_that_raises_stops_no_other() -> None:
    log: list[str] = []
    errors = [ValueError("a bug"), OSError("another")]

    with pytest.raises(ExceptionGroup) as caught:
        in_turn([fail(log, errors[0]), count(log, "a", 4), fail(log, errors[1])])

    assert list(caught.value.exceptions) == errors
    assert log == ["fails", "a0", "fails", "a1", "a2", "a3"]


def test_interrupt_ends_all_tasks() -> None:
    def interrupted() -> Task[str]:
        yield
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_turn([interrupted()])
