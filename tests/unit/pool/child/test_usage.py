"""The use of the machine by a worker's handlers."""

import time
from typing import Any

from procbus.pool.child.usage import TIMED, Sums, Tally


def sums_of(made: Tally) -> dict[int, Sums]:
    found: dict[int, Any] = made.rest()
    return {handler: Sums(*sums) for handler, sums in found.items()}


def spin(seconds: float) -> None:
    began = time.process_time()
    while time.process_time() - began < seconds:
        pass


class Runs:
    """A tally whose clock goes on only while a handler runs."""

    def __init__(self, report_s: float) -> None:
        self.now = 1000.0
        self.made = Tally(patience_s=0.0, report_s=report_s, clock=lambda: self.now)

    def run_for(self, seconds: float) -> None:
        self.now += 1e-6  # the next run is measured, since its patience has ended
        self.made.turn(1, 0)
        self.now += seconds
        self.made.turn(None, 1)


def test_a_stretch_of_one_handler_is_measured_as_one():
    made = Tally()
    made.turn(7, 0)
    spin(0.02)
    made.turn(None, 5)
    [(handler, sums)] = sums_of(made).items()
    assert (handler, sums.runs) == (7, 5)
    assert 0.02 <= sums.cpu_s <= sums.wall_s + 0.01


def test_handlers_that_take_turns_are_distinguished():
    made = Tally()
    made.turn(1, 0)
    time.sleep(0.02)
    made.turn(2, 1)
    spin(0.02)
    made.turn(None, 3)
    sums = sums_of(made)
    assert (sums[1].runs, sums[2].runs) == (1, 2)
    assert sums[1].cpu_s < 0.01 < sums[2].cpu_s
    assert sums[1].wall_s >= 0.02


def test_batches_add_up_and_begin_anew_once_they_are_reported():
    made = Tally(patience_s=0.0)
    for _ in range(2):
        made.turn(1, 0)
        spin(0.002)
        made.turn(None, 4)
    assert sums_of(made)[1].runs == 8
    assert made.rest() == {}


def test_the_first_sums_are_reported_at_once_and_more_of_them_now_and_then():
    runs = Runs(report_s=1_000.0)
    made = runs.made
    assert made.due() == {}
    runs.run_for(0.1)
    assert made.due()
    runs.run_for(0.005)
    assert made.due() == {}
    runs.run_for(0.006)
    assert made.due()[1][0] == 2, "more than a tenth of the reported ones"
    assert made.due() == {}


def test_small_sums_are_reported_when_a_report_is_due():
    runs = Runs(report_s=0.0)
    made = runs.made
    runs.run_for(0.1)
    assert made.due()
    runs.run_for(0.001)
    assert made.due()
    assert made.due() == {}, "there is nothing new"


def test_short_run_is_not_measured():
    made = Tally(least_s=10.0)  # so that this is short however busy the machine
    made.turn(1, 0)
    made.turn(None, 1)
    assert made.rest() == {}


def test_loading_is_not_measured_and_later_deliveries_are():
    made = Tally()
    made.turn(1, 0)
    spin(0.05)
    made.begin_anew(1, 2)
    spin(0.002)
    made.turn(None, 3)
    [(handler, sums)] = sums_of(made).items()
    assert (handler, sums.runs) == (1, 1)
    assert 0.002 <= sums.cpu_s < 0.05


def test_time_for_reading_events_is_counted_by_itself():
    made = Tally()
    made.turn(1, 0)
    made.unpacking_s += 0.5
    spin(0.001)
    made.turn(None, 1)
    assert sums_of(made)[1].unpacking_s == 0.5


def test_timed_readings_of_some_stand_for_all():
    made = Tally()
    made.turn(1, 0)
    made.unpacking_s += 0.2  # of the first, and of the eighth
    spin(0.001)
    made.turn(None, 10)
    assert sums_of(made)[1].unpacking_s == 1.0


def test_handlers_that_take_turns_each_have_some_that_were_timed():
    made = Tally()
    for done in range(TIMED * 2):
        made.turn(done % 2, done)
        made.unpacking_s += 0.0 if done % TIMED else 0.5
        spin(0.001)
    made.turn(None, TIMED * 2)
    sums = sums_of(made)
    assert [sums[handler].runs for handler in (0, 1)] == [7, 7]
    assert [sums[handler].unpacking_s for handler in (0, 1)] == [3.5, 3.5]
