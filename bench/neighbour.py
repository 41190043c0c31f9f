"""What does a worker lose while its neighbour hangs and is killed, again and again?

Two workers and a steady supply of 1 ms events. In turns, one worker is held without a limit, which
is the quiet time, and hangs until its limit. The rate of the other one is compared: from
the moment when the first begins to hang until its replacement has done its first event, and for
as long as it is held.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections import deque
from dataclasses import dataclass
from time import monotonic, sleep
from typing import TYPE_CHECKING

from .hangs import Hang, hang
from .model import Settings
from .work import spin

if TYPE_CHECKING:
    from procbus import EventBus, Receipt

TIMEOUT_S = 0.5
HOLD_S = 0.65  # about as long as a limit and a new worker take
FULL_TURNS = 8
MAX_PENDING = 200  # short events, and so at most a fifth of a second of them, wait
BOUND_S = 20.0  # for anything that is waited for


@dataclass
class Window:
    """A stretch of time: `seconds` of it, and how many events the neighbour did in it."""

    seconds: float = 0.0
    events: int = 0


class Feeder(threading.Thread):
    """Publishes short events, as many as there is room for, and notes their outcomes.

    Args:
        bus: its `max_pending` paces the feeder.
        event: the short event.
    """

    def __init__(self, bus: EventBus, event: int) -> None:
        super().__init__(name="bench-feeder")
        self._bus = bus
        self._event = event
        self._over = threading.Event()
        #: When an event ended, and on which worker. Written by this thread, read by any.
        self.ended: list[tuple[float, int]] = []
        self.pids: set[int] = set()

    def run(self) -> None:
        """Feed until `stop`."""
        receipts: deque[Receipt] = deque()
        while not self._over.is_set():
            receipts.append(self._bus.publish("short", self._event))
            while receipts[0].done:
                self._note(receipts.popleft())
                if not receipts:
                    break

    def _note(self, receipt: Receipt) -> None:
        outcome = receipt.deliveries[0].outcome
        assert outcome is not None
        assert outcome.worker_pid is not None, outcome
        self.ended.append((outcome.ended_at, outcome.worker_pid))
        self.pids.add(outcome.worker_pid)

    def wait_for_new(self, known: set[int]) -> None:
        """Wait until a worker that is not among these has done an event."""
        deadline = monotonic() + BOUND_S
        while self.pids <= known:
            if monotonic() > deadline:
                raise RuntimeError(f"there is no new worker after {BOUND_S:g} s")
            sleep(0.005)

    def stop(self) -> None:
        """End the feeding."""
        self._over.set()
        self.join(BOUND_S)


@dataclass(frozen=True)
class Turn:
    """One worker was not there for the short events.

    Attributes:
        killed: whether it hung until its limit; else it was held for a while.
        pid: the worker.
        began_at: when it began to hang.
        ended_at: when it went on; None where the first event of `new_pid` tells.
        new_pid: the worker that replaced it.
    """

    killed: bool
    pid: int
    began_at: float
    ended_at: float | None
    new_pid: int | None

    def add_to(self, window: Window, ended: list[tuple[float, int]]) -> None:
        """Count the neighbour's work meanwhile."""
        until = self.ended_at
        if until is None:
            until = min(at for at, pid in ended if pid == self.new_pid)
        others = (self.pid, self.new_pid)
        window.seconds += until - self.began_at
        window.events += sum(self.began_at < at <= until and pid not in others for at, pid in ended)


def take_turn(bus: EventBus, feeder: Feeder, topic: str, event: Hang) -> Turn:
    """Hold a worker, or have it hang and be killed, and wait until both workers work again."""
    known = set(feeder.pids)
    receipt = bus.publish(topic, event)
    if not receipt.wait(BOUND_S):
        raise RuntimeError(f"{receipt!r} is not settled after {BOUND_S:g} s")
    outcome = receipt.deliveries[0].outcome
    assert outcome is not None
    assert outcome.worker_pid is not None, outcome
    if topic == "hold":
        receipt.result()
        return Turn(False, outcome.worker_pid, outcome.started_at, outcome.ended_at, None)
    error = receipt.deliveries[0].exception()
    if type(error).__name__ != "HandlerTimeout":
        raise RuntimeError(f"an event that hangs ended with {error!r}")
    feeder.wait_for_new(known)
    (new_pid,) = feeder.pids - known
    return Turn(True, outcome.worker_pid, outcome.started_at, None, new_pid)


def share(how: str, settings: Settings) -> float:
    """Return the rate of the neighbour of a worker that is killed, in % of its quiet rate.

    Args:
        how: way to hang, and to be held.
        settings: of the run.
    """
    from procbus import EventBus

    quiet, noisy = Window(), Window()
    with tempfile.TemporaryDirectory() as folder:
        event = Hang(how, os.path.join(folder, "hung"))
        hold = Hang(how, os.path.join(folder, "held"), HOLD_S)
        with EventBus([], cpu_workers=2, max_pending=MAX_PENDING) as bus:
            bus.subscribe("hang", hang, kind="cpu", name="hang", priority=1, timeout=TIMEOUT_S)
            bus.subscribe("hold", hang, kind="cpu", name="hold", priority=1)
            bus.subscribe("short", spin, kind="cpu")
            bus.start()
            feeder = Feeder(bus, settings.spins_per_ms)
            feeder.start()
            try:
                feeder.wait_for_new(set())
                while len(feeder.pids) < 2:
                    feeder.wait_for_new(set(feeder.pids))
                turns = []
                for _ in range(settings.count(FULL_TURNS, at_least=2)):
                    turns.append(take_turn(bus, feeder, "hold", hold))
                    turns.append(take_turn(bus, feeder, "hang", event))
            finally:
                feeder.stop()
    for turn in turns:
        turn.add_to(noisy if turn.killed else quiet, feeder.ended)
    return 100 * (noisy.events / noisy.seconds) / (quiet.events / quiet.seconds)
