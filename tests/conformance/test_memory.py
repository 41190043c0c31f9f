"""Memory of a worker and its children above a limit is reported, wherever it is measured."""

import time

from procbus.pool.interface import At, Worker
from procbus.system.cooperative import in_turn
from procbus.system.footprint import Footprint, FootprintMeter
from tests.conformance import handlers
from tests.conformance.drive import Gate, Receiver, deliveries, give, run, running, values

#: Any process has more.
LIMIT = 1 << 20


class Watch:
    """Looks at the memory of a worker as the supervisor does."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._meter = FootprintMeter()

    def above(self, at: At, limit: int = LIMIT) -> Footprint | None:
        worker = self._worker
        if worker.probe is None:
            return worker.watch_memory(at, limit)
        assert worker.watch_memory(at, limit) is None, "its probe tells"
        found = self._meter.measure(worker.probe, limit)
        return found if found is not None and found.total > limit else None

    def wait_for(self, at: At, processes: int) -> Footprint:
        """Wait until it is seen above its limit with a number of processes of its handler."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            found = self.above(at)
            if found is not None and found.processes == processes:
                return found
            time.sleep(0.01)
        raise AssertionError("the worker is not said to be above")


def test_memory_of_a_worker_includes_processes_of_its_handler(
    process_worker: Worker, gate: Gate
) -> None:
    give(process_worker, deliveries(handlers.hold_with_a_child, gate.path))
    receiver = Receiver(process_worker)
    gate.wait_begun()
    at = running(process_worker)

    found = Watch(process_worker).wait_for(at, processes=1)

    assert found.worker > LIMIT
    assert found.others > 0
    in_turn([process_worker.kill_in(at, lambda _: None)])
    receiver.expect_gone()


def test_reported_memory_belongs_to_the_running_delivery(
    process_worker: Worker, gate: Gate
) -> None:
    message = give(process_worker, deliveries(handlers.hold, gate.path))
    receiver = Receiver(process_worker)
    gate.wait_begun()
    at = running(process_worker)
    Watch(process_worker).wait_for(at, processes=0)

    assert process_worker.watch_memory((at[0], at[1] + 1, at[2]), LIMIT) is None

    gate.open()
    receiver.finish()
    assert values(receiver.ends[message.batch]) == ["held"]
    assert process_worker.watch_memory(at, LIMIT) is None
    assert values(run(process_worker, deliveries(handlers.double, 5))) == [10], "it goes on"


def test_worker_that_is_gone_has_no_memory(worker: Worker, gate: Gate) -> None:
    give(worker, deliveries(handlers.hold, gate.path))
    receiver = Receiver(worker)
    gate.wait_begun()
    at = running(worker)
    in_turn([worker.kill_in(at, lambda _: None)])
    gate.open()
    receiver.expect_gone()

    assert worker.watch_memory(at, LIMIT) is None
    worker.stop()
    assert worker.watch_memory(at, LIMIT) is None
