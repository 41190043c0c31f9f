# SPDX-License-Identifier: MIT
"""Measures one handler while it runs: wall time, CPU time, and what it does in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from math import inf, sqrt
from typing import Literal, NamedTuple

from procbus.core.histogram import Histogram
from procbus.core.locks import Lock

# What was measured of a handler, and of the machine that it runs on.


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


#: A run of so many seconds is long: each is measured. Of shorter ones, one in `ONE_IN`: a prime, so
#: that handlers that take turns are all met.
LONG_S = 1e-3
ONE_IN = 127

#: A pause of so many seconds between two runs is not counted as time in which the handler is used.
_PAUSE_S = 0.2
#: After so many seconds of runs it is time to look what they say.
STIR_S = 0.2
#: Once so many seconds of so many runs, or so many looks, are summed up, they are halved: what a
#: handler did long ago counts less and less.
_ENOUGH_S = 60.0
_ENOUGH_RUNS = 150
_ENOUGH_LOOKS = 4_000
#: Looks that settle what a handler does; after them it is looked at less often.
SETTLED = 1_000
#: Time without a core that does not show, as a part of that which does.
_UNSEEN = 0.25
#: Weight of the newest in a running average.
_NEWEST = 0.2
#: A share that was found by looking lies within so many standard errors: eight times of ten.
_Z = 1.28


class Doing(Enum):
    """What a handler was doing in the moment of a look."""

    #: It computed and held the GIL, or computed without it.
    HOLDS = "holds the GIL"
    FREE = "computes without the GIL"
    #: It wanted the GIL, and somebody else had it.
    QUEUES = "waits for the GIL"
    #: It waited for something else.
    WAITS = "waits"


class Meter:
    """The sums of one subscription. Thread-safe, by a lock of its own that is held for a moment."""

    __slots__ = (
        "_active_s",
        "_children_s",
        "_cpu_s",
        "_last_at",
        "_lock",
        "_looks",
        "_received_s",
        "_runs",
        "_sent_s",
        "_starved_s",
        "_suspended_s",
        "_wall_s",
        "_walls",
        "fresh_s",
        "obstacle",
        "to_weigh",
        "unpacking_s",
    )

    def __init__(self) -> None:
        self._lock = Lock()
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._runs = 0.0
            self._wall_s = 0.0
            self._cpu_s = 0.0
            self._starved_s = 0.0
            self._walls = Histogram()
            self._active_s = 0.0
            self._last_at = 0.0
            self._looks = dict.fromkeys(Doing, 0.0)
            self._children_s = 0.0
            self._suspended_s = 0.0
            #: Of one delivery; None while nobody measured it. Written without the lock: one figure
            #: that is lost between two threads is none that matters.
            self._sent_s: float | None = None
            self._received_s: float | None = None
            self.unpacking_s = 0.0
            self.obstacle: str | None = None
            #: How many of the next events and results to weigh, see `weighing`.
            self.to_weigh = 0
            #: Seconds of runs since somebody last reset this.
            self.fresh_s = 0.0

    def note_run(
        self,
        ended_at: float,
        wall_s: float,
        cpu_s: float,
        weight: int = 1,
        suspended_s: float = 0.0,
    ) -> None:
        """Take in one run, as if there had been `weight` of it.

        Args:
            ended_at: in seconds of `time.monotonic()`.
            wall_s: from its start to its end.
            cpu_s: CPU time of its thread meanwhile.
            weight: for how many runs it stands.
            suspended_s: of an `async def` handler, for how long others could run.
        """
        with self._lock:
            self._suspended_s += suspended_s * weight
            self._locked_note(ended_at, wall_s * weight, cpu_s * weight, weight)
            self._walls.add(wall_s, weight)

    def _locked_note(self, ended_at: float, wall_s: float, cpu_s: float, runs: int) -> None:
        self._runs += runs
        self._wall_s += wall_s
        self.fresh_s += wall_s
        self._cpu_s += min(cpu_s, wall_s)
        pause_s = ended_at - (self._last_at or ended_at - wall_s)
        if pause_s > 0.0:  # threads note their runs a bit out of order
            self._active_s += min(pause_s, wall_s + _PAUSE_S)
            self._last_at = ended_at
        if self._wall_s > _ENOUGH_S and self._runs > _ENOUGH_RUNS:
            self._halve_runs()

    def note_sums(
        self,
        ended_at: float,
        runs: int,
        wall_s: float,
        cpu_s: float,
        children_s: float,
        starved_s: float,
        unpacking_s: float,
    ) -> None:
        """Take in the sums of runs in a worker process.

        Args:
            ended_at: of the last of them, in seconds of `time.monotonic()`.
            runs: how many they were.
            wall_s: of all of them together.
            cpu_s: CPU time of the process meanwhile.
            children_s: that of processes that it started and waited for.
            starved_s: time that it was given no core.
            unpacking_s: time for reading events and writing results, which the first two have too.
        """
        with self._lock:
            self._locked_note(
                ended_at, max(0.0, wall_s - unpacking_s), max(0.0, cpu_s - unpacking_s), runs
            )
            self._children_s += children_s
            self._starved_s += starved_s
            self.unpacking_s += _NEWEST * (unpacking_s / runs - self.unpacking_s)

    def note_sent(self, cpu_s: float) -> None:
        """Take in what it took to send one event to a worker, in CPU seconds."""
        self._sent_s = _mean(self._sent_s, cpu_s)

    def note_received(self, cpu_s: float) -> None:
        """Take in what it took to read one result."""
        self._received_s = _mean(self._received_s, cpu_s)

    def note_look(self, found: Mapping[Doing, float]) -> None:
        """Take in what a run was doing when somebody looked: how likely it was which."""
        with self._lock:
            for doing, likely in found.items():
                self._looks[doing] += likely
            if sum(self._looks.values()) > _ENOUGH_LOOKS:
                self._looks = {each: count / 2 for each, count in self._looks.items()}

    def note_weight(self, cost_s: float) -> None:
        """Take in what it would take to send an event and to read a result, half of it each."""
        self._sent_s = _mean(self._sent_s, cost_s / 2)
        self._received_s = _mean(self._received_s, cost_s / 2)
        self.unpacking_s = self._sent_s + self._received_s  # reading takes about as long as writing

    @property
    def runs(self) -> float:
        """How many runs it knows of."""
        return self._runs

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all the runs."""
        return self._cpu_s

    @property
    def looks(self) -> float:
        """How often somebody looked."""
        return sum(self._looks.values())

    @property
    def is_long(self) -> bool:
        """Whether its runs are long enough to be looked at."""
        return self._wall_s > LONG_S * self._runs

    def evidence(
        self, kind: Literal["io", "cpu"], is_async: bool, queue_s: float, most: float = inf
    ) -> Evidence:
        """Sum up.

        Args:
            kind: the lane that the handler ran on.
            is_async: whether it is an `async def`.
            queue_s: how long its deliveries waited to begin, in seconds, on average.
            most: runs that there were at most: a sample may stand for too many.
        """
        with self._lock:
            runs = self._runs
            if not runs:
                return Evidence(kind, is_async, obstacle=self.obstacle)
            wall_s, cpu_s = self._wall_s / runs, self._cpu_s / runs
            active_s = max(self._active_s, 1e-9)
            there_were = min(1.0, most / runs)
            if kind == "cpu":
                # In its process nobody else wants the GIL: what is not CPU time is waiting, but for
                # the time that it was given no core.
                starved_s = self._starved_s / runs
                idle_s = max(0.0, wall_s - cpu_s - starved_s)
                # Where cores are short, some of that does not show: a host that takes them away.
                gil_s = Span(0.0, cpu_s)
                wait_s = Span(max(0.0, idle_s - _UNSEEN * starved_s), idle_s)
            elif is_async:
                gil_s, wait_s = (
                    Span(cpu_s, cpu_s),
                    self._wait_on_loop(self._suspended_s / runs, active_s),
                )
            elif (median_s := self._walls.quantile(0.5) or wall_s) < LONG_S:
                # Most short runs end before the GIL is taken from them: the median has next to
                # nothing of the waiting for it, while the mean has much.
                idle_s = max(0.0, median_s - cpu_s)
                gil_s, wait_s = Span(cpu_s, cpu_s), Span(idle_s, idle_s)
            else:
                gil_s, wait_s = self._looked(wall_s, cpu_s)
            return Evidence(
                kind=kind,
                is_async=is_async,
                runs=int(runs * there_were),
                wall_s=wall_s,
                cpu_s=cpu_s,
                gil_s=gil_s,
                wait_s=wait_s,
                children_s=self._children_s / runs,
                transport_s=(self._sent_s or 0.0) + (self._received_s or 0.0),
                unpacking_s=self.unpacking_s,
                obstacle=self.obstacle,
                queue_s=queue_s,
                at_once=there_were * self._wall_s / active_s,
                load=there_were * self._cpu_s / active_s,
            )

    # Under the lock.

    def _halve_runs(self) -> None:
        self._runs /= 2
        self._wall_s /= 2
        self._cpu_s /= 2
        self._starved_s /= 2
        self._children_s /= 2
        self._suspended_s /= 2
        self._active_s /= 2
        self._walls = Histogram()

    def _wait_on_loop(self, suspended_s: float, active_s: float) -> Span:
        """What an `async def` waited for: when others compute on the loop, perhaps for those."""
        return Span(suspended_s if self._cpu_s < 0.5 * active_s else 0.0, suspended_s)

    def _looked(self, wall_s: float, cpu_s: float) -> tuple[Span, Span]:
        """How long it held the GIL, and how long it waited, by what was seen of it."""
        looks = self._looks
        computing = looks[Doing.HOLDS] + looks[Doing.FREE]
        held = share_bounds(looks[Doing.HOLDS], computing)
        idle_s = max(0.0, wall_s - cpu_s)
        # Beside computing, which takes cpu_s; and beside all else, which takes wall_s. The first is
        # the better one where it waits for the GIL most of its time, the second where it hardly
        # computes.
        beside = share_bounds(looks[Doing.WAITS], computing + looks[Doing.WAITS])
        of_all = share_bounds(looks[Doing.WAITS], sum(looks.values()))
        least_s = max(cpu_s * beside.low / (1 - beside.low), wall_s * of_all.low)
        most_s = min(cpu_s * beside.high / max(1 - beside.high, 1e-9), wall_s * of_all.high)
        most_s = max(least_s, most_s)
        return (
            Span(held.low * cpu_s, held.high * cpu_s),
            Span(min(idle_s, least_s), min(idle_s, most_s)),
        )


def share_bounds(count: float, total: float) -> Span:
    """The bounds of a share that was found `count` times of `total`: Wilson's interval (1927)."""
    if total <= 0:
        return Span(0.0, 1.0)
    part = count / total
    scale = 1 + _Z * _Z / total
    middle = (part + _Z * _Z / (2 * total)) / scale
    half = _Z * sqrt(part * (1 - part) / total + _Z * _Z / (4 * total * total)) / scale
    # Also where the middle is rounded.
    return Span(max(0.0, min(part, middle - half)), min(1.0, max(part, middle + half)))


def _mean(mean: float | None, newest: float) -> float:
    return newest if mean is None else mean + _NEWEST * (newest - mean)
