# SPDX-License-Identifier: MIT
"""A counting semaphore between two processes that share file descriptors and nothing else.

Each token is a byte in a pipe. A read takes it for one process alone, as a semaphore would; unlike
a semaphore it can be handed to a process that `subprocess` starts.
"""

from __future__ import annotations

import os
from typing import Self


class PipeTokens:
    """One token for each delivery that may still be begun. See `procbus.pool.worker.Tokens`.

    Args:
        taking: descriptor to take from, which does not block.
        giving: descriptor to give by; -1 for who only takes.
    """

    def __init__(self, taking: int, giving: int = -1) -> None:
        self.taking = taking
        self._giving = giving

    @classmethod
    def create(cls) -> Self:
        """Make an empty one."""
        taking, giving = os.pipe()
        # It holds for both processes. Nobody ever waits: not to take, and not to give, since two
        # batches are far less than a pipe has room for.
        os.set_blocking(taking, False)
        return cls(taking, giving)

    def release(self, count: int) -> None:
        """Give so many."""
        if count:
            os.write(self._giving, bytes(count))

    def acquire(self, block: bool = False) -> bool:  # noqa: ARG002 - it is asked not to, always
        """Take one if there is one; say whether."""
        try:
            return bool(os.read(self.taking, 1))
        except BlockingIOError:
            return False

    def take(self, most: int) -> int:
        """Take up to so many; return how many."""
        taken = 0
        while taken < most:
            try:
                got = len(os.read(self.taking, most - taken))
            except BlockingIOError:
                break
            if not got:
                break
            taken += got
        return taken

    def close(self) -> None:
        """Let go of the pipe. Idempotent."""
        for fd in (self.taking, self._giving):
            if fd >= 0:
                os.close(fd)
        self.taking = self._giving = -1
