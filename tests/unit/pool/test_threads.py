# SPDX-License-Identifier: MIT
"""Workers that are threads of this process: no copies, and threads that are left behind.

The promises that they share with other pools are in `tests/conformance`.
"""

import threading
from collections.abc import Iterator

import pytest

from procbus.core.context import current
from procbus.core.errors import HandlerExited
from procbus.pool.interface import LastWords, WorkerGone
from procbus.pool.threads import ThreadPool, ThreadWorker
from procbus.system.cooperative import in_turn
from tests.conformance import handlers
from tests.conformance.drive import (
    Gate,
    Receiver,
    deliveries,
    give,
    run,
    running,
    take_reports,
    values,
)
from tests.waits import BOUND_S


@pytest.fixture
def pool() -> ThreadPool:
    return ThreadPool(1)


@pytest.fixture
def worker(pool: ThreadPool) -> Iterator[ThreadWorker]:
    worker = pool.start(lambda _: None)
    yield worker
    worker.kill()
    worker.stop()


def test_handler_gets_the_very_object_and_returns_its_own(worker: ThreadWorker) -> None:
    event = [threading.Lock()]

    [found] = values(run(worker, deliveries(handlers.echo, event)))

    assert found is event


def test_error_is_the_very_object_that_the_handler_raised(worker: ThreadWorker) -> None:
    error = LookupError(threading.Lock())

    def fail(_: object) -> None:
        raise error

    [(outcome, _)] = run(worker, deliveries(fail, 1))

    assert outcome.error is error
    assert error.__cause__ is None


def test_result_that_is_unfinished_work_fails_its_delivery(worker: ThreadWorker) -> None:
    def generate(_: object) -> object:
        return (n for n in (1, 2))

    first, second = run(worker, deliveries(generate, 1) + deliveries(handlers.double, 4))

    assert "returned a generator" in str(first[0].error)
    assert second[0].value == 8


def test_exit_of_a_handler_ends_neither_thread_nor_script(worker: ThreadWorker) -> None:
    [(outcome, _)] = run(worker, deliveries(handlers.raise_it, SystemExit))

    assert isinstance(outcome.error, HandlerExited)
    assert values(run(worker, deliveries(handlers.double, 4))) == [8]


def test_owner_and_run_of_the_bus_reach_the_handler() -> None:
    owner = object()
    pool = ThreadPool(1, owner=owner)
    worker = pool.start(lambda _: None)
    try:
        [found] = values(run(worker, deliveries(lambda _: current().owner, 1)))
    finally:
        worker.stop()

    assert found is owner


def test_thread_left_behind_reports_nothing_and_begins_nothing(
    pool: ThreadPool, gate: Gate
) -> None:
    before = set(threading.enumerate())
    worker = pool.start(lambda _: None)
    [thread] = set(threading.enumerate()) - before
    seen: list[int] = []
    message = give(worker, deliveries(handlers.hold, gate.path) + deliveries(seen.append, 1))
    receiver = Receiver(worker)
    gate.wait_begun()
    told: list[str] = []

    assert in_turn([worker.kill_in(running(worker), told.append)]) == [True]
    gone = receiver.expect_gone()
    gate.open()
    thread.join(BOUND_S)

    assert not thread.is_alive()
    assert "in hold" in told[0]
    assert "threads.py" not in told[0], "the frames of procbus are left out"
    assert (gone.last_words.batch, gone.last_words.ends) == (message.batch, [])
    assert seen == []
    with pytest.raises(WorkerGone):
        worker.receive()


def test_stop_ends_the_thread(pool: ThreadPool) -> None:
    before = set(threading.enumerate())
    worker = pool.start(lambda _: None)
    [thread] = set(threading.enumerate()) - before
    assert values(run(worker, deliveries(handlers.double, 4))) == [8]

    worker.stop()

    assert not thread.is_alive()


def test_failure_of_procbus_itself_is_the_end_of_the_worker(
    worker: ThreadWorker, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        """A delivery that has no subscription."""

        receipt = object()

    message = worker.prepare(7, [Broken()])  # type: ignore[list-item] # so that procbus fails
    worker.offer(message)
    worker.send(message)

    with pytest.raises(WorkerGone) as caught:
        worker.receive()

    assert caught.value.last_words == LastWords(7, [], None)
    assert "procbus itself failed in procbus-cpu-1" in caplog.text


def test_glance_between_two_reports_has_the_ends_so_far(worker: ThreadWorker, gate: Gate) -> None:
    batch = deliveries(handlers.double, 1, 2) + deliveries(handlers.hold, gate.path)
    message = give(worker, batch)
    gate.wait_begun()

    early = [worker.receive(0.0) for _ in range(3)]  # on a slow machine some were reported before
    gate.open()
    late = take_reports(worker, message)

    assert [value for report in early for value in report.successes.values] == [2, 4]
    assert {(report.batch, report.complete) for report in early} == {(message.batch, False)}
    assert values(late) == ["held"]
