"""Waiting for a condition that gives no signal, such as the state of another process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

#: Bound of every wait in the tests, in seconds: reached only when something is broken.
BOUND_S = 60.0
#: Interval between two looks, in seconds.
_LOOK_S = 0.002


def eventually(condition: Callable[[], object]) -> None:
    """Wait until the condition holds; fail after `BOUND_S`."""
    deadline = time.monotonic() + BOUND_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it never became so"
        pause.wait(_LOOK_S)
