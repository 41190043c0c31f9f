# SPDX-License-Identifier: MIT
"""Advice on the kind of a handler, in sentences and tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from procbus.advice.judge import (
    BETTER,
    CPU_S,
    FEW_RUNS,
    FEW_S,
    IO_S,
    MANY_RUNS,
    Judgement,
    Suited,
    is_thin,
)
from procbus.core.handler import DeclaredKind
from procbus.core.meter import Evidence, Machine, Span
from procbus.core.overview import Overview, Table, shown_as
from procbus.core.text import seconds, share

#: Maximum share of a handler's CPU time with the GIL, for the advice "releases the GIL".
_LITTLE = 0.6


@dataclass(frozen=True, slots=True)
class Advice:
    """The finding about one handler. Immutable.

    Example:
        ```python
        from procbus import EventBus

        with EventBus(handlers=[]) as bus:
            bus.subscribe("number", abs, kind="cpu")
            bus.publish("number", -7).wait()
            for advice in bus.advice():
                print(advice.handler, advice.kind, advice.text)
        ```

    Attributes:
        handler: name of the handler.
        declared: the kind that the handler was subscribed with.
        kind: the kind that suits the handler; None while too little is known. ``"threads"`` if the
            handler computes and this Python has no GIL: then it can compute in a thread.
        gain: number of events that the handler could handle with that kind on a busy bus, as a
            multiple of the present number; 1 if it has that kind already, or would gain nothing.
        level: "warning" if another kind would gain much, "info" if it would gain a little, "" if
            nothing has to change.
        text: the finding and its reason, in a sentence.
        evidence: the measurements behind it.
    """

    handler: str
    declared: DeclaredKind
    kind: Suited | None
    gain: float
    level: Literal["warning", "info", ""]
    text: str
    evidence: Evidence

    def __str__(self) -> str:
        """The sentence."""
        return self.text


def _measurements(found: Sequence[Advice]) -> Overview:
    """A table of the measurements, and the sentences below it."""
    if not found:
        return ["no handler, no advice"]
    rows = [
        (
            each.handler,
            each.declared,
            each.kind or "-",
            f"{each.gain:.1f} x" if each.level else "-",
            f"{each.evidence.ran:,}",
            seconds(each.evidence.wall_s or None),
            seconds(each.evidence.cpu_s if each.evidence.runs else None),
            _of_wall(each.evidence, each.evidence.wait_s),
            seconds(each.evidence.transport_s or None),
            seconds(each.evidence.queue_s or None),
        )
        for each in found
    ]
    head = "handler", "declared", "suits", "gain", "runs", "run", "CPU", "waits", "transport"
    sentences = "\n".join(f"{_MARKS[each.level]} {each.text}" for each in found)
    return [Table((*head, "queue"), rows), sentences]


@shown_as(_measurements)
class AdviceList(tuple[Advice, ...]):
    """Advice for each handler of a bus; `print` it for a table.

    Example:
        ```python
        from procbus import EventBus

        with EventBus(handlers=[]) as bus:
            bus.subscribe("number", abs, kind="cpu")
            bus.publish("number", -7).wait()
            print(bus.advice())  # a table
        ```
    """

    __slots__ = ()


_TO_PROCESSES = "with cpu='processes' for the bus"

_MARKS = {"warning": "!!", "info": " !", "": "  "}


def make_advice(
    name: str,
    declared: DeclaredKind,
    evidence: Evidence,
    judgement: Judgement,
    machine: Machine,
    batch: int | None = None,
) -> Advice:
    """Put a judgement into words; a handler that takes batches is measured by the call."""
    level: Literal["warning", "info", ""] = ""
    if judgement.kind not in (None, evidence.kind) and judgement.gain > 1 and declared != "auto":
        level = "warning" if judgement.loud else "info"
    text = f"{name} {_sentence(declared, evidence, judgement, machine)}"
    if batch is None:
        text += _batches(evidence)
    return Advice(name, declared, judgement.kind, judgement.gain, level, text, evidence)


def _sentence(declared: str, evidence: Evidence, judgement: Judgement, machine: Machine) -> str:
    kind = evidence.kind
    if judgement.kind is None:
        return _silence(evidence, judgement)
    if judgement.kind == "threads":
        return _threads_are_right(evidence, judgement, machine)
    stays = judgement.kind == kind
    if kind == "io":
        if stays:
            return _io_is_right(evidence, machine)
        where, advice = _while_others(evidence), "declare it cpu"
        if evidence.is_async:
            where = " on the event loop, which nothing else can use meanwhile"
            advice = "let a handler of kind='cpu' do the computing"
        if machine.cpu_on_threads:
            advice += f", {_TO_PROCESSES}"
        return (
            f"is declared {declared} but used {evidence.load:.2f} s of CPU per second{where}: "
            f"{advice}, expected {judgement.gain:.1f} x on {machine.cores} cores"
        )
    if stays and machine.cpu_on_threads and machine.gil:
        return f"computes in turns with others, because of the GIL: cpu is right, {_TO_PROCESSES}"
    if stays:
        return f"computes for {share(_part(evidence.cpu_s, evidence))} of its time: cpu is right"
    if evidence.transport_s + CPU_S > evidence.cpu_s > evidence.wait_s.low:
        return (
            f"takes {seconds(evidence.cpu_s)} and its transport "
            f"{seconds(evidence.transport_s + CPU_S)}: declare it io, or make the events larger"
        )
    return (
        f"is declared {declared} but spends {_part(evidence.wait_s.low, evidence):.0%} of its time "
        f"waiting: declare it io, expected {judgement.gain:.1f} x"
    )


def _batches(evidence: Evidence) -> str:
    """Advise batches for a handler that takes less time than the bus takes for its event."""
    if evidence.ran < MANY_RUNS or evidence.runs < FEW_RUNS or evidence.wall_s >= IO_S:
        return ""
    return (
        f". It runs for {seconds(evidence.wall_s)}, less than the bus's own work on an event: use "
        "batch=, to get many events in one call"
    )


def _threads_are_right(evidence: Evidence, judgement: Judgement, machine: Machine) -> str:
    # The share of the time in which the handler had a core, or needed none.
    waits_s = (evidence.wait_s.low + evidence.wait_s.high) / 2
    computes = f"computes for {share(evidence.cpu_s / (evidence.cpu_s + waits_s))} of its time"
    expected = f"expected {judgement.gain:.1f} x on {machine.cores} cores"
    if judgement.gain < BETTER:
        return f"{computes}, and without a GIL threads do that side by side: nothing has to change"
    if evidence.is_async:
        return (
            f"{computes}, on the event loop, which nothing else can use meanwhile: let a plain "
            f"`def` handler do the computing, {expected}"
        )
    if evidence.kind == "io":
        return f"{computes}, on fewer threads than cores: give the bus more io_workers, {expected}"
    return (
        f"takes {seconds(evidence.cpu_s)} and its transport "
        f"{seconds(evidence.transport_s + CPU_S)}; without a GIL threads compute side by side, and "
        f"need no transport: give the bus cpu='threads', or declare the handler io, {expected}"
    )


def _silence(evidence: Evidence, judgement: Judgement) -> str:
    if is_thin(evidence):
        missed = evidence.ran >= FEW_RUNS and evidence.ran_s >= FEW_S
        measured = f", of which {evidence.runs} were measured" if missed else ""
        return (
            f"ran {evidence.ran} times, {seconds(evidence.ran_s)} in all{measured}: "
            "too little to say"
        )
    if judgement.unweighed:
        return "may compute too long for threads; the cost of sending its events is not known yet"
    return "could be either: the measurements do not decide"


def _io_is_right(evidence: Evidence, machine: Machine) -> str:
    cpu_s = evidence.cpu_s
    if machine.gil and evidence.obstacle:
        return f"stays io: {evidence.obstacle}"
    if machine.gil and not evidence.is_async and evidence.gil_s.high < _LITTLE * cpu_s:
        return "releases the GIL: io is right"
    waits = _part(evidence.wait_s.low, evidence)
    if waits > _part(cpu_s, evidence):
        return f"waits for {waits:.0%} of its time: io is right"
    if machine.gil and evidence.transport_s + CPU_S > cpu_s:
        return (
            f"takes {seconds(cpu_s)} and its transport {seconds(evidence.transport_s + CPU_S)}: "
            "io, or larger events"
        )
    return "would gain nothing elsewhere: io is right"


def _while_others(evidence: Evidence) -> str:
    others = round(evidence.at_once - 1)
    return f" while {others} other{'s' if others > 1 else ''} waited" if others >= 1 else ""


def _part(part_s: float, evidence: Evidence) -> float:
    return min(1.0, part_s / evidence.wall_s) if evidence.wall_s else 0.0


def _of_wall(evidence: Evidence, span: Span) -> str:
    return share(_part((span.low + span.high) / 2, evidence)) if evidence.runs else "-"
