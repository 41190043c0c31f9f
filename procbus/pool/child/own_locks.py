# SPDX-License-Identifier: MIT
"""Locks for loky's executors of which script and worker each have their own.

loky's locks keep the workers of one executor apart. An executor of procbus has a single worker.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Lock, Semaphore
from typing import Any


class OwnLock(Lock):
    """A lock that travels to a worker as another, free one. It has no name to be removed."""

    def __init__(self) -> None:
        super().__init__(ctx=multiprocessing.get_context("fork"))

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as another lock."""
        return OwnLock, ()


class OwnSemaphore(Semaphore):
    """A semaphore that travels to a worker as another, untouched one. See `OwnLock`.

    Args:
        value: number of times that it can be acquired.
    """

    def __init__(self, value: int = 1) -> None:
        super().__init__(value, ctx=multiprocessing.get_context("fork"))
        self._first = value

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as another lock."""
        return OwnSemaphore, (self._first,)
