# SPDX-License-Identifier: MIT
"""The health of the workers: readings of their processes beside the facts of the lanes.

This module measures, and never acts. It works without a supervisor, but only the supervisor knows
which worker is stalled.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from procbus.core.delivery import Delivery
from procbus.core.overview import Overview, Table, shown_as
from procbus.core.progress import Progress
from procbus.core.reporting import reported_here
from procbus.core.text import seconds, share
from procbus.lanes.slot import name_of_worker
from procbus.system.process import STOPPED, Details, Sample, thread_cpu_s

if TYPE_CHECKING:
    from threading import Thread

    from procbus.lanes.cpu import CpuLane
    from procbus.lanes.event_loop import LoopLane
    from procbus.lanes.slot import Slot
    from procbus.lanes.threads import IoLane
    from procbus.pool.interface import Worker
    from procbus.supervision.stall import Activity
    from procbus.supervision.supervisor import Observed

WorkerState = Literal["starting", "idle", "busy", "stalled", "stopped", "dead"]

#: Minimum span of a share of the CPU, in seconds; because the kernel counts CPU time in steps of 10
#: ms.
_LEAST_SPAN_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerHealth:
    """The present state of one worker. Unknown facts are None.

    Example:
        ```python
        from procbus import EventBus

        with EventBus(handlers=[], cpu_workers=1) as bus:
            bus.subscribe("number", abs, kind="cpu")
            bus.publish("number", -7).wait()
            for worker in bus.health():
                print(worker)
        ```
    """

    kind: Literal["io", "cpu"]
    #: Name of the thread: the worker's own if it is a thread, its companion's if it is a process.
    name: str
    #: Process id; None while a worker of the cpu lane is starting and its pid is not known yet.
    pid: int | None
    #: `stalled`: for two seconds the process and its subprocesses used no CPU and did no input or
    #: output in the handler; or a thread was left behind in a handler that timed out. A handler
    #: that takes long and uses CPU is `busy`. `stopped`: halted by a signal.
    state: WorkerState
    #: Name of the running handler, id of its event, and seconds since its start; None between two
    #: deliveries. For a starting worker: "worker_init" while that runs, and seconds since the
    #: launch.
    handler: str | None = None
    event_id: int | None = None
    running_s: float | None = None
    #: Last report of the running handler with `current().progress()`; None if there was none.
    progress: Progress | None = None
    #: Resident memory of the process in bytes, and the part that no other process shares. None for
    #: threads, which share the memory of the script.
    memory_bytes: int | None = None
    unique_bytes: int | None = None
    #: CPU seconds used so far, by the process or by the thread.
    cpu_s: float | None = None
    #: Share of one core: CPU seconds for each second. For a thread it is measured since its start.
    #: For a process it is measured since the supervisor's last look, which comes twice a second
    #: while the worker is busy; without a look, since the start of the process. None for the event
    #: loop.
    cpu_share: float | None = None
    #: For a process: number of its descendants, and number of its open file descriptors.
    children: int | None = None
    open_files: int | None = None
    #: Number of deliveries that the worker has finished.
    events_done: int
    #: Number of times that the worker was replaced; and how the last replaced worker ended, "" if
    #: none was replaced.
    restarts: int = 0
    last_exit: str = ""


def _workers(found: Sequence[WorkerHealth]) -> Overview:
    """A row for each worker."""
    if not found:
        return ["no worker"]
    columns = [*zip(*map(_cells_of, found), strict=True)]
    kept = [(head, cells) for head, cells in zip(_HEADS, columns, strict=True) if {*cells} != {"-"}]
    heads, cells = zip(*kept, strict=True)
    return [Table(heads, [*zip(*cells, strict=True)], _TO_THE_LEFT)]


@shown_as(_workers)
class BusHealth(tuple[WorkerHealth, ...]):
    """The workers of a bus; `print` it for a table.

    Example:
        ```python
        from procbus import EventBus

        with EventBus(handlers=[]) as bus:
            bus.subscribe("word", len)
            bus.publish("word", "hello").wait()
            print(bus.health())
        ```
    """

    __slots__ = ()


#: Heads of the table of workers. A column without a fact is left out.
_HEADS = (
    *("worker", "pid", "state", "handler", "event", "since", "progress"),
    *("memory", "CPU", "CPU share", "done", "restarts", "last exit"),
)
_TO_THE_LEFT = ("worker", "state", "handler", "progress", "last exit")


def _cells_of(worker: WorkerHealth) -> tuple[str, ...]:
    memory = worker.memory_bytes
    return (
        worker.name,
        _cell(worker.pid),
        worker.state,
        worker.handler or "-",
        _cell(worker.event_id),
        seconds(worker.running_s),
        _cell(worker.progress),
        "-" if memory is None else f"{memory / 2**20:,.0f} MiB",
        seconds(worker.cpu_s),
        share(worker.cpu_share),
        f"{worker.events_done:,}",
        _cell(worker.restarts or None),
        worker.last_exit or "-",
    )


def _cell(value: object) -> str:
    return "-" if value is None else str(value)


def cpu_health(
    lanes: Sequence[CpuLane],
    observed: Callable[[Worker], Observed | None],
    *,
    brief: bool = False,
) -> list[WorkerHealth]:
    """The worker processes, and the threads of cpu lanes. From any thread.

    Threads left behind in a handler are included.

    Args:
        lanes: the cpu lanes of the bus.
        observed: returns the supervisor's observations of a worker.
        brief: leave out the facts that take long to find.
    """
    left_behind = [each for lane in lanes for each in lane.pool.left_behind]
    return [
        *(_worker(*each, observed, brief) for lane in lanes for each in lane.batching.at_hand()),
        *(
            WorkerHealth(
                kind="cpu",
                name=each.thread.name,
                pid=os.getpid(),
                state="stalled",
                **_at_hand(each.delivery, each.since),
                **_used_by(each.thread),
                events_done=0,
            )
            for each in left_behind
        ),
    ]


def _worker(
    slot: Slot,
    delivery: Delivery | None,
    since: float,
    progress: Progress | None,
    observed: Callable[[Worker], Observed | None],
    brief: bool,
) -> WorkerHealth:
    # Each field is read once, because the companion replaces its worker at any moment.
    worker, starting = slot.worker, slot.starting
    seen = None if worker is None else observed(worker)
    last_sample = None if seen is None else seen.last_sample
    present = worker or starting
    probe = None if present is None else present.probe
    details = present.details if present is not None and probe is None else None
    if probe is not None:
        details = probe.details(brief=brief)
    thread = present.thread if present is not None and probe is None else None
    now = monotonic()
    at_hand = _at_hand(delivery, since)
    state: WorkerState = "idle" if delivery is None else "busy"
    if worker is None:
        state = "starting"
        if starting is not None:
            at_hand = _start(starting, slot.starting_since)
    elif probe is not None and details is None:
        state = "dead"
    elif details is not None and details.status == STOPPED:
        state = "stopped"
    # The verdict may be on the previous delivery, if this delivery is younger than a window.
    elif delivery is not None and seen is not None and _stalled(seen.activity, now, since):
        state = "stalled"
    return WorkerHealth(
        kind="cpu",
        name=name_of_worker(slot, present),
        pid=None if present is None else present.pid,
        state=state,
        **at_hand,
        progress=progress,
        **(_readings(details, last_sample, now) if thread is None else _used_by(thread)),
        events_done=slot.events_done,
        restarts=slot.restarts,
        last_exit=slot.last_exit,
    )


def _stalled(activity: Activity, now: float, since: float) -> bool:
    return now - since >= activity.window_s and activity.stalled(now)


def _readings(details: Details | None, last_sample: Sample | None, now: float) -> dict[str, Any]:
    if details is None:
        return {}
    return {
        "memory_bytes": details.rss,
        "unique_bytes": details.uss,
        "cpu_s": details.cpu_s,
        "cpu_share": _cpu_share(details, last_sample, now),
        "children": details.children,
        "open_files": details.open_files,
    }


def _used_by(thread: Thread) -> dict[str, Any]:
    return {"cpu_s": thread_cpu_s().get(thread.native_id or 0)}


def _cpu_share(details: Details, last_sample: Sample | None, now: float) -> float | None:
    if last_sample is None:
        gained_s, span_s = details.cpu_s, details.age_s
    else:
        gained_s, span_s = details.cpu_s - last_sample.cpu_s, now - last_sample.at
    return _share(gained_s, span_s)


def _share(gained_s: float, span_s: float) -> float | None:
    return max(0.0, gained_s) / span_s if span_s >= _LEAST_SPAN_S else None


def io_health(lane: IoLane, loop: LoopLane | None) -> list[WorkerHealth]:
    """The threads of the io lane, and a record for each handler on the event loop.

    From any thread. Threads left behind in a handler are included.
    """
    pid = os.getpid()
    # In this order, so that a thread that is left behind meanwhile is in both lists, and not
    # missed.
    threads = dict.fromkeys([*lane.threads(), *lane.abandoned_threads()])
    loop_thread = None if loop is None else loop.thread
    cpu_s = thread_cpu_s() if threads or loop_thread is not None else {}
    now = monotonic()
    found: list[WorkerHealth] = []
    for thread in threads:
        delivery, since = thread.at_hand, thread.since
        state: WorkerState = "idle" if delivery is None else "busy"
        used_s = cpu_s.get(thread.native_id or 0)
        found.append(
            WorkerHealth(
                kind="io",
                name=thread.name,
                pid=pid,
                state="stalled" if thread.abandoned else state,
                **_at_hand(delivery, since),
                progress=None if delivery is None else reported_here(delivery),
                cpu_s=used_s,
                cpu_share=None if used_s is None else _share(used_s, now - thread.started_at),
                events_done=thread.events_done,
            )
        )
    if loop is not None and loop_thread is not None:
        running: Sequence[tuple[Delivery | None, float]] = list(loop.at_hand.items()) or [(None, 0)]
        found += [
            WorkerHealth(
                kind="io",
                name=loop_thread.name,
                pid=pid,
                state="idle" if delivery is None else "busy",
                **_at_hand(delivery, since),
                progress=None if delivery is None else reported_here(delivery),
                cpu_s=cpu_s.get(loop_thread.native_id or 0),
                events_done=loop.events_done,
            )
            for delivery, since in running
        ]
    return found


def _start(worker: Worker, since: float) -> dict[str, Any]:
    return {
        "handler": None if worker.set_up_since() is None else "worker_init",
        "running_s": max(0.0, monotonic() - since),
    }


def _at_hand(delivery: Delivery | None, since: float) -> dict[str, Any]:
    if delivery is None:
        return {}
    return {
        "handler": delivery.handler.name,
        "event_id": delivery.event_id,
        "running_s": max(0.0, monotonic() - since),
    }
