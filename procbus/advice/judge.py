# SPDX-License-Identifier: MIT
"""Which kind suits a handler, and what it would gain: a pure function of what was measured.

The time that one delivery takes from a busy bus is compared. On threads that is the time it holds
the GIL, or its CPU time over the cores, or its time over the threads, whichever is most. On
processes it is what it costs the script to send and receive, or its time over the workers. Where a
figure is known only between two bounds, both ends are judged: if they disagree, nothing is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from procbus.core.meter import Evidence, Machine

#: What the bus costs the script, in seconds: a delivery on a thread, and one to a worker apart from
#: its event and result; and what the latter costs the worker. Measured, see docs/figures.md.
IO_S = 6e-6
CPU_S = 7e-6
WORKER_S = 3e-6

#: Handlers that run at the same time on the event loop.
LOOP_SLOTS = 1_000

#: Another kind has to be so many times as fast to be worth a word.
BETTER = 1.25
#: A handler has to compute so many times as long as it costs the script to send it away.
_WORTH = 2.0

#: Less than so many runs, and seconds in them, is too little to say anything.
FEW_RUNS = 5
FEW_S = 0.2
#: So many runs are enough, however short.
MANY_RUNS = 2_000
#: Less than these too little to be loud.
_SOLID_RUNS = 20
_SOLID_S = 0.5
#: The part of the script's, or of its workers', time that is lost: from here on it is large.
_LARGE_LOSS = 0.25
#: Others are held up only when there are others.
_AT_ONCE = 1.5


@dataclass(frozen=True, slots=True)
class Judgement:
    """What suits a handler.

    Attributes:
        kind: "io" or "cpu"; None where the evidence is too thin to tell.
        gain: how many times as many deliveries it could do so as on the lane it is on now; 1 where
            that is the right one. An estimate between the bounds of what was measured.
        loud: the loss is large, and the evidence solid.
        unweighed: it may have to go, and nobody knows yet what its events cost to send.
    """

    kind: Literal["io", "cpu"] | None
    gain: float = 1.0
    loud: bool = False
    unweighed: bool = False


SILENT = Judgement(None)


def judge(evidence: Evidence, machine: Machine) -> Judgement:
    """Say which kind suits a handler."""
    if is_thin(evidence):
        return SILENT
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


def is_thin(evidence: Evidence) -> bool:
    """Whether too little was seen to say anything."""
    if evidence.runs >= MANY_RUNS:
        return False
    return evidence.runs < FEW_RUNS or evidence.seen_s < FEW_S


def io_over_cpu(evidence: Evidence, machine: Machine, gil_s: float, wait_s: float) -> float:
    """How many times as long a delivery takes on a busy io lane as on a busy cpu lane.

    Args:
        evidence: of the handler.
        machine: that it runs on.
        gil_s: seconds that it holds the GIL.
        wait_s: seconds that it waits.
    """
    cpu_s = evidence.cpu_s
    on_io = max(
        _held_up_s(evidence, machine, gil_s), (cpu_s + wait_s) / _io_slots(evidence, machine)
    )
    on_worker = WORKER_S + evidence.unpacking_s + cpu_s
    on_cpu = max(
        CPU_S + evidence.transport_s,
        (on_worker + evidence.children_s) / min(machine.cores, machine.cpu_workers),
        (on_worker + wait_s) / machine.cpu_workers,
    )
    return on_io / on_cpu


def _io_slots(evidence: Evidence, machine: Machine) -> int:
    return LOOP_SLOTS if evidence.is_async else machine.io_workers


def _held_up_s(evidence: Evidence, machine: Machine, gil_s: float) -> float:
    """How long a delivery holds up the others on a busy io lane, however short it waits."""
    if evidence.is_async:  # all of them have one thread
        return evidence.cpu_s + IO_S
    return max(gil_s + IO_S, (evidence.cpu_s + evidence.children_s) / machine.cores)


def _bounds(evidence: Evidence, machine: Machine) -> tuple[float, float]:
    """The least and the most of `io_over_cpu` between the bounds of what was measured.

    It grows with the time that the GIL is held. With the time waited it falls or stays, and grows
    from where all threads wait.
    """
    gil_s, wait_s = evidence.gil_s, evidence.wait_s
    all_wait_s = _held_up_s(evidence, machine, gil_s.low) * _io_slots(evidence, machine)
    turn_s = min(max(all_wait_s - evidence.cpu_s, wait_s.low), wait_s.high)
    least = min(
        io_over_cpu(evidence, machine, gil_s.low, waited)
        for waited in (wait_s.low, turn_s, wait_s.high)
    )
    most = max(
        io_over_cpu(evidence, machine, gil_s.high, waited) for waited in (wait_s.low, wait_s.high)
    )
    return least, most


def _is_worth_it(evidence: Evidence, gil_s: float) -> bool:
    computed_s = evidence.cpu_s if evidence.is_async else gil_s
    return computed_s >= _WORTH * (CPU_S + evidence.transport_s)


def _is_loud(evidence: Evidence, machine: Machine, gain: float) -> bool:
    """Whether the loss is large for sure: `gain` is the least that it could be."""
    if evidence.runs < _SOLID_RUNS or evidence.seen_s < _SOLID_S or evidence.at_once < _AT_ONCE:
        return False
    if evidence.kind == "cpu":
        used = min(1.0, evidence.at_once / machine.cpu_workers)
    else:
        held = evidence.gil_s.low / evidence.cpu_s if evidence.cpu_s else 0.0
        used = min(1.0, evidence.load * held)
    return used * (1 - 1 / gain) >= _LARGE_LOSS


# When a handler of kind "auto" moves to the other lane: not for one look, and not to and fro.

#: The other lane has to be so many times as fast to move there; to be told of, less is enough.
WORTH_A_MOVE = 1.5
#: So many judgements in a row have to agree.
AGREEING = 2
#: After its first move a handler stays for so many seconds at least; after each further one for
#: twice as long, up to the second figure.
_STAY_S = 2.0
_LONGEST_STAY_S = 300.0


class SwitchPolicy:
    """Decides on the moves of one handler. It belongs to one thread."""

    def __init__(self) -> None:
        self._agreed = 0
        self._stay_s = _STAY_S
        self._may_move_at = 0.0

    def moves(self, kind: str, judgement: Judgement, now: float) -> bool:
        """Whether it is to move now.

        Args:
            kind: the lane that it is on.
            judgement: on its runs there.
            now: in seconds of `time.monotonic()`.
        """
        if judgement.kind in (None, kind) or judgement.gain < WORTH_A_MOVE:
            self._agreed = 0
            return False
        self._agreed += 1
        if self._agreed < AGREEING or now < self._may_move_at:
            return False
        self._agreed = 0
        self._may_move_at = now + self._stay_s
        self._stay_s = min(2 * self._stay_s, _LONGEST_STAY_S)
        return True
