# SPDX-License-Identifier: MIT
"""The pacer: how many runs begin in any window, by a clock of the test."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus import DeliveryState, EventBus
from procbus.bus import parts_of
from procbus.lanes.pacer import Pacer
from procbus.testing import Clock, InlineBus
from tests.windows import most_in_a_window


@given(
    count=st.integers(1, 5),
    period_s=st.sampled_from([0.5, 1, 10]),
    steps=st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 20)), max_size=40),
)
def test_no_window_has_more_runs_than_the_rate_and_none_is_lost(
    count: int, period_s: float, steps: list[tuple[str, float]]
) -> None:
    clock = Clock()
    began: dict[str, list[float]] = defaultdict(list)
    bus = InlineBus(handlers=[], clock=clock)
    bus.subscribe(
        "page",
        lambda host: began[host].append(clock.now()),
        rate=f"{count}/{period_s}s",
        rate_key=str,
    )

    for host, wait_s in steps:
        bus.publish("page", host)
        clock.advance(wait_s)
    bus.drain()

    assert sorted(host for host, times in began.items() for _ in times) == sorted(
        host for host, _ in steps
    )
    for times in began.values():
        assert most_in_a_window(times, period_s) <= count


def test_a_rate_is_used_up() -> None:
    clock, began = Clock(), list[float]()
    bus = InlineBus(handlers=[], clock=clock)
    bus.subscribe("n", lambda n: began.append(clock.now()), rate="10/s")

    for n in range(1000):
        bus.publish("n", n)
    bus.drain()

    assert len(began) == 1000
    assert began[-1] <= 99 / 0.98  # 100 windows: the last begins after 99 periods


def test_held_events_are_in_the_statistics_and_pass_in_order() -> None:
    clock, seen = Clock(), list[int]()
    bus = InlineBus(handlers=[], clock=clock)
    bus.subscribe("n", seen.append, name="see", rate="2/min")

    receipts = [bus.publish("n", n) for n in range(5)]
    stats = bus.stats().handlers["see"]

    assert seen == [0, 1]
    assert (stats.published, stats.pending, stats.held) == (5, 3, 3)
    assert "held" in str(bus.stats())

    clock.advance(61)

    assert seen == [0, 1, 2, 3]
    assert not receipts[4].done
    bus.drain()
    assert seen == [0, 1, 2, 3, 4]
    assert bus.stats().handlers["see"].held == 0


def test_a_held_event_can_be_cancelled() -> None:
    clock, seen = Clock(), list[int]()
    bus = InlineBus(handlers=[], clock=clock)
    bus.subscribe("n", seen.append, name="see", rate="1/min")
    receipts = [bus.publish("n", n) for n in range(3)]

    receipts[1].cancel()
    bus.drain()

    assert seen == [0, 2]
    assert receipts[1].deliveries[0].state is DeliveryState.CANCELLED
    stats = bus.stats().handlers["see"]
    assert (stats.published, stats.succeeded, stats.cancelled, stats.pending) == (3, 2, 1, 0)


def test_each_attempt_counts() -> None:
    clock, began = Clock(), list[float]()

    def fail_at_first(n: int) -> None:
        began.append(clock.now())
        if len(began) < 3:
            raise ValueError(n)

    bus = InlineBus(handlers=[], clock=clock)
    bus.subscribe("n", fail_at_first, rate="1/10s", retries=2, backoff=0)
    receipt = bus.publish("n", 1)
    bus.drain()

    assert receipt.deliveries[0].state is DeliveryState.SUCCEEDED
    assert most_in_a_window(began, 10) == 1


def test_without_a_clock_of_the_test_held_events_run_at_once() -> None:
    seen = list[int]()
    bus = InlineBus(handlers=[])
    bus.subscribe("n", seen.append, rate="1/hour")

    for n in range(5):
        bus.publish("n", n)

    assert seen == [0, 1, 2, 3, 4]
    assert bus.clock.now() >= 4 * 3600


def test_keys_are_forgotten_once_their_period_is_over() -> None:
    clock = Clock()
    bus = InlineBus(handlers=[], clock=clock)
    bus.subscribe("host", str.upper, rate="5/s", rate_key=str)
    bus.publish("host", "the first")
    [subscription] = parts_of(bus).subscriptions.all()
    pacer = subscription.lane
    assert isinstance(pacer, Pacer)

    most = 0
    for number in range(5_000):
        bus.publish("host", f"host {number}")
        clock.advance(0.1)  # so that about ten of them are in one period
        most = max(most, pacer.keys)

    assert most < 300


@pytest.mark.parametrize("key", [object(), [1], ("a", 1)])
def test_a_key_that_is_not_plain_fails_its_event_alone(key: Any) -> None:
    seen = list[object]()
    bus = InlineBus(handlers=[])
    bus.subscribe("n", seen.append, rate="9/s", rate_key=lambda n: key if n == 1 else n)

    with pytest.raises(TypeError, match="rate_key= must return a str"):
        bus.publish("n", 1).result()
    bus.publish("n", 2).result()

    assert seen == [2]


def test_an_error_of_rate_key_fails_its_event_alone() -> None:
    bus = InlineBus(handlers=[])
    bus.subscribe("n", print, rate="9/s", rate_key=lambda event: event.host)

    with pytest.raises(AttributeError) as caught:
        bus.publish("n", 1).result()
    assert "raised by rate_key= of builtins.print" in caught.value.__notes__


def test_closing_with_cancel_settles_held_events() -> None:
    bus = EventBus(handlers=[])
    bus.subscribe("n", abs, rate="1/day")
    with bus:
        receipts = [bus.publish("n", n) for n in range(3)]
        receipts[0].wait()
        bus.close(cancel=True)

    states = [receipt.deliveries[0].state for receipt in receipts]
    assert states == [DeliveryState.SUCCEEDED, *[DeliveryState.CANCELLED] * 2]
    assert bus.stats().pending == 0


def test_held_events_of_many_keys_pass_each_at_the_time_of_its_key() -> None:
    clock, passed = Clock(), list[tuple[int, float]]()
    bus = InlineBus(handlers=[], clock=clock)
    bus.subscribe(
        "n",
        lambda n: passed.append((n % 300, clock.now())),
        rate="1/min",
        rate_key=lambda n: n % 300,
    )
    for n in range(300):
        bus.publish("n", n)
        clock.advance(0.1)
    gone = [bus.publish("n", n) for n in range(300, 600)]
    for receipt in gone[::3]:
        receipt.cancel()
    passed.clear()
    clock.advance(100)

    kept = [key for key in range(300) if key % 3]
    assert [key for key, _ in passed] == kept
    for key, at in passed:
        assert 60 - 1e-6 <= at - key * 0.1 <= 60.2


def test_held_events_that_are_tried_again_keep_the_order_in_which_they_failed() -> None:
    clock, seen = Clock(), list[int]()
    bus = InlineBus(handlers=[], clock=clock)

    def flaky(n: int) -> None:
        seen.append(n)
        if seen.count(n) == 1:
            raise ConnectionError(n)

    bus.subscribe("n", flaky, name="flaky", rate="3/min", retries=1, backoff=1)
    receipts = [bus.publish("n", n) for n in range(5)]
    clock.advance(2)
    assert seen == [0, 1, 2]
    assert bus.stats().handlers["flaky"].held == 5
    assert bus.cancel(where=lambda event: event == 1)
    bus.drain()

    assert receipts[1].done
    assert seen == [0, 1, 2, 0, 2, 3, 3, 4, 4]


@pytest.mark.parametrize(
    ("rate", "period_s"), [("2/min", 60.0), ("2/0.3s", 0.3), ("2/day", 86_400.0)]
)
def test_clock_of_a_test_needs_no_more_than_the_period(rate: str, period_s: float) -> None:
    clock, seen = Clock(), list[int]()
    bus = InlineBus(handlers=[], clock=clock)
    bus.subscribe("number", seen.append, rate=rate)
    for number in range(7):
        bus.publish("number", number)
    for round_ in range(1, 4):
        assert seen == list(range(2 * round_))
        clock.advance(period_s * 0.99)
        assert seen == list(range(2 * round_))
        clock.advance(period_s * 0.011)
    assert seen == list(range(7))
