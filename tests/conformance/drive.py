"""Driving one worker by hand, as a companion does."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from procbus.core.delivery import Delivery
from procbus.core.handler import make_handler
from procbus.core.locks import Lock
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.progress import Progress
from procbus.core.receipt import FanReceipt
from procbus.core.subscription import Subscription
from procbus.pool.interface import At, Ended, Message, Report, Worker, WorkerGone

_event_ids = itertools.count(1)
_batches = itertools.count(1)


class NoLane:
    """The lane of subscriptions whose deliveries go to a worker by hand."""

    def stir(self) -> None:
        pass

    def put(self, delivery: Delivery) -> None:
        raise AssertionError("nobody queues anything here")

    def release(self, delivery: Delivery) -> None:
        raise AssertionError("nobody settles anything here")

    def step_aside(self, delivery: Delivery) -> None:
        raise AssertionError("nobody settles anything here")

    def put_again(self, delivery: Delivery) -> None:
        raise AssertionError("nobody queues anything here")

    def is_running(self, delivery: Delivery) -> bool:
        return False

    def progress_of(self, delivery: Delivery) -> Progress | None:
        return None

    def ran_s(self, delivery: Delivery) -> float | None:
        return None

    def stop(self, delivery: Delivery) -> None:
        raise AssertionError("nobody cancels anything here")

    def cut_off(self, delivery: Delivery) -> None:
        raise AssertionError("nobody cancels anything here")

    def withdraw(self, delivery: Delivery) -> bool:
        raise AssertionError("nobody cancels anything here")


def subscription_of(
    function: Callable[[Any], Any], lane: Any = None, **options: Any
) -> Subscription:
    handler = make_handler(function, "conformance", kind="cpu", **options)
    return Subscription(handler, lane or NoLane())


def deliveries_to(
    subscription: Subscription, events: Sequence[object], parent_id: int | None = None
) -> list[Delivery]:
    """One delivery of each event."""
    lock = Lock()
    made = []
    for event in events:
        receipt = FanReceipt(next(_event_ids), event, "conformance", parent_id, lock)
        receipt.left = 1
        delivery = Delivery(subscription, receipt, None, time.monotonic())
        receipt.held = (delivery,)
        made.append(delivery)
    return made


def deliveries(function: Callable[[Any], Any], *events: object) -> list[Delivery]:
    return deliveries_to(subscription_of(function), events)


def give(worker: Worker, batch: Sequence[Delivery]) -> Message:
    """Prepare, offer and send."""
    message = worker.prepare(next(_batches), batch)
    worker.offer(message)
    worker.send(message)
    return message


def ends_of(report: Report, worker: Worker) -> list[Ended]:
    """The facts of a report, in one form."""
    successes: list[Ended] = [
        (Outcome(OutcomeKind.SUCCEEDED, value, None, began, ended, worker.pid), None)
        for (began, ended, _), value in zip(*report.successes, strict=True)
    ]
    return [*successes, *report.ends]


def reports_of(worker: Worker, message: Message) -> list[Report]:
    """Receive until the worker is through with the message; one that is held up reports earlier."""
    reports: list[Report] = []
    while not reports or not reports[-1].complete:
        reports.append(worker.receive())
        assert reports[-1].batch == message.batch
    return reports


def take_reports(worker: Worker, message: Message) -> list[Ended]:
    """Receive until the worker is through with the message; return how its deliveries ended."""
    return [end for report in reports_of(worker, message) for end in ends_of(report, worker)]


def run(worker: Worker, batch: Sequence[Delivery]) -> list[Ended]:
    return take_reports(worker, give(worker, batch))


def values(ends: Sequence[Ended]) -> list[Any]:
    """The results of handlers that all succeeded."""
    for outcome, _ in ends:
        if outcome.error is not None:
            raise outcome.error
    return [outcome.value for outcome, _ in ends]


def running(worker: Worker, index: int = 0) -> At:
    """Wait until it says that it is at this delivery of a batch: one far away says it later."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        at = worker.running()
        if at is not None and at[1] == index and at[2] <= time.monotonic():
            return at
        time.sleep(0.001)
    raise AssertionError(f"the worker does not say that it is at {index}")


def take_back(worker: Worker, receiver: Receiver, most: int) -> int:
    """Take back deliveries, and wait for the ones given back later; return the number."""
    taken = worker.take_back(most)
    receiver.wait_for_returned()
    return taken + receiver.returned


def kill(worker: Worker, gate: Gate | None = None) -> None:
    """Kill a worker, and see it dead. A thread cannot be killed: it comes to its end instead."""
    pid = worker.pid
    assert pid is not None
    worker.kill()
    if pid != os.getpid():
        with contextlib.suppress(ChildProcessError):  # dead, and loky has read the exit code
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    elif gate is not None:
        gate.open()


class Receiver(threading.Thread):
    """Receives everything from a worker in a thread, until a number of batches are complete."""

    def __init__(self, worker: Worker, batches: int = 1) -> None:
        super().__init__()
        self._worker = worker
        self._left = batches
        self.ends: dict[int, list[Ended]] = {}
        self.completed: list[int] = []
        #: How many deliveries the worker gave back later.
        self.returned = 0
        self.gone: WorkerGone | None = None
        self.start()

    def run(self) -> None:
        try:
            while self._left:
                report = self._worker.receive()
                self.returned += report.returned
                self.ends.setdefault(report.batch, []).extend(ends_of(report, self._worker))
                if report.complete:
                    self.completed.append(report.batch)
                    self._left -= 1
        except WorkerGone as gone:
            self.gone = gone

    def wait_for_returned(self) -> None:
        deadline = time.monotonic() + 30
        while self._worker.recalling:
            assert time.monotonic() < deadline, "the worker does not say what it gives back"
            time.sleep(0.001)

    def finish(self) -> None:
        self.join(55)
        assert not self.is_alive(), "the worker neither reported nor was gone"

    def expect_gone(self) -> WorkerGone:
        self.finish()
        assert self.gone is not None, "the worker is not gone"
        return self.gone


class Gate:
    """The door at which the handler `hold` waits until `open`."""

    def __init__(self, directory: Path, name: str = "gate") -> None:
        self.path = str(directory / name)
        os.mkfifo(f"{self.path}.begun")
        self._file = open(self.path, "w")  # noqa: SIM115 - its lock is held until it is closed
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def wait_begun(self) -> None:
        """Wait until the handler has begun. The test's time limit bounds it."""
        with open(f"{self.path}.begun") as begun:
            assert begun.read() == "begun"

    def open(self) -> None:
        self._file.close()
