# SPDX-License-Identifier: MIT
"""The end of a worker that has to stop: in order, and within a time limit.

The interpreter waits for threads that a handler left behind, and `multiprocessing` for processes.
That wait may last for ever, for example if an executor was never shut down. So these threads and
processes are asked to end, and get some time. After that time the exit hooks run all the same.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from multiprocessing import active_children
from typing import Any, NoReturn, TypeVar

#: Maximum time for a worker to stop, in seconds; then it is killed.
WORKER_STOP_S = 5.0
#: Maximum time after that for processes that its handlers started, in seconds; then they are
#: killed.
LEFT_S = 1.0
#: Part of that time for the threads and processes that handlers left behind, in seconds.
_LEFT_S = 3.5
#: Maximum time for the exit hooks after that, in seconds.
_HOOKS_S = 1.0
#: Part of that time for the interpreter to reach them itself once those processes have ended.
_REACH_S = 0.5
#: Number of threads that no handler started: the main thread, and two threads of this module.
_OURS = 3

#: Set once a thread runs the exit hooks.
_hooks_run = threading.Event()
#: Counts the threads that came to run them.
_runners = itertools.count()

Item = TypeVar("Item")


def flush_at_exit() -> None:
    """Have files flushed that handlers left open, after all exit hooks of handlers.

    Without a GIL the interpreter frees the globals of a handler in an order in which their files
    lose their output. Call this function before any handler can register a hook.
    """
    atexit.register(_flush_files)


def end_in_order() -> None:
    """Begin the end of this process; the interpreter goes on with it. In the main thread."""
    atexit.register(_let_one_run_the_hooks)  # the hook registered last is the first to run
    for end in (_end_in_time, _end_at_last):
        threading.Thread(target=end, name="procbus-stop", daemon=True).start()
    # Buses that handlers have opened. If the module is not imported, there are none.
    if (exit_hooks := sys.modules.get("procbus.system.exit_hooks")) is not None:
        exit_hooks.close_open()
    if threading.active_count() > _OURS or active_children():
        for executor in _all_of(Executor):
            _quietly(lambda executor=executor: executor.shutdown(wait=False))


def _end_in_time() -> None:
    """Run the exit hooks if the interpreter has not reached them in time, and end."""
    time.sleep(_LEFT_S)
    # The main thread may be waiting for these children; once they end, it goes on to the hooks.
    children = active_children()
    for child in children:
        _quietly(child.terminate)
    if _hooks_run.wait(_REACH_S if children else 0):
        return
    # There is no public way to run the hooks. `multiprocessing` does the same in forked processes.
    _quietly(atexit._run_exitfuncs)  # noqa: SLF001 - see above
    # The hooks that ran are no longer registered. If the main thread reached its exit hooks now,
    # the interpreter would end while this thread writes to a file, and could not flush that file.
    atexit.register(_let_one_run_the_hooks)
    _flush_and_exit()


def _let_one_run_the_hooks() -> None:
    """Halt the second of two threads that run the exit hooks; the first ends the process."""
    _hooks_run.set()
    if next(_runners):
        threading.Event().wait()


def _end_at_last() -> None:
    time.sleep(_LEFT_S + _HOOKS_S)
    _flush_and_exit()


def _flush_and_exit() -> NoReturn:
    _flush_files()
    os._exit(0)


def _flush_files() -> None:
    for file in (*_all_of(io.TextIOWrapper), *_all_of(io.BufferedWriter)):
        _quietly(file.flush)


def _all_of(kind: type[Item]) -> Iterator[Item]:
    """All objects of a type in this process."""
    return iter([found for found in gc.get_objects() if issubclass(type(found), kind)])


def _quietly(call: Callable[..., Any]) -> None:
    with contextlib.suppress(BaseException):  # user code: the next call has to be made all the same
        call()
