"""Threads that publish, look, ask, wait, cancel and close at once, switched as often as can be."""

from __future__ import annotations

import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Literal

import pytest

from procbus import BusClosed, EventBus, ProcbusError
from procbus.core.receipt import Receipt
from tests.integration.helpers import PATIENCE_S

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def hasty_threads() -> Iterator[None]:
    """Have Python switch between threads wherever it may."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def double(number: int) -> int:
    if number % 10 == 3:
        raise ValueError(number)
    return 2 * number


class Quarrel:
    """One bus, and the threads that use it until it is closed."""

    def __init__(self, lane: Literal["io", "cpu"], seed: int) -> None:
        self.random = random.Random(seed)
        self.bus = EventBus(handlers=[], cpu_workers=2, io_workers=4, max_pending=200)
        options: dict[str, dict[str, Any]] = {
            "plain": {},
            "keyed": {"key": lambda number: number % 5},
            "limited": {"concurrency": 2},
            "again": {"retries": 1, "backoff": 0.0},
        }
        self.names = tuple(options)
        for name in self.names:
            self.bus.subscribe(name, double, name=name, kind=lane, **options[name])
        self.executor = self.bus.executor(lane)
        self.receipts: list[Receipt] = []
        self.settled: Counter[int] = Counter()
        self.futures: list[object] = []
        self.unexpected: list[BaseException] = []
        self.closed = threading.Event()

    def until_closed(self, act: Callable[[random.Random], object], seed: int) -> None:
        rng = random.Random(seed)
        with suppress(BusClosed):
            while not self.closed.is_set():
                try:
                    act(rng)
                except BusClosed:
                    raise
                except BaseException as error:  # noqa: BLE001 - the test shows it
                    self.unexpected.append(error)
                    return

    def publish(self, rng: random.Random) -> None:
        receipt = self.bus.publish(rng.choice(self.names), rng.randrange(100))
        self.receipts.append(receipt)
        receipt.when_done(self.note)

    def note(self, receipt: Receipt) -> None:
        self.settled[receipt.id] += 1
        if receipt.id % 7 == 0:
            raise SystemExit("a callback that misbehaves")

    def look(self, rng: random.Random) -> None:
        self.bus.stats()
        self.bus.health()
        len(self.bus.dead_letters)
        repr(self.bus)

    def ask(self, rng: random.Random) -> None:
        for receipt in self.receipts[-20:]:
            receipt.wait(rng.choice((0.0, 0.0005)))
            for delivery in receipt.deliveries:
                with suppress(ProcbusError):
                    delivery.exception()

    def submit(self, rng: random.Random) -> None:
        try:
            future = self.executor.submit(abs, rng.randrange(100))
        except RuntimeError as error:
            raise BusClosed("the executor is closed") from error
        if rng.random() < 0.5:
            future.cancel()
        self.futures.append(future)

    def play(self, cancel: bool) -> None:
        acts = [self.publish] * 3 + [self.look] + [self.ask] * 2 + [self.submit]
        threads = [
            threading.Thread(target=self.until_closed, args=(act, self.random.random()))
            for act in acts
        ]
        for thread in threads:
            thread.start()
        end = monotonic() + self.random.uniform(0.0, 0.3)
        while monotonic() < end:
            self.ask(self.random)
        self.bus.close(cancel=cancel)
        self.closed.set()
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def check(self) -> None:
        assert self.unexpected == []
        for receipt in self.receipts:
            assert receipt.wait(PATIENCE_S), receipt
        assert self.settled == Counter(receipt.id for receipt in self.receipts)
        assert self.bus.stats().pending == 0


@pytest.mark.parametrize(("lane", "rounds"), [("io", 12), ("cpu", 4)])
def test_each_receipt_is_settled_once_amid_other_calls(lane, rounds):
    for number in range(rounds):
        quarrel = Quarrel(lane, number)
        quarrel.play(cancel=bool(number % 2))
        quarrel.check()


def test_a_bus_closes_while_its_first_events_are_being_published():
    for _ in range(150):
        bus = EventBus(handlers=[], io_workers=8)
        bus.subscribe(int, double)
        start = threading.Barrier(3)

        def publish(bus: EventBus = bus, start: threading.Barrier = start) -> None:
            start.wait(PATIENCE_S)
            with suppress(BusClosed):
                for number in range(20):
                    bus.publish(10 * number)

        threads = [threading.Thread(target=publish) for _ in range(2)]
        for thread in threads:
            thread.start()
        start.wait(PATIENCE_S)
        bus.close()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert bus.stats().pending == 0


def test_threads_look_at_an_unseen_failure_at_once():
    with EventBus(handlers=[]) as bus:
        bus.subscribe(int, double)
        for _ in range(100):
            receipt = bus.publish(3)
            assert receipt.wait(PATIENCE_S)
            (delivery,) = receipt.deliveries
            start = threading.Barrier(4)
            found: list[BaseException | None] = []

            def ask(
                start: threading.Barrier = start,
                ask_for: Callable[[], BaseException | None] = delivery.exception,
                tell: Callable[[BaseException | None], None] = found.append,
            ) -> None:
                start.wait(PATIENCE_S)
                tell(ask_for())

            threads = [threading.Thread(target=partial(ask)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE_S)
            assert [type(error) for error in found] == [ValueError] * 4
