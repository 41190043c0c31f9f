# SPDX-License-Identifier: MIT
"""Threads of the io lane: as many as needed, no more than allowed, and none lost."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Any

import pytest

from procbus import DeliveryState, EventBus, ProcbusError, current
from procbus.assembly import Makers
from procbus.core.delivery import Delivery
from procbus.core.handler import make_handler
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.subscription import Subscription
from procbus.lanes.threads import IoLane, IoThread
from tests.parts import BOUND_S, BusWith, FlowOf, Held, delivery_to, double, threads_up_to


def io_threads() -> int:
    return sum(t.name.startswith("procbus-io") for t in threading.enumerate())


def test_no_thread_before_the_first_event():
    with EventBus([]) as bus:
        bus.subscribe(int, double)
        assert io_threads() == 0
        bus.publish(1).result(BOUND_S)
        assert io_threads() == 1
    assert io_threads() == 0


def test_short_work_one_after_the_other_needs_one_thread():
    with EventBus([]) as bus:
        bus.subscribe(int, double)
        for number in range(200):
            bus.publish(number).result(BOUND_S)
        assert bus.stats().lanes["io"].workers <= 2


@pytest.mark.parametrize("io_workers", [1, 3])
def test_each_thread_up_to_the_limit_runs_a_delivery_at_once(io_workers):
    held = Held()
    with EventBus([], io_workers=io_workers) as bus:
        bus.subscribe(int, held)
        for number in range(io_workers + 2):
            bus.publish(number)
        held.wait_begun(io_workers)
        lane = bus.stats().lanes["io"]
        held.go.set()
    assert (lane.workers, lane.busy, lane.depth) == (io_workers, io_workers, 2)
    assert sorted(held.events) == list(range(io_workers + 2))


def test_thirty_two_handlers_that_wait_for_each_other_all_run_at_once():
    together = threading.Barrier(32)

    def meet(number: int) -> int:
        return together.wait(BOUND_S)

    with EventBus([]) as bus:
        bus.subscribe(int, meet)
        receipts = [bus.publish(number) for number in range(32)]
        assert sorted(r.result(BOUND_S) for r in receipts) == list(range(32))


def test_short_handler_that_hangs_holds_up_no_other():
    go = threading.Event()

    def handle(number: int) -> int:
        if number < 0:
            assert go.wait(BOUND_S)
        return number

    with EventBus([]) as bus:
        bus.subscribe(int, handle)
        for number in range(300):  # so that its average is short
            bus.publish(number)
        bus.drain()
        hanging = [bus.publish(-1) for _ in range(3)]
        others = [bus.publish(number) for number in range(100)]
        assert [r.result(BOUND_S) for r in others] == list(range(100))
        assert not any(r.done for r in hanging)
        go.set()


def test_publishers_in_many_threads_get_every_event_run_once():
    ran: list[tuple[int, int]] = []
    with EventBus([], io_workers=4, max_pending=50) as bus:
        bus.subscribe("n", ran.append)

        def publish(which: int) -> None:
            for number in range(300):
                bus.publish("n", (which, number))

        threads = [threading.Thread(target=publish, args=(which,)) for which in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(BOUND_S)
    assert sorted(ran) == [(which, number) for which in range(4) for number in range(300)]


def test_cascades_between_threads_lose_no_wake_up():
    leaves: list[int] = []
    with EventBus([], io_workers=3) as bus:

        def hop(number: int) -> None:
            if number % 100:
                current().publish("hop", number - 1)
            else:
                leaves.append(number)

        bus.subscribe("hop", hop)
        for start in range(99, 5_000, 100):
            bus.publish("hop", start)
        assert bus.drain(BOUND_S)
    assert sorted(leaves) == list(range(0, 5_000, 100))


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_present_threads_do_the_work_if_no_more_can_be_started(allowed):
    with BusWith(Makers(lanes=threads_up_to(allowed))) as bus:
        bus.subscribe(int, double)
        for _ in range(20):
            receipts = [bus.publish(number) for number in range(10)]
            for number, receipt in enumerate(receipts):
                if allowed:
                    assert receipt.result(BOUND_S) == 2 * number
                else:
                    with pytest.raises(ProcbusError):
                        receipt.result(BOUND_S)
        assert bus.drain(BOUND_S)


def test_handler_that_hangs_at_the_stop_changes_nothing_when_it_ends():
    held = Held()
    bus = EventBus([])
    bus.subscribe(int, held)
    receipt = bus.publish(1)
    held.wait_begun()
    bus.close(timeout=0)
    assert receipt.deliveries[0].state is DeliveryState.CANCELLED
    held.go.set()
    for thread in threading.enumerate():
        if thread.name.startswith("procbus-io"):
            thread.join(BOUND_S)
    assert held.events == [1]
    assert receipt.deliveries[0].state is DeliveryState.CANCELLED
    stats = bus.stats()
    assert stats.pending == 0
    assert stats.handlers[receipt.deliveries[0].handler.name].cancelled == 1


# Time limits, with a clock that the test sets.


class LaneOfOne:
    """A lane with one thread, its settled deliveries, and a handler with a time limit."""

    def __init__(self) -> None:
        self.settled: list[tuple[Delivery, Outcome]] = []
        self.held = Held()
        #: Called before and after a thread is left behind, and after settling.
        self.before_abandon: Callable[[IoThread], object] = lambda _: None
        self.after_abandon: Callable[[IoThread], object] = lambda _: None
        self.after_settle: Callable[[], object] = lambda: None
        self.lane = IoLane(1, FlowOf(self.settle), make_thread=self._make_thread)
        self.limited = Subscription(make_handler(self.held, "t", timeout=5.0), self.lane)
        self.events = 0

    def settle(self, settled: Sequence[tuple[Delivery, Outcome]]) -> None:
        for delivery, outcome in settled:
            if delivery.receipt is not None:
                delivery.end(outcome)
                self.settled.append((delivery, outcome))
        self.after_settle()

    def _make_thread(self, *about: Any) -> IoThread:
        one = self

        class Watched(IoThread):
            def abandon(self, limited: tuple[Delivery, float]) -> bool:
                one.before_abandon(self)
                left_behind = super().abandon(limited)
                one.after_abandon(self)
                return left_behind

        return Watched(*about)

    def put(self) -> Delivery:
        self.events += 1
        delivery = delivery_to(self.limited, self.events, self.events)
        self.lane.put(delivery)
        return delivery

    def thread(self) -> IoThread:
        (thread,) = self.lane.threads()
        return thread

    def kinds(self) -> list[OutcomeKind]:
        return [outcome.kind for _, outcome in self.settled]

    def finish(self) -> None:
        self.held.go.set()
        self.lane.close(BOUND_S)
        for thread in self.lane.abandoned_threads():
            thread.join(BOUND_S)


@pytest.fixture
def one() -> Iterator[LaneOfOne]:
    one = LaneOfOne()
    yield one
    one.finish()


SUCCEEDED, TIMED_OUT = OutcomeKind.SUCCEEDED, OutcomeKind.TIMED_OUT


def test_delivery_does_not_expire_before_its_time(one: LaneOfOne) -> None:
    one.put()
    one.held.wait_begun()
    began = one.thread().since

    assert one.lane.expire(began + 4.9) == began + 5.0
    assert one.settled == []

    one.held.go.set()
    one.lane.close(BOUND_S)
    assert one.kinds() == [SUCCEEDED]


def test_a_thread_that_returns_late_settles_nothing(one: LaneOfOne) -> None:
    delivery = one.put()
    one.held.wait_begun()
    hung = one.thread()

    assert one.lane.expire(hung.since + 5.0) == inf
    assert one.lane.expire(hung.since + 6.0) == inf

    assert [d for d, _ in one.settled] == [delivery]
    assert one.kinds() == [TIMED_OUT]
    one.held.go.set()
    hung.join(BOUND_S)
    assert one.held.events == [1]
    assert one.kinds() == [TIMED_OUT]
    assert one.lane.abandoned_threads() == []


def test_a_thread_that_returns_in_the_moment_it_is_left_behind_settles_once(
    one: LaneOfOne,
) -> None:
    def let_it_end(thread: IoThread) -> None:
        one.held.go.set()
        thread.join(BOUND_S)

    one.after_abandon = let_it_end
    delivery = one.put()
    one.held.wait_begun()
    one.lane.expire(one.thread().since + 5.0)

    assert [d for d, _ in one.settled] == [delivery]
    assert one.kinds() == [TIMED_OUT]
    assert one.lane.threads() == one.lane.abandoned_threads() == []
    one.put()
    one.lane.close(BOUND_S)
    assert one.kinds() == [TIMED_OUT, SUCCEEDED]


def test_a_run_that_ends_in_the_moment_its_time_is_over_is_not_left_behind(
    one: LaneOfOne,
) -> None:
    ended = threading.Event()

    def let_it_end(_: IoThread) -> None:
        one.held.go.set()
        assert ended.wait(BOUND_S)

    one.before_abandon = let_it_end
    one.after_settle = ended.set
    one.put()
    one.held.wait_begun()
    thread = one.thread()
    one.lane.expire(thread.since + 5.0)

    assert one.kinds() == [SUCCEEDED]
    assert not thread.abandoned
    assert one.lane.threads() == [thread]


def test_waiting_delivery_runs_once_a_thread_that_kept_its_place_returns(one: LaneOfOne) -> None:
    for _ in range(2):
        one.put()
        one.held.wait_begun()
        one.lane.expire(one.thread().since + 5.0)
    assert len(one.lane.abandoned_threads()) == 2
    one.put()
    assert one.lane.stats().workers == 1, "as many as there may be, though it hangs"

    one.held.go.set()
    for thread in one.lane.abandoned_threads():
        thread.join(BOUND_S)
    one.lane.close(BOUND_S)

    assert one.kinds() == [TIMED_OUT, TIMED_OUT, SUCCEEDED]
    assert sorted(one.held.events) == [1, 2, 3]


def test_logging_that_fails_keeps_no_delivery_open_that_ran_out_of_time(
    one: LaneOfOne, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(record: logging.LogRecord) -> bool:
        raise RuntimeError("a filter that fails")

    one.put()
    one.held.wait_begun()
    logging.getLogger("procbus.pool").addFilter(broken)
    try:
        one.lane.expire(one.thread().since + 5.0)
    finally:
        logging.getLogger("procbus.pool").removeFilter(broken)

    assert one.kinds() == [TIMED_OUT]
    assert "a filter that fails" in capsys.readouterr().err
