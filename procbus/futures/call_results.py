# SPDX-License-Identifier: MIT
"""The results of an executor's `map`, and its progress."""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future
from time import monotonic
from typing import Any, TypeVar

from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.receipt import WaitedReceipt
from procbus.futures.call_future import CallFuture
from procbus.progress.bar import Bar, Standing
from procbus.progress.show import end

T = TypeVar("T")


def chunks_of(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    """Put rows together, `size` at a time."""
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def results_of(
    submitted: Iterator[Future[T]], end_at: float | None, ahead: int | None, bar: Bar | None
) -> Iterator[T]:
    """Submit calls now, all or `ahead` of them; return the iterator of the results.

    Args:
        submitted: submits each call when it is asked for the next future.
        end_at: the time (`monotonic`) after which waiting raises TimeoutError; None for no limit.
        ahead: number of calls submitted ahead of the result that is waited for; None for all.
        bar: shows the progress, and is ended with the results; None for none.
    """
    try:
        futures = deque(submitted if ahead is None else itertools.islice(submitted, ahead))
    except BaseException:
        if bar is not None:
            end(bar)
        raise

    def next_result() -> T:
        future = futures.popleft()
        if ahead is not None:
            futures.extend(itertools.islice(submitted, 1))
        try:
            return future.result(None if end_at is None else end_at - monotonic())
        finally:
            future.cancel()  # if the wait for it timed out before it was done

    def results() -> Iterator[T]:
        try:
            while futures:
                yield next_result()  # without a name here, so that only the caller holds it
        finally:
            for each in futures:
                each.cancel()
            if bar is not None:
                end(bar)

    made = results()
    if bar is not None:
        weakref.finalize(made, end, bar)  # for results that are never asked for
    return made


def one_by_one(chunks: Iterator[list[T]]) -> Iterator[T]:
    """Yield the elements of each chunk, without keeping an element that was yielded."""
    for chunk in chunks:
        chunk.reverse()
        while chunk:
            yield chunk.pop()


# Progress.


def number_of_rows(iterables: Sequence[Iterable[Any]]) -> int | None:
    """The length of the shortest iterable; None if one has no length."""
    lengths = [len(each) for each in iterables if isinstance(each, Sized)]
    return min(lengths, default=None) if len(lengths) == len(iterables) else None


class MapCounts:
    """The counters of one `map` whose progress is shown. Lists, because threads may add to them."""

    def __init__(self, total: int | None, size: int) -> None:
        self._total = total
        self._size = size
        self.done: list[None] = []
        self.failed: list[None] = []

    def read(self) -> Standing:
        """The counters now. The last chunk may be smaller than the others."""
        done = self._size * len(self.done)
        if self._total is not None:
            done = min(done, self._total)
        return Standing(done, self._total, len(self.failed))


class CountedFuture(CallFuture[T]):
    """The future of one call, or one chunk of calls, of a `map` whose progress is shown."""

    def __init__(self, counts: MapCounts) -> None:
        self._counts = counts

    def succeed(self, value: T) -> None:
        """Take the result, in the thread that settles."""
        self._counts.done.append(None)
        super().succeed(value)

    def fail(self, delivery: WaitedReceipt, outcome: Outcome) -> None:
        """Take an outcome other than success, in the thread that settles."""
        if outcome.kind is not OutcomeKind.CANCELLED:
            self._counts.done.append(None)
            self._counts.failed.append(None)
        super().fail(delivery, outcome)
