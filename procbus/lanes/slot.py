# SPDX-License-Identifier: MIT
"""A slot: the data of one worker of the cpu lane, apart from the thread that feeds it."""

from __future__ import annotations

import threading
from collections import deque
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from procbus.core.delivery import Delivery
from procbus.core.subscription import OVERHEAD_S
from procbus.pool.interface import Message, Worker

if TYPE_CHECKING:
    from procbus.lanes.attempt import Verdict

#: A batch is overdue after twice the time that it should take, and this many seconds more.
GRACE_S = 0.010
#: Bytes that surely get to a worker, and into its memory, in a second.
TRANSFER_BYTES_S = 50e6


class Batch:
    """Deliveries that a worker was given together.

    Args:
        message: the deliveries, made ready for the worker.
    """

    __slots__ = (
        "deliveries",
        "due_at",
        "ended",
        "expected_s",
        "message",
        "number",
        "sent",
        "settled",
    )

    def __init__(self, message: Message) -> None:
        self.number = message.batch
        self.message = message
        #: Those that are this worker's. Guarded by the lane's lock: others take from the end.
        self.deliveries = list(message.deliveries)
        #: How many of them have ended, and how many of those are settled. Written by the companion.
        self.ended = 0
        self.settled = 0
        #: How long they should take one after the other, in seconds.
        expected_s = OVERHEAD_S * len(self.deliveries)
        for delivery in self.deliveries:  # a loop takes half of the time of sum()
            expected_s += delivery.subscription.average_s or 0.0
        self.expected_s = expected_s
        #: When the worker should be through with it, once it is the worker's first.
        self.due_at = inf
        self.sent = False

    def due_from_now(self) -> float:
        """When the worker should be through with the batch if it has it from now on."""
        transfer_s = len(self.message.data) / TRANSFER_BYTES_S
        return monotonic() + 2 * self.expected_s + transfer_s + GRACE_S

    def patience_s(self) -> float | None:
        """How long to wait for a report before looking what is finished; None: as it takes.

        The worker sends nothing while it is in a handler. What it finished before should not wait
        for one that takes long.
        """
        if self.due_at == inf or len(self.deliveries) - self.ended < 2:
            return None
        return max(0.0, self.due_at - monotonic())

    def open(self) -> list[Delivery]:
        """Those that have not ended."""
        return self.deliveries[self.ended :]


class Slot:
    """The place of one worker in the lane: who is there, and what it was given.

    A companion puts a worker there, and the next one when that has died. The lane's lock guards
    `in_flight`, `due_at` and `recalled`; methods are called with it held. The other fields are
    written by the companion alone, but for the two that the supervisor leaves for it. Any thread
    may read them.

    Args:
        number: tells it from the lane's other slots.
    """

    def __init__(self, number: int) -> None:
        #: Name of the companion's thread.
        self.name = f"procbus-companion-{number}"
        #: The worker, once it is ready; and one that is not yet, and when it was launched.
        self.worker: Worker | None = None
        self.starting: Worker | None = None
        self.starting_since = 0.0
        self.in_flight: deque[Batch] = deque()
        #: When the first batch in flight should be through, in seconds of `time.monotonic()`:
        #: past that, others may take back what is not begun.
        self.due_at = inf
        #: Something was taken back and the worker has not said so yet: it gets nothing new, lest
        #: it uses the tokens of that for what was taken back.
        self.recalled = False
        self.events_done = 0
        self.restarts = 0
        self.last_exit = ""
        #: Set once the first worker was launched, or could not be.
        self.launched = threading.Event()
        self.started_at = monotonic()
        #: Left by the supervisor: why the worker is being killed, given with the worker halted and
        #: before the kill; and its resident memory when it was last looked at, 0 if it was not.
        #: The companion reads them once the worker is dead.
        self.verdict: Verdict | None = None
        self.seen_bytes = 0

    def settle_in(self, worker: Worker) -> None:
        """A worker is ready. The companion calls it, without the lock."""
        self.verdict, self.seen_bytes = None, 0
        self.worker = worker

    def locked_held_up(self) -> bool:
        """Whether the worker has something that it has not begun behind what it is in."""
        return sum(len(batch.open()) for batch in self.in_flight) > 1

    def locked_clear(self) -> list[Batch]:
        """Take all batches: the worker is gone."""
        batches = list(self.in_flight)
        self.in_flight.clear()
        self.due_at = inf
        self.recalled = False
        return batches

    def locked_take_back(self) -> list[Delivery]:
        """Take back what the worker has not begun."""
        self.due_at = inf  # once is enough: what is begun stays there
        worker = self.worker
        if worker is None:
            return []
        waiting = sum(len(batch.open()) for batch in self.in_flight)
        taken = self.locked_part_with(worker.take_back(waiting))
        self.recalled = self.recalled or bool(taken) or worker.recalling
        return taken

    def locked_part_with(self, count: int) -> list[Delivery]:
        """Take the last deliveries from what the worker has."""
        taken: list[Delivery] = []
        for batch in reversed(self.in_flight):
            keep = max(0, len(batch.deliveries) - (count - len(taken)))
            taken = batch.deliveries[keep:] + taken
            del batch.deliveries[keep:]
        return taken
