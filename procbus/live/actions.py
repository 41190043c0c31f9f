# SPDX-License-Identifier: MIT
"""The actions of the live view: stacks, cancelling, replaying, pausing."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, cast

from procbus.core.cancelling import WATCHER, CancelRequest
from procbus.core.dead_letter import summary_of
from procbus.core.handler import Kind
from procbus.core.text import printable
from procbus.lanes.slot import name_of_worker
from procbus.live.snapshot import Facts, Seen, find_letter
from procbus.live.stacks import stacks_of_threads
from procbus.system.cooperative import in_turn


class Refused(Exception):
    """An action cannot be done; the message says why."""


class Actions:
    """The actions on one bus that a watcher may ask for. Thread-safe.

    Args:
        bus: the bus.
    """

    def __init__(self, bus: Seen) -> None:
        self._bus = bus
        self._known: dict[str, Callable[[Facts], Any]] = {
            "stacks": self._stacks,
            "cancel": self._cancel,
            "replay": self._replay,
            "pause": self._pause,
            "resume": self._resume,
        }

    def prepare(self, request: Facts) -> Callable[[], Any]:
        """Check a request; return the action, which may wait, for a thread of its own.

        Raises:
            Refused: there is no such action.
        """
        asked = request.get("do")
        action = self._known.get(asked) if isinstance(asked, str) else None
        if action is None:
            known = ", ".join(("snapshot", "brief", "metrics", *self._known))
            raise Refused(f"there is no action {asked!r}; there are {known}")
        return lambda: action(request)

    @staticmethod
    def words(error: BaseException) -> str:
        """The error of an action in words, for the user who asked for the action."""
        return printable(summary_of(error))

    def _stacks(self, request: Facts) -> Facts:
        """Stacks of workers, and of the threads of the script; or of one named worker."""
        name = request.get("worker")
        workers = []
        for slot in [slot for lane in self._bus.lanes.cpu_lanes for slot in lane.batching.all()]:
            worker = slot.worker or slot.starting
            known = name_of_worker(slot, worker)
            if worker is not None and name in (None, known):
                workers.append((known, worker))
        found = in_turn([worker.ask_stack() for _, worker in workers])
        threads = [each for each in stacks_of_threads() if name in (None, each["name"])]
        if name is not None and not workers and not threads:
            raise Refused(f"there is no worker {name!r}: it may have ended")
        return {
            "workers": [
                {"name": name, "pid": worker.pid, "stack": stack or ""}
                for (name, worker), stack in zip(workers, found, strict=True)
            ],
            "threads": [] if workers and name is not None else threads,
        }

    def _cancel(self, request: Facts) -> Facts:
        """Cancel the running delivery of a worker process, if the worker is still at that event."""
        name, event_id = request.get("worker"), request.get("event_id")
        lanes = self._bus.lanes
        for lane in lanes.cpu_lanes:
            for slot, worker, delivery, _ in lane.batching.running():
                if name_of_worker(slot, worker) == name and delivery.event_id == event_id:
                    if not lane.pool.in_processes:
                        raise Refused(f"{name} is a thread, and Python cannot stop a thread")
                    delivery.ask_to_cancel(CancelRequest(monotonic(), WATCHER, for_good=True))
                    return {"handler": printable(delivery.handler.name), "event_id": event_id}
        if any(thread.name == name for thread in lanes.io.threads()) or name == "procbus-loop":
            raise Refused(f"{name} is a thread, and Python cannot stop a thread")
        raise Refused(f"{name} is not at event #{event_id} any more")

    def _replay(self, request: Facts) -> Facts:
        """Run the event of a dead letter again; this waits while the bus is full."""
        key = request.get("letter")
        box = self._bus.settlement.dead_letters
        letter = find_letter(box.newest(len(box)), key) if isinstance(key, str) else None
        if letter is None:
            raise Refused("this dead letter is not there any more")
        if self._bus.closing:
            raise Refused("the bus is closing, and takes no more events: the dead letter stays")
        (receipt,) = box.replay((letter,))
        return {"handler": printable(letter.handler), "event_id": receipt.id}

    def _pause(self, request: Facts) -> Facts:
        kind = _kind(request)
        if not self._bus.lanes.pause(kind):
            raise Refused(f"there is no {kind} lane yet")
        return {"kind": kind}

    def _resume(self, request: Facts) -> Facts:
        kind = _kind(request)
        self._bus.lanes.resume(kind)
        return {"kind": kind}


def _kind(request: Facts) -> Kind:
    kind = request.get("kind")
    if kind not in ("io", "cpu"):
        raise Refused(f'kind must be "io" or "cpu", not {kind!r}')
    return cast("Kind", kind)
