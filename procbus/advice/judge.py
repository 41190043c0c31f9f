# SPDX-License-Identifier: MIT
"""The kind that suits a handler, and its gain: a pure function of the measurements.

The judgement compares how much time of a busy bus one delivery takes on threads and on processes.
On threads it is the largest of three times: the time with the GIL; the CPU time divided by the
cores; the whole time divided by the threads. On processes it is the larger of two times: the
script's cost of sending and receiving, and the whole time divided by the workers. If a figure is
known only between two bounds, the judgement is made at both bounds. If the two disagree, there is
no judgement.

Without a GIL threads compute side by side, and the time with the GIL is zero. So there is a third
answer, "threads": one thread for each core. No event has to travel to a thread.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from procbus.core.meter import NONE, Evidence, Machine

Suited: TypeAlias = Literal["io", "cpu", "threads"]
"""The kind that suits a handler; ``"threads"`` if it computes and there is no GIL."""

#: Time of the bus's own work for one delivery, in seconds: in the script, for a delivery on a
#: thread; in the script, for a delivery to a worker process, without the transport of event and
#: result; and in that worker. Measured, see docs/figures.md.
IO_S = 6e-6
CPU_S = 7e-6
WORKER_S = 3e-6

#: Number of handlers that can wait at the same time on the event loop.
LOOP_SLOTS = 1_000

#: Threshold of the gain of another kind for advice.
BETTER = 1.25
#: Minimum ratio of a handler's computing to the script's cost of sending its event away.
_WORTH = 2.0

#: Minimum of runs, and of the seconds of these runs, for a judgement.
FEW_RUNS = 5
FEW_S = 0.2
#: Threshold of the share of its time that a handler on a thread of the cpu lane waits: below it the
#: waits may be for locks and collections, which threads of the io lane have too.
_MUCH_WAITING = 0.5
#: Number of runs that is enough for a judgement, however short they are.
MANY_RUNS = 2_000
#: Minimum of runs, and of the seconds of these runs, for a warning.
_SOLID_RUNS = 20
_SOLID_S = 0.5
#: Threshold above which a lost share of the script's, or of its workers', time is large.
_LARGE_LOSS = 0.25
#: Minimum of runs at once from which a run may hold up others.
_AT_ONCE = 1.5


@dataclass(frozen=True, slots=True)
class Judgement:
    """The kind that suits a handler.

    Attributes:
        kind: "io", "cpu" or "threads"; None if the evidence is too thin.
        gain: how many times as many deliveries the other lane would handle; 1 if the present lane
            is right. An estimate between the bounds of the measurements.
        loud: whether the loss is large, and the evidence solid.
        unweighed: whether "cpu" may suit the handler, but the cost of sending its events is not
            known yet.
    """

    kind: Suited | None
    gain: float = 1.0
    loud: bool = False
    unweighed: bool = False


SILENT = Judgement(None)


def judge(evidence: Evidence, machine: Machine) -> Judgement:
    """Judge which kind suits a handler."""
    if is_thin(evidence):
        return SILENT
    if not machine.gil:
        return _judge_without_gil(evidence, machine)
    least, most = _bounds(evidence, machine)
    middle = (least * most) ** 0.5
    if evidence.kind == "cpu":
        if most <= 1 / BETTER:
            return Judgement("io", 1 / middle, _is_loud(evidence, machine, 1 / most))
        return Judgement("cpu") if least > 1 / BETTER else SILENT
    if evidence.obstacle:
        return Judgement("io")
    if most < BETTER or not _is_worth_it(evidence, evidence.gil_s.high):
        return Judgement("io")
    if evidence.obstacle is None:
        return Judgement(None, unweighed=True)
    if least >= BETTER and _is_worth_it(evidence, evidence.gil_s.low):
        return Judgement("cpu", middle, _is_loud(evidence, machine, least))
    return SILENT


def _judge_without_gil(evidence: Evidence, machine: Machine) -> Judgement:
    evidence = replace(evidence, gil_s=NONE)
    wait_s = evidence.wait_s
    computed_s = evidence.cpu_s * _MUCH_WAITING / (1 - _MUCH_WAITING)
    if evidence.kind == "cpu" and machine.cpu_on_threads and wait_s.high < computed_s:
        wait_s = NONE
    judgements = [
        _without_gil(evidence, machine, waited)
        for waited in (wait_s.low, _turn_s(replace(evidence, wait_s=wait_s), machine), wait_s.high)
    ]
    kinds = {kind for kind, _ in judgements}
    if len(kinds) > 1:
        return SILENT
    gains = [gain for _, gain in judgements]
    least = min(gains)
    kind = kinds.pop()
    if least < BETTER:  # a gain that is not certain is none
        return Judgement(kind)
    return Judgement(kind, (least * max(gains)) ** 0.5, _is_loud(evidence, machine, least))


def _without_gil(evidence: Evidence, machine: Machine, wait_s: float) -> tuple[Suited, float]:
    """The kind that suits a handler in a process without a GIL, and its gain."""
    on_io = _io_time(evidence, machine, 0.0, wait_s)
    # To a thread nothing has to travel.
    unsent = replace(evidence, transport_s=0.0, unpacking_s=0.0)
    on_threads = _cpu_time(unsent, machine, wait_s)
    # All `async def` handlers share one thread. Other io handlers have many threads: if they
    # compute all the time, one thread for each core is enough.
    computes = BETTER * on_threads <= on_io if evidence.is_async else on_threads < BETTER * on_io
    best: Suited
    best, best_s = "io", on_io
    if computes and evidence.cpu_s >= _WORTH * CPU_S:
        best, best_s = "threads", on_threads
    if evidence.kind == "cpu" and machine.cpu_on_threads:
        now_s = on_threads
    elif evidence.kind == "cpu":
        now_s = _cpu_time(evidence, machine, wait_s)
        if now_s < BETTER * best_s or (best == "threads" and evidence.needs_process):
            return "cpu", 1.0
    else:
        now_s = on_io
    gain = now_s / best_s
    return best, gain if gain >= BETTER else 1.0


def is_thin(evidence: Evidence) -> bool:
    """Whether there are too few measurements for a judgement."""
    if evidence.runs >= MANY_RUNS:
        return False
    return evidence.runs < FEW_RUNS or evidence.seen_s < FEW_S


def io_over_cpu(evidence: Evidence, machine: Machine, gil_s: float, wait_s: float) -> float:
    """The ratio of a delivery's time on a busy io lane to its time on a busy cpu lane.

    Args:
        evidence: evidence on the handler.
        machine: the machine on which the handler runs.
        gil_s: seconds for which the handler holds the GIL.
        wait_s: seconds for which the handler waits.
    """
    return _io_time(evidence, machine, gil_s, wait_s) / _cpu_time(evidence, machine, wait_s)


def _io_time(evidence: Evidence, machine: Machine, gil_s: float, wait_s: float) -> float:
    return max(
        _held_up_s(evidence, machine, gil_s),
        (evidence.cpu_s + wait_s) / _io_slots(evidence, machine),
    )


def _cpu_time(evidence: Evidence, machine: Machine, wait_s: float) -> float:
    on_worker = WORKER_S + evidence.unpacking_s + evidence.cpu_s
    return max(
        CPU_S + evidence.transport_s,
        (on_worker + evidence.children_s) / min(machine.cores, machine.cpu_workers),
        (on_worker + wait_s) / machine.cpu_workers,
    )


def _io_slots(evidence: Evidence, machine: Machine) -> int:
    return LOOP_SLOTS if evidence.is_async else machine.io_workers


def _held_up_s(evidence: Evidence, machine: Machine, gil_s: float) -> float:
    """The time for which a delivery holds up others on a busy io lane, without its own waiting."""
    if evidence.is_async:  # all async handlers share one thread
        return evidence.cpu_s + IO_S
    return max(gil_s + IO_S, (evidence.cpu_s + evidence.children_s) / machine.cores)


def _bounds(evidence: Evidence, machine: Machine) -> tuple[float, float]:
    """The minimum and maximum of `io_over_cpu` between the bounds of the measurements.

    The ratio grows with the time that the GIL is held. As the time waited grows, the ratio first
    falls or stays, and then grows once all threads wait.
    """
    gil_s, wait_s = evidence.gil_s, evidence.wait_s
    turn_s = _turn_s(evidence, machine)
    least = min(
        io_over_cpu(evidence, machine, gil_s.low, waited)
        for waited in (wait_s.low, turn_s, wait_s.high)
    )
    most = max(
        io_over_cpu(evidence, machine, gil_s.high, waited) for waited in (wait_s.low, wait_s.high)
    )
    return least, most


def _turn_s(evidence: Evidence, machine: Machine) -> float:
    """The time waited, between its bounds, from which on all threads wait."""
    wait_s = evidence.wait_s
    held_up_s = _held_up_s(evidence, machine, evidence.gil_s.low)
    all_wait_s = held_up_s * _io_slots(evidence, machine)
    return min(max(all_wait_s - evidence.cpu_s, wait_s.low), wait_s.high)


def _is_worth_it(evidence: Evidence, gil_s: float) -> bool:
    computed_s = evidence.cpu_s if evidence.is_async else gil_s
    return computed_s >= _WORTH * (CPU_S + evidence.transport_s)


def _is_loud(evidence: Evidence, machine: Machine, gain: float) -> bool:
    """Whether the loss is large for sure: `gain` is its minimum."""
    if evidence.runs < _SOLID_RUNS or evidence.seen_s < _SOLID_S or evidence.at_once < _AT_ONCE:
        return False
    if evidence.kind == "cpu":
        used = min(1.0, evidence.at_once / machine.cpu_workers)
    else:
        # All `async def` handlers share one thread, with or without a GIL.
        held_s = evidence.cpu_s if evidence.is_async else evidence.gil_s.low
        held = held_s / evidence.cpu_s if evidence.cpu_s else 0.0
        used = min(1.0, evidence.load * held)
    return used * (1 - 1 / gain) >= _LARGE_LOSS


# Moves of a handler of kind "auto" to the other lane: never for a single look, never to and fro.

#: Minimum gain for a move; more than for advice, because a move costs something.
WORTH_A_MOVE = 1.5
#: Number of judgements in a row that have to agree before a move.
AGREEING = 2
#: Minimum stay after the first move, in seconds; each further move doubles it, up to the maximum.
_STAY_S = 2.0
_LONGEST_STAY_S = 300.0


class SwitchPolicy:
    """Decides on the moves of one handler. The policy belongs to one thread."""

    def __init__(self) -> None:
        self._agreed = 0
        self._stay_s = _STAY_S
        self._may_move_at = 0.0

    def moves(self, kind: str, judgement: Judgement, now: float) -> bool:
        """Whether the handler is to move now.

        Args:
            kind: the lane that the handler is on.
            judgement: the judgement of its runs on that lane.
            now: in seconds of `time.monotonic()`.
        """
        # The io lane has threads: if threads suit the handler, there is no reason to leave it.
        if judgement.kind in (None, kind, "threads") or judgement.gain < WORTH_A_MOVE:
            self._agreed = 0
            return False
        self._agreed += 1
        if self._agreed < AGREEING or now < self._may_move_at:
            return False
        self._agreed = 0
        self._may_move_at = now + self._stay_s
        self._stay_s = min(2 * self._stay_s, _LONGEST_STAY_S)
        return True
