"""How long does a large array take to a handler and back, how many a second are streamed?"""

from __future__ import annotations

from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

from .large_contenders import LARGE_CONTENDERS, fan_of, stream
from .large_work import MB, WARM_UP, changed, first, numbers, steady_ms, times
from .model import LIMIT, PROCBUS, Question, Row, Settings, Target

FULL_MB = 100
HANDLERS = 4
SMALLER_MB = 1
RING = 64  # different arrays that are streamed again and again
ONE = "100 MB array to a handler, a number back"
FOUR = "the same array to 4 handlers"
FOUR_BY_ONE = "4 handlers over one, same turns"
BACK = "100 MB array there, another back"
BACK_READ = "100 MB array there, another back and read"
STREAMED = "1 MB arrays, streamed"

FULL_REPEATS = {PROCBUS: 20, LIMIT: 20, "ray": 10}
OTHERS_REPEATS = 5
FULL_COUNTS = {PROCBUS: 5_000, LIMIT: 5_000, "joblib": 1_000, "ray": 1_000}
OTHERS_COUNT = 500


def contender_figures(name: str, settings: Settings) -> dict[str, float]:
    """Measure one contender: first one large array at a time, then many smaller ones."""
    opener, workers = LARGE_CONTENDERS[name], settings.workers
    array = numbers(settings.count(FULL_MB, at_least=2) * MB)
    repeats = settings.count(FULL_REPEATS.get(name, OTHERS_REPEATS), at_least=2)
    figures = fan_figures(name, array, repeats, workers)
    with opener(changed, workers) as contender:

        def there_and_back(read: bool) -> None:
            result = contender.result(contender.submit(array[:]))
            if result[0] != 1 or (read and result.sum() <= array.size):
                raise RuntimeError(f"{name} gave a wrong result")

        figures[BACK] = steady_ms(partial(there_and_back, False), repeats)
        figures[BACK_READ] = steady_ms(partial(there_and_back, True), repeats)
    full = FULL_COUNTS.get(name, OTHERS_COUNT)
    arrays = [numbers(SMALLER_MB * MB, start) for start in range(RING)]
    with opener(first, workers) as contender:
        stream(contender, [array[:] for array in arrays])
        count = settings.count(full)
        began = perf_counter()
        results = stream(contender, (arrays[number % RING][:] for number in range(count)))
        figures[STREAMED] = count / (perf_counter() - began)
    if results != [float(number % RING) for number in range(count)]:
        raise RuntimeError(f"{name} gave wrong results")
    return figures


def fan_figures(name: str, array: Any, repeats: int, workers: int) -> dict[str, float]:
    """Measure one handler and several in turns."""
    ones, fours = [], []
    with (
        LARGE_CONTENDERS[name](first, workers) as contender,
        fan_of(name, contender, first, workers, HANDLERS) as to_handlers,
    ):

        def one() -> None:
            if contender.result(contender.submit(array[:])) != 0:
                raise RuntimeError(f"{name} gave a wrong result")

        def four() -> None:
            if list(to_handlers(array[:])) != [0] * HANDLERS:
                raise RuntimeError(f"{name} gave wrong results")

        for number in range(repeats):
            warm_up = 0 if number else WARM_UP
            ones += times(one, 1, warm_up)
            fours += times(four, 1, warm_up)
    ratios = [four / one for one, four in zip(ones, fours, strict=True)]
    return {ONE: 1e3 * median(ones), FOUR: 1e3 * median(fours), FOUR_BY_ONE: median(ratios)}


def limit_figures(settings: Settings) -> dict[str, float]:
    """Copy once for each way, into memory that was written to before; in this process alone."""
    import numpy as np

    array = numbers(settings.count(FULL_MB, at_least=2) * MB)
    there, result, back = (np.empty_like(array) for _ in range(3))

    def there_and_back() -> None:
        np.copyto(there, array)
        np.add(there, 1, out=result)
        np.copyto(back, result)

    def and_read() -> None:
        there_and_back()
        back.sum()

    repeats = settings.count(FULL_REPEATS[LIMIT], at_least=2)
    figures = {
        ONE: steady_ms(lambda: np.copyto(there, array), repeats),
        BACK: steady_ms(there_and_back, repeats),
        BACK_READ: steady_ms(and_read, repeats),
    }
    arrays = [numbers(SMALLER_MB * MB, start) for start in range(RING)]
    smaller = np.empty_like(arrays[0])
    count = settings.count(FULL_COUNTS[LIMIT])
    began = perf_counter()
    for number in range(count):
        np.copyto(smaller, arrays[number % RING])
    figures[STREAMED] = count / (perf_counter() - began)
    return figures


QUESTION = Question(
    name="large_events",
    asks="How long does a large array take to a handler and back, how many a second are streamed?",
    rows=(
        Row(
            ONE,
            "ms",
            (Target(1.5, at_least=False, against=LIMIT), Target(1 / 8, False, against="loky")),
        ),
        Row(FOUR, "ms"),
        Row(FOUR_BY_ONE, "x", (Target(1.3, at_least=False, unit="x"),)),
        Row(BACK, "ms", (Target(1 / 6, at_least=False, against="loky"),)),
        Row(BACK_READ, "ms"),
        Row(STREAMED, "events/s", (Target(5, at_least=True, against="loky"),)),
    ),
    contenders={name: partial(contender_figures, name) for name in LARGE_CONTENDERS}
    | {LIMIT: limit_figures},
    limit="one memcpy for each way, into memory that is mapped",
    needs=("numpy",),
)
