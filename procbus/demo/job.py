# SPDX-License-Identifier: MIT
"""The job of the demo: measure the functions of a Python file."""

from __future__ import annotations

import tokenize
from dataclasses import dataclass

from procbus import current
from procbus.demo.metrics import FunctionMetrics, measure_source


@dataclass(frozen=True)
class FileFound:
    """A Python file to measure."""

    path: str


@dataclass(frozen=True)
class FileMeasured:
    """A file that was measured, or skipped.

    Attributes:
        path: path of the file.
        functions: the functions of the file.
        skipped: why the file could not be read or parsed; None if it was measured.
    """

    path: str
    functions: tuple[FunctionMetrics, ...] = ()
    skipped: str | None = None


def measure_file(path: str) -> FileMeasured:
    """Read a file as the interpreter would, parse it and measure its functions, in pure Python."""
    try:
        with tokenize.open(path) as file:
            return FileMeasured(path, measure_source(file.read()))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return FileMeasured(path, skipped=reason_of(error))


def measure(found: FileFound) -> None:
    """Measure a file, in a worker process, and publish the result."""
    current().publish(measure_file(found.path))


def reason_of(error: Exception) -> str:
    """One line for a person who looks at the list of skipped files."""
    if isinstance(error, SyntaxError) and error.lineno is not None:
        return f"line {error.lineno}: {error.msg}"
    if isinstance(error, UnicodeDecodeError):
        return f"not {error.encoding}, which is its encoding by declaration or default"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, SyntaxError):
        return error.msg
    return f"{type(error).__name__}: {error}"
