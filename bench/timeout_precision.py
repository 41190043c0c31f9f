"""How exact is a time limit, how soon is there a new worker, and do the others notice?

Two workers hang at once, in a Python loop, in a sleep, and in a C call that keeps the GIL, with
`timeout=0.5`; then eight of them. Behind them waits a short event, which only a new worker can
take. How much the neighbour of a worker that is killed again and again loses is measured by
`bench.neighbour`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import quantiles
from time import monotonic, sleep
from typing import Any

from . import neighbour
from .hangs import C_CALL, HOWS, LOOP, SLEEP, Hang, began, hang, whoami
from .model import PROCBUS, Question, Row, Settings, Target

TIMEOUT_S = 0.5
WORKERS = 2
PAIRS = dict.fromkeys(HOWS, 8)  # of hanging events, for each way to hang
PEBBLE_PAIRS = {**PAIRS, C_CALL: 2}  # it takes six seconds over each of these
BOUND_S = 20.0  # for anything that is waited for
NEIGHBOURS = (LOOP, SLEEP)
CROWD = 8  # workers that hang at the same moment
CROWDS = 3  # of them, for each way to hang


@dataclass(frozen=True)
class Engine:
    """A way to measure.

    Attributes:
        hang: submits an event that hangs, with the time limit.
        ask: submits a short event, whose result is the pid of its worker.
        error: waits for the end of an event and returns its error, None if there is none.
        result: the result of an event that has ended.
        timeout_error: class of the error of one that took too long.
    """

    hang: Callable[[Hang], Any]
    ask: Callable[[], Any]
    error: Callable[[Any], BaseException | None]
    result: Callable[[Any], Any]
    timeout_error: type[BaseException]


@contextmanager
def open_procbus(workers: int = WORKERS) -> Iterator[Engine]:
    """Open a bus."""
    from procbus import EventBus, HandlerTimeout, Receipt

    def error(receipt: Receipt) -> BaseException | None:
        if not receipt.wait(BOUND_S):
            raise RuntimeError(f"{receipt!r} is not settled after {BOUND_S:g} s")
        return receipt.deliveries[0].exception()

    with EventBus([], cpu_workers=workers) as bus:
        bus.subscribe(Hang, hang, kind="cpu", timeout=TIMEOUT_S)
        bus.subscribe(str, whoami, kind="cpu")
        bus.start()
        yield Engine(bus.publish, lambda: bus.publish(""), error, Receipt.result, HandlerTimeout)


@contextmanager
def open_pebble() -> Iterator[Engine]:
    """Open pebble's pool: its limit also counts from when the worker takes the task."""
    from pebble import ProcessPool

    def error(future: Future[Any]) -> BaseException | None:
        return future.exception(BOUND_S)

    pool: Any = ProcessPool(max_workers=WORKERS)
    yield Engine(
        lambda event: pool.schedule(hang, args=(event,), timeout=TIMEOUT_S),
        lambda: pool.schedule(whoami, args=("",)),
        error,
        Future.result,
        TimeoutError,
    )
    pool.close()
    pool.join()


def when_begun(events: list[Hang]) -> list[tuple[float, int]]:
    """Wait until all these events hang; return when each began, and its worker."""
    deadline = monotonic() + BOUND_S
    while monotonic() < deadline:
        found = [each for each in map(began, events) if each is not None]
        if len(found) == len(events):
            return found
        sleep(0.005)
    raise RuntimeError(f"not all of {events} have begun after {BOUND_S:g} s")


def hang_all(
    engine: Engine, threads: ThreadPoolExecutor, events: list[Hang]
) -> tuple[list[float], float]:
    """Have all workers hang until they are killed.

    Returns:
        For each the seconds from its limit until its end was known, and the seconds from the first
        limit to the end of the first event on a new worker.
    """

    def known_at(handle: Any) -> float:
        error = engine.error(handle)
        at = monotonic()
        if not isinstance(error, engine.timeout_error | None):
            raise error
        return at

    handles = [engine.hang(event) for event in events]
    begun = when_begun(events)
    handles.append(engine.ask())
    ended = list(threads.map(known_at, handles))
    if any(engine.error(handle) is None for handle in handles[:-1]):
        raise RuntimeError("an event that hangs ended without an error")
    if engine.result(handles[-1]) in {pid for _, pid in begun}:
        raise RuntimeError("a worker that was to be killed went on")
    limits = [at + TIMEOUT_S for at, _ in begun]
    late = [at - limit for at, limit in zip(ended[:-1], limits, strict=True)]
    return late, ended[-1] - min(limits)


def rows_of(how: str) -> tuple[str, str, str, str]:
    """Name the rows of one way to hang."""
    settled, replaced = f"{how}: limit to settled", f"{how}: limit to first event on a new worker"
    return f"{settled}, p50", f"{settled}, p99", f"{replaced}, p50", f"{replaced}, p99"


def crowd_rows(how: str) -> tuple[str, str]:
    """Name the rows of many that hang so at once."""
    row = f"{how}, {CROWD} workers at once: limit to settled"
    return f"{row}, p50", f"{row}, p99"


def crowd(settings: Settings) -> dict[str, float]:
    """Measure limits that end together, of more workers than there are cores."""
    found: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        open_procbus(CROWD) as engine,
        ThreadPoolExecutor(CROWD + 1) as threads,
    ):
        for how in NEIGHBOURS:
            late: list[float] = []
            for number in range(settings.count(CROWDS, at_least=1)):
                files = (os.path.join(folder, f"{how}-{number}-{n}") for n in range(CROWD))
                each_late, _ = hang_all(engine, threads, [Hang(how, f) for f in files])
                late += each_late
            found |= dict(zip(crowd_rows(how), percentiles(late), strict=True))
    return found


def neighbour_row(how: str) -> str:
    """Name the row of the neighbour of a worker that hangs so."""
    return f"{how}: neighbour's rate while the worker is killed again and again"


def precision(
    open_engine: Callable[[], Any], pairs: dict[str, int], settings: Settings
) -> dict[str, float]:
    """Measure every way to hang."""
    found: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        open_engine() as engine,
        ThreadPoolExecutor(WORKERS + 1) as threads,
    ):
        for how in HOWS:
            late: list[float] = []
            replaced: list[float] = []
            for pair in range(settings.count(pairs[how], at_least=1)):
                files = (os.path.join(folder, f"{how}-{pair}-{n}") for n in range(WORKERS))
                each_late, first = hang_all(engine, threads, [Hang(how, f) for f in files])
                late += each_late
                replaced.append(first)
            figures = (*percentiles(late), *percentiles(replaced))
            found |= dict(zip(rows_of(how), figures, strict=True))
    return found


def percentiles(seconds: list[float]) -> tuple[float, float]:
    """Return p50 and p99 in ms; of a single measurement, itself."""
    if len(seconds) == 1:
        return seconds[0] * 1e3, seconds[0] * 1e3
    cuts = quantiles(seconds, n=100, method="inclusive")
    return cuts[49] * 1e3, cuts[98] * 1e3


def procbus_figures(settings: Settings) -> dict[str, float]:
    """Measure the bus, and its workers' neighbours."""
    found = precision(open_procbus, PAIRS, settings) | crowd(settings)
    for how in NEIGHBOURS:
        found[neighbour_row(how)] = neighbour.share(how, settings)
    return found


def rows() -> Iterator[Row]:
    """List the rows."""
    soon = (Target(250, at_least=False, unit="ms"),)
    replaced_soon = (Target(500, at_least=False, unit="ms"),)
    for how in HOWS:
        settled_50, settled_99, replaced_50, replaced_99 = rows_of(how)
        yield Row(settled_50, "ms")
        yield Row(settled_99, "ms", soon)
        yield Row(replaced_50, "ms")
        yield Row(replaced_99, "ms", replaced_soon)
    for how in NEIGHBOURS:
        crowd_50, crowd_99 = crowd_rows(how)
        yield Row(crowd_50, "ms")
        yield Row(crowd_99, "ms", soon)
    for how in NEIGHBOURS:
        yield Row(neighbour_row(how), "% of quiet", (Target(95, at_least=True, unit="%"),))


QUESTION = Question(
    name="timeout_precision",
    asks="How exact is a time limit, how soon is there a new worker, and do the others notice?",
    rows=tuple(rows()),
    contenders={PROCBUS: procbus_figures, "pebble": partial(precision, open_pebble, PEBBLE_PAIRS)},
    rounds=3,
)
