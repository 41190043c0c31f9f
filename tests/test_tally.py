"""What a worker's handlers take of the machine."""

import pickle
import time
from typing import Any

import pytest

from procbus.pool import tally
from procbus.pool.tally import Sums, Tally, no_core_s


@pytest.fixture(autouse=True)
def _tells_whenever_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "_TELL_S", 0.0)


def told(made: Tally) -> dict[int, Sums]:
    found: dict[int, Any] = pickle.loads(made.due())
    return {handler: Sums(*sums) for handler, sums in found.items()}


def spin(seconds: float) -> None:
    began = time.process_time()
    while time.process_time() - began < seconds:
        pass


def test_a_stretch_of_one_handler_is_measured_as_one():
    made = Tally()
    made.turn(7, 0)
    spin(0.02)
    made.turn(None, 5)
    [(handler, sums)] = told(made).items()
    assert (handler, sums.runs) == (7, 5)
    assert 0.02 <= sums.cpu_s <= sums.wall_s + 0.001


def test_handlers_that_take_turns_are_told_apart():
    made = Tally()
    made.turn(1, 0)
    time.sleep(0.02)
    made.turn(2, 1)
    spin(0.02)
    made.turn(None, 3)
    sums = told(made)
    assert (sums[1].runs, sums[2].runs) == (1, 2)
    assert sums[1].cpu_s < 0.01 < sums[2].cpu_s
    assert sums[1].wall_s >= 0.02


def test_batches_add_up_and_begin_anew_once_they_are_told():
    made = Tally()
    for _ in range(2):
        made.turn(1, 0)
        spin(0.002)
        made.turn(None, 4)
    assert told(made)[1].runs == 8
    assert made.due() == b""


def test_sums_are_told_now_and_then_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tally, "_TELL_S", 1_000.0)
    made = Tally()
    made.turn(1, 0)
    spin(0.001)
    made.turn(None, 1)
    assert made.due() == b""


def test_a_short_stretch_is_not_worth_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tally, "_LEAST_S", 10.0)  # so that this is short however busy the machine
    made = Tally()
    made.turn(1, 0)
    made.turn(None, 1)
    assert made.due() == b""


def test_what_took_long_to_load_is_not_measured():
    made = Tally()
    made.turn(1, 0)
    made.spoil()
    spin(0.002)
    made.turn(None, 1)
    assert made.due() == b""


def test_reading_events_is_told_apart():
    made = Tally()
    made.turn(1, 0)
    made.unpacking_s += 0.5
    spin(0.001)
    made.turn(None, 1)
    assert told(made)[1].unpacking_s == 0.5


def test_a_thread_that_runs_now_was_given_a_core():
    assert 0 <= no_core_s() < time.monotonic()
