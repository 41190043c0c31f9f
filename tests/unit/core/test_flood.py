# SPDX-License-Identifier: MIT
"""The limit on a worker's log records, and the count of the others."""

import logging
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.core.flood import (
    BURST,
    ERROR_BURST,
    RATE,
    TELL_S,
    Allowance,
    Flood,
    describe_left_out,
)

#: Moments in seconds, in the order of the threads' arrival, which is not always the clock's.
moments = st.lists(st.floats(0, 100, allow_nan=False), min_size=1, max_size=200)


@given(moments, st.integers(1, 50), st.integers(1, 50))
def test_an_allowance_lets_no_more_through_than_burst_and_rate(
    times: list[float], rate: int, burst: int
) -> None:
    allowance = Allowance(rate, burst)
    taken = sum(allowance.take(now) for now in times)
    assert taken <= burst + rate * (max(times) - min(times)) + 1e-6


@given(moments, st.integers(1, 50), st.integers(1, 50))
def test_an_allowance_is_full_again_after_a_quiet_time(
    times: list[float], rate: int, burst: int
) -> None:
    allowance = Allowance(rate, burst)
    for now in times:
        allowance.take(now)
    later = max(times) + burst / rate + 1
    assert [allowance.take(later) for _ in range(burst + 1)] == [True] * burst + [False]


def test_after_the_burst_records_go_on_at_the_rate() -> None:
    flood = Flood()
    assert sum(flood.admits(logging.DEBUG, "h", 0.0) for _ in range(10_000)) == BURST
    assert sum(flood.admits(logging.DEBUG, "h", 1.0) for _ in range(10_000)) == RATE


@pytest.mark.parametrize("level", [logging.ERROR, logging.CRITICAL])
def test_errors_have_an_allowance_of_their_own_once_the_common_one_is_used_up(level: int) -> None:
    flood = Flood()
    for _ in range(10_000):
        flood.admits(logging.WARNING, "h", 0.0)
    assert sum(flood.admits(level, "h", 0.0) for _ in range(10_000)) == ERROR_BURST
    assert not flood.admits(logging.WARNING, "h", 0.0)


@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.floats(0, 60)), max_size=300))
def test_each_record_is_sent_or_reported_as_left_out(
    records: list[tuple[str | None, float]],
) -> None:
    flood = Flood()
    for _ in range(BURST):
        flood.admits(logging.INFO, "first", 0.0)
    let_out, told = 0, 0
    for handler, now in records:
        let_out += flood.admits(logging.INFO, handler, now)
        told += sum(flood.take_left_out(now).values())
    told += sum(flood.take_left_out(inf).values())
    assert let_out + told == len(records)
    assert not flood.left_out


def test_flood_is_reported_at_once_and_then_not_for_a_while() -> None:
    flood = Flood()
    assert flood.take_left_out(100.0) == {}
    flood.leave_out({"a": 2}, 100.0)
    flood.leave_out({"a": 1, None: 4}, 100.0)
    assert flood.take_left_out(100.0) == {"a": 3, None: 4}
    flood.leave_out({"a": 1}, 100.0)
    assert flood.take_left_out(100.0 + TELL_S / 2) == {}
    assert flood.left_out
    assert flood.take_left_out(100.0 + TELL_S) == {"a": 1}


def test_count_waits_in_a_flood_until_it_is_worth_a_line() -> None:
    flood = Flood()
    flood.leave_out({"a": 1}, 100.0)
    flood.leave_out({"a": 1}, 101.0)
    assert flood.take_left_out(101.0, midway=True) == {}
    assert flood.take_left_out(100.0 + TELL_S, midway=True) == {"a": 2}


def test_last_report_does_not_wait() -> None:
    flood = Flood()
    flood.leave_out({"a": 1}, 100.0)
    assert flood.take_left_out(100.0)
    flood.leave_out({"a": 1}, 100.0)
    assert flood.take_left_out(inf) == {"a": 1}


def test_the_line_names_the_handlers_that_were_loudest_first() -> None:
    line = describe_left_out({"shop.a": 10, None: 2, "shop.b": 98_000}, 12)
    assert line.startswith("worker 12 left out 98,012 log records or warnings")
    assert line.endswith(": shop.b 98,000, shop.a 10, threads that belong to no delivery 2")
