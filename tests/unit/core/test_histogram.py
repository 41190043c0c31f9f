# SPDX-License-Identifier: MIT
"""Durations in buckets: the precision of quantiles, and sums of histograms."""

import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.core.histogram import Histogram
from tests.parts import BOUND_S, in_thread

#: The promise of the docstring: half a bucket, 2 ** (1 / 16) - 1 = 4.43 %.
ERROR = 0.045

durations = st.floats(1e-12, 1e9)
weighted = st.lists(st.tuples(durations, st.integers(1, 50)), max_size=60)
shares = st.floats(0.0, 1.0)


def histogram_of(*values: float | tuple[float, int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.add(*value if isinstance(value, tuple) else (value,))
    return histogram


def exact(values: list[float], q: float) -> float:
    """The smallest of the values such that a share `q` of them is no greater."""
    return sorted(values)[max(0, math.ceil(q * len(values)) - 1)]


def test_empty_histogram_has_no_quantile():
    empty = Histogram()
    assert (empty.count, empty.total, empty.quantile(0.5)) == (0, 0.0, None)


@given(st.lists(durations, min_size=1), shares)
def test_a_quantile_is_near_the_exact_one(values: list[float], q: float):
    assert histogram_of(*values).quantile(q) == pytest.approx(exact(values, q), rel=ERROR)


@given(st.lists(st.tuples(durations, st.integers(1, 50)), min_size=1, max_size=60), shares)
def test_weight_counts_as_that_number_of_durations(pairs: list[tuple[float, int]], q: float):
    values = [value for value, weight in pairs for _ in range(weight)]
    histogram = histogram_of(*pairs)
    assert histogram.count == len(values)
    assert histogram.total == pytest.approx(math.fsum(values))
    assert histogram.quantile(q) == pytest.approx(exact(values, q), rel=ERROR)


@given(weighted, weighted, shares)
def test_merging_equals_adding(
    one: list[tuple[float, int]], other: list[tuple[float, int]], q: float
):
    merged, second = histogram_of(*one), histogram_of(*other)
    before = (second.count, second.total, second.quantile(q))
    merged.merge(second)
    together = histogram_of(*one, *other)
    assert merged.count == together.count
    assert merged.total == pytest.approx(together.total)
    assert merged.quantile(q) == together.quantile(q)
    assert (second.count, second.total, second.quantile(q)) == before


@given(st.lists(durations, min_size=1), shares, shares)
def test_a_greater_share_has_no_smaller_quantile(values: list[float], one: float, other: float):
    histogram = histogram_of(*values)
    low, high = (histogram.quantile(q) for q in sorted((one, other)))
    assert low is not None
    assert high is not None
    assert low <= high


def test_merging_with_itself_doubles_it():
    histogram = histogram_of(1.0, (2.0, 3), 0.0)
    histogram.merge(histogram)
    assert (histogram.count, histogram.total) == (10, 14.0)


@pytest.mark.parametrize("value", [0.0, -0.0, -1.5, -math.inf, math.nan])
def test_duration_that_is_not_positive_counts_as_zero(value: float):
    histogram = histogram_of((value, 2), 1.0)
    assert (histogram.count, histogram.total) == (3, 1.0)
    assert histogram.quantile(0.5) == 0.0


@pytest.mark.parametrize("value", [5e-324, 1e-310, 1e-300, 1e300])
def test_zero_and_the_longest_durations_are_counted_in_order(value: float):
    histogram = histogram_of(0.0, value)
    assert histogram.quantile(0.0) == 0.0
    last = histogram.quantile(1.0)
    assert last is not None
    assert last > 0.0


def test_durations_around_a_second_are_distinguished():
    # The logarithm changes its sign there.
    assert histogram_of(0.95).quantile(0.5) != histogram_of(1.05).quantile(0.5)


@pytest.mark.parametrize("q", [-0.01, 1.01, math.nan, 50])
def test_a_share_out_of_bounds_is_refused(q: float):
    with pytest.raises(ValueError, match="from 0 to 1"):
        histogram_of(1.0).quantile(q)


def test_reading_while_a_thread_adds_never_fails():
    histogram, stop = Histogram(), threading.Event()

    def keep_adding() -> None:
        value = 1e-9
        while not stop.is_set():
            value = value * 1.1 if value < 1e9 else 1e-9
            histogram.add(value)

    thread = in_thread(keep_adding)
    try:
        for _ in range(500):
            copy = Histogram()
            copy.merge(histogram)
            assert copy.count <= histogram.count
            assert copy.count == 0 or copy.quantile(0.5) is not None
    finally:
        stop.set()
        thread.join(BOUND_S)
    assert not thread.is_alive()


@given(weighted)
def test_number_of_durations_shorter_than_a_power_of_two_is_exact(values: list[tuple[float, int]]):
    octaves = range(-10, 11)
    counts = histogram_of(*values).shorter_than(octaves)
    for octave, count in zip(octaves, counts, strict=True):
        assert count == sum(weight for value, weight in values if value < 2.0**octave)
