# SPDX-License-Identifier: MIT
"""The open indexes of the job *index*, by path: its events name the index that they are for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from procbus.demo import DemoError
from procbus.demo.store import Index

# Only `open_index` writes here; handlers only look up.
_open: dict[str, Index] = {}


@contextmanager
def open_index(path: str) -> Iterator[Index]:
    """Open the index at this path for the block, for every thread of the process.

    Raises:
        DemoError: the file cannot be written, or holds something else.
    """
    with closing(Index(path)) as index:
        _open[path] = index
        try:
            yield index
        finally:
            del _open[path]


def index_at(path: str) -> Index:
    """The open index at this path.

    Raises:
        DemoError: the index is not open. A handler that outlives its run must not open the index,
            because opening empties it.
    """
    try:
        return _open[path]
    except KeyError:
        raise DemoError(f"the index {path} is not open") from None
