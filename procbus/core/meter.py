# SPDX-License-Identifier: MIT
"""Measures one handler while it runs: its wall time, its CPU time, and the share spent waiting.

The advice needs to know whether a handler waits or computes, and whether it holds the GIL
meanwhile. A meter collects sums and looks; `Evidence` is the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from math import inf, sqrt
from typing import Literal, NamedTuple

from procbus.core.histogram import Histogram
from procbus.core.locks import Lock

# Measurements of a handler, and of the machine that it runs on.


class Span(NamedTuple):
    """A figure that is known to lie between two bounds.

    Example:
        ```python
        from procbus import EventBus

        with EventBus(handlers=[]) as bus:
            bus.subscribe("word", len)
            bus.publish("word", "hello").wait()
            for advice in bus.advice():
                assert advice.evidence.wait_s.low <= advice.evidence.wait_s.high
        ```
    """

    low: float
    high: float


NONE = Span(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Evidence:
    """Measurements of one handler on one bus; figures in seconds are the average of one run.

    Example:
        ```python
        from procbus import EventBus

        with EventBus(handlers=[]) as bus:
            bus.subscribe("word", len)
            bus.publish("word", "hello").wait()
            for advice in bus.advice():
                print(advice.handler, advice.evidence.cpu_s)
        ```
    """

    #: The lane that the handler ran on, and whether it is an `async def`.
    kind: Literal["io", "cpu"]
    is_async: bool = False
    #: Number of runs that the figures stand for; of a short handler only a sample is measured.
    runs: int = 0
    #: Wall time: from the start of the run to its end.
    wall_s: float = 0.0
    #: CPU time of the handler's thread, or of its worker process.
    cpu_s: float = 0.0
    #: CPU time of processes that the handler started and waited for; only for a cpu handler.
    children_s: float = 0.0
    #: The part of the CPU time in which the handler held the GIL. Unknown in a worker process; zero
    #: where there is no GIL.
    gil_s: Span = NONE
    #: Time in which the handler waited for anything but the GIL or a core: a disk, a socket, a
    #: lock, a sleep.
    wait_s: Span = NONE
    #: CPU time for sending an event to a worker and reading its result: in the script, and in the
    #: worker. For an io handler, the time that sending and reading would take.
    transport_s: float = 0.0
    unpacking_s: float = 0.0
    #: The reason why events or results cannot travel to a worker; empty if they can, None if no
    #: event has been tried.
    obstacle: str | None = None
    #: Time from publishing to the start of the run.
    queue_s: float = 0.0
    #: Number of runs at the same time, while there were any, and the CPU seconds that they used in
    #: each second.
    at_once: float = 0.0
    load: float = 0.0
    #: All attempts, measured or not, and the seconds that they took together.
    ran: int = 0
    ran_s: float = 0.0
    #: Whether the handler has an option that only a worker process can keep, such as `max_memory`.
    needs_process: bool = False

    @property
    def seen_s(self) -> float:
        """Seconds of all the runs together."""
        return self.runs * self.wall_s


@dataclass(frozen=True, slots=True)
class Machine:
    """Resources of the machine that a handler could use."""

    cores: int
    cpu_workers: int
    io_workers: int
    #: Whether the threads of the script take turns at Python code, see `procbus.core.gil`.
    gil: bool = True
    #: Whether cpu handlers run on threads too: `EventBus(cpu="threads")`.
    cpu_on_threads: bool = False
    #: Whether the bus itself chooses between processes and threads: `EventBus(cpu="auto")`.
    cpu_auto: bool = False


#: Threshold of a long run, in seconds. All long runs are measured, and one in `ONE_IN` of the
#: shorter runs. `ONE_IN` is a prime, so that handlers which take turns are all measured.
LONG_S = 1e-3
ONE_IN = 127

#: Maximum pause between two runs that counts as time in which the handler is used, in seconds.
_PAUSE_S = 0.2
#: Interval at which the measurements are evaluated, in seconds of runs.
STIR_S = 0.2
#: Thresholds at which the sums are halved, in seconds of runs and in runs or looks; because long
#: past runs should count less and less.
_ENOUGH_S = 60.0
_ENOUGH_RUNS = 150
_ENOUGH_LOOKS = 4_000
#: Minimum share of computing in a handler's time from which more threads than cores do not help.
BUSY = 0.9
#: Number of looks that settle how a handler spends its time; later looks are rarer.
SETTLED = 1_000
#: Time without a core that the system does not report, as a fraction of the time it reports.
_UNSEEN = 0.25
#: Weight of the newest value in a running average.
_NEWEST = 0.2
#: Width of the interval for a share found by looks, in standard errors; because an interval of 1.28
#: is right eight times of ten.
_Z = 1.28


class Doing(Enum):
    """The activity of a handler at the moment of a look."""

    #: It computed: with the GIL, or without it.
    HOLDS = "holds the GIL"
    FREE = "computes without the GIL"
    #: It waited for the GIL, which another thread had.
    QUEUES = "waits for the GIL"
    #: It waited for something other than the GIL.
    WAITS = "waits"


class Meter:
    """The sums of one subscription. Thread-safe, by a lock that is held for microseconds."""

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
        "computes",
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
            #: CPU seconds of sending one event, and of reading one result; None until measured.
            #: Written without the lock: losing one figure between two threads does no harm.
            self._sent_s: float | None = None
            self._received_s: float | None = None
            self.unpacking_s = 0.0
            self.obstacle: str | None = None
            #: Number of the next events and results whose cost of transport is estimated.
            self.to_weigh = 0
            #: Whether the runs computed nearly all the time, of what is known without a GIL.
            self.computes = False
            #: Seconds of runs since the advisor last reset this.
            self.fresh_s = 0.0

    def note_run(
        self,
        ended_at: float,
        wall_s: float,
        cpu_s: float,
        weight: int = 1,
        suspended_s: float = 0.0,
        starved_s: float = 0.0,
    ) -> None:
        """Count one run, with a weight.

        Args:
            ended_at: in seconds of `time.monotonic()`.
            wall_s: from its start to its end.
            cpu_s: CPU time of its thread meanwhile.
            weight: the number of runs that it stands for.
            suspended_s: for an `async def` handler, the time in which other coroutines could run.
            starved_s: the time in which its thread was ready to run and was given no core; measured
                in a process without a GIL.
        """
        with self._lock:
            self._suspended_s += suspended_s * weight
            self._starved_s += starved_s * weight
            self._locked_note(ended_at, wall_s * weight, cpu_s * weight, weight)
            self._walls.add(wall_s, weight)
            self.computes = self._cpu_s + self._starved_s > BUSY * self._wall_s

    def _locked_note(self, ended_at: float, wall_s: float, cpu_s: float, runs: int) -> None:
        self._runs += runs
        self._wall_s += wall_s
        self.fresh_s += wall_s
        self._cpu_s += min(cpu_s, wall_s)
        pause_s = ended_at - (self._last_at or ended_at - wall_s)
        if pause_s > 0.0:  # threads note their runs slightly out of order
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
        """Add the sums of runs in a worker process.

        Args:
            ended_at: end of the last run, in seconds of `time.monotonic()`.
            runs: number of runs.
            wall_s: wall time of all runs together.
            cpu_s: CPU time of the process meanwhile.
            children_s: CPU time of processes that it started and waited for.
            starved_s: time in which it was ready to run and was given no core.
            unpacking_s: time for reading events and writing results, included in `wall_s` and
                `cpu_s`.
        """
        with self._lock:
            self._locked_note(
                ended_at, max(0.0, wall_s - unpacking_s), max(0.0, cpu_s - unpacking_s), runs
            )
            self._children_s += children_s
            self._starved_s += starved_s
            self.unpacking_s += _NEWEST * (unpacking_s / runs - self.unpacking_s)

    def note_sent(self, cpu_s: float) -> None:
        """Add the CPU seconds that sending one event to a worker took."""
        self._sent_s = _mean(self._sent_s, cpu_s)

    def note_received(self, cpu_s: float) -> None:
        """Add the CPU seconds that reading one result took."""
        self._received_s = _mean(self._received_s, cpu_s)

    def note_look(self, found: Mapping[Doing, float]) -> None:
        """Add one look at a run: the likelihood of each activity."""
        with self._lock:
            for doing, likely in found.items():
                self._looks[doing] += likely
            if sum(self._looks.values()) > _ENOUGH_LOOKS:
                self._looks = {each: count / 2 for each, count in self._looks.items()}

    def note_weight(self, cost_s: float) -> None:
        """Add the estimated cost of sending an event and reading a result, half of it to each."""
        self._sent_s = _mean(self._sent_s, cost_s / 2)
        self._received_s = _mean(self._received_s, cost_s / 2)
        self.unpacking_s = self._sent_s + self._received_s  # reading takes about as long as writing

    @property
    def runs(self) -> float:
        """Number of runs in the sums."""
        return self._runs

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all the runs."""
        return self._cpu_s

    @property
    def looks(self) -> float:
        """Number of looks in the sums."""
        return sum(self._looks.values())

    @property
    def is_long(self) -> bool:
        """Whether the runs are long enough to be looked at."""
        return self._wall_s > LONG_S * self._runs

    def evidence(
        self,
        kind: Literal["io", "cpu"],
        is_async: bool,
        queue_s: float,
        most: float = inf,
        *,
        gil: bool = True,
    ) -> Evidence:
        """Sum up.

        Args:
            kind: the lane that the handler ran on.
            is_async: whether it is an `async def`.
            queue_s: how long its deliveries waited to begin, in seconds, on average.
            most: maximum of runs that there can have been; because a sample may stand for too many.
            gil: whether this process has a GIL.
        """
        with self._lock:
            runs = self._runs
            if not runs:
                return Evidence(kind, is_async, obstacle=self.obstacle)
            wall_s, cpu_s = self._wall_s / runs, self._cpu_s / runs
            active_s = max(self._active_s, 1e-9)
            there_were = min(1.0, most / runs)
            if kind == "io" and is_async:
                gil_s = Span(cpu_s, cpu_s) if gil else NONE
                wait_s = self._wait_on_loop(self._suspended_s / runs, active_s)
            elif kind == "cpu" or not gil:
                # No other thread takes the GIL from the handler. Time that is not CPU time is
                # waiting, except the time in which the handler was given no core.
                starved_s = self._starved_s / runs
                idle_s = max(0.0, wall_s - cpu_s - starved_s)
                # Some starving does not show in the figures: a host may take the cores away.
                gil_s = Span(0.0, cpu_s) if gil else NONE
                wait_s = Span(max(0.0, idle_s - _UNSEEN * starved_s), idle_s)
            elif (median_s := self._walls.quantile(0.5) or wall_s) < LONG_S:
                # Most short runs end before another thread takes the GIL from them. So the median
                # includes next to no waiting for the GIL, while the mean includes much.
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
        """Bounds of the time that an `async def` waited, perhaps for other coroutines."""
        return Span(suspended_s if self._cpu_s < 0.5 * active_s else 0.0, suspended_s)

    def _looked(self, wall_s: float, cpu_s: float) -> tuple[Span, Span]:
        """Bounds of the time that it held the GIL, and of the time that it waited."""
        looks = self._looks
        computing = looks[Doing.HOLDS] + looks[Doing.FREE]
        held = share_bounds(looks[Doing.HOLDS], computing)
        idle_s = max(0.0, wall_s - cpu_s)
        # Two estimates: the share of waiting beside computing, which takes cpu_s, and beside
        # everything, which takes wall_s. The first is better for a handler that mostly waits for
        # the GIL, the second for a handler that hardly computes.
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
    # The part lies between the bounds even where the middle is rounded.
    return Span(max(0.0, min(part, middle - half)), min(1.0, max(part, middle + half)))


def _mean(mean: float | None, newest: float) -> float:
    return newest if mean is None else mean + _NEWEST * (newest - mean)
