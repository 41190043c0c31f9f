"""A handler that grows at a fixed rate, and keeps a record of how large it was when it was killed.

A light module: the worker imports it.
"""

from __future__ import annotations

import os
import resource
import struct
import sys
from dataclasses import dataclass
from time import monotonic, sleep
from typing import NamedTuple

STEP_BYTES = 8 * 2**20
RECORD = struct.Struct("dddd")
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss


@dataclass(frozen=True)
class Growth:
    """How to grow.

    Attributes:
        file: takes the record, which outlives the handler.
        rate: bytes a second.
        noted_bytes: when the worker is larger than this is recorded.
        most_bytes: it ends there by itself.
    """

    file: str
    rate: float
    noted_bytes: int
    most_bytes: int


class Grown(NamedTuple):
    """The record of one run.

    Attributes:
        peak: highest resident memory of the worker's process, in bytes.
        above_at: when it was first seen above `noted_bytes`, in seconds of `monotonic`; else 0.
        allocated: bytes that the handler has allocated and touched.
        seconds: duration of the run, in seconds.
    """

    peak: float
    above_at: float
    allocated: float
    seconds: float


def grow(event: Growth) -> int:
    """Allocate and touch memory at the rate given; return how much."""
    record = os.open(event.file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    blocks = []
    began, above_at, allocated = monotonic(), 0.0, 0
    while allocated < event.most_bytes:
        blocks.append(b"x" * STEP_BYTES)  # fills, and so touches, every page
        allocated += STEP_BYTES
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT
        now = monotonic()
        if not above_at and peak > event.noted_bytes:
            above_at = now
        os.pwrite(record, RECORD.pack(peak, above_at, allocated, now - began), 0)
        sleep(max(0.0, began + allocated / event.rate - now))
    os.close(record)
    return allocated


def read_growth(event: Growth) -> Grown:
    """Read the record of one run."""
    with open(event.file, "rb") as record:
        return Grown(*RECORD.unpack(record.read()))
