# SPDX-License-Identifier: MIT
"""The files of procbus that one warm event passes, and its changes from one file to another.

`python -m bench.event_path` prints a table; `--files` names the files. The fewer there are, the
sooner a reader has followed an event through the code. It counts calls of functions by
`sys.setprofile`, in all threads of the script and in the worker. The event that is counted is the
third of its handler, so that threads, workers and caches are there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import procbus
from procbus import EventBus

PACKAGE = str(Path(procbus.__file__).parent) + "/"

#: Calls in procbus, by thread, in order: (thread, file). Switched on for one event.
_calls: list[tuple[int, str]] = []
_is_on = False


def _profile(frame: FrameType, kind: str, _: Any) -> None:
    if _is_on and kind == "call" and frame.f_code.co_filename.startswith(PACKAGE):
        _calls.append((threading.get_ident(), frame.f_code.co_filename.removeprefix(PACKAGE)))


def watch() -> None:
    """Count the calls of this thread, and of threads that start from now on."""
    threading.setprofile(_profile)
    sys.setprofile(_profile)


def switch(on: bool) -> list[tuple[int, str]]:
    """Begin to count, or end; return the counted calls."""
    global _is_on
    _is_on = on
    counted = list(_calls)
    _calls.clear()
    return counted


def control(on: bool) -> list[tuple[int, str]]:
    """A handler that switches the counting in its worker."""
    return switch(on)


def nothing(event: int) -> int:
    return event


def changes(calls: list[tuple[int, str]]) -> int:
    """How often a thread goes on in another file than before."""
    last: dict[int, str] = {}
    count = 0
    for thread, file in calls:
        count += last.get(thread, file) != file
        last[thread] = file
    return count


def path_of(kind: Any, journal: str | None = None) -> tuple[list[str], int]:
    """Files that one event passes, and the changes from file to file."""
    watch()
    with EventBus(
        handlers=[], cpu_workers=1, io_workers=1, worker_init=watch, journal=journal
    ) as bus:
        bus.subscribe("event", nothing, kind=kind)
        bus.subscribe("control", control, kind="cpu")
        for number in range(3):
            bus.publish("event", number).result()
        if kind == "cpu":
            bus.publish("control", True).result()
        switch(True)
        bus.publish("event", 3).result()
        bus.drain()
        calls = switch(False)
        if kind == "cpu":
            calls += bus.publish("control", False).result()
    sys.setprofile(None)
    threading.setprofile(None)
    files = dict.fromkeys(file for _, file in calls)
    return list(files), changes(calls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", action="store_true", help="name the files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Callable[[], tuple[list[str], int]]] = {
            "io": lambda: path_of("io"),
            "cpu": lambda: path_of("cpu"),
            "cpu with a journal": lambda: path_of("cpu", str(Path(folder) / "run.db")),
        }
        print(f"{'one warm event':20} {'files':>6} {'changes of file':>16}")
        for name, way in ways.items():
            files, count = way()
            print(f"{name:20} {len(files):6} {count:16}")
            if options.files:
                print(*(f"    {file}" for file in files), sep="\n")


if __name__ == "__main__":
    # By its name, so that the worker imports it too: there is one `_calls` then.
    from bench import event_path

    event_path.main()
