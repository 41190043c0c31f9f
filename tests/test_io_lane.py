# SPDX-License-Identifier: MIT
"""Threads of the io lane: as many as needed, no more than allowed, and none lost."""

import threading
from typing import Any

import pytest

from procbus import DeliveryState, EventBus, ProcbusError, current
from procbus.io_lane import IoThread
from tests.parts import BOUND_S, Held, double


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
def test_as_many_run_at_once_as_there_may_be_threads(io_workers):
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


def test_a_handler_that_was_short_and_hangs_holds_nobody_up():
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
def test_where_no_more_threads_are_to_be_had_those_that_are_do_the_work(monkeypatch, allowed):
    start = IoThread.start
    started: list[IoThread] = []

    def limited(self: IoThread) -> None:
        if len(started) >= allowed:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    monkeypatch.setattr(IoThread, "start", limited)
    with EventBus([]) as bus:
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


def test_what_hangs_when_the_bus_is_stopped_may_end_later_and_changes_nothing():
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


def test_a_thread_that_waits_keeps_no_event_alive():
    import weakref

    class Event:
        pass

    with EventBus([], io_workers=1) as bus:
        bus.subscribe(Event, lambda e: None)
        event: Any = Event()
        gone = weakref.ref(event)
        bus.publish(event).wait(BOUND_S)
        del event
        bus.subscribe(int, double)
        bus.publish(1).wait(BOUND_S)
        assert gone() is None
