# SPDX-License-Identifier: MIT
"""The main program of a worker process under a Dask worker: `python -m procbus.pool.dask.child`.

This process takes the place of the process that loky starts on one machine. Its settings arrive
pickled on stdin. Its pipe, logbook, stack page and tokens are inherited descriptors.
"""

from __future__ import annotations

import os
import pickle
import sys
from math import inf
from multiprocessing.connection import Connection
from typing import NamedTuple, Self

from procbus.pool.child import main as worker_process
from procbus.pool.logbook import Logbook
from procbus.pool.memory.shared_file import Room
from procbus.pool.script import WorkerSettings
from procbus.pool.stack import StackPage

# A counting semaphore between two processes that share only file descriptors.
# Each token is a byte in a pipe. A read takes it for one process alone, as with a semaphore. Unlike
# a semaphore, the pipe can be handed to a process that `subprocess` starts.


class PipeTokens:
    """One token for each delivery that may still be begun. See `procbus.pool.child.loop.Tokens`.

    Args:
        taking: descriptor to take tokens from, which does not block.
        giving: descriptor to give tokens by; -1 for a process that only takes.
    """

    def __init__(self, taking: int, giving: int = -1) -> None:
        self.taking = taking
        self._giving = giving

    @classmethod
    def create(cls) -> Self:
        """Make an empty pipe of tokens."""
        taking, giving = os.pipe()
        # The flag holds for both processes, and neither ever waits. Giving tokens needs no wait,
        # because the pipe has room for far more tokens than two batches have.
        os.set_blocking(taking, False)
        return cls(taking, giving)

    def release(self, count: int) -> None:
        """Give `count` tokens."""
        if count:
            os.write(self._giving, bytes(count))

    def acquire(self, block: bool = False) -> bool:  # noqa: ARG002 - it is asked not to, always
        """Take a token if there is one; return whether there was."""
        try:
            return bool(os.read(self.taking, 1))
        except BlockingIOError:
            return False

    def take(self, most: int) -> int:
        """Take at most `most` tokens; return the number taken."""
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
        """Close the pipe. Idempotent."""
        for fd in (self.taking, self._giving):
            if fd >= 0:
                os.close(fd)
        self.taking = self._giving = -1


class Orders(NamedTuple):
    """The settings of such a process."""

    #: Descriptors: its end of the pipe, the logbook, the stack page, the tokens to take.
    pipe: int
    logbook: int
    stack: int
    tokens: int
    settings: WorkerSettings
    #: The user's set-up of each worker, pickled; empty for none.
    init: bytes
    #: The import path of the Dask worker, including modules uploaded to it.
    path: list[str]


def main() -> None:
    """Set the process up, and work until the bus says stop."""
    orders = Orders(*pickle.load(sys.stdin.buffer))  # noqa: S301 - from the process that started us
    sys.path[:] = orders.path
    for fd in orders[:4]:
        os.set_inheritable(fd, False)
    worker_process.prepare(
        Connection(orders.pipe),
        Logbook(orders.logbook),
        StackPage(orders.stack),
        (Room.create("procbus-events"), Room.create("procbus-results"), inf),
        PipeTokens(orders.tokens),
        orders.settings,
    )
    worker_process.serve(orders.init)


if __name__ == "__main__":
    main()
