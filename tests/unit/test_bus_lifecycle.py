# SPDX-License-Identifier: MIT
"""Draining, closing and cancelling a bus, also under asyncio."""

import asyncio
import logging
from collections.abc import Iterator

import pytest

from procbus import (
    BusClosed,
    DeliveryState,
    EventBus,
    ProcbusError,
    Receipt,
)
from tests.parts import BOUND_S, Held, double, in_thread


@pytest.fixture
def bus() -> Iterator[EventBus]:
    with EventBus([]) as bus:
        yield bus


# Life cycle.


def test_closing_twice_and_leaving_a_closed_block_is_fine():
    with EventBus([]) as bus:
        bus.subscribe("a", double)
        receipt = bus.publish("a", 1)
        bus.close()
        bus.close()
    assert receipt.result(0) == 2
    assert bus.drain(0)
    assert "closed" in repr(bus)


@pytest.mark.parametrize("cancel", [False, True])
def test_logging_of_the_script_that_fails_keeps_no_bus_from_closing(
    cancel: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("a filter that fails")

    broken = Broken()
    held = Held()
    bus = EventBus([], io_workers=1)
    bus.subscribe("a", lambda _: 1 // 0)
    bus.subscribe("held", held)
    assert bus.publish("a", 1).wait(BOUND_S)
    if cancel:
        bus.publish("held", 1)
        held.wait_begun()
        bus.publish("a", 1)
        held.go.set()
    logging.getLogger("procbus").addFilter(broken)
    try:
        bus.close(cancel=cancel)
    finally:
        logging.getLogger("procbus").removeFilter(broken)
    assert "closed" in repr(bus)
    assert "a filter that fails" in capsys.readouterr().err


def test_closed_bus_refuses_further_work():
    bus = EventBus([])
    bus.close()
    with pytest.raises(BusClosed, match="publish before close"):
        bus.publish("a", 1)
    with pytest.raises(BusClosed):
        asyncio.run(bus.apublish("a", 1))
    with pytest.raises(BusClosed):
        list(bus.stream([1]))
    with pytest.raises(BusClosed, match="cannot be started again"):
        bus.start()


def test_a_bus_that_was_never_used_closes():
    EventBus([]).close()
    with EventBus([]):
        pass


def test_drain_gives_up_after_its_timeout(bus):
    held = Held()
    bus.subscribe("a", held)
    assert bus.drain(0)
    bus.publish("a", 1)
    assert not bus.drain(0.01)
    held.go.set()
    assert bus.drain(BOUND_S)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("method", ["drain", "close"])
def test_a_handler_cannot_wait_for_itself(bus, method, is_async):
    def wait(event: int) -> None:
        getattr(bus, method)()

    async def await_(event: int) -> None:
        getattr(bus, method)()

    bus.subscribe("a", await_ if is_async else wait)
    with pytest.raises(ProcbusError, match=rf"{method}\(\) inside the handler .*wait_? would wait"):
        bus.publish("a", 1).result(BOUND_S)


def test_cancelling_finishes_running_handlers_and_accounts_for_the_rest(caplog):
    held = Held()
    bus = EventBus([])
    bus.subscribe("a", held, name="held", concurrency=1)
    receipts = [bus.publish("a", n) for n in range(5)]
    held.wait_begun()
    closer = in_thread(lambda: bus.close(cancel=True))
    assert receipts[4].wait(BOUND_S)
    held.go.set()
    closer.join(BOUND_S)
    states = [r.deliveries[0].state for r in receipts]
    assert states == [DeliveryState.SUCCEEDED] + [DeliveryState.CANCELLED] * 4
    (record,) = caplog.records
    assert record.getMessage() == "bus closed with deliveries cancelled: 4 not run (held 4)"
    stats = bus.stats().handlers["held"]
    assert (stats.published, stats.succeeded, stats.cancelled, stats.pending) == (5, 1, 4, 0)


def test_closing_with_a_timeout_stops_hanging_handlers(caplog):
    held = Held()
    bus = EventBus([])
    bus.subscribe("a", held, name="held", concurrency=1)
    receipts = [bus.publish("a", n) for n in range(2)]
    held.wait_begun()
    bus.close(timeout=0.01)
    assert [r.deliveries[0].state for r in receipts] == [DeliveryState.CANCELLED] * 2
    with pytest.raises(ProcbusError, match=r"cancelled after .* s in its handler"):
        receipts[0].result()
    assert "1 not run (held 1); 1 stopped in their handlers (held 1)" in caplog.text
    held.go.set()


def test_leaving_the_block_by_an_error_still_runs_everything():
    got: list[int] = []

    def publish_and_fail() -> None:
        with EventBus([]) as bus:
            bus.subscribe("a", got.append)
            for number in range(10):
                bus.publish("a", number)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        publish_and_fail()
    assert sorted(got) == list(range(10))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_leaving_the_block_by_an_interrupt_cancels_deliveries_not_begun(error):
    held = Held()
    receipts: list[Receipt] = []

    def publish_and_leave() -> None:
        with EventBus([]) as bus:
            bus.subscribe("a", held, concurrency=1)
            receipts.extend(bus.publish("a", n) for n in range(5))
            held.wait_begun()
            held.go.set()
            raise error

    with pytest.raises(error):
        publish_and_leave()
    states = [r.deliveries[0].state for r in receipts]
    assert all(r.done for r in receipts)
    assert states[0] is DeliveryState.SUCCEEDED


def test_two_threads_may_close_at_once():
    held = Held()
    bus = EventBus([])
    bus.subscribe("a", held)
    bus.publish("a", 1)
    held.wait_begun()
    closers = [in_thread(bus.close) for _ in range(3)]
    held.go.set()
    for closer in closers:
        closer.join(BOUND_S)
    assert held.events == [1]


# asyncio.


def test_a_bus_in_an_async_block_drains_and_closes():
    got: list[int] = []

    async def main() -> EventBus:
        async with EventBus([]) as bus:
            bus.subscribe("a", got.append)
            assert await (await bus.apublish("a", 1)) is None
            bus.publish("a", 2)
        return bus

    bus = asyncio.run(main())
    assert got == [1, 2]
    assert "closed" in repr(bus)


def test_async_handlers_run_together_on_one_loop(bus):
    together: list[asyncio.Barrier] = []
    loops: set[int] = set()

    async def meet(event: int) -> int:
        if not together:
            together.append(asyncio.Barrier(10))
        loops.add(id(asyncio.get_running_loop()))
        await asyncio.wait_for(together[0].wait(), BOUND_S)
        return event

    bus.subscribe("a", meet)
    assert [r.result(BOUND_S) for r in [bus.publish("a", n) for n in range(10)]] == list(range(10))
    assert len(loops) == 1
