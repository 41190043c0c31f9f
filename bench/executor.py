"""How many tiny calls per second does an executor make, and what do their futures cost?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from importlib import import_module
from time import perf_counter
from typing import Any

from .model import LIMIT, PROCBUS, Question, Row, Settings, Target
from .work import tiny

SUBMIT = "submit, tiny call"
MAP = "map, tiny call, chunks of 100"
LAMBDA = "submit, a new lambda for each call"
SUBMIT_IO = "submit to threads, tiny call"

# The same for all, because the garbage collector's work grows with the futures that are kept.
CALLS = 20_000
WARM_UP = 500
CHUNK = 100

#: More for threads, which take a tenth of the time.
CALLS_IO = 100_000

MakeExecutor = Callable[[int], Executor]


def procbus_executor(workers: int) -> Executor:
    """Open an executor with a bus of its own."""
    from procbus import executor

    return executor("cpu", max_workers=workers)


def loky_executor(workers: int) -> Executor:
    """Open one plain executor of loky's."""
    made: Executor = import_module("loky").ProcessPoolExecutor(workers)
    return made


def pebble_submits(workers: int) -> Executor:
    """Open pebble's pool, whose `schedule` and `map` are no executor's: made into one."""
    from pebble import ProcessPool

    class Pebble(Executor):
        def __init__(self) -> None:
            self.pool: Any = ProcessPool(max_workers=workers)

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = self.pool.schedule(fn, args=args, kwargs=kwargs)
            return future

        def map(self, fn: Callable[..., Any], *rows: Any, chunksize: int = 1, **_: Any) -> Any:
            return self.pool.map(fn, *rows, chunksize=chunksize).result()

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            self.pool.close()
            self.pool.join()

    return Pebble()


def results_of(futures: Sequence[Future[Any]]) -> None:
    """Wait for each result."""
    for future in futures:
        future.result()


def returning(number: int) -> Callable[[], int]:
    """Make a new lambda."""
    return lambda: number


def contender_rates(make: MakeExecutor, settings: Settings) -> dict[str, float]:
    """Submit one by one to running, warmed workers until all results are in the parent."""
    count = settings.count(CALLS)
    rates = {}
    with make(settings.workers) as pool:
        results_of([pool.submit(tiny, number) for number in range(WARM_UP)])
        began = perf_counter()
        results_of([pool.submit(tiny, number) for number in range(count)])
        rates[SUBMIT] = count / (perf_counter() - began)
        began = perf_counter()
        for _ in pool.map(tiny, range(5 * count), chunksize=CHUNK):
            pass
        rates[MAP] = 5 * count / (perf_counter() - began)
        if make in BY_VALUE:
            fewer = max(20, count // 20)
            began = perf_counter()
            results_of([pool.submit(returning(number)) for number in range(fewer)])
            rates[LAMBDA] = fewer / (perf_counter() - began)
    return rates


#: Those to whose workers a lambda can travel.
BY_VALUE = (procbus_executor, loky_executor)


def thread_rate(make: Callable[[], Executor], settings: Settings) -> float:
    """Submit one by one to running threads, as many as there are by default, until all is done."""
    count = settings.count(CALLS_IO)
    with make() as pool:
        results_of([pool.submit(tiny, number) for number in range(WARM_UP)])
        began = perf_counter()
        results_of([pool.submit(tiny, number) for number in range(count)])
        return count / (perf_counter() - began)


def procbus_rates(settings: Settings) -> dict[str, float]:
    """Measure the executor for processes and the one for threads."""
    from procbus import executor

    rates = contender_rates(procbus_executor, settings)
    return rates | {SUBMIT_IO: thread_rate(partial(executor, "io"), settings)}


def standard_threads_rate(settings: Settings) -> dict[str, float]:
    """Measure the standard's executor for threads."""
    return {SUBMIT_IO: thread_rate(ThreadPoolExecutor, settings)}


def limit_rate(settings: Settings) -> dict[str, float]:
    """Make the standard's futures, give each its result and take it, and nothing else.

    No executor that makes the standard's future for each call can make more calls per second than
    this, in this thread. Procbus makes a part of it only when it is needed.
    """
    count = settings.count(CALLS)
    began = perf_counter()
    futures: list[Future[Any]] = [Future() for _ in range(count)]
    for future in futures:
        future.set_result(None)
    results_of(futures)
    return {SUBMIT: count / (perf_counter() - began)}


CONTENDERS: dict[str, MakeExecutor] = {
    "ProcessPoolExecutor": ProcessPoolExecutor,
    "loky": loky_executor,
    "pebble": pebble_submits,
}

QUESTION = Question(
    name="executor",
    asks="How many tiny calls per second does an executor make?",
    rows=(
        Row(SUBMIT, "calls/s", (Target(6, at_least=True, against="ProcessPoolExecutor"),)),
        Row(MAP, "calls/s"),
        Row(LAMBDA, "calls/s"),
        Row(SUBMIT_IO, "calls/s", (Target(1, at_least=True, against="ThreadPoolExecutor"),)),
    ),
    contenders={PROCBUS: procbus_rates}
    | {name: partial(contender_rates, make) for name, make in CONTENDERS.items()}
    | {"ThreadPoolExecutor": standard_threads_rate, LIMIT: limit_rate},
    limit="Future(), set_result(), result(): the standard's future and nothing else",
)
