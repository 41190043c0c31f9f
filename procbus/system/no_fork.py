# SPDX-License-Identifier: MIT
"""Work in threads of the bus that no fork may cut in half, such as an import.

A child of `os.fork` is a copy of one thread. If another thread was in the middle of an import, the
module is half imported in the child, and locked for ever: the child hangs when it imports that
module. So a thread of the bus imports under the lock `no_fork`, and a fork waits for that lock.
"""

from __future__ import annotations

import contextlib
import os
import threading

#: Maximum time for which a fork waits, in seconds; because an import may wait for a module that the
#: forking thread itself is importing.
MOST_S = 5.0

#: Held by a thread of the bus during such work, and by the forking thread during each fork.
no_fork = threading.RLock()


def _after_fork() -> None:
    with contextlib.suppress(RuntimeError):  # the fork did not get the lock in time
        no_fork.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: no_fork.acquire(timeout=MOST_S),
        after_in_parent=_after_fork,
        after_in_child=_after_fork,
    )
