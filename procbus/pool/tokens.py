# SPDX-License-Identifier: MIT
"""One token for each delivery that a worker may still begin: a semaphore of two processes.

A semaphore of `multiprocessing` or loky has a name for as long as it is used. Only to remove such
names, loky starts a process, which imports all of loky. The semaphore of this module has a name
only for some milliseconds, until the worker has opened it. After that no name can be left behind.
"""

from __future__ import annotations

import os
from _multiprocessing import SemLock, sem_unlink  # type: ignore[import-not-found] # no stubs
from contextlib import suppress
from multiprocessing import resource_tracker
from typing import Any

#: The kind of semaphore that counts, in the terms of `multiprocessing.synchronize`.
_COUNTS = 1
#: Maximum of attempts to reach `multiprocessing`'s tracker, which may die between two of them.
_ATTEMPTS = 3


class SharedTokens:
    """The tokens of one worker, seen from either process.

    Args:
        name: name of the semaphore.
    """

    def __init__(self, name: str) -> None:
        #: `acquire(False)` takes a token if there is one; `release()` adds one. Both are methods of
        #: the semaphore itself, which are faster: each delivery calls them.
        self.acquire: Any = None
        self.release: Any = None
        self._name = name
        self._named = False

    @classmethod
    def unnamed(cls) -> SharedTokens:
        """Choose a name."""
        return cls(f"/procbus-{os.getpid()}-{os.urandom(4).hex()}")

    def create(self) -> None:
        """Create the semaphore, without tokens. `multiprocessing`'s tracker must be running."""
        _register(self._name)  # first: this process may be killed
        self._named = True
        self._use(SemLock(_COUNTS, 0, SemLock.SEM_VALUE_MAX, self._name, False))

    def forget_name(self) -> None:
        """Remove the name, because the worker has opened it, or is dead. Idempotent."""
        if self._named:
            self._named = False
            with suppress(FileNotFoundError):
                sem_unlink(self._name)
            with suppress(OSError):  # the tracker has died, and its list with it
                resource_tracker.unregister(self._name, "semaphore")

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to a worker that is being started."""
        return _open, (self._name,)

    def _use(self, semaphore: Any) -> None:
        self.acquire, self.release = semaphore.acquire, semaphore.release


def _register(name: str) -> None:
    """Have the tracker remove the name if this process is killed.

    The tracker is started again if it is found dead. But it may also die right after that check.
    """
    for _ in range(_ATTEMPTS - 1):
        with suppress(BrokenPipeError):
            resource_tracker.register(name, "semaphore")
            return
    resource_tracker.register(name, "semaphore")


def _open(name: str) -> SharedTokens:
    tokens = SharedTokens(name)
    # There is no other way to open an existing semaphore; `multiprocessing` does the same.
    tokens._use(SemLock._rebuild(0, _COUNTS, SemLock.SEM_VALUE_MAX, name))  # noqa: SLF001
    return tokens
