"""The sums of a handler's runs."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.core.meter import Doing, Meter, Span, share_bounds


def around(value: float) -> Any:
    return pytest.approx(value)


def meter_of(*runs: tuple[float, float], weight: int = 1) -> Meter:
    """A meter of runs one after the other: wall and CPU seconds of each."""
    meter, now = Meter(), 1_000.0
    for wall_s, cpu_s in runs:
        now += wall_s
        meter.note_run(now, wall_s, cpu_s, weight)
    return meter


def look(meter: Meter, doing: Doing, times: int) -> None:
    for _ in range(times):
        meter.note_look({doing: 1.0})


def test_meter_is_empty_before_the_first_run():
    evidence = Meter().evidence("io", False, 0.0)
    assert (evidence.kind, evidence.runs, evidence.seen_s) == ("io", 0, 0.0)


def test_runs_are_averaged():
    evidence = meter_of((0.1, 0.02), (0.3, 0.04)).evidence("io", False, 7.0)
    assert evidence.runs == 2
    assert evidence.wall_s == around(0.2)
    assert evidence.cpu_s == around(0.03)
    assert evidence.queue_s == 7.0


def test_run_counts_with_its_weight():
    evidence = meter_of((1e-4, 5e-5), weight=61).evidence("io", False, 0.0)
    assert evidence.runs == 61
    assert evidence.wall_s == pytest.approx(1e-4)


def test_a_sample_stands_for_no_more_runs_than_there_were():
    meter = meter_of((1e-4, 1e-4), weight=61)
    all_of_them, ten = meter.evidence("io", False, 0.0), meter.evidence("io", False, 0.0, 10)
    assert ten.runs == 10
    assert ten.load == pytest.approx(all_of_them.load * 10 / 61)
    assert ten.cpu_s == all_of_them.cpu_s


def test_a_run_takes_no_more_cpu_time_than_time():
    assert meter_of((0.1, 0.2)).evidence("io", False, 0.0).cpu_s == around(0.1)


def test_runs_at_once_are_counted_as_such():
    meter = Meter()
    for turn in range(1, 51):
        for offset in range(4):
            meter.note_run(turn * 0.1 + offset * 1e-6, 0.1, 0.025)
    evidence = meter.evidence("io", False, 0.0)
    assert evidence.at_once == pytest.approx(4, rel=0.1)
    assert evidence.load == pytest.approx(1, rel=0.1)


def test_pause_does_not_count_as_time_in_use():
    meter = meter_of((0.1, 0.1))
    meter.note_run(5_000.0, 0.1, 0.1)
    assert meter.evidence("io", False, 0.0).load > 0.4


def test_without_a_look_the_bounds_are_widest():
    evidence = meter_of((0.1, 0.04)).evidence("io", False, 0.0)
    assert evidence.gil_s == Span(0.0, around(0.04))
    assert evidence.wait_s == Span(0.0, around(0.06))


def test_looks_tell_whether_it_holds_the_gil():
    holding, free = meter_of((0.1, 0.1)), meter_of((0.1, 0.1))
    look(holding, Doing.HOLDS, 50)
    look(free, Doing.FREE, 50)
    assert holding.evidence("io", False, 0.0).gil_s.low > 0.09
    assert free.evidence("io", False, 0.0).gil_s.high < 0.01


def test_waiting_for_the_gil_is_no_waiting():
    meter = meter_of((0.4, 0.1))
    look(meter, Doing.HOLDS, 50)
    look(meter, Doing.QUEUES, 150)
    assert meter.evidence("io", False, 0.0).wait_s.high < 0.01


def test_waiting_follows_from_the_ratio_of_waiting_to_computing_looks():
    meter = meter_of((0.4, 0.1))
    look(meter, Doing.HOLDS, 60)
    look(meter, Doing.WAITS, 60)
    look(meter, Doing.QUEUES, 120)
    low, high = meter.evidence("io", False, 0.0).wait_s
    assert low < 0.1 < high
    assert high - low < 0.06


def test_median_of_short_runs_tells_their_waiting():
    runs = [(5e-5, 5e-5)] * 95 + [(5e-3, 5e-5)] * 5  # of some the GIL was taken
    evidence = meter_of(*runs).evidence("io", False, 0.0)
    assert evidence.wait_s.high < 1e-5
    assert evidence.gil_s == Span(evidence.cpu_s, evidence.cpu_s)


def test_a_worker_without_cpu_time_waits():
    evidence = meter_of((0.1, 0.01)).evidence("cpu", False, 0.0)
    assert evidence.kind == "cpu"
    assert evidence.wait_s == Span(around(0.09), around(0.09))
    assert evidence.gil_s == Span(0.0, around(0.01))


def test_without_a_gil_a_thread_waits_while_it_neither_computes_nor_lacks_a_core():
    meter = Meter()
    for number in range(10):
        meter.note_run(1_000.0 + number, 0.1, 0.03, starved_s=0.02)
    evidence = meter.evidence("io", False, 0.0, gil=False)
    assert evidence.gil_s == (0.0, 0.0)
    assert evidence.wait_s == (around(0.045), around(0.05))


def test_without_a_gil_a_thread_that_lacks_a_core_does_not_wait():
    meter = Meter()
    meter.note_run(1_000.0, 0.1, 0.03, starved_s=0.07)
    evidence = meter.evidence("io", False, 0.0, gil=False)
    assert evidence.wait_s == (around(0.0), around(0.0))


def test_async_handler_may_have_waited_for_others_that_compute():
    quiet, busy = Meter(), Meter()
    quiet.note_run(1.0, 0.1, 0.01, suspended_s=0.08)
    busy.note_run(1.0, 0.1, 0.09, suspended_s=0.008)
    # Of the first the rest was no waiting: it could not run for want of a core.
    assert quiet.evidence("io", True, 0.0).wait_s == Span(around(0.08), around(0.08))
    assert busy.evidence("io", True, 0.0).wait_s == Span(0.0, around(0.008))


def test_runs_long_ago_count_less_and_less():
    meter = meter_of(*[(0.5, 0.5)] * 400, *[(0.5, 0.0)] * 800)
    assert meter.evidence("io", False, 0.0).cpu_s < 0.1
    look(meter, Doing.HOLDS, 8_000)
    look(meter, Doing.FREE, 30_000)
    assert meter.looks <= 4_000
    evidence = meter.evidence("io", False, 0.0)
    assert evidence.gil_s.high < evidence.cpu_s / 20


def test_weighing_is_averaged_too():
    meter = meter_of((0.1, 0.1))
    meter.note_weight(1.0)
    assert meter.evidence("io", False, 0.0).transport_s == 1.0
    meter.note_weight(2.0)
    evidence = meter.evidence("io", False, 0.0)
    assert 1.0 < evidence.transport_s < 2.0
    assert evidence.unpacking_s == evidence.transport_s


def test_cleared_meter_forgets():
    meter = meter_of((0.1, 0.1))
    meter.note_weight(1.0)
    look(meter, Doing.FREE, 3)
    meter.clear()
    assert meter.evidence("io", False, 0.0) == Meter().evidence("io", False, 0.0)
    assert meter.looks == 0


@given(st.integers(0, 10_000), st.integers(1, 10_000))
def test_a_share_lies_within_its_bounds(count: int, more: int):
    low, high = share_bounds(count, count + more)
    assert 0 <= low <= count / (count + more) <= high <= 1


@given(st.floats(0, 1), st.integers(1, 1_000))
def test_more_looks_make_the_bounds_narrower(part: float, total: int):
    few, many = share_bounds(part * total, total), share_bounds(part * 4 * total, 4 * total)
    assert many.high - many.low <= few.high - few.low


def test_share_without_a_look_has_the_widest_bounds():
    assert share_bounds(0, 0) == Span(0.0, 1.0)
