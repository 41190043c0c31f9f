"""The handlers that are measured, and the calibration of the one that burns cpu.

They live in an importable module because most peers can only run handlers that they can import.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Order:
    """A small event, as scripts have them."""

    number: int
    customer: str
    total: float


def tiny(event: Any) -> None:
    """Do nothing: the remaining time is the cost of getting here."""


def spin(iterations: int) -> float:
    """Burn cpu in pure Python for a fixed number of iterations, whatever else the machine does.

    The arithmetic is of floats. With large ints, the allocator of CPython makes the same loop up to
    10 % slower in one process than in another.
    """
    x = 0.37
    for _ in range(iterations):
        x = 3.9 * x * (1.0 - x)  # the logistic map stays between 0 and 1
    return x


def nap(seconds: float) -> None:
    """Sleep: a handler that waits, or one that burns a core which this machine does not have."""
    time.sleep(seconds)


def spins_per_ms(tries: int = 200) -> int:
    """Calibrate `spin`: its iterations per ms on a core of its own.

    The fastest of many short tries counts: contention can only make a try slower.

    Args:
        tries: how many times about 1 ms is tried.
    """
    iterations = 20_000
    fastest = min(_timed(iterations) for _ in range(tries))
    return max(1, round(iterations * 1e-3 / fastest))


def _timed(iterations: int) -> float:
    began = time.perf_counter()
    spin(iterations)
    return time.perf_counter() - began
