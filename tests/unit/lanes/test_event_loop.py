# SPDX-License-Identifier: MIT
"""Handlers that are coroutines, on the bus's own event loop."""

import asyncio
import threading
import time
from functools import partial
from typing import Any

import pytest

from procbus import DeliveryState, EventBus, HandlerTimeout, OutcomeKind, ProcbusError
from procbus.assembly import Makers, make_lanes
from procbus.core.errors import HandlerExited
from procbus.core.handler import make_handler
from procbus.core.subscription import Subscription
from procbus.lanes.event_loop import LoopLane
from tests.parts import BOUND_S, BusWith, FlowOf, delivery_to, in_thread


class HeldOnLoop:
    """An async handler that waits until the test lets it go."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self.events: list[Any] = []
        self._go: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, event: Any) -> Any:
        if self._go is None:
            self._go, self._loop = asyncio.Event(), asyncio.get_running_loop()
        self.began.release()
        await self._go.wait()
        self.events.append(event)
        return event

    def wait_begun(self, count: int) -> None:
        for _ in range(count):
            assert self.began.acquire(timeout=BOUND_S)

    def let_go(self) -> None:
        assert self._loop is not None
        assert self._go is not None
        self._loop.call_soon_threadsafe(self._go.set)


async def echo(event: Any) -> Any:
    await asyncio.sleep(0)
    return event


def test_results_and_errors_come_back():
    async def fail(event: str) -> None:
        await asyncio.sleep(0)
        raise KeyError(event)

    with EventBus([]) as bus:
        bus.subscribe(int, echo)
        bus.subscribe(str, fail)
        assert [bus.publish(n).result(BOUND_S) for n in range(10)] == list(range(10))
        with pytest.raises(KeyError):
            bus.publish("x").result(BOUND_S)


def test_a_thousand_run_at_once_and_more_wait():
    held = HeldOnLoop()
    with EventBus([]) as bus:
        bus.subscribe(int, held)
        receipts = [bus.publish(number) for number in range(1_005)]
        held.wait_begun(1_000)
        lane = bus.stats().lanes["io"]
        assert (lane.workers, lane.busy, lane.depth) == (1, 1_000, 5)
        held.let_go()
        assert [r.result(BOUND_S) for r in receipts] == list(range(1_005))


def test_keys_and_limits_hold():
    under_way: set[str] = set()
    order: list[tuple[str, int]] = []

    async def keyed(event: tuple[str, int]) -> None:
        assert event[0] not in under_way
        under_way.add(event[0])
        await asyncio.sleep(0)
        order.append(event)
        under_way.remove(event[0])

    with EventBus([]) as bus:
        bus.subscribe("k", keyed, key=lambda e: e[0], concurrency=2)
        events = [("abc"[n % 3], n) for n in range(90)]
        for receipt in [bus.publish("k", event) for event in events]:
            receipt.result(BOUND_S)
    for key in "abc":
        assert [e for e in order if e[0] == key] == [e for e in events if e[0] == key]


@pytest.mark.parametrize("error", [asyncio.CancelledError, ZeroDivisionError])
def test_a_handler_that_ends_itself_fails_alone(error):
    async def leave(event: int) -> None:
        raise error

    with EventBus([]) as bus:
        bus.subscribe(int, leave)
        bus.subscribe(str, echo)
        receipt = bus.publish(1)
        assert receipt.wait(BOUND_S)
        assert receipt.deliveries[0].state is DeliveryState.FAILED
        assert bus.publish("fine").result(BOUND_S) == "fine"


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_handler_that_would_exit_fails_alone(error):
    async def leave(event: int) -> None:
        raise error

    with EventBus([]) as bus:
        bus.subscribe(int, leave)
        bus.subscribe(str, echo)
        with pytest.raises(HandlerExited) as caught:
            bus.publish(1).result(BOUND_S)
        assert type(caught.value.__cause__) is error
        assert bus.publish("fine").result(BOUND_S) == "fine"


def test_closing_with_a_timeout_cancels_running_handlers():
    cancelled: list[int] = []
    began = threading.Semaphore(0)

    async def hang(event: int) -> None:
        began.release()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(event)
            raise

    bus = EventBus([])
    bus.subscribe(int, hang, concurrency=1)
    receipts = [bus.publish(number) for number in range(2)]
    assert began.acquire(timeout=BOUND_S)
    bus.close(timeout=0.01)
    assert [r.deliveries[0].state for r in receipts] == [DeliveryState.CANCELLED] * 2
    assert cancelled == [0]


def test_cancelling_lets_the_running_ones_finish():
    held = HeldOnLoop()
    bus = EventBus([])
    bus.subscribe(int, held, concurrency=1)
    receipts = [bus.publish(number) for number in range(3)]
    held.wait_begun(1)
    closer = in_thread(lambda: bus.close(cancel=True))
    assert receipts[2].wait(BOUND_S)
    held.let_go()
    closer.join(BOUND_S)
    assert receipts[0].result() == 0
    for receipt in receipts[1:]:
        with pytest.raises(ProcbusError, match="cancelled before"):
            receipt.result()


def test_a_task_that_a_handler_leaves_behind_is_cancelled_with_the_loop():
    ends: list[str] = []
    tasks: set[asyncio.Task[None]] = set()

    async def linger() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("ended")

    async def handle(event: int) -> None:
        tasks.add(asyncio.get_running_loop().create_task(linger()))
        await asyncio.sleep(0)

    with EventBus([]) as bus:
        bus.subscribe(int, handle)
        bus.publish(1).result(BOUND_S)
    assert ends == ["ended"]
    assert all(task.cancelled() for task in tasks)


def test_publishing_from_many_threads_wakes_the_loop_for_each():
    with EventBus([]) as bus:
        bus.subscribe(int, echo)
        results: list[int] = []

        def publish() -> None:
            results.extend(bus.publish(number).result(BOUND_S) for number in range(200))

        threads = [in_thread(publish) for _ in range(4)]
        for thread in threads:
            thread.join(BOUND_S)
        assert sorted(results) == sorted(list(range(200)) * 4)


def test_an_attempt_that_goes_on_after_its_cancellation_leaves_the_next_one_alone():
    release: list[Any] = []
    began = threading.Semaphore(0)
    ends: list[int] = []

    async def stubborn(event: Any) -> int:
        number = len(release)
        loop, go = asyncio.get_running_loop(), asyncio.Event()
        release.append(lambda: loop.call_soon_threadsafe(go.set))
        began.release()
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue
        ends.append(number)
        return number

    with EventBus([]) as bus:
        bus.subscribe(int, stubborn, timeout=0.05, retries=1, backoff=0, name="stubborn")
        receipt = bus.publish(1)
        for _ in range(2):
            assert began.acquire(timeout=BOUND_S)
        with pytest.raises(HandlerTimeout):  # of the second: the first one has failed before
            receipt.result(BOUND_S)
        (delivery,) = receipt.deliveries
        assert delivery.attempts == 2
        assert [outcome.kind for outcome in delivery.earlier] == [OutcomeKind.TIMED_OUT]
        outcome = delivery.outcome
        for let_go in release:
            let_go()
        assert bus.publish(2.0).done
    assert sorted(ends) == [0, 1]
    assert delivery.outcome is outcome
    counts = bus.stats().handlers["stubborn"]
    assert (counts.succeeded, counts.failed, counts.timed_out, counts.retried) == (0, 1, 2, 1)
    assert bus.stats().pending == 0


def test_a_run_that_is_over_in_time_has_no_limit_any_more():
    async def quick(event: int) -> int:
        return event

    with EventBus([]) as bus:
        bus.subscribe(int, quick, timeout=1.0)
        bus.subscribe(str, echo)
        assert [bus.publish(n).result(BOUND_S) for n in range(20)] == list(range(20))

        async def wait(_: float) -> None:
            await asyncio.sleep(1.1)  # so that a timer left behind would go off

        bus.subscribe(float, wait)
        bus.publish(1.0).result(BOUND_S)
        stats = bus.stats()
    assert sum(handler.timed_out for handler in stats.handlers.values()) == 0


# Measurements of runs.


def test_of_a_coroutine_its_own_steps_are_measured() -> None:
    settled = threading.Semaphore(0)
    lane = LoopLane(FlowOf(lambda ended: settled.release(len(ended))))

    times: list[float] = []

    async def handle(event: object) -> None:
        began = time.thread_time()
        while (now := time.thread_time()) - began < 0.005:
            pass
        times.extend((began, now))
        await asyncio.sleep(0.02)

    subscription = Subscription(make_handler(handle, "t"), lane)
    for number in range(4):
        lane.put(delivery_to(subscription, number, number))
    for _ in range(4):
        assert settled.acquire(timeout=BOUND_S)
    lane.close(BOUND_S)
    evidence = subscription.meter.evidence("io", True, 0.0)
    assert evidence.runs == 4
    assert evidence.cpu_s >= 0.005
    assert 4 * evidence.cpu_s < 2 * (max(times) - min(times)), "not the steps of the others too"
    assert evidence.wall_s >= 0.025


# Handlers that meddle with the loop.


async def fail_hard() -> None:
    raise SystemExit(3)


def raise_interrupt() -> None:
    raise KeyboardInterrupt


async def start_task() -> None:
    tasks.append(asyncio.create_task(fail_hard()))


async def raise_in_callback() -> None:
    asyncio.get_running_loop().call_soon(raise_interrupt)


async def stop() -> None:
    asyncio.get_running_loop().stop()


async def stop_often() -> None:
    for _ in range(5):
        asyncio.get_running_loop().stop()
        await asyncio.sleep(0)


async def close() -> None:
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop().close()


async def run_again() -> None:
    nothing = asyncio.sleep(0)
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop().run_until_complete(nothing)
    await nothing


async def raise_from_the_exception_handler() -> None:
    def leave(loop: Any, about: Any) -> None:
        raise SystemExit(4)

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(leave)
    loop.call_soon(lambda: 1 / 0)


tasks: list[asyncio.Task[None]] = []
MEDDLING = [
    start_task,
    raise_in_callback,
    stop,
    stop_often,
    close,
    run_again,
    raise_from_the_exception_handler,
]


@pytest.mark.parametrize("meddle", MEDDLING, ids=lambda f: f.__name__)
def test_handler_that_meddles_with_the_loop_harms_no_other(meddle, caplog):
    held = HeldOnLoop()

    async def handle(event: str) -> str:
        await meddle()
        await asyncio.sleep(0.01)
        return event

    with EventBus([]) as bus:
        bus.subscribe("held", held)
        bus.subscribe("n", handle)
        bus.subscribe("echo", echo)
        neighbour = bus.publish("held", "held")
        held.wait_begun(1)
        assert bus.publish("n", "meddled").result(BOUND_S) == "meddled"
        assert bus.publish("echo", "after").result(BOUND_S) == "after"
        held.let_go()
        assert neighbour.result(BOUND_S) == "held"
    texts = [record.getMessage() for record in caplog.records if record.name == "procbus.pool"]
    assert bool(texts) is (meddle not in (close, run_again)), texts


def test_handler_that_cancels_all_tasks_ends_only_the_running_ones():
    held = HeldOnLoop()

    async def cancel_all(event: str) -> None:
        # The later coroutines have their tasks, and have not begun: they are started anew.
        later = [bus.publish("echo", number) for number in range(20)]
        await asyncio.sleep(0)
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()
        receipts.extend(later)

    receipts: list[Any] = []
    with EventBus([]) as bus:
        bus.subscribe("held", held)
        bus.subscribe("cancel", cancel_all)
        bus.subscribe("echo", echo)
        running = bus.publish("held", 1)
        held.wait_begun(1)
        assert bus.publish("cancel", "all").result(BOUND_S) is None
        assert running.wait(BOUND_S)
        assert running.deliveries[0].state is DeliveryState.FAILED
        assert all(receipt.wait(BOUND_S) for receipt in receipts)
        assert bus.publish("echo", "after").result(BOUND_S) == "after"


def test_a_task_that_was_cancelled_before_it_began_is_started_anew():
    async def cancel_the_next(event: str) -> None:
        receipts.append(bus.publish("echo", 1))
        while not (others := asyncio.all_tasks() - {asyncio.current_task()}):
            await asyncio.sleep(0)
        for task in others:  # made a moment ago, and not begun
            task.cancel()

    receipts: list[Any] = []
    with EventBus([]) as bus:
        bus.subscribe("cancel", cancel_the_next)
        bus.subscribe("echo", echo)
        assert bus.publish("cancel", "it").result(BOUND_S) is None
        assert receipts[0].wait(BOUND_S)


def test_loop_closed_from_outside_is_replaced_without_waiting(monkeypatch: pytest.MonkeyPatch):
    loops: list[asyncio.AbstractEventLoop] = []

    async def hang(event: str) -> None:
        loops.append(asyncio.get_running_loop())
        asyncio.get_running_loop().stop()
        await asyncio.Event().wait()

    class ClosedWhenStopped(asyncio.SelectorEventLoop):
        def run_forever(self) -> None:
            super().run_forever()
            if self in loops:
                self.close()

    monkeypatch.setattr(asyncio, "new_event_loop", ClosedWhenStopped)
    with EventBus([]) as bus:
        bus.subscribe("hang", hang)
        bus.subscribe("echo", echo)
        with pytest.raises(ProcbusError, match="the event loop that it ran on was closed"):
            bus.publish("hang", 1).result(BOUND_S)
        assert bus.publish("echo", 2).result(BOUND_S) == 2


def test_no_more_handlers_run_at_once_than_the_loop_has_slots() -> None:
    lanes = partial(make_lanes, make_loop_lane=partial(LoopLane, most_at_once=3))
    running = most = 0

    async def work(number: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return number

    with BusWith(Makers(lanes=lanes)) as bus:
        bus.subscribe("n", work)
        receipts = [bus.publish("n", number) for number in range(50)]
        assert [receipt.result(BOUND_S) for receipt in receipts] == list(range(50))
    assert 1 <= most <= 3


def test_a_handler_that_blocks_the_loop_for_long_is_logged_once(caplog):
    lanes = partial(make_lanes, make_loop_lane=partial(LoopLane, held_s=0.01))

    async def block(event: str) -> None:
        time.sleep(0.03)
        await asyncio.sleep(0)

    with BusWith(Makers(lanes=lanes)) as bus:
        bus.subscribe("n", block, name="blocker")
        for _ in range(3):
            bus.publish("n", 1).result(BOUND_S)
    texts = [r.getMessage() for r in caplog.records if "held the event loop" in r.getMessage()]
    assert len(texts) == 1
    assert texts[0].startswith("blocker held the event loop for ")


class _TwoOnTheLoop:
    """A delivery that has succeeded, and one that holds the loop until the test lets it go.

    Args:
        average_s: average run time of the handler that holds the loop, as far as known.
    """

    def __init__(self, average_s: float | None) -> None:
        self.began, self.go = threading.Event(), threading.Event()
        self.ends: dict[Any, OutcomeKind] = {}
        self.settled = threading.Semaphore(0)
        self.lane = LoopLane(FlowOf(self._settle))

        async def hold(_: object) -> None:
            self.began.set()
            self.go.wait(BOUND_S)

        short = Subscription(make_handler(echo_at_once, "t"), self.lane)
        holding = Subscription(make_handler(hold, "t"), self.lane)
        short.average_s, holding.average_s = 1e-6, average_s
        self.lane.queue.put(delivery_to(short, "short", 1))  # the loop starts with the next one
        self.lane.put(delivery_to(holding, "holding", 2))
        assert self.began.wait(BOUND_S)

    def _settle(self, settled: Any) -> None:
        for delivery, outcome in settled:
            self.ends.setdefault(delivery.receipt.event, outcome.kind)
            self.settled.release()

    def end(self) -> None:
        self.go.set()
        self.lane.close(BOUND_S)


async def echo_at_once(event: Any) -> Any:
    return event


def test_handler_that_may_hold_the_loop_begins_once_earlier_successes_are_settled() -> None:
    two = _TwoOnTheLoop(None)
    try:
        assert two.settled.acquire(timeout=BOUND_S)
        assert two.ends == {"short": OutcomeKind.SUCCEEDED}
    finally:
        two.end()


def test_killed_loop_keeps_a_success_that_is_not_settled_yet() -> None:
    two = _TwoOnTheLoop(1e-6)
    try:
        assert two.ends == {}
        two.lane.kill()
        assert two.ends == {"short": OutcomeKind.SUCCEEDED, "holding": OutcomeKind.CANCELLED}
    finally:
        two.end()


def test_handler_that_cancels_its_own_task_and_returns_runs_once() -> None:
    runs: list[int] = []

    async def cancel_itself(event: int) -> int:
        runs.append(event)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return event

    with EventBus([]) as bus:
        bus.subscribe(int, cancel_itself)
        receipts = [bus.publish(number) for number in range(5)]
        assert bus.drain(BOUND_S)
        assert [receipt.result(0) for receipt in receipts] == runs == list(range(5))
