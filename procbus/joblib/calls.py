# SPDX-License-Identifier: MIT
"""The work of a worker process for joblib: it runs batches of calls, and notes the present call.

A worker imports this module before joblib and NumPy, which read the environment when imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from procbus.core.context import current

OneCall: TypeAlias = tuple[Callable[..., Any], Sequence[Any], Mapping[str, Any]]
"""Function, positional and named arguments."""


class Calls(Protocol):
    """A batch of calls, as joblib makes it."""

    items: Iterable[OneCall]

    def __len__(self) -> int:
        """Return the number of calls."""

    def __call__(self) -> list[Any]:
        """Make all calls; return their results."""


class InFile(NamedTuple):
    """An array that all workers read from one file."""

    path: str
    mode: str
    dtype: Any
    offset: int
    shape: tuple[int, ...]
    order: str

    def load(self) -> Any:
        """Map the file into memory."""
        import numpy  # only now, see above

        path, mode, dtype, offset, shape, order = self
        return numpy.memmap(path, dtype, mode, offset, shape, order)


def run_calls(calls: Calls) -> list[Any]:
    """Make the calls of a batch, in a worker process."""
    calls.items = _noted(calls.items, len(calls))
    return calls()


def _noted(items: Iterable[OneCall], count: int) -> Iterator[OneCall]:
    """Note the start of each call, for the error of a worker that dies in it; load its arrays."""
    progress = current().progress
    for index, (function, args, kwargs) in enumerate(items):
        if count > 1:
            progress(index, count)
        if any(type(each) is InFile for each in args):
            args = [each.load() if type(each) is InFile else each for each in args]
        if kwargs:
            kwargs = {
                name: each.load() if type(each) is InFile else each for name, each in kwargs.items()
            }
        yield function, args, kwargs


def limit_threads(variables: Sequence[str], most: int) -> None:
    """Limit the threads of numeric libraries in a worker process.

    Args:
        variables: environment variables that the libraries read when they are loaded.
        most: maximum of threads, also for libraries that are loaded already.
    """
    os.environ.update(dict.fromkeys(variables, str(most)))
    if "numpy" in sys.modules:
        try:
            from threadpoolctl import threadpool_limits
        except ImportError:
            return
        threadpool_limits(most)
