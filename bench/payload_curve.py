"""How many events per second go there and back, by kind and size, as an event and as a result?

One submit for each event, to workers that do nothing with it. `mp.Pool, map` is the exception: it
gets the whole list at once, in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

from . import contenders, memory_limits
from .contenders import Contender, Opener
from .model import LIMIT, Question, Row, Settings, Target
from .payload_curve_work import (
    ARRAY,
    BYTES,
    DATACLASS,
    DIFFERENT,
    INT,
    RECORDS,
    STR,
    different,
    give,
    take,
)

#: In bytes, and in records.
SIZES = (0, 100, 1_000, 4_000, 16_000, 31_000, 64_000, 250_000, 1_000_000, 8_000_000)
COUNTS = (1, 10, 100, 1_000, 10_000)
#: About how many bytes a record has in a pickle.
RECORD_BYTES = 60
#: A quick run has none that is larger.
QUICK_BYTES = 64_000
#: Seconds for one figure, and the most events for it; the most bytes of results at a time.
FIGURE_S = 0.25
MOST_EVENTS = 20_000
MOST_BYTES = 200_000_000
#: How many events say how many to measure.
FIRST = 30

POOL_MAP = "mp.Pool, map"


@dataclass(frozen=True)
class Point:
    """One point of the curve."""

    kind: str
    size: int
    #: Whether it comes back as the result of a handler, and does not go there as an event.
    is_result: bool

    @property
    def nbytes(self) -> int:
        """About how many bytes it has."""
        return max(1, self.size * (RECORD_BYTES if self.kind == RECORDS else 1))

    @property
    def row(self) -> str:
        """Name its row.

        >>> Point("bytes", 16_000, is_result=False).row, Point("int", 1, is_result=True).row
        ('event, bytes 16,000', 'result, int')
        """
        way = "result" if self.is_result else "event"
        size = "" if self.kind in (INT, DATACLASS) else f" {self.size:,}"
        return f"{way}, {self.kind}{size}"

    def targets(self) -> tuple[Target, ...]:
        """Return what procbus has to reach there."""
        bounds: dict[str, float] = {}
        if self.kind == INT and not self.is_result:
            bounds = {"ProcessPoolExecutor": 20}
        elif self.kind == DATACLASS and not self.is_result:
            bounds = {"ProcessPoolExecutor": 15}
        elif self.kind in (BYTES, STR) and 1_000 <= self.size <= 31_000 and not self.is_result:
            bounds = {"ProcessPoolExecutor": 5, "mp.Pool": 3, LIMIT: 0.5}
        elif self.kind == RECORDS and self.size in (100, 1_000):
            bounds = {"ProcessPoolExecutor": 1.5, LIMIT: 0.9}
        return tuple(Target(bound, True, against) for against, bound in bounds.items())

    def in_run(self, settings: Settings) -> Point:
        """Return the point that is measured in its place: in a quick run none is large."""
        if settings.scale >= 1 or self.nbytes <= QUICK_BYTES:
            return self
        return Point(self.kind, self.size * QUICK_BYTES // self.nbytes, self.is_result)


def _points() -> tuple[Point, ...]:
    sizes = {
        BYTES: SIZES,
        STR: SIZES,
        ARRAY: SIZES[1:],
        RECORDS: COUNTS,
        DATACLASS: (1,),
        INT: (1,),
    }
    return tuple(
        Point(kind, size, is_result)
        for is_result in (False, True)
        for kind, of_kind in sizes.items()
        for size in of_kind
    )


POINTS = _points()


def pool_map(handler: contenders.Handler, workers: int) -> Contender:
    """Open `multiprocessing.Pool` for its `map`, in chunks of `DIFFERENT`."""
    from multiprocessing import Pool

    pool = Pool(workers)

    def close() -> None:
        pool.close()
        pool.join()

    return Contender(
        lambda event: pool.map(handler, [event])[0],
        lambda result: result,
        close,
        run_all=lambda events: pool.map(handler, events, DIFFERENT),
    )


OPENERS: dict[str, Opener] = {**contenders.CPU_CONTENDERS, POOL_MAP: pool_map}


def payloads(point: Point) -> list[Any]:
    """Make the events of one point that are sent in turns."""
    return [(point.kind, point.size)] if point.is_result else different(point.kind, point.size)


def rate_of(run: Callable[[Sequence[Any]], object], point: Point, settings: Settings) -> float:
    """Return events per second of one point, of as many events as take about `FIGURE_S`."""
    ours = payloads(point)

    def events(count: int) -> list[Any]:
        # A new view for each event: joblib passes the same array on a second time for nothing.
        found = [ours[at % len(ours)] for at in range(count)]
        return (
            [array[:] for array in found] if point.kind == ARRAY and not point.is_result else found
        )

    most = max(3, min(MOST_EVENTS, MOST_BYTES // point.nbytes))
    count = min(FIRST, most)
    run(events(min(3, count)))
    for _ in range(2):  # the second estimate has batches of the right size
        began = perf_counter()
        run(events(count))
        spent_s = max(1e-6, perf_counter() - began)
        count = max(3, min(most, round(count * FIGURE_S * min(1.0, settings.scale) / spent_s)))
    began = perf_counter()
    run(events(count))
    return count / (perf_counter() - began)


def contender_rates(name: str, settings: Settings) -> dict[str, float]:
    """Measure every point of one contender."""
    rates = {}
    for handler, is_result in ((take, False), (give, True)):
        with OPENERS[name](handler, settings.workers) as contender:
            for point in POINTS:
                if point.is_result == is_result:
                    there = point.in_run(settings)
                    rates[point.row] = rate_of(contender.run, there, settings)
    return rates


def limit_rates(settings: Settings) -> dict[str, float]:
    """Measure pickle and shared memory alone."""
    rates = {}
    for handler, is_result in ((take, False), (give, True)):
        with memory_limits.shared_by(handler, settings.workers) as run:
            for point in POINTS:
                if point.is_result == is_result:
                    rates[point.row] = rate_of(run, point.in_run(settings), settings)
    return rates


QUESTION = Question(
    name="payload_curve",
    asks="How many events per second go to a worker and back, by kind and size of event or result?",
    rows=tuple(Row(point.row, "events/s", point.targets()) for point in POINTS),
    contenders={name: partial(contender_rates, name) for name in OPENERS} | {LIMIT: limit_rates},
    limit="pickle and a copy into shared memory, in batches of 256 KiB, with no receipts",
    time_limit=240.0,
    rounds=3,
    needs=("numpy",),
)
