"""Do the other workers lose throughput when one is stopped and a 50 MB event is sent to it?

One of three workers gets SIGSTOP, then a 50 MB event, which fills its pipe and stays there. The
other two run 1 ms events. Beside it: a bus of two workers and nothing else. The bus may take the
big event back, since it was not begun, and have another worker run it: that happens before the
clock starts.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import TYPE_CHECKING

from .model import LIMIT, PROCBUS, Question, Row, Settings, Target
from .work import spin

if TYPE_CHECKING:
    from procbus import EventBus, Receipt

ROW = "1 ms events on two workers, a third stopped with 50 MB under way to it"
OTHERS = 2
FULL_COUNT = 3_000
BIG_BYTES = 50_000_000
TAKEN_S = 0.5  # ample for the bus to take an event from its queue and fill a pipe with it
WARM_UP = 0.1  # of the events that are measured


@dataclass(frozen=True)
class Hold:
    """Keeps one worker until the gate is opened, after it has announced its pid."""

    announcements: str
    gate: str


def hold(event: Hold) -> None:
    """Occupy this worker: opening a fifo blocks until its other end is opened as well."""
    Path(event.announcements).write_text(f"{event.gate} {os.getpid()}\n")
    Path(event.gate).read_text()


def size(event: bytes) -> int:
    """Handle the big event."""
    return len(event)


@dataclass(frozen=True)
class Held:
    """One worker that is inside `hold`."""

    pid: int
    gate: str
    receipt: Receipt

    def release(self) -> None:
        """Let the worker go on, and wait until its handler has ended."""
        Path(self.gate).write_text("go")
        self.receipt.result()


@contextmanager
def held_workers(bus: EventBus, count: int) -> Iterator[list[Held]]:
    """Occupy `count` idle workers, one each, and tell them apart by pid."""
    with tempfile.TemporaryDirectory() as folder:
        announcements = os.path.join(folder, "announcements")
        gates = [os.path.join(folder, f"gate-{number}") for number in range(count)]
        for fifo in (announcements, *gates):
            os.mkfifo(fifo)
        # Open for both, so that it never ends while one worker has written and the next has not.
        with os.fdopen(os.open(announcements, os.O_RDWR)) as announced:
            receipts = {gate: bus.publish(Hold(announcements, gate)) for gate in gates}
            held = []
            for _ in range(count):
                gate, pid = announced.readline().split()
                held.append(Held(int(pid), gate, receipts[gate]))
        yield held


def open_bus(workers: int) -> EventBus:
    """Open a bus with the three handlers."""
    from procbus import EventBus

    bus = EventBus([], cpu_workers=workers)
    bus.subscribe(Hold, hold, kind="cpu")
    bus.subscribe(bytes, size, kind="cpu")
    bus.subscribe(int, spin, kind="cpu")
    bus.start()
    return bus


def rate_of_short(bus: EventBus, settings: Settings, share: float = 1.0) -> float:
    """Publish the 1 ms events, or a share of them, one by one until all results are there."""
    count = round(settings.count(FULL_COUNT) * share)
    began = perf_counter()
    for receipt in [bus.publish(settings.spins_per_ms) for _ in range(count)]:
        receipt.result()
    return count / (perf_counter() - began)


def rate_beside_stopped(settings: Settings) -> dict[str, float]:
    """Stop one worker of three while the others are held, send it the big event, then measure.

    It is the only idle one at that time, so that the big event goes to it.
    """
    with open_bus(OTHERS + 1) as bus, held_workers(bus, OTHERS + 1) as (victim, *others):
        victim.release()
        os.kill(victim.pid, signal.SIGSTOP)
        try:
            big = bus.publish(bytes(BIG_BYTES))
            sleep(TAKEN_S)
            if big.done or bus.stats().lanes["cpu"].depth:
                raise RuntimeError("the big event was not sent to the stopped worker")
            for worker in others:
                worker.release()
            rate_of_short(bus, settings, WARM_UP)
            rate = rate_of_short(bus, settings)
        finally:
            os.kill(victim.pid, signal.SIGCONT)
        if big.result() != BIG_BYTES:
            raise RuntimeError("the big event did not arrive whole")
    return {ROW: rate}


def rate_of_two(settings: Settings) -> dict[str, float]:
    """Measure a bus that has only the two workers."""
    with open_bus(OTHERS) as bus, held_workers(bus, OTHERS) as held:
        for worker in held:
            worker.release()
        rate_of_short(bus, settings, WARM_UP)
        return {ROW: rate_of_short(bus, settings)}


QUESTION = Question(
    name="stopped_worker",
    asks="Do the others lose throughput when one worker is stopped with 50 MB sent to it?",
    # No loss, with room for what two equal runs differ by.
    rows=(Row(ROW, "events/s", (Target(0.97, at_least=True, against=LIMIT),)),),
    contenders={PROCBUS: rate_beside_stopped, LIMIT: rate_of_two},
    limit="the same bus with two workers, none stopped",
)
