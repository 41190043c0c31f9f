"""Opening, closing and restarting buses with real workers."""

import os
import threading

import pytest

from procbus import BusClosed, Cancelled, DeliveryState, EventBus
from tests.integration.helpers import PATIENCE_S, Bell, Door, Listener
from tests.matrix import quick_first


@pytest.mark.parametrize("workers", quick_first([2, 1, 3]))
def test_start_starts_as_many_workers_as_asked_for(workers: int) -> None:
    with EventBus([], cpu_workers=workers) as bus:
        bus.subscribe("n", abs, kind="cpu")
        assert bus.start() is bus
        bus.start()
        assert bus.stats().lanes["cpu"].workers == workers
        receipts = [bus.publish("n", -n) for n in range(100)]
        assert [r.result(PATIENCE_S) for r in receipts] == [*range(100)]


def test_close_may_be_called_twice_and_the_bus_stays_closed() -> None:
    bus = EventBus([], cpu_workers=1)
    bus.subscribe("n", abs, kind="cpu")
    receipt = bus.publish("n", -1)
    bus.close()
    bus.close()
    assert receipt.result(0) == 1
    with pytest.raises(BusClosed):
        bus.publish("n", -1)
    with pytest.raises(BusClosed):
        bus.start()


def test_close_from_another_thread_releases_publishers_and_settles_their_events() -> None:
    bus = EventBus([], cpu_workers=2, max_pending=50)
    bus.subscribe("n", abs, kind="cpu")
    enough = threading.Event()
    receipts = []
    refused = threading.Event()

    def publish() -> None:
        try:
            while True:
                receipts.append(bus.publish("n", -1))
                if len(receipts) > 200:
                    enough.set()
        except BusClosed:
            refused.set()

    publisher = threading.Thread(target=publish)
    publisher.start()
    assert enough.wait(PATIENCE_S)
    bus.close()
    assert refused.wait(PATIENCE_S)
    publisher.join(PATIENCE_S)
    assert {r.result(0) for r in receipts} == {1}


@pytest.mark.parametrize("kind", ["cpu", "io"])
def test_close_with_a_timeout_gives_up_a_stuck_handler_and_cancels_the_rest(
    kind: str, door: Door, bell: Bell, heard: Listener
) -> None:
    def stuck(doors: tuple[Door, Bell]) -> None:
        doors[1].ring()
        doors[0].go_through()

    bus = EventBus([], cpu_workers=1, io_workers=1)
    bus.subscribe("stuck", stuck, kind=kind)  # type: ignore[call-overload]
    with door.shut():
        receipts = [bus.publish("stuck", (door, bell)) for _ in range(3)]
        heard.wait()
        bus.close(timeout=0.05)
        states = [r.deliveries[0].state for r in receipts]
        assert states == [DeliveryState.CANCELLED] * 3
        error = receipts[0].deliveries[0].exception()
        assert type(error) is Cancelled
        assert "in its handler" in str(error)
        assert "before its handler began" in str(receipts[2].deliveries[0].exception())


def test_several_buses_work_side_by_side_and_share_nothing() -> None:
    with EventBus([], cpu_workers=1) as one, EventBus([], cpu_workers=1) as other:
        one.subscribe("pid", lambda _: os.getpid(), kind="cpu")
        other.subscribe("pid", lambda _: os.getpid(), kind="cpu")
        first, second = (bus.publish("pid", 0).result(PATIENCE_S) for bus in (one, other))
        assert first != second
        one.close()
        assert other.publish("pid", 0).result(PATIENCE_S) == second
