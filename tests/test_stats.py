# SPDX-License-Identifier: MIT
"""Snapshots of what a bus has done."""

import dataclasses

import pytest

from procbus import EventBus
from procbus.stats import HandlerStats, LaneStats, collect_stats
from tests.parts import BOUND_S, Held, double, subscription_of


def test_a_new_bus_has_done_nothing():
    with EventBus([]) as bus:
        stats = bus.stats()
    assert (stats.pending, stats.unrouted, dict(stats.handlers)) == (0, 0, {})
    assert dict(stats.lanes) == {"io": LaneStats(0, 0, 0, 0), "cpu": LaneStats(0, 0, 0, 0)}


def test_counts_of_a_handler_add_up():
    def fail(number: int) -> float:
        return 1 / number

    with EventBus([]) as bus:
        bus.subscribe(int, fail, name="fail")
        for number in range(3):
            bus.publish(number)
        bus.drain()
        handler = bus.stats().handlers["fail"]
    assert (handler.published, handler.succeeded, handler.failed) == (3, 2, 1)
    assert (handler.cancelled, handler.pending) == (0, 0)
    assert handler.average_s is not None


def test_a_lane_shows_what_waits_and_what_runs():
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
    one.published, one.succeeded = 3, 2
    other.published, other.failed, other.unqueued = 2, 3, 1
    other.average_s = 0.5
    other.cancelled, one.stopped = 0, 1
    stats = collect_stats(1, 0, [one, other], {})
    assert dict(stats.handlers) == {"same": HandlerStats(6, 2, 3, 1, 0.5)}
    assert stats.handlers["same"].pending == 0


def test_a_snapshot_does_not_change():
    with EventBus([]) as bus:
        bus.subscribe(int, double)
        stats = bus.stats()
        bus.publish(1).result(BOUND_S)
        handler = stats.handlers["tests.parts.double"]
        assert handler.published == 0
        with pytest.raises(dataclasses.FrozenInstanceError):
            stats.pending = 1  # type: ignore[misc] # the point
        with pytest.raises(TypeError):
            stats.handlers["x"] = handler  # type: ignore[index] # the point
        with pytest.raises(TypeError):
            stats.lanes["x"] = stats.lanes["io"]  # type: ignore[index] # the point
