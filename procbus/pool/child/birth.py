# SPDX-License-Identifier: MIT
"""The first moments of a worker process: it imports its modules, and waits for its orders.

Meanwhile the script imports modules of its own: see `procbus/pool/birth.py`.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import sys
from collections.abc import Callable
from typing import Any, NoReturn

#: Descriptors that the script passed on, in its order.
_received: list[int] = []
#: The message of a process that has imported its modules.
READY = b"."
#: The messages of the script: orders follow; or it needs another process like this one.
ORDERS, FORK = b".", b"f"
#: Maximum of descriptors that the system sends in one message.
_MOST_DESCRIPTORS = 253


def await_orders(channel: int, parent: int, end: int) -> None:
    """Import the modules, tell the script, and receive the descriptors that precede the orders.

    Until the orders come, the script may ask for more processes like this one, which forks them.

    Args:
        channel: descriptor of a socket, from which `follow_orders` reads the orders.
        parent: pid of the script.
        end: descriptor of a pipe that this process holds open until it ends.
    """
    from procbus.pool.child.self import end_with_parent

    end_with_parent(parent)  # before it takes time

    import procbus.pool.child.main  # noqa: F401 - the orders refer to it

    said = READY
    while True:
        with socket.socket(fileno=os.dup(channel)) as line:
            fds = _next_fds(line, said)
        if fds is None:
            return
        said = b""
        if not _fork(*fds):
            os.dup2(fds[0], channel, inheritable=False)
            os.dup2(fds[1], end, inheritable=False)
            end_with_parent(parent)
            said = b"%d\n%s" % (os.getpid(), READY)
        for fd in fds:
            os.close(fd)


def _next_fds(line: socket.socket, said: bytes) -> list[int] | None:
    """Send a message to the script, and wait for its answer.

    Returns:
        The descriptors (channel and pipe) of the next process that the script asks for; None if
        orders follow.
    """
    flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    try:
        line.sendall(said)
        asked, fds, *_ = socket.recv_fds(line, 1, _MOST_DESCRIPTORS, flags)
    except OSError:
        asked, fds = b"", []
    if asked == FORK:
        return fds
    if not asked:
        os._exit(0)  # it is not needed, or the script is gone
    _received.extend(fds)
    return None


def _fork(channel: int, _: int) -> int:
    """Fork this process, and tell the script the pid; return the pid of the copy, 0 in the copy.

    If the fork fails, the script finds the channel closed.
    """
    from procbus.pool.child.sibling import fork_sibling

    try:
        pid = fork_sibling()
    except OSError:
        return -1
    if pid:  # the copy tells it too, but may be killed before
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(channel)) as line:
            line.sendall(b"%d\n" % pid)
    return pid


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
    """Travels to a worker as the number that a descriptor has in the worker.

    Args:
        index: index of the descriptor.
    """

    def __init__(self, index: int) -> None:
        self._index = index

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return received, (self._index,)
