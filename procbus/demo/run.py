# SPDX-License-Identifier: MIT
"""The demo from start to end: index a tree on procbus, then on a thread-pool bus, and report."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from procbus.bus import EventBus
from procbus.demo import DemoError, handlers
from procbus.demo.files import python_files, standard_library
from procbus.demo.handlers import FileFound, FileMeasured, FileSkipped, SourceRead
from procbus.demo.progress import ShowDone, showing_progress
from procbus.demo.report import (
    SHOWN,
    SHOWN_SKIPPED,
    RunFigures,
    print_functions,
    print_index,
    print_runs,
    print_skipped,
)
from procbus.demo.store import close_index, open_index
from procbus.demo.thread_bus import ThreadBus

# So many files may be on their way at once: their texts are in memory.
_MAX_PENDING = 1_000
_GLANCE_S = 0.1  # how often the main thread looks at the progress, in seconds


@dataclass(frozen=True)
class DemoOptions:
    """What to do.

    Attributes:
        root: directory to index; None for the standard library.
        output: path of the index; None for a new file in the directory for temporary files.
        limit: index so many files at most; None for all.
        cpu_workers: processes of the cpu lane; None for one for each core.
        compare: whether to run on the thread-pool bus too.
    """

    root: Path | None = None
    output: Path | None = None
    limit: int | None = None
    cpu_workers: int | None = None
    compare: bool = True


def run_demo(options: DemoOptions) -> int:
    """Run the demo and print its report to standard output, its progress to standard error.

    Returns:
        The exit status: 0, or 1 when a handler failed or the two runs disagree.

    Raises:
        DemoError: there is nothing to index, or the index cannot be written.
    """
    report, progress = Console(), Console(stderr=True)
    ...
    return 0
