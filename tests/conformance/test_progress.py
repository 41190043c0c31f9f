"""The reports of a running handler are seen while it runs, and after its worker's death."""

from __future__ import annotations

import time

from procbus.core.progress import Progress
from procbus.pool.interface import At, Worker
from tests.conformance import handlers
from tests.conformance.drive import Gate, Receiver, deliveries, give, kill, running
from tests.waits import eventually


def parsing(progress: Progress | None) -> bool:
    return progress is not None and progress[:3] == (4211, 5000, "parsing \u00e4")


def test_last_report_of_the_running_handler_is_read_from_any_thread(
    worker: Worker, gate: Gate
) -> None:
    begun_at = time.monotonic()
    give(worker, deliveries(handlers.double, 1) + deliveries(handlers.report_and_hold, gate.path))
    receiver = Receiver(worker)
    gate.wait_begun()
    at = running(worker, 1)

    eventually(lambda: parsing(worker.progress(at)))

    progress = worker.progress(at)
    assert progress is not None
    assert begun_at - 1 < progress.at < time.monotonic() + 1, "by the clock of this machine"
    gate.open()
    receiver.finish()


def test_report_belongs_to_its_delivery_alone(worker: Worker, gate: Gate) -> None:
    batch = deliveries(handlers.report_and_hold, gate.path) + deliveries(handlers.double, 1)
    first = give(worker, batch)
    receiver = Receiver(worker)
    gate.wait_begun()
    at = running(worker)
    eventually(lambda: parsing(worker.progress(at)))

    other: At = (first.batch, 1, at[2])
    again: At = (first.batch + 1, 0, at[2])

    assert worker.progress(other) is worker.progress(again) is None
    gate.open()
    receiver.finish()


def test_last_words_of_a_killed_worker_say_how_far_its_handler_was(
    worker: Worker, gate: Gate
) -> None:
    give(worker, deliveries(handlers.double, 1) + deliveries(handlers.report_and_hold, gate.path))
    receiver = Receiver(worker)
    gate.wait_begun()
    at = running(worker, 1)
    eventually(lambda: parsing(worker.progress(at)))

    kill(worker, gate)
    words = receiver.expect_gone().last_words

    assert words.ran_s is not None
    assert parsing(words.progress)
