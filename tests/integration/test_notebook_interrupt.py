# SPDX-License-Identifier: MIT
"""A cell that an interrupt ends gives up the events it waited for; a cell that goes on does not."""

import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from procbus import DeliveryState, EventBus, OutcomeKind
from tests.integration.helpers import PATIENCE_S, Tally
from tests.matrix import quick_first
from tests.waits import becomes

pytestmark = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(),
    reason="signals go to the main thread",
)


class Shell:
    """The parts of IPython that procbus uses."""

    def __init__(self) -> None:
        self.execution_count = 1
        self.events = self
        self.callbacks: list[Callable[[Any], object]] = []

    def register(self, event: str, callback: Callable[[Any], object]) -> None:
        assert event == "post_run_cell"
        self.callbacks.append(callback)

    def unregister(self, event: str, callback: Callable[[Any], object]) -> None:
        assert event == "post_run_cell"
        self.callbacks.remove(callback)

    def run(self, cell: Callable[[], object]) -> BaseException | None:
        """Run a cell as IPython does, and return the exception that ended it."""
        ended_by: BaseException | None = None
        try:
            cell()
        except BaseException as error:  # noqa: BLE001 - as IPython does
            ended_by = error
        for callback in list(self.callbacks):
            callback(types.SimpleNamespace(error_in_exec=ended_by))
        self.execution_count += 1
        return ended_by


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Shell:
    shell = Shell()
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    return shell


@pytest.fixture
def bus() -> Iterator[EventBus]:
    bus = EventBus([], cpu_workers=1)

    @bus.subscribe("hangs", kind="cpu", name="hangs", retries=2)
    def hangs(tally: Tally) -> None:
        tally.note("begun")
        time.sleep(600)

    @bus.subscribe("one", kind="cpu", concurrency=1, name="one")
    def one(tally: Tally) -> None:
        tally.note("begun")
        time.sleep(600)

    bus.subscribe("number", abs, kind="cpu")
    yield bus
    bus.close(timeout=0)


def interrupt_once_begun(tally: Tally) -> None:
    """Interrupt the main thread as soon as a handler has noted that it began."""

    def watch() -> None:
        becomes(tally.lines, PATIENCE_S)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


@pytest.mark.parametrize("how", ["result", "wait", "results"])
def test_an_interrupted_wait_cancels_the_delivery_and_frees_its_worker(shell, bus, tmp_path, how):
    tally = Tally(str(tmp_path / "tally"))
    receipt = bus.publish("hangs", tally)
    interrupt_once_begun(tally)
    assert type(shell.run(getattr(receipt, how))) is KeyboardInterrupt
    assert receipt.wait(PATIENCE_S)
    (delivery,) = receipt.deliveries
    assert delivery.state is DeliveryState.CANCELLED
    assert delivery.outcome.kind is OutcomeKind.CANCELLED
    assert "the cell that waited for it was interrupted" in str(delivery.exception())
    assert bus.publish("number", -3).result(PATIENCE_S) == 3
    assert tally.lines() == ["begun"], "it is not tried again"
    assert len(bus.dead_letters) == 0
    assert shell.callbacks == []


def test_a_cell_that_catches_the_interrupt_may_go_on_waiting(shell, bus, tmp_path):
    tally = Tally(str(tmp_path / "tally"))
    receipt = bus.publish("hangs", tally)
    interrupt_once_begun(tally)

    def cell() -> None:
        with pytest.raises(KeyboardInterrupt):
            receipt.wait()

    assert shell.run(cell) is None
    assert shell.callbacks == []
    assert receipt.deliveries[0].state is DeliveryState.RUNNING


def test_outside_a_notebook_an_interrupt_gives_up_nothing(bus, tmp_path):
    tally = Tally(str(tmp_path / "tally"))
    receipt = bus.publish("hangs", tally)
    interrupt_once_begun(tally)
    with pytest.raises(KeyboardInterrupt):
        receipt.wait()
    assert receipt.deliveries[0].state is DeliveryState.RUNNING


@pytest.mark.parametrize("ordered", quick_first([False, True]))
@pytest.mark.parametrize("topic", ["hangs", "one"])
def test_interrupted_stream_cancels_its_events(shell, bus, tmp_path, topic, ordered):
    tally = Tally(str(tmp_path / "tally"))
    before = bus.publish("number", -1)
    interrupt_once_begun(tally)
    stream = bus.stream([tally] * 50, topic=topic, ordered=ordered)
    assert type(shell.run(lambda: list(stream))) is KeyboardInterrupt
    assert bus.drain(PATIENCE_S)
    assert before.result(0) == 1
    counts = bus.stats().handlers[topic]
    assert counts.cancelled == counts.published > 0
    assert 1 <= len(tally.lines()) < 10
    assert bus.publish("number", -3).result(PATIENCE_S) == 3


def test_events_of_other_cells_go_on(shell, bus, tmp_path):
    tally = Tally(str(tmp_path / "tally"))
    receipt = bus.publish("hangs", tally)
    numbers = [bus.publish("number", -n) for n in range(20)]
    interrupt_once_begun(tally)
    shell.run(receipt.wait)
    assert [number.result(PATIENCE_S) for number in numbers] == list(range(20))
