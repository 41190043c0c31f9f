# SPDX-License-Identifier: MIT
"""The settings that a process inherits from the thread that starts it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

#: Lines of /proc/thread-self/status that a new process inherits, beside the limits.
_INHERITED = (b"Umask:", b"Uid:", b"Gid:", b"Groups:", b"SigIgn:", b"Cpus_allowed:")


def inherited() -> tuple[object, ...]:
    """The settings that a process would inherit if this thread started it now; for comparison.

    The settings are environment, working directory, niceness and standard streams, and on Linux
    also limits, cores, user, groups, umask and ignored signals. Reading them takes 0.1 ms.
    """
    return tuple(_settings())


def _settings() -> Iterator[object]:
    try:
        yield dict(os.environ)
    except RuntimeError:  # another thread changes it
        yield object()
    yield _niceness()
    yield _tried(os.getcwd)
    for fd in range(3):
        yield _tried(os.fstat, fd)
    yield _read("/proc/self/limits")
    yield [line for line in _read("/proc/thread-self/status").splitlines() if _is_inherited(line)]


def _tried(read: Callable[..., object], *args: object) -> object:
    try:
        found = read(*args)
    except OSError:  # the directory was removed, or the descriptor is closed
        return None
    return (found.st_dev, found.st_ino) if isinstance(found, os.stat_result) else found


def _niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0) if hasattr(os, "getpriority") else 0


def _is_inherited(line: bytes) -> bool:
    return line.startswith(_INHERITED)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # another system, or no descriptor is left
        return b""
