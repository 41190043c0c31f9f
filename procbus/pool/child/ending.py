# SPDX-License-Identifier: MIT
"""The end of a worker that was told to stop: in order, and in time.

The interpreter waits for threads that a handler left behind, and `multiprocessing` for processes,
which may be for ever: for an executor that nobody shut down, say. So they are asked to end, then
get some time, and after that the exit hooks run without them.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from multiprocessing import active_children
from typing import Any, NoReturn, TypeVar

#: A worker that was told to stop has so long, in seconds, before it is killed.
STOP_S = 5.0
#: What its handlers started and left running is killed if it is there so long after it.
LEFT_S = 1.0
#: Threads and processes that handlers left behind have so much of that.
_LEFT_S = 3.5
#: After that, exit hooks have so long.
_HOOKS_S = 1.0
#: Threads that are none of a handler's: the main one and two of this module.
_OURS = 3

#: Set once the interpreter itself runs the exit hooks.
_hooks_run = threading.Event()

Kind = TypeVar("Kind")


def end_in_order() -> None:
    """Begin the end of this process; the interpreter goes on with it. In the main thread."""
    atexit.register(_hooks_run.set)  # the last one that is registered is the first to run
    for end in (_end_in_time, _end_at_last):
        threading.Thread(target=end, name="procbus-stop", daemon=True).start()
    # Buses that handlers have opened. Where there was none, nobody has imported that module.
    if (exit_hooks := sys.modules.get("procbus.system.exit_hooks")) is not None:
        exit_hooks.close_open()
    if threading.active_count() > _OURS or active_children():
        for executor in _all_of(Executor):
            _quietly(lambda executor=executor: executor.shutdown(wait=False))


def _end_in_time() -> None:
    """Run the exit hooks if the interpreter has not come to them by then, and end."""
    time.sleep(_LEFT_S)
    # One of the interpreter's own hooks waits for them: where it has come so far, it goes on now.
    for child in active_children():
        _quietly(child.terminate)
    if _hooks_run.is_set():
        return
    # There is no public way to run them. `multiprocessing` does so too, in forked processes.
    _quietly(atexit._run_exitfuncs)  # noqa: SLF001 - see above
    _flush_and_exit()


def _end_at_last() -> None:
    time.sleep(_LEFT_S + _HOOKS_S)
    _flush_and_exit()


def _flush_and_exit() -> NoReturn:
    for file in (*_all_of(io.TextIOWrapper), *_all_of(io.BufferedWriter)):
        _quietly(file.flush)
    os._exit(0)


def _all_of(kind: type[Kind]) -> Iterator[Kind]:
    """All objects of a kind that there are."""
    return iter([found for found in gc.get_objects() if issubclass(type(found), kind)])


def _quietly(call: Callable[..., Any]) -> None:
    with contextlib.suppress(BaseException):  # it is the user's: the next one has its turn
        call()
