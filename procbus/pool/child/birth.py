# SPDX-License-Identifier: MIT
"""The first moments of a worker process: it imports its modules, and waits for its orders.

Meanwhile the script does its own imports: see `procbus/pool/birth.py`.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
from collections.abc import Callable
from typing import Any, NoReturn

#: Descriptors that the script passed on, in its order.
_received: list[int] = []
#: Maximum of descriptors that the system sends in one message.
_MOST_DESCRIPTORS = 253


def await_orders(channel: int, parent: int) -> None:
    """Get ready, say so, and receive the descriptors that come ahead of the orders.

    Args:
        channel: descriptor of a socket; the orders are read from it after this.
        parent: pid of the script.
    """
    from procbus.pool.child.self import end_with_parent

    end_with_parent(parent)  # before it takes time

    import procbus.pool.child.main  # noqa: F401 - the orders refer to it

    with socket.socket(fileno=os.dup(channel)) as end:
        flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
        try:
            end.sendall(b".")
            asked, fds, *_ = socket.recv_fds(end, 1, _MOST_DESCRIPTORS, flags)
        except OSError:
            asked, fds = b"", []
    if not asked:
        os._exit(0)  # it is not needed, or the script is gone
    _received.extend(fds)


def follow_orders(channel: int, prepare: Callable[[Any], object]) -> NoReturn:
    """Read the orders, follow them, and end this process. loky's own program does the same.

    Args:
        channel: descriptor of the socket; it is closed once the orders are read.
        prepare: loky's function that makes this process's settings.
    """
    with os.fdopen(channel, "rb") as orders:
        prepare(pickle.load(orders))  # noqa: S301 - the script wrote them
        worker = pickle.load(orders)  # noqa: S301
    sys.exit(worker._bootstrap())  # noqa: SLF001 - the only way to run a process of multiprocessing


def received(index: int) -> int:
    """A descriptor, by its index."""
    return _received[index]


class Passed:
    """A descriptor on its way to a worker, as `multiprocessing.reduction.DupFd` gives one.

    Args:
        index: index of the descriptor.
    """

    def __init__(self, index: int) -> None:
        self._index = index

    def detach(self) -> int:
        """The descriptor, in the worker."""
        return received(self._index)


class Number:
    """Travels to a worker as the number that a descriptor has there.

    Args:
        index: index of the descriptor.
    """

    def __init__(self, index: int) -> None:
        self._index = index

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return received, (self._index,)
