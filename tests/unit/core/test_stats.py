# SPDX-License-Identifier: MIT
"""Snapshots of a bus's counters."""

import dataclasses

import pytest

from procbus import EventBus
from procbus.core.stats import HandlerStats, LaneStats, Percentiles, collect_stats
from procbus.testing import InlineBus
from tests.parts import BOUND_S, Held, double, subscription_of


def test_a_new_bus_has_done_nothing():
    with EventBus([]) as bus:
        stats = bus.stats()
    assert (stats.pending, stats.unrouted, dict(stats.handlers)) == (0, 0, {})
    assert dict(stats.lanes) == {"io": LaneStats(0, 0, 0, 0), "cpu": LaneStats(0, 0, 0, 0)}


def test_counts_of_a_handler_add_up():
    def fail(number: int) -> float:
        return 1 / number

    with InlineBus([]) as bus:
        bus.subscribe(int, fail, name="fail")
        for number in range(3):
            bus.publish(number)
        handler = bus.stats().handlers["fail"]
    assert (handler.published, handler.succeeded, handler.failed) == (3, 2, 1)
    assert (handler.cancelled, handler.pending) == (0, 0)
    assert handler.average_s is not None


def test_lane_shows_its_waiting_and_running_deliveries():
    held = Held()
    with EventBus([]) as bus:
        bus.subscribe(int, held, concurrency=2)
        for number in range(5):
            bus.publish(number)
        held.wait_begun(2)
        stats = bus.stats()
        held.go.set()
    assert stats.pending == 5
    assert stats.lanes["io"].depth == 3
    assert stats.lanes["io"].busy == 2
    assert stats.lanes["io"].workers >= 2


def test_handlers_on_the_event_loop_are_of_the_io_lane():
    async def handle(event: int) -> int:
        return event

    with EventBus([]) as bus:
        bus.subscribe(int, handle)
        bus.publish(1).result(BOUND_S)
        assert bus.stats().lanes["io"].workers == 1


def test_handlers_of_one_name_are_counted_together():
    one, other = subscription_of(name="same"), subscription_of(name="same")
    one.published, one.succeeded, one.stopped = 3, 2, 1
    other.published, other.unqueued, other.failed, other.cancelled = 4, 1, 3, 1
    one.retried, other.retried = 1, 2
    one.timed_out, other.timed_out = 3, 4
    one.crashed, other.crashed = 5, 6
    one.over_memory, other.over_memory = 7, 8
    other.average_s = 0.5
    stats = collect_stats(1, 0, [one, other], {}, running={"same": 4, "another": 9})
    assert dict(stats.handlers) == {
        "same": HandlerStats(
            published=8,
            running=4,
            succeeded=2,
            failed=3,
            retried=3,
            timed_out=7,
            crashed=11,
            over_memory=15,
            cancelled=2,
            average_s=0.5,
        )
    }
    assert stats.handlers["same"].pending == 1


def test_times_of_handlers_of_one_name_are_taken_together():
    one, other = subscription_of(name="same"), subscription_of(name="same")
    one.queued.add(0.001, 90)
    other.queued.add(1.0, 10)
    other.ran.add(0.02)
    handler = collect_stats(0, 0, [one, other], {}).handlers["same"]
    assert handler.queue_s.p50 == pytest.approx(0.001, rel=0.045)
    assert handler.queue_s.p90 == pytest.approx(0.001, rel=0.045)
    assert handler.queue_s.p99 == pytest.approx(1.0, rel=0.045)
    assert handler.run_s.p50 == handler.run_s.p99 == pytest.approx(0.02, rel=0.045)
    # The subscription's own are as they were.
    assert (one.queued.count, other.queued.count) == (90, 10)


def test_a_handler_that_never_ran_has_no_times():
    handler = collect_stats(0, 0, [subscription_of(name="new")], {}).handlers["new"]
    assert handler == HandlerStats()
    assert handler.queue_s == handler.run_s == Percentiles(None, None, None)


def test_counters_of_the_bus_are_passed_on():
    stats = collect_stats(5, 1, [], {}, retrying=3, dead_letters=2)
    assert (stats.pending, stats.unrouted, stats.retrying, stats.dead_letters) == (5, 1, 3, 2)


def test_percentiles_are_shown_as_people_read_them():
    assert repr(Percentiles(0.0015, 0.02, 3)) == "<p50 1.5 ms, p90 20 ms, p99 3.0 s>"
    assert repr(Percentiles()) == "<nothing measured>"
    assert "queue_s=<nothing measured>" in repr(HandlerStats())


def test_printing_the_statistics_shows_each_handler():
    with InlineBus([]) as bus:
        bus.subscribe(int, double)
        bus.publish(1)
        text = str(bus.stats())
    assert text.startswith("0 pending")
    row = next(line for line in text.splitlines() if line.startswith("tests.parts.double"))
    assert row.split()[1:5] == ["1", "0", "0", "1"]


def test_times_of_a_handler_are_measured():
    with InlineBus([]) as bus:
        bus.subscribe(int, double)
        for number in range(100):
            bus.publish(number)
        handler = bus.stats().handlers["tests.parts.double"]
    for times in (handler.queue_s, handler.run_s):
        assert times.p50 is not None
        assert times.p90 is not None
        assert times.p99 is not None
        assert 0 <= times.p50 <= times.p90 <= times.p99 < BOUND_S


def test_a_snapshot_does_not_change():
    with InlineBus([]) as bus:
        bus.subscribe(int, double)
        stats = bus.stats()
        bus.publish(1)
        handler = stats.handlers["tests.parts.double"]
        assert handler.published == 0
        with pytest.raises(dataclasses.FrozenInstanceError):
            stats.pending = 1  # type: ignore[misc] # the point
        with pytest.raises(TypeError):
            stats.handlers["x"] = handler  # type: ignore[index] # the point
        with pytest.raises(TypeError):
            stats.lanes["x"] = stats.lanes["io"]  # type: ignore[index] # the point
