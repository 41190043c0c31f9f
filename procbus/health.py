# SPDX-License-Identifier: MIT
"""How the workers are: psutil samples beside what the lanes know. It measures, and never acts."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Literal

import psutil

from procbus.delivery import Delivery

if TYPE_CHECKING:
    from procbus.cpu_lane import CpuLane
    from procbus.io_lane import IoLane
    from procbus.loop_lane import LoopLane

WorkerState = Literal["starting", "idle", "busy", "stopped", "dead"]


@dataclass(frozen=True, slots=True)
class WorkerHealth:
    """One worker just now."""

    kind: Literal["io", "cpu"]
    #: Name of the thread: the worker's own in the io lane, its companion's in the cpu lane.
    name: str
    #: Process id; None while a worker of the cpu lane is starting.
    pid: int | None
    state: WorkerState
    #: Name of the handler and id of the event at hand, and for how many seconds; None between two.
    handler: str | None
    event_id: int | None
    running_s: float | None
    #: Resident memory of the process in bytes, and CPU seconds that it has used; None if unknown.
    memory_bytes: int | None
    cpu_s: float | None
    #: Deliveries that it has finished.
    events_done: int
    #: How often it was replaced, and how the last one ended ("" if none did).
    restarts: int = 0
    last_exit: str = ""


def cpu_health(lane: CpuLane | None) -> list[WorkerHealth]:
    """The worker processes."""
    found: list[WorkerHealth] = []
    for companion, delivery, since in lane.at_hand() if lane is not None else ():
        worker = companion.worker
        pid = None if worker is None else worker.pid
        state, memory_bytes, cpu_s = _sample(pid, delivery)
        found.append(
            WorkerHealth(
                "cpu",
                companion.name,
                pid,
                state,
                *_at_hand(delivery, since),
                memory_bytes,
                cpu_s,
                companion.events_done,
                companion.restarts,
                companion.last_exit,
            )
        )
    return found


def _sample(
    pid: int | None, delivery: Delivery | None
) -> tuple[WorkerState, int | None, float | None]:
    if pid is None:
        return "starting", None, None
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            status = process.status()
            memory_bytes = process.memory_info().rss
            times = process.cpu_times()
    except psutil.Error:
        return "dead", None, None
    state: WorkerState = "idle" if delivery is None else "busy"
    if status == psutil.STATUS_STOPPED:
        state = "stopped"
    elif status == psutil.STATUS_ZOMBIE:
        state = "dead"
    return state, memory_bytes, times.user + times.system


def io_health(lane: IoLane, loop: LoopLane | None) -> list[WorkerHealth]:
    """The threads of the io lane, and one record for each handler on the event loop."""
    pid = os.getpid()
    found: list[WorkerHealth] = []
    for thread in lane.threads():
        delivery, since = thread.at_hand, thread.since
        found.append(
            WorkerHealth(
                "io",
                thread.name,
                pid,
                "idle" if delivery is None else "busy",
                *_at_hand(delivery, since),
                None,
                None,
                thread.events_done,
            )
        )
    loop_thread: threading.Thread | None = None if loop is None else loop.thread
    if loop is not None and loop_thread is not None:
        running: Sequence[tuple[Delivery | None, float]] = list(loop.at_hand.items()) or [(None, 0)]
        for delivery, since in running:
            state: WorkerState = "idle" if delivery is None else "busy"
            found.append(
                WorkerHealth(
                    "io",
                    loop_thread.name,
                    pid,
                    state,
                    *_at_hand(delivery, since),
                    None,
                    None,
                    loop.events_done,
                )
            )
    return found


def _at_hand(
    delivery: Delivery | None, since: float
) -> tuple[str | None, int | None, float | None]:
    if delivery is None:
        return None, None, None
    return delivery.handler.name, delivery.event_id, max(0.0, monotonic() - since)
