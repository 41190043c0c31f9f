"""An io handler that runs out of time: its thread is left behind, or its task cancelled."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from procbus import DeliveryState, EventBus, HandlerTimeout, Receipt
from procbus.supervision.health import WorkerHealth
from tests.integration.conftest import Run
from tests.integration.helpers import PATIENCE_S

LIMIT_S = 0.3


def timed_out(receipt: Receipt) -> HandlerTimeout:
    with pytest.raises(HandlerTimeout) as caught:
        receipt.result(PATIENCE_S)
    return caught.value


# Threads of the io lane.


class Locked:
    """A handler that waits until the test lets it go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)
        self.ran: list[Any] = []

    def __call__(self, event: Any) -> Any:
        return self.wait_inside(event)

    def wait_inside(self, event: Any) -> Any:
        self.begun.release()
        assert self.go.wait(PATIENCE_S)
        self.ran.append(event)
        return event

    def let_go(self, bus: EventBus) -> None:
        """Release all threads, and wait until the abandoned ones have ended."""
        names = {record.name for record in left_behind(bus)}
        self.go.set()
        for thread in threading.enumerate():
            if thread.name in names:
                thread.join(PATIENCE_S)


def left_behind(bus: EventBus) -> list[WorkerHealth]:
    return [h for h in bus.health() if h.kind == "io" and h.state == "stalled"]


def test_a_thread_that_hangs_is_left_behind_and_replaced() -> None:
    locked = Locked()
    with EventBus([], io_workers=1) as bus:
        bus.subscribe("hang", locked, timeout=LIMIT_S, name="hang")
        bus.subscribe("quick", lambda n: (n, threading.current_thread().name))
        hung = bus.publish("hang", "late")
        behind = bus.publish("quick", 1)
        error = timed_out(hung)
        assert (error.handler, error.event_id, error.limit_s) == ("hang", hung.id, LIMIT_S)
        assert "in wait_inside" in error.stack
        assert "in _attempt" not in error.stack

        (record,) = left_behind(bus)
        assert (record.handler, record.event_id) == ("hang", hung.id)
        assert bus.stats().lanes["io"].abandoned == 1
        number, name = behind.result(PATIENCE_S)
        assert (number, name != record.name) == (1, True)

        outcome = hung.deliveries[0].outcome
        locked.let_go(bus)
        assert locked.ran == ["late"]
        assert left_behind(bus) == []
        assert bus.stats().lanes["io"].abandoned == 0
        assert hung.deliveries[0].outcome is outcome, "its late result changes nothing"
        assert (hung.deliveries[0].attempts, hung.deliveries[0].state) == (1, DeliveryState.FAILED)
        stats = bus.stats().handlers["hang"]
        assert (stats.published, stats.succeeded, stats.failed, stats.timed_out) == (1, 0, 1, 1)
        assert bus.publish("quick", 2).result(PATIENCE_S)[0] == 2


def test_threads_left_behind_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """From then on one that hangs keeps its place, and goes on once it comes back."""
    locked = Locked()
    with EventBus([], io_workers=2) as bus:
        bus.subscribe("hang", locked, timeout=LIMIT_S, name="hang")
        bus.subscribe("quick", lambda n: n)
        hung = [bus.publish("hang", n) for n in range(4)]
        assert [timed_out(r).event_id for r in hung] == [r.id for r in hung]
        assert len(left_behind(bus)) == 4
        assert bus.stats().lanes["io"].abandoned == 4
        waiting = [bus.publish("quick", n) for n in range(50)]
        more = bus.publish("hang", 4)
        # The supervisor looks several times while no thread is there to run these.
        assert not more.wait(3 * LIMIT_S)
        assert len([t for t in threading.enumerate() if t.name.startswith("procbus-io")]) == 4
        locked.let_go(bus)
        assert [r.result(PATIENCE_S) for r in waiting] == [*range(50)]
        assert more.result(PATIENCE_S) == 4
        assert sorted(locked.ran) == [0, 1, 2, 3, 4]
        assert left_behind(bus) == []
        stats = bus.stats()
        assert stats.handlers["hang"].timed_out == 4
        assert stats.handlers["hang"].succeeded == 1
        assert stats.lanes["io"].abandoned == 0
    said = [r for r in caplog.records if "left behind in hang" in r.getMessage()]
    assert len(said) == 4, "once for each"


def test_a_thread_that_keeps_its_place_fails_each_attempt_once() -> None:
    """The supervisor sees it hang again and again, also while the next attempt waits or runs."""
    locked = Locked()
    with EventBus([], io_workers=1) as bus:
        bus.subscribe("hang", locked, timeout=LIMIT_S, retries=3, backoff=0.05, name="hang")
        receipt = bus.publish("hang", 0)
        for _ in range(2):  # then no thread is free for the third
            assert locked.begun.acquire(timeout=PATIENCE_S)
        assert not receipt.wait(4 * LIMIT_S)
        assert bus.stats().handlers["hang"].timed_out == 2
        assert receipt.deliveries[0].attempts == 2
        locked.let_go(bus)
        assert receipt.result(PATIENCE_S) == 0
        assert receipt.deliveries[0].attempts == 3
    assert locked.ran == [0, 0, 0]


# The event loop.


def test_an_async_handler_is_cancelled() -> None:
    seen: list[str] = []

    async def inner() -> None:
        await asyncio.sleep(1000)

    async def hang(n: int) -> None:
        try:
            await inner()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def fine(n: int) -> int:
        await asyncio.sleep(0)
        return n

    with EventBus([]) as bus:
        bus.subscribe("hang", hang, timeout=LIMIT_S, name="hang")
        bus.subscribe("fine", fine, timeout=60)
        hung = [bus.publish("hang", n) for n in range(5)]
        others = [bus.publish("fine", n) for n in range(50)]
        assert [r.result(PATIENCE_S) for r in others] == [*range(50)]
        for receipt in hung:
            error = timed_out(receipt)
            assert (error.handler, error.event_id) == ("hang", receipt.id)
            assert "in hang" in error.stack
            assert "in inner" in error.stack
        assert bus.drain(PATIENCE_S)
        assert bus.publish("fine", 7).result(PATIENCE_S) == 7
    assert seen == ["cancelled"] * 5


def test_an_async_handler_that_swallows_its_cancellation_changes_nothing_any_more() -> None:
    goes_on = threading.Event()
    release: list[Callable[[], object]] = []

    async def stubborn(n: int) -> str:
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        release.append(lambda: loop.call_soon_threadsafe(event.set))
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(1000)
        goes_on.set()
        await event.wait()
        return "late"

    async def fine(n: int) -> int:
        return n

    with EventBus([]) as bus:
        bus.subscribe("hang", stubborn, timeout=LIMIT_S, name="stubborn")
        bus.subscribe("fine", fine)
        receipt = bus.publish("hang", 0)
        timed_out(receipt)
        outcome = receipt.deliveries[0].outcome
        assert goes_on.wait(PATIENCE_S)
        assert bus.publish("fine", 1).result(PATIENCE_S) == 1
        release[0]()
        assert bus.publish("fine", 2).result(PATIENCE_S) == 2
        assert receipt.deliveries[0].outcome is outcome
        stats = bus.stats().handlers["stubborn"]
        assert (stats.succeeded, stats.failed, stats.timed_out) == (0, 1, 1)


# Closing.


def test_close_returns_though_a_thread_hangs() -> None:
    locked = Locked()
    with EventBus([], io_workers=1) as bus:
        bus.subscribe("hang", locked, timeout=LIMIT_S)
        receipt = bus.publish("hang", 0)
    assert isinstance(receipt.deliveries[0].exception(), HandlerTimeout)
    (record,) = left_behind(bus)
    assert any(thread.name == record.name for thread in threading.enumerate())
    locked.let_go(bus)
    assert left_behind(bus) == []


def test_close_returns_though_an_async_handler_hangs_on() -> None:
    release: list[Callable[[], object]] = []
    stubborn_thread: list[threading.Thread] = []

    async def stubborn(n: int) -> None:
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        stubborn_thread.append(threading.current_thread())
        release.append(lambda: loop.call_soon_threadsafe(event.set))
        while not event.is_set():
            with suppress(asyncio.CancelledError):
                await event.wait()

    with EventBus([]) as bus:
        bus.subscribe("hang", stubborn, timeout=LIMIT_S)
        receipt = bus.publish("hang", 0)
    assert isinstance(receipt.deliveries[0].exception(), HandlerTimeout)
    assert stubborn_thread[0].is_alive()
    release[0]()
    stubborn_thread[0].join(PATIENCE_S)
    assert not stubborn_thread[0].is_alive()


def test_a_script_ends_though_handlers_hang(run: Run) -> None:
    ended = run(
        """
        import asyncio, logging, threading, time
        from procbus import EventBus, HandlerTimeout
        logging.getLogger("procbus").setLevel(logging.CRITICAL)

        def hang(n):
            threading.Event().wait()

        async def stubborn(n):
            while True:
                try:
                    await asyncio.sleep(1000)
                except asyncio.CancelledError:
                    pass

        def loop(n):
            while True:
                pass

        bus = EventBus([], io_workers=2, cpu_workers=1)
        bus.subscribe("hang", hang, timeout=0.3)
        bus.subscribe("hang", stubborn, timeout=0.3)
        bus.subscribe("hang", loop, kind="cpu", timeout=0.3)
        with bus:
            receipt = bus.publish("hang", 1)
        print([type(d.exception()).__name__ for d in receipt.deliveries])
        """
    )
    assert ended.check() == "['HandlerTimeout', 'HandlerTimeout', 'HandlerTimeout']\n"
