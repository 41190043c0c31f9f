# SPDX-License-Identifier: MIT
"""Bars: their figures, and these as text."""

import pytest

from procbus.progress.bar import (
    Bar,
    BusFacts,
    LaneCounts,
    Reading,
    Standing,
    last_line_of,
    line_of,
    rate_text,
    time_text,
)

LANES = (LaneCounts("io", 3, 120), LaneCounts("cpu", 2, 8000))
FACTS = BusFacts(lambda: LANES, lambda: ["page: 4,211 of 5,000\x1b[2J"], lambda: False)


class Work:
    """Work that goes on as the test says, at a time that the test says."""

    def __init__(self, total: int | None) -> None:
        self.tally = Standing(0, total, 0)
        self.now = 100.0
        self.bar = Bar("events", lambda: self.tally, FACTS, clock=lambda: self.now)

    def at(self, elapsed_s: float, done: int, failed: int = 0) -> Reading:
        self.now = 100.0 + elapsed_s
        self.tally = self.tally._replace(done=done, failed=failed)
        return self.bar.read()


def test_the_remaining_time_follows_from_the_rate_of_the_last_seconds() -> None:
    work = Work(1000)
    assert (work.at(0, 0).rate, work.at(0.1, 0).left_s) == (None, None)
    assert work.at(1, 100).rate == pytest.approx(100)
    for second in range(2, 40):
        reading = work.at(second, 100 + 10 * (second - 1))
    assert reading.rate == pytest.approx(10)
    assert reading.left_s == pytest.approx((1000 - reading.done) / 10)
    work.now += 1
    assert work.bar.read_last().rate == pytest.approx(reading.done / 40), "of the whole time"


@pytest.mark.parametrize(
    ("total", "done", "part"), [(None, 3, None), (0, 0, 1), (4, 3, 0.75), (4, 5, 1)]
)
def test_the_part_that_is_done_is_at_most_one(total, done, part) -> None:
    assert Work(total).at(1, done).part == part


def test_a_line_tells_figures_lanes_and_running_handlers() -> None:
    assert line_of(Work(5000).at(2, 4211, 3)) == (
        "events: 4,211 of 5,000 (84%), 2,106/s, 0:00 left, 3 failed; io 3 running, 120 queued; "
        "cpu 2 running, 8,000 queued; page: 4,211 of 5,000\\x1b[2J"
    )
    assert line_of(Work(None).at(75, 3)).startswith(
        "events: 3 done, 2.4/min, 1:15 so far, 0 failed"
    )


def test_the_last_line_tells_how_long_it_took() -> None:
    work = Work(4)
    work.at(2, 4, 1)
    assert last_line_of(work.bar.read_last()) == "events: 4 of 4 (100%) in 2.0 s, 2.0/s, 1 failed"


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        *((None, "-/s"), (0, "0/s"), (12345, "12,345/s"), (9.96, "10/s"), (1.5, "1.5/s")),
        *((0.5, "30.0/min"), (0.001, "3.6/h")),
    ],
)
def test_a_rate_has_the_unit_that_suits_it(rate, text) -> None:
    assert rate_text(rate) == text


@pytest.mark.parametrize(
    ("value_s", "text"), [(0, "0:00"), (75.4, "1:15"), (3599.6, "1:00:00"), (90061, "25:01:01")]
)
def test_times(value_s, text) -> None:
    assert time_text(value_s) == text
