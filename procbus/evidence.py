# SPDX-License-Identifier: MIT
"""What was measured of a handler, and of the machine that it runs on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple


class Span(NamedTuple):
    """A figure that is known to lie between two bounds."""

    low: float
    high: float


NONE = Span(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was measured of a handler on one bus; figures in seconds are of one run, on average."""

    #: The lane that it ran on, and whether it is an `async def`.
    kind: Literal["io", "cpu"]
    is_async: bool = False
    #: Runs that the figures stand for; of a short handler only a sample is measured.
    runs: int = 0
    #: From its start to its end.
    wall_s: float = 0.0
    #: CPU time: of its thread, or of its worker process.
    cpu_s: float = 0.0
    #: CPU time of processes that it started and waited for; of a cpu handler only.
    children_s: float = 0.0
    #: How much of its CPU time it held the GIL for. In a worker process nobody can tell.
    gil_s: Span = NONE
    #: Time that it waited for anything but the GIL or a core: a disk, a socket, a lock, a sleep.
    wait_s: Span = NONE
    #: What it costs the script to send its event to a worker and to read its result, and what that
    #: costs the worker. Of an io handler it is what it would cost.
    transport_s: float = 0.0
    unpacking_s: float = 0.0
    #: Why events or results cannot travel to a worker; empty when they can, None when nobody tried.
    obstacle: str | None = None
    #: From publishing to its start.
    queue_s: float = 0.0
    #: Runs under way at once while there were any, and CPU seconds that they used in a second then.
    at_once: float = 0.0
    load: float = 0.0
    #: Attempts that there were, measured or not, and seconds that all of them took.
    ran: int = 0
    ran_s: float = 0.0

    @property
    def seen_s(self) -> float:
        """Seconds that all the runs took."""
        return self.runs * self.wall_s


@dataclass(frozen=True, slots=True)
class Machine:
    """What a handler could have of the machine."""

    cores: int
    cpu_workers: int
    io_workers: int
