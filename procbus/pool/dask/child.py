# SPDX-License-Identifier: MIT
"""The main of a worker process under a Dask worker: `python -m procbus.pool.dask.child`.

It is what loky starts on one machine. What it has to know comes pickled on stdin; pipe, logbook,
stack page and tokens are inherited descriptors.
"""

from __future__ import annotations

import os
import pickle
import sys
from math import inf
from multiprocessing.connection import Connection
from typing import NamedTuple

from procbus.pool import worker_process
from procbus.pool.dask.tokens import PipeTokens
from procbus.pool.logbook import Logbook
from procbus.pool.room import Room
from procbus.pool.stack import StackPage


class Orders(NamedTuple):
    """What such a process has to know."""

    #: Descriptors: its end of the pipe, the logbook, the stack page, the tokens to take.
    pipe: int
    logbook: int
    stack: int
    tokens: int
    settings: worker_process.WorkerSettings
    #: The user's set-up of each worker, pickled; empty for none.
    init: bytes
    #: Where the Dask worker finds modules, those uploaded to it included.
    path: list[str]


def main() -> None:
    """Set the process up and work until told to stop."""
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
