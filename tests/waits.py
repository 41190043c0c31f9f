"""Waiting for a condition that gives no signal, such as the state of another process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

#: Bound of every wait in the tests, in seconds: reached only when something is broken.
BOUND_S = 60.0
#: Interval between two looks, in seconds.
_LOOK_S = 0.002


def becomes(condition: Callable[[], object], within_s: float) -> bool:
    """Wait until the condition holds, up to a maximum in seconds; return whether it does."""
    deadline = time.monotonic() + within_s
    pause = threading.Event()
    while not (met := condition()) and time.monotonic() < deadline:
        pause.wait(_LOOK_S)
    return bool(met)


def eventually(condition: Callable[[], object]) -> None:
    """Wait until the condition holds; fail after `BOUND_S`."""
    assert becomes(condition, BOUND_S), "it never became so"
