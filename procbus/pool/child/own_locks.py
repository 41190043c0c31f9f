# SPDX-License-Identifier: MIT
"""Locks for loky's executors that the script and the worker do not share.

loky's locks keep the workers of one executor apart. An executor of procbus has a single worker, so
the script and the worker each use a lock of their own.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Lock, Semaphore
from typing import Any


class OwnLock(Lock):
    """A lock that arrives in a worker as a new, free lock. The lock has no name to be removed."""

    def __init__(self) -> None:
        super().__init__(ctx=multiprocessing.get_context("fork"))

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as another lock."""
        return OwnLock, ()


class OwnSemaphore(Semaphore):
    """A semaphore that arrives in a worker as a new semaphore. See `OwnLock`.

    Args:
        value: number of times that it can be acquired.
    """

    def __init__(self, value: int = 1) -> None:
        super().__init__(value, ctx=multiprocessing.get_context("fork"))
        self._first = value

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as another lock."""
        return OwnSemaphore, (self._first,)
