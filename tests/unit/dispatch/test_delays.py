"""Delayed events: each runs once, not before its time, and in the order of the times."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus import BusClosed, DeliveryState, EventBus, Receipt, current
from procbus.bus import parts_of
from procbus.dispatch.retry_queue import Due, RetryQueue
from procbus.testing import Clock, InlineBus
from tests.parts import delivery_to, subscription_of
from tests.waits import BOUND_S


class Runs:
    """A bus whose handler notes each event and the time."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.bus = InlineBus([], clock=Clock() if clock is None else clock)
        self.seen: list[tuple[Any, float]] = []
        self.bus.subscribe("n", self.note)

    def note(self, event: Any) -> None:
        self.seen.append((event, self.bus.clock.now()))

    @property
    def held(self) -> int:
        [stats] = self.bus.stats().handlers.values()
        assert stats.published == stats.pending + stats.succeeded + stats.cancelled
        return stats.held


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(0, 50)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("advance"), st.integers(0, 20)),
    ),
    max_size=60,
)


@given(STEPS)
def test_each_runs_once_at_its_time_in_order_unless_it_was_cancelled(
    steps: list[tuple[str, int]],
) -> None:
    runs = Runs()
    receipts: list[Receipt[Any, Any]] = []
    due: dict[int, float] = {}
    gone: set[int] = set()
    for what, number in steps:
        now = runs.bus.clock.now()
        if what == "publish":
            due[len(receipts)] = now + number
            receipts.append(runs.bus.publish("n", len(receipts), delay=number))
        elif what == "advance":
            runs.bus.clock.advance(number)
        elif number < len(receipts):
            receipts[number].cancel()
            if due[number] > now:
                gone.add(number)
        now = runs.bus.clock.now()
        assert runs.held == sum(at > now for each, at in due.items() if each not in gone)
    runs.bus.clock.advance(1_000)

    assert sorted(runs.seen) == sorted((each, due[each]) for each in due if each not in gone)
    times = [at for _, at in runs.seen]
    assert times == sorted(times)
    at_once = [each for each, at in runs.seen if runs.seen.count((each, at)) > 1]
    assert at_once == []
    assert runs.bus.stats().pending == runs.held == 0
    states = [receipt.deliveries[0].state for receipt in receipts]
    cancelled = {n for n, state in enumerate(states) if state is DeliveryState.CANCELLED}
    assert cancelled == gone


def test_events_of_one_time_run_in_the_order_of_their_publishing() -> None:
    runs = Runs()
    for number in range(20):
        runs.bus.publish("n", number, delay=5)
    runs.bus.clock.advance(5)
    assert [event for event, _ in runs.seen] == list(range(20))


def test_delay_does_not_pass_by_itself_on_a_bus_for_tests() -> None:
    runs = Runs(Clock(auto=True))
    receipt = runs.bus.publish("n", 1, delay="1 h")
    assert not receipt.done
    runs.bus.clock.advance(3_600)
    assert runs.seen == [(1, 3_600.0)]


def test_drain_of_a_bus_for_tests_goes_on_to_the_last_delayed_event() -> None:
    runs = Runs()
    runs.bus.publish("n", 1, delay=60)
    runs.bus.publish("n", 2, at=datetime.now() + timedelta(seconds=30))
    assert runs.bus.drain()
    assert [event for event, _ in runs.seen] == [2, 1]


def test_time_that_is_over_runs_the_event_at_once() -> None:
    runs = Runs()
    assert runs.bus.publish("n", 1, at=datetime(2001, 1, 1)).done
    assert runs.bus.publish("n", 2, delay=0).done


def test_handler_that_publishes_itself_with_a_delay_runs_at_each_of_its_times() -> None:
    clock = Clock()
    bus = InlineBus([], clock=clock)
    seen: list[float] = []

    def again(number: int) -> None:
        seen.append(clock.now())
        current().publish("again", number + 1, delay=60)

    bus.subscribe("again", again)
    bus.publish("again", 0)
    clock.advance(150)
    assert seen == [0.0, 60.0, 120.0]
    assert bus.cancel() == 1


def test_delay_in_a_cpu_handler_counts_from_its_success() -> None:
    clock = Clock()
    bus = InlineBus([], clock=clock, pickling=True)
    seen: list[float] = []

    def begin(number: int) -> None:
        current().publish("end", number, delay=5)
        clock.advance(2)

    with bus:
        bus.subscribe("begin", begin, kind="cpu")
        bus.subscribe("end", lambda _: seen.append(clock.now()))
        bus.publish("begin", 1)
        clock.advance(10)
    assert seen == [7.0]


def test_closing_bus_that_cancels_runs_no_delayed_event() -> None:
    runs = Runs()
    receipt = runs.bus.publish("n", 1, delay=60)
    runs.bus.close(cancel=True)
    assert receipt.deliveries[0].state is DeliveryState.CANCELLED
    assert runs.seen == []


def test_event_is_refused_once_no_thread_can_wait_for_its_time() -> None:
    with EventBus([]) as bus:
        bus.subscribe("n", print)
        parts_of(bus).settlement.delays.keep_time = lambda: False
        with pytest.raises(BusClosed, match="no event can be delayed any more"):
            bus.publish("n", 1, delay=60)
        assert bus.stats().pending == 0


def test_closed_bus_says_so_to_a_delayed_event() -> None:
    bus = EventBus([])
    bus.subscribe("n", print)
    bus.close()
    with pytest.raises(BusClosed, match="the bus is closed"):
        bus.publish("n", 1, delay=60)


def test_publisher_that_waits_for_room_is_let_in_by_a_cancelled_delay() -> None:
    with EventBus([], max_pending=1, on_full="raise") as bus:
        bus.subscribe("n", abs)
        held = bus.publish("n", 1, delay=3_600)
        assert bus.stats().pending == 1
        held.cancel()
        assert bus.publish("n", -2).result(BOUND_S) == 2


class Times:
    """Two clocks, of which one may be set."""

    def __init__(self) -> None:
        self.now, self.wall = 0.0, 1_000.0

    def queue(self) -> RetryQueue:
        return RetryQueue(clock=lambda: self.now, wall=lambda: self.wall)


@pytest.mark.parametrize("set_forward_s", [0.0, 30.0, -30.0])
def test_clock_that_is_set_moves_a_datetime_and_no_delay(set_forward_s: float) -> None:
    times = Times()
    queue = times.queue()
    subscription = subscription_of()
    delayed, dated = (delivery_to(subscription) for _ in range(2))
    queue.add_first(delayed, Due(60.0, 1_060.0), print)
    queue.add_first(dated, Due(None, 1_060.0), print)
    times.wall += set_forward_s
    times.now += 59.0
    times.wall += 59.0
    assert queue.wait(0.0) == ([dated] if set_forward_s > 0 else [])
    times.now += 1.0
    times.wall += 1.0
    assert delayed in queue.wait(0.0)
    assert queue.withdraw_first(dated) is (set_forward_s < 0)


def test_queue_forgets_withdrawn_deliveries_without_a_look_at_all_others() -> None:
    queue = RetryQueue()
    subscription = subscription_of()
    many = [delivery_to(subscription) for _ in range(1_000)]
    for number, delivery in enumerate(many):
        queue.add_first(delivery, Due(1e9 + number, 1e9 + number), print)
    assert (len(queue), queue.retrying, subscription.delayed) == (1_000, 0, 1_000)
    assert all(queue.withdraw_first(each) for each in many[1:])
    assert (queue.waiting(), queue.next_due()) == ([many[0]], 1e9)
    assert queue.cancel() == []
    assert queue.cancel_firsts() == [many[0]]
    assert subscription.delayed == 0
