"""What does it cost a tiny handler that the bus measures it for its advice?

The same bus, in one process, with the measuring and without, by turns of some 0.1 s: a loaded
machine changes faster than two processes can be compared. "Without" is procbus with its own
functions compiled anew without the statements that measure (`bare`): in the threads of the io lane,
in what the companions do for each batch, in the loop of each worker. "With" is compiled anew too,
since the same source was up to 0.1 us a delivery faster so. Workers see in a shared byte, once for
each batch, which it is: that costs both the same. So does the advisor's thread, which is there in
both, and looks four times a second at what such handlers did.
"""

from __future__ import annotations

import gc
import mmap
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .bare import without
from .model import PROCBUS, Question, Row, Settings, Target
from .work import Order, tiny

if TYPE_CHECKING:
    from procbus import EventBus

IO, INT, DATACLASS = "tiny io handler", "tiny cpu handler, int", "tiny cpu handler, dataclass"
# Row to the kind of its handler, and the function that makes its events.
VARIANTS: dict[str, tuple[str, Callable[[int], Any]]] = {
    IO: ("io", lambda number: number),
    INT: ("cpu", lambda number: number),
    DATACLASS: ("cpu", lambda number: Order(number, "somebody", number / 7)),
}
FULL_PAIRS = 24
BLOCK_S = 0.12
WARM_UP = 4_000
WITH, WITHOUT, OWN = 1, 0, 2


def share_row(row: str) -> str:
    """Name the row of the rate in proportion to that without the measuring."""
    return f"{row}: share of the rate without"


def cost_row(row: str) -> str:
    """Name the row for the cost that the measuring adds to each delivery."""
    return f"{row}: cost of a delivery"


class Switch:
    """Exchanges functions of classes for bare ones, and back.

    Args:
        *exchanged: class, name of its function, and the names left out of the bare one.
    """

    def __init__(self, *exchanged: tuple[type, str, tuple[str, ...]]) -> None:
        self.exchanged = [(owner, name) for owner, name, _ in exchanged]
        self._forms = {
            OWN: [getattr(owner, name) for owner, name in self.exchanged],
            WITH: [without(getattr(owner, name)) for owner, name in self.exchanged],
            WITHOUT: [without(getattr(owner, name), *hooks) for owner, name, hooks in exchanged],
        }
        self._is = OWN

    def turn(self, form: int) -> None:
        """Have them all in this form."""
        if form != self._is:
            self._is = form
            for (owner, name), function in zip(self.exchanged, self._forms[form], strict=True):
                setattr(owner, name, function)


def switch_of_parent() -> Switch:
    """Make the exchange for the parent."""
    from procbus.lanes.threads import IoThread
    from procbus.pool.parent_end import ParentEnd

    return Switch(
        (IoThread, "_attempt", ("average_s", "stands_for")),
        (ParentEnd, "prepare", ("began_s", "note_sent")),
        (ParentEnd, "report", ("began_s", "looked")),
    )


def prepare_worker(path: str) -> None:
    """Have a worker look, before each batch, at the byte in this file."""
    from procbus.pool.child.loop import Worker

    with open(path, "rb") as file:
        wanted = mmap.mmap(file.fileno(), 1, access=mmap.ACCESS_READ)
    runs = Switch((Worker, "_run", ("_tally", "TIMED")))
    own = vars(Worker)["_run_batch"]
    batches = {WITH: without(own), WITHOUT: without(own, "_tally")}

    def run_batch(worker: Worker, message: bytes) -> None:
        form = wanted[0]
        runs.turn(form)
        batches[form](worker, message)

    setattr(Worker, "_run_batch", run_batch)  # noqa: B010 - mypy refuses the plain way


@contextmanager
def opened(
    handler: Callable[[Any], None], kind: str, workers: int
) -> Iterator[tuple[EventBus, Callable[[int], None]]]:
    """Open a bus with one handler; return the function that turns the measuring on and off."""
    from procbus import EventBus

    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes([WITH]))
        file.flush()
        with mmap.mmap(file.fileno(), 1) as form:
            switch = switch_of_parent()

            def turn(wanted: int) -> None:
                switch.turn(wanted)
                form[0] = wanted

            init = partial(prepare_worker, file.name)
            turn(WITH)
            with EventBus([], cpu_workers=workers, worker_init=init) as bus:
                bus.subscribe(object, handler, kind="cpu" if kind == "cpu" else "io")
                if kind == "cpu":
                    bus.start()
                try:
                    yield bus, turn
                finally:
                    switch.turn(OWN)


def seconds_for(bus: EventBus, events: Sequence[Any]) -> float:
    """Publish one by one, and return how long it takes until all results are there."""
    gc.collect()
    began = perf_counter()
    for receipt in [bus.publish(event) for event in events]:
        receipt.result()
    return perf_counter() - began


def compare(settings: Settings, row: str) -> dict[str, float]:
    """Take turns; the result is the median of the pairs."""
    kind, make_event = VARIANTS[row]
    with opened(tiny, kind, settings.workers) as (bus, turn):
        events = [make_event(number) for number in range(settings.count(WARM_UP))]
        for form in (WITH, WITHOUT, WITH):
            turn(form)
            took_s = seconds_for(bus, events)
        count = settings.count(round(BLOCK_S / took_s * len(events)))
        events = [make_event(number) for number in range(count)]
        pairs: list[dict[int, float]] = []
        for number in range(settings.count(FULL_PAIRS, at_least=2)):
            pair: dict[int, float] = {}
            for form in (WITH, WITHOUT) if number % 2 else (WITHOUT, WITH):
                turn(form)
                pair[form] = seconds_for(bus, events) / count
            pairs.append(pair)
    return {
        row: 1 / median(pair[WITH] for pair in pairs),
        f"{row}, without": 1 / median(pair[WITHOUT] for pair in pairs),
        share_row(row): 100 * median(pair[WITHOUT] / pair[WITH] for pair in pairs),
        cost_row(row): 1e6 * median(pair[WITH] - pair[WITHOUT] for pair in pairs),
    }


def figures(settings: Settings) -> dict[str, float]:
    """Measure each handler."""
    return {name: figure for row in VARIANTS for name, figure in compare(settings, row).items()}


QUESTION = Question(
    name="advice_cost",
    asks="What does it cost a tiny handler that the bus measures it for its advice?",
    rows=tuple(
        each
        for row in VARIANTS
        for each in (
            Row(row, "events/s"),
            Row(f"{row}, without", "events/s"),
            Row(share_row(row), "%", (Target(97, at_least=True, unit="%"),)),
            Row(cost_row(row), "µs", (Target(1, at_least=False, unit="µs"),)),
        )
    ),
    contenders={PROCBUS: figures},
)
