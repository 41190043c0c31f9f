# SPDX-License-Identifier: MIT
"""The job *index*: three handlers in a chain that read a file, measure it, store the result.

FileFound → `read` (io) → SourceRead → `measure` (cpu) → FileMeasured → `store` (io). A file that
cannot be read or parsed becomes a FileSkipped, which `store` takes too.

Each event names the index that it is for, so that concurrent runs stay apart.
"""

from __future__ import annotations

import tokenize
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from procbus import current, subscribe
from procbus.demo.job import reason_of
from procbus.demo.metrics import FunctionMetrics, measure_source


@dataclass(frozen=True)
class FileFound:
    """A Python file to index.

    Attributes:
        path: path of the file.
        index: path of the SQLite file that takes the result.
    """

    path: str
    index: str


@dataclass(frozen=True)
class SourceRead:
    """The text of a file, decoded."""

    path: str
    text: str
    index: str


@dataclass(frozen=True)
class FileMeasured:
    """The functions of a file."""

    path: str
    functions: tuple[FunctionMetrics, ...]
    index: str


@dataclass(frozen=True)
class FileSkipped:
    """A file that could not be read or parsed, with the reason."""

    path: str
    reason: str
    index: str


Publish = Callable[[object], object]


def _publish(event: object) -> None:
    current().publish(event)


# `publish=` is there for the comparison: on another bus a handler is bound to that bus's own
# publish (`functools.partial`). procbus calls a handler with the event alone.


@subscribe(kind="io")
def read(found: FileFound, publish: Publish = _publish) -> None:
    """Read a file as the interpreter would: UTF-8, unless it begins with another declaration."""
    try:
        with tokenize.open(found.path) as file:
            text = file.read()
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        publish(FileSkipped(found.path, reason_of(error), found.index))
    else:
        publish(SourceRead(found.path, text, found.index))


@subscribe(kind="cpu")
def measure(source: SourceRead, publish: Publish = _publish) -> None:
    """Parse a file and measure its functions, in pure Python."""
    try:
        functions = measure_source(source.text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        publish(FileSkipped(source.path, reason_of(error), source.index))
    else:
        publish(FileMeasured(source.path, functions, source.index))


@subscribe(kind="io", concurrency=1)
def store(result: FileMeasured | FileSkipped) -> None:
    """Write to the index a file's functions or why it has none, one file at a time."""
    from .open_indexes import index_at  # here, because workers do not need SQLite

    index = index_at(result.index)
    if isinstance(result, FileMeasured):
        index.add(result.path, result.functions)
    else:
        index.skip(result.path, result.reason)


def read_and_measure(found: FileFound) -> FileMeasured | FileSkipped:
    """Do both steps in one call, for a pool of processes."""
    published: list[Any] = []
    read(found, published.append)
    if isinstance(published[0], SourceRead):
        measure(published.pop(), published.append)
    result: FileMeasured | FileSkipped = published[0]
    return result
