"""The parts of a chaos soak: handlers that misbehave, and a thread that kills workers."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil

from procbus import EventBus, OutcomeKind, current
from tests.integration.helpers import Tally

MIB = 1 << 20
#: Time limit of handlers that hang, in seconds, and the longest that a thread hangs on.
LIMIT_S = 0.3
HANG_S = 1.0

RAISED, DIED = OutcomeKind.RAISED, OutcomeKind.WORKER_DIED
TIMED_OUT, OVER_MEMORY = OutcomeKind.TIMED_OUT, OutcomeKind.OVER_MEMORY
SUCCEEDED, CANCELLED = OutcomeKind.SUCCEEDED, OutcomeKind.CANCELLED


@dataclass(frozen=True)
class Event:
    number: int
    tally: Tally
    key: int = 0


class Deliberate(Exception):
    pass


def begin(event: Event, topic: str) -> int:
    """Note that this attempt runs, and say which it is."""
    attempt = current().attempt
    event.tally.note(f"{topic} {event.number} {attempt} {event.key}")
    return attempt


# Handlers for worker processes.


def tiny(event: Event) -> int:
    begin(event, "tiny")
    return event.number


def slow(event: Event) -> int:
    begin(event, "slow")
    return event.number + 0 * sum(range(500_000))


def keyed(event: Event) -> int:
    if begin(event, "keyed") == 1 and event.number % 10 == 0:
        raise Deliberate(event.number)
    return event.number


def large(event: Event) -> bytes:
    begin(event, "large")
    return bytes(400_000)


def cascade(event: Event) -> int:
    begin(event, "cascade")
    current().publish("child", event)
    return event.number


def child(event: Event) -> int:
    begin(event, "child")
    return event.number


def flaky(event: Event) -> int:
    if begin(event, "flaky") < 3:
        raise Deliberate(event.number)
    return event.number


def failing(event: Event) -> None:
    begin(event, "failing")
    raise Deliberate(event.number)


def hang(event: Event) -> None:
    begin(event, "hang")
    if event.number % 2:
        time.sleep(1000)
    while True:
        pass


def leak(event: Event) -> str:
    begin(event, "leak")
    kept: list[bytearray] = []
    while len(kept) < 256:  # if the bus does not stop it: the machine needs some memory, too
        kept.append(bytearray(b"x") * (4 * MIB))
        time.sleep(0.002)
    return "nobody stopped it"


#: Objects that handlers left behind in their worker.
hoarded: list[bytearray] = []


def hoard(event: Event) -> int:
    begin(event, "hoard")
    hoarded.append(bytearray(b"x") * (4 * MIB))
    return event.number


def frugal(event: Event) -> int:
    begin(event, "frugal")
    return event.number


def poison(event: Event) -> None:
    begin(event, "poison")
    if event.number % 2:
        os._exit(5)
    os.kill(os.getpid(), signal.SIGKILL)


def flood(event: Event) -> int:
    begin(event, "flood")
    log = logging.getLogger("job.flood")
    for line in range(2_000):
        log.info("line %d of a flood %s", line, "x" * 100)
    return event.number


# Handlers for threads and the event loop of the script.


def io_tiny(event: Event) -> int:
    begin(event, "io_tiny")
    return event.number


def io_flaky(event: Event) -> int:
    if begin(event, "io_flaky") < 2:
        raise Deliberate(event.number)
    return event.number


def io_hang(event: Event) -> int:
    begin(event, "io_hang")
    threading.Event().wait(HANG_S)
    return event.number


async def loop_tiny(event: Event) -> int:
    begin(event, "loop_tiny")
    await asyncio.sleep(0)
    return event.number


async def loop_hang(event: Event) -> int:
    begin(event, "loop_hang")
    if event.number % 2:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(1000)
    await asyncio.sleep(1000 if event.number % 2 == 0 else HANG_S)
    return event.number


@dataclass(frozen=True)
class Part:
    """One handler in the play: its frequency, its options, and its possible ends."""

    handler: Callable[[Event], Any]
    weight: int
    ends: frozenset[OutcomeKind]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.handler.__name__

    @property
    def on_cpu(self) -> bool:
        return self.options.get("kind") == "cpu"


def _cpu(handler: Callable[[Event], Any], weight: int, *ends: OutcomeKind, **options: Any) -> Part:
    return Part(handler, weight, frozenset({*ends, DIED}), {"kind": "cpu", **options})


PARTS = {
    part.name: part
    for part in (
        _cpu(tiny, 1_000, SUCCEEDED),
        _cpu(slow, 100, SUCCEEDED),
        _cpu(keyed, 200, SUCCEEDED, key=lambda event: event.key, retries=2, backoff=0.02),
        _cpu(large, 5, SUCCEEDED),
        _cpu(cascade, 100, SUCCEEDED),
        _cpu(child, 0, SUCCEEDED),
        _cpu(flaky, 50, SUCCEEDED, retries=4, backoff=0.05, max_crashes=2),
        _cpu(failing, 20, RAISED, retries=1, backoff=0.0),
        _cpu(hang, 3, TIMED_OUT, timeout=LIMIT_S),
        _cpu(leak, 2, OVER_MEMORY, max_memory="160 MiB"),
        _cpu(hoard, 60, SUCCEEDED),
        _cpu(frugal, 200, SUCCEEDED, max_memory="160 MiB"),
        _cpu(poison, 4, retries=1, backoff=0.1),
        _cpu(flood, 3, SUCCEEDED),
        Part(io_tiny, 300, frozenset({SUCCEEDED})),
        Part(io_flaky, 50, frozenset({SUCCEEDED}), {"retries": 1, "backoff": 0.01}),
        Part(io_hang, 2, frozenset({TIMED_OUT}), {"timeout": LIMIT_S}),
        Part(loop_tiny, 200, frozenset({SUCCEEDED})),
        Part(loop_hang, 5, frozenset({TIMED_OUT}), {"timeout": LIMIT_S}),
    )
}
TOPICS = [part.name for part in PARTS.values()]
WEIGHTS = [part.weight for part in PARTS.values()]


class Adversary(threading.Thread):
    """Kills workers of a bus, and halts them for a while, until told to stop.

    Args:
        bus: the bus whose workers are killed.
        seed: seed of its choices.
        pause_s: half of the maximum pause between two kills, in seconds.
    """

    def __init__(self, bus: EventBus, seed: int, pause_s: float) -> None:
        super().__init__(name="adversary")
        self._bus = bus
        self._choose = random.Random(seed)
        self._pause_s = pause_s
        self._over = threading.Event()
        self._halted: list[tuple[float, psutil.Process]] = []
        #: Every worker that it saw.
        self.seen: set[psutil.Process] = set()
        self.did: Counter[str] = Counter()

    def run(self) -> None:
        while not self._over.wait(self._choose.uniform(0.0, 2 * self._pause_s)):
            self._let_go(time.monotonic())
            workers = self._workers()
            if workers:
                self._strike(self._choose.choice(workers))
        self._let_go(float("inf"))

    def stop(self) -> None:
        self._over.set()
        self.join()

    def _workers(self) -> list[psutil.Process]:
        workers = []
        for health in self._bus.health():
            if health.kind == "cpu" and health.pid is not None:
                with suppress(psutil.NoSuchProcess):
                    process = psutil.Process(health.pid)
                    self.seen.add(process)
                    # A worker that was killed three times before it is ready counts as one that
                    # cannot be started. Then waiting deliveries fail, and have no retry left if
                    # their retries were used up.
                    if health.state != "starting":
                        workers.append(process)
        return workers

    def _strike(self, worker: psutil.Process) -> None:
        number = self._choose.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
        with suppress(psutil.NoSuchProcess):
            worker.send_signal(number)
            self.did[number.name] += 1
            if number == signal.SIGSTOP:
                self._halted.append((time.monotonic() + self._choose.uniform(0.05, 1.0), worker))

    def _let_go(self, now: float) -> None:
        for until, worker in self._halted:
            if until <= now:
                with suppress(psutil.NoSuchProcess):
                    worker.send_signal(signal.SIGCONT)
        self._halted = [halt for halt in self._halted if halt[0] > now]
