# SPDX-License-Identifier: MIT
"""Taking a lock that two busy threads of one GIL take hundreds of thousands of times a second.

A blocking `Lock.acquire` waits without the GIL. It can then own the lock while it still waits for
the GIL, so that the thread that runs blocks on the lock at once, and so on: the two hand lock and
GIL to and fro for every event (20,000 switches for 100,000 events were seen, and half the speed).
Tried without blocking, a lock changes hands only when a thread is interrupted while it holds it.
Write it so, since a context manager of our own would cost more than the lock:

    if not self._try_lock(False):
        acquire(self._lock)
    try:
        ...
    finally:
        self._unlock()
"""

from __future__ import annotations

import threading
import time

#: Ctrl-C that comes in the moment before the main thread goes to sleep on a lock does not wake it.
#: So waits that may last look up so often, in seconds: then Python runs its signal handlers.
LOOK_UP_S = 0.5


def acquire(lock: threading.Lock) -> None:
    """Take a lock that is only ever held for microseconds, holding the GIL when it is taken."""
    while not lock.acquire(False):
        time.sleep(0)  # lets the owner have the GIL: it was interrupted while it held the lock
