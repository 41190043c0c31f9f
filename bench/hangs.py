"""A handler that hangs in one of several ways, and says when it began.

A light module: every worker that replaces a killed one imports it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import inf
from time import monotonic, sleep

LOOP = "Python loop"
SLEEP = "sleep"
C_CALL = "C call that keeps the GIL"
HOWS = (LOOP, SLEEP, C_CALL)
FOR_EVER_S = 3_600.0


@dataclass(frozen=True)
class Hang:
    """How to hang.

    Attributes:
        how: one of `HOWS`.
        file: the handler writes there when it began, by the clock that all processes share, and
            its pid.
        seconds: how long, where the handler is not to be killed; a C call never ends by itself.
    """

    how: str
    file: str
    seconds: float = inf


def hang(event: Hang) -> None:
    """Hang until killed, or for the time given."""
    began = monotonic()
    log = os.open(event.file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(log, f"{began!r} {os.getpid()}".encode())
    os.close(log)
    if event.how == SLEEP:
        sleep(min(event.seconds, FOR_EVER_S))
    elif event.how == LOOP:
        until = began + event.seconds
        while monotonic() < until:
            pass
    else:
        sum(range(10**15))


def began(event: Hang) -> tuple[float, int] | None:
    """Return when the handler of this event began, and its pid; None while it has not."""
    try:
        with open(event.file) as log:
            at, pid = log.read().split()
    except (FileNotFoundError, ValueError):  # not there, or not written yet
        return None
    return float(at), int(pid)


def whoami(event: object) -> int:
    """Tell which worker runs this."""
    return os.getpid()
