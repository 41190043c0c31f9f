"""Killing a worker in the middle of one delivery, with its stack, or not at all: of every pool."""

import contextlib
import functools
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from loky import process_executor

from procbus.codec.encoder import encode_alone
from procbus.pool import loky_process
from procbus.pool.interface import At, Worker, WorkerGone
from procbus.system.cooperative import in_turn
from tests.conformance import handlers
from tests.conformance.conftest import MakePool
from tests.conformance.drive import (
    Gate,
    Receiver,
    deliveries,
    give,
    kill,
    run,
    running,
    values,
)
from tests.processes import alive_after


class Judge:
    """Has a worker killed; keeps the stacks it receives, and the delivery that ran then."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.stacks: list[str] = []
        self.alive_then: list[bool] = []

    def kill_in(self, at: At) -> bool:
        [killed] = in_turn([self._worker.kill_in(at, self.condemn)])
        assert killed is not None
        return killed

    def condemn(self, stack: str) -> None:
        self.stacks.append(stack)
        pid = self._worker.pid
        assert pid is not None
        self.alive_then.append(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)


def test_a_worker_is_killed_in_the_delivery_that_is_named(worker: Worker, gate: Gate) -> None:
    judge = Judge(worker)
    batch = deliveries(handlers.double, 1, 2) + deliveries(handlers.hold, gate.path)
    message = give(worker, batch + deliveries(handlers.double, 3))
    receiver = Receiver(worker)
    gate.wait_begun()
    at = running(worker, 2)
    assert at[0] == message.batch

    assert judge.kill_in(at)
    gate.open()
    gone = receiver.expect_gone()

    words = gone.last_words
    assert words.batch == message.batch
    ends = receiver.ends.get(message.batch, []) + words.ends
    assert values(ends) == [2, 4], "the delivery named is the one that comes next"
    assert words.ran_s is not None
    assert receiver.completed == []


def test_the_stack_names_the_handlers_function_before_the_kill(worker: Worker, gate: Gate) -> None:
    judge = Judge(worker)
    give(worker, deliveries(handlers.hold, gate.path))
    receiver = Receiver(worker)
    gate.wait_begun()

    assert judge.kill_in(running(worker))
    gate.open()
    receiver.expect_gone()

    [stack] = judge.stacks
    assert "in hold" in stack
    assert not stack.splitlines()[-1].startswith("  File"), "with its source"
    assert judge.alive_then == [True]


def test_a_worker_that_moved_on_goes_on_unharmed(worker: Worker, gate: Gate) -> None:
    judge = Judge(worker)
    message = give(worker, deliveries(handlers.hold, gate.path) + deliveries(handlers.double, 1))
    receiver = Receiver(worker)
    gate.wait_begun()
    at = running(worker)
    gate.open()
    receiver.finish()

    assert not judge.kill_in(at)

    assert judge.stacks == []
    assert values(receiver.ends[message.batch]) == ["held", 2]
    assert values(run(worker, deliveries(handlers.double, 5))) == [10]


@pytest.mark.parametrize(
    "change", [(1, 0, 0.0), (0, 1, 0.0), (0, 0, 0.1)], ids=["batch", "index", "start"]
)
def test_a_worker_that_is_at_another_delivery_goes_on_unharmed(
    worker: Worker, gate: Gate, change: tuple[int, int, float]
) -> None:
    judge = Judge(worker)
    message = give(worker, deliveries(handlers.hold, gate.path))
    receiver = Receiver(worker)
    gate.wait_begun()
    batch, index, since = running(worker)

    assert not judge.kill_in((batch + change[0], index + change[1], since + change[2]))

    assert judge.stacks == []
    gate.open()
    receiver.finish()
    assert values(receiver.ends[message.batch]) == ["held"]


def test_a_worker_between_two_deliveries_goes_on_unharmed(worker: Worker) -> None:
    judge = Judge(worker)
    message = give(worker, deliveries(handlers.double, 1))
    receiver = Receiver(worker)
    receiver.finish()

    assert not judge.kill_in((message.batch, 0, time.monotonic()))

    assert judge.stacks == []
    assert values(run(worker, deliveries(handlers.double, 5))) == [10]


def test_a_worker_is_condemned_once(worker: Worker, gate: Gate) -> None:
    judge = Judge(worker)
    give(worker, deliveries(handlers.hold, gate.path))
    receiver = Receiver(worker)
    gate.wait_begun()
    at = running(worker)

    assert judge.kill_in(at)
    assert not judge.kill_in(at), "what it knew of the stack might be lost"

    assert len(judge.stacks) == 1
    gate.open()
    receiver.expect_gone()


def test_a_worker_that_is_gone_is_not_condemned(worker: Worker, gate: Gate) -> None:
    judge = Judge(worker)
    give(worker, deliveries(handlers.hold, gate.path))
    receiver = Receiver(worker)
    gate.wait_begun()
    at = running(worker)
    kill(worker, gate)
    receiver.expect_gone()

    assert not judge.kill_in(at)

    worker.stop()
    assert not judge.kill_in(at)
    assert judge.stacks == []


def test_a_judge_that_fails_does_not_leave_the_worker_halted(worker: Worker, gate: Gate) -> None:
    give(worker, deliveries(handlers.hold, gate.path))
    receiver = Receiver(worker)
    gate.wait_begun()

    def fail(_: str) -> None:
        raise RuntimeError("a bug in procbus")

    with contextlib.suppress(ExceptionGroup):
        in_turn([worker.kill_in(running(worker), fail)])

    gate.open()
    receiver.join(55)
    assert not receiver.is_alive(), "it neither went on nor died"


def test_kill_amid_changing_batches_hits_the_named_delivery_alone(worker: Worker) -> None:
    """The delivery that was running at the kill is the only one that did not end."""
    judge = Judge(worker)
    message = give(worker, deliveries(handlers.double, *range(3000)))
    receiver = Receiver(worker)
    named: At | None = None
    while not judge.stacks and not receiver.completed:
        named = worker.running()
        if named is not None and judge.kill_in(named):
            break
    if not judge.stacks:
        receiver.finish()
        return
    gone = receiver.expect_gone()

    assert named is not None
    ended = len(receiver.ends.get(message.batch, [])) + len(gone.last_words.ends)
    assert ended == named[1]


def test_hanging_up_ends_a_receive_that_would_wait_for_ever(worker: Worker) -> None:
    assert values(run(worker, deliveries(handlers.double, 1))) == [2]
    receiver = Receiver(worker)

    worker.hang_up()
    worker.hang_up()

    words = receiver.expect_gone().last_words
    assert (words.ends, words.ran_s) == ([], None)
    worker.hang_up()


# Only for pools with processes.


def test_a_handler_that_holds_the_gil_is_killed_with_its_stack(
    process_worker: Worker, gate: Gate
) -> None:
    judge = Judge(process_worker)
    give(process_worker, deliveries(handlers.hold_the_gil, gate.path))
    receiver = Receiver(process_worker)
    gate.wait_begun()

    assert judge.kill_in(running(process_worker))
    receiver.expect_gone()

    [stack] = judge.stacks
    assert "in hold_the_gil" in stack


def test_worker_halted_by_another_program_is_killed_all_the_same(
    process_worker: Worker, gate: Gate
) -> None:
    judge = Judge(process_worker)
    give(process_worker, deliveries(handlers.hold, gate.path))
    receiver = Receiver(process_worker)
    gate.wait_begun()
    assert process_worker.pid is not None
    psutil.Process(process_worker.pid).suspend()

    assert judge.kill_in(running(process_worker))
    receiver.expect_gone()

    assert len(judge.stacks) == 1, "though it may be empty"


def test_processes_that_a_handler_started_are_killed_with_it(
    process_worker: Worker, gate: Gate
) -> None:
    judge = Judge(process_worker)
    give(process_worker, deliveries(handlers.hold_with_a_child, gate.path))
    receiver = Receiver(process_worker)
    gate.wait_begun()
    child = psutil.Process(int(Path(f"{gate.path}.child").read_text()))

    assert judge.kill_in(running(process_worker))
    receiver.expect_gone()

    assert not alive_after([child], 30)


@pytest.mark.parametrize("make_process_pool", ["loky"], indirect=True)  # its probe is bent
def test_a_worker_that_is_not_killed_after_all_is_not_left_halted(
    process_worker: Worker, gate: Gate, tmp_path: Path
) -> None:
    """It moves on just before it is halted."""
    judge = Judge(process_worker)
    second = Gate(tmp_path, "second")
    give(process_worker, deliveries(handlers.hold, gate.path, second.path))
    receiver = Receiver(process_worker)
    gate.wait_begun()
    at = running(process_worker)
    probe = process_worker.probe
    assert probe is not None
    stopped = probe.stopped

    def move_on() -> bool:
        gate.open()
        second.wait_begun()
        probe.stopped = stopped  # type: ignore[method-assign]
        return True  # so that it is not asked for its stack

    probe.stopped = move_on  # type: ignore[method-assign]
    assert not judge.kill_in(at)

    second.open()
    receiver.finish()
    assert receiver.gone is None
    [ends] = receiver.ends.values()
    assert values(ends) == ["held", "held"]


def test_a_worker_can_be_killed_while_it_sets_itself_up(
    make_process_pool: MakePool, gate: Gate
) -> None:
    pool = make_process_pool(1, encode_alone(functools.partial(handlers.hold, gate.path)))
    started: list[Worker] = []
    killers: list[threading.Thread] = []

    def launched(worker: Worker) -> None:
        def kill() -> None:
            gate.wait_begun()
            worker.kill()

        started.append(worker)
        killers.append(threading.Thread(target=kill))
        killers[0].start()

    with pytest.raises(WorkerGone) as caught:
        pool.start(launched)

    killers[0].join(55)
    assert not caught.value.hopeless
    assert caught.value.last_words.ran_s is None
    [worker] = started
    assert worker.running() is None
    worker.kill()
    worker.stop()


@pytest.mark.parametrize("make_process_pool", ["loky"], indirect=True)  # it is loky that is slow
def test_worker_killed_in_its_set_up_leaves_no_trace_if_loky_sees_the_death_late(
    make_process_pool: MakePool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread of loky that watches the process still holds semaphores and a pipe of it then."""
    pool = make_process_pool(1, encode_alone(functools.partial(handlers.hold, gate.path)))
    killers: list[threading.Thread] = []
    killing = threading.Event()
    wait = process_executor.wait

    watchers: list[threading.Thread] = []
    returned = threading.Event()

    def wait_late(things: list[Any]) -> list[Any]:
        ready: list[Any] = wait(things)
        if killing.is_set():
            watchers.append(threading.current_thread())
            returned.wait(0.5)  # it does not return before this thread has ended
        return ready

    def wait_dead_late(*arguments: Any) -> int | None:
        killers[0].join(55)
        return wait_dead(*arguments)

    wait_dead = loky_process.wait_dead
    monkeypatch.setattr(loky_process, "wait_dead", wait_dead_late)
    monkeypatch.setattr(process_executor, "wait", wait_late)

    def launched(worker: Worker) -> None:
        def kill() -> None:
            gate.wait_begun()
            killing.set()
            worker.kill()

        killers.append(threading.Thread(target=kill))
        killers[0].start()

    with pytest.raises(WorkerGone):
        pool.start(launched)

    alive = [watcher.is_alive() for watcher in watchers]
    returned.set()
    assert True not in alive
    assert alive
