# SPDX-License-Identifier: MIT
"""The work of a worker process for joblib: it runs batches of calls, and notes which one it is at.

A worker imports this module before joblib and NumPy, which read the environment then.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

from procbus.core.context import current

OneCall: TypeAlias = tuple[Callable[..., Any], Sequence[Any], Mapping[str, Any]]
"""Function, positional and named arguments."""


class Calls(Protocol):
    """A batch of calls, as joblib makes it."""

    items: list[OneCall]

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
    count = len(calls.items)
    calls.items = [
        (_Noted(index, count, function), args, kwargs)
        for index, (function, args, kwargs) in enumerate(calls.items)
    ]
    return calls()


class _Noted:
    """A call that notes its start, for the error of a worker that dies in it."""

    __slots__ = ("_count", "_function", "_index")

    def __init__(self, index: int, count: int, function: Callable[..., Any]) -> None:
        self._index = index
        self._count = count
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Make the call, with arrays from files."""
        current().progress(self._index, self._count)
        return self._function(
            *[each.load() if type(each) is InFile else each for each in args],
            **{k: each.load() if type(each) is InFile else each for k, each in kwargs.items()},
        )


def limit_threads(variables: Sequence[str], most: int) -> None:
    """Limit the threads of numeric libraries in a worker process.

    Args:
        variables: environment variables that they read when they are loaded.
        most: maximum of threads, also for libraries that are loaded already.
    """
    os.environ.update(dict.fromkeys(variables, str(most)))
    if "numpy" in sys.modules:
        try:
            from threadpoolctl import threadpool_limits
        except ImportError:
            return
        threadpool_limits(most)
