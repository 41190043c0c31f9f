# SPDX-License-Identifier: MIT
"""A slot: the data of one worker of the cpu lane, apart from the thread that feeds it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from procbus.core.delivery import Delivery
from procbus.pool.interface import Message, Worker

if TYPE_CHECKING:
    from procbus.lanes.attempt import Verdict

#: Time beyond twice the expected duration after which a batch is overdue, in seconds.
GRACE_S = 0.010
#: Minimum rate at which bytes reach a worker and its memory, in bytes a second.
TRANSFER_BYTES_S = 50e6


class Batch:
    """Deliveries that a worker gets together.

    Args:
        message: the deliveries, encoded for the worker.
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
        #: The worker's deliveries. Guarded by the lane's lock, because other threads take
        #: deliveries from the end.
        self.deliveries = list(message.deliveries)
        #: Number of ended deliveries, and number of settled ones. Written by the companion.
        self.ended = 0
        self.settled = 0
        #: Expected duration of all deliveries one after the other, in seconds.
        expected_s = each_s = 0.0
        subscription = None
        for delivery in self.deliveries:
            if delivery.subscription is not subscription:
                subscription = delivery.subscription
                each_s = subscription.expected_s()
            expected_s += each_s
        self.expected_s = expected_s
        #: Time when the worker should have finished the batch, once it is the worker's first batch.
        self.due_at = inf
        self.sent = False

    def due_from(self, now: float) -> float:
        """Time when the worker should have finished the batch if it begins now.

        Encoding counts too, because deliveries that are taken back are encoded again.
        """
        transfer_s = len(self.message.data) / TRANSFER_BYTES_S
        return now + 2 * (self.expected_s + self.message.encoding_s) + transfer_s + GRACE_S

    def patience_s(self) -> float | None:
        """Maximum wait for a report before the logbook is read, in seconds; None for no maximum.

        The worker sends nothing while it is in a handler. Its finished deliveries should not wait
        until a long handler has ended.
        """
        if self.due_at == inf or len(self.deliveries) - self.ended < 2:
            return None
        return max(0.0, self.due_at - monotonic())

    def open(self) -> list[Delivery]:
        """The deliveries that have not ended."""
        return self.deliveries[self.ended :]


def name_of_worker(slot: Slot, worker: Worker | None) -> str:
    """The name of a worker for people: its own if it is a thread, else its companion's."""
    thread = None if worker is None else worker.thread
    return slot.name if thread is None else thread.name


class Slot:
    """The place of one worker in the lane: the worker, and its batches.

    A companion puts a worker there, and another one after its death. The lane's lock guards
    `in_flight`, `due_at` and `recalled`; methods are called with it held. Only the companion writes
    the other fields, except the two that the supervisor leaves for it. Any thread may read them.

    Args:
        number: number of the slot in its lane.
        place: the number of its worker, which the replacement of a dead one gets too.
    """

    def __init__(self, number: int, place: int = 0) -> None:
        self.place = place
        #: Name of the companion's thread.
        self.name = f"procbus-companion-{number}"
        #: The ready worker; and a worker that is starting, with the time of its launch.
        self.worker: Worker | None = None
        self.starting: Worker | None = None
        self.starting_since = 0.0
        self.in_flight: deque[Batch] = deque()
        #: Time when the first batch in flight should be finished, in seconds of `time.monotonic()`.
        #: After it, other companions may take back deliveries that are not begun.
        self.due_at = inf
        #: Whether deliveries were taken back and the worker has not reported that yet. Until that
        #: report the worker gets no delivery, because it might use the new tokens for deliveries
        #: that were taken back.
        self.recalled = False
        #: The deliveries that the companion is making a batch of.
        self.preparing: Sequence[Delivery] = ()
        self.events_done = 0
        self.restarts = 0
        self.last_exit = ""
        #: Set once the first worker was launched, or could not be launched.
        self.launched = threading.Event()
        self.started_at = monotonic()
        #: Left by the supervisor: the verdict for which the worker is being killed, written with
        #: the worker halted and before the kill; and its last measured memory, 0 if it was not
        #: measured. The companion reads them once the worker is dead.
        self.verdict: Verdict | None = None
        self.seen_bytes = 0

    def settle_in(self, worker: Worker) -> None:
        """Note that a worker is ready. Called by the companion, without the lock."""
        self.verdict, self.seen_bytes = None, 0
        self.worker = worker

    def locked_held_up(self) -> bool:
        """Whether the worker has deliveries that wait behind the running one."""
        return sum(len(batch.open()) for batch in self.in_flight) > 1

    def locked_clear(self) -> list[Batch]:
        """Take all batches, because the worker is dead."""
        batches = list(self.in_flight)
        self.in_flight.clear()
        self.due_at = inf
        self.recalled = False
        return batches

    def locked_take_back(self) -> list[Delivery]:
        """Take back the deliveries that the worker has not begun."""
        self.due_at = inf  # taking back once is enough: begun deliveries stay with the worker
        worker = self.worker
        if worker is None:
            return []
        waiting = sum(len(batch.open()) for batch in self.in_flight)
        taken = self.locked_part_with(worker.take_back(waiting))
        self.recalled = self.recalled or bool(taken) or worker.recalling or worker.waiting
        return taken

    def locked_part_with(self, count: int) -> list[Delivery]:
        """Take the last deliveries from the worker's batches."""
        taken: list[Delivery] = []
        for batch in reversed(self.in_flight):
            keep = max(0, len(batch.deliveries) - (count - len(taken)))
            taken = batch.deliveries[keep:] + taken
            del batch.deliveries[keep:]
        return taken
