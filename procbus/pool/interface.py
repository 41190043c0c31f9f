# SPDX-License-Identifier: MIT
"""The interface between the cpu lane and a pool of workers.

A lane has one companion thread for each worker. The companion alone calls the worker's methods,
except `take_back`, `kill` and methods that only read. Every pool passes `tests/conformance`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from procbus.core.delivery import Delivery
from procbus.core.outcome import Outcome
from procbus.core.progress import Progress
from procbus.pool.wire import Successes
from procbus.system.cooperative import Task

if TYPE_CHECKING:
    from threading import Thread

    from procbus.core.stats import SharedMemoryStats
    from procbus.pool.handler_cache import Definitions
    from procbus.system.footprint import Footprint
    from procbus.system.process import Details, Probe

#: The end of one delivery in a worker: its outcome, and the events that its handler published, each
#: with its topic or None.
Ended = tuple[Outcome, "list[tuple[str | None, Any]] | None"]

#: Work in one batch for a worker on this machine, in seconds; because a worker waits half as long
#: between two deliveries of 6 ms if it gets three of them at a time.
BATCH_S = 0.020

#: No successes.
NO_SUCCESSES = Successes((), ())


class Report(NamedTuple):
    """A worker's report on a batch: the next deliveries of the batch, in order, have ended."""

    batch: int
    #: First the deliveries that succeeded and published nothing, then the others.
    successes: Successes
    ends: list[Ended]
    #: Whether the worker is finished with the batch. Deliveries that were taken back do not matter.
    complete: bool
    #: Number of deliveries that the worker gave back after a recall: the last ones sent.
    returned: int = 0


class LastWords(NamedTuple):
    """The facts known about a worker's last moments."""

    #: Number of its batch, 0 if none.
    batch: int
    #: Deliveries of that batch that the worker finished since its last report.
    ends: list[Ended]
    #: Time in the handler of the next delivery, in seconds; None if the worker was in no handler.
    ran_s: float | None
    #: The last report of that handler; None if it made none.
    progress: Progress | None = None


#: The last words of a worker that reported no batch, or never started.
NO_WORDS = LastWords(0, [], None)


#: The delivery that a worker runs: its batch, its index there, and its start. While the worker
#: loads the handler, the start lies in the future: the latest time of the real start.
At = tuple[int, int, float]


class WorkerGone(Exception):
    """The worker is dead.

    Attributes:
        pid: process id of the worker, None if it never started.
        exit_code: as in `subprocess`, None when unknown.
        last_words: the facts about its last moments.
        noticed_at: time when its death was noticed, in seconds of `time.monotonic()`.
        hopeless: whether starting another worker would be useless.
        left: whether the worker had to end because its Dask worker ends. If so, its running
            delivery is not to blame, and goes back into the queue too.
    """

    def __init__(
        self,
        pid: int | None,
        exit_code: int | None,
        last_words: LastWords,
        *,
        noticed_at: float | None = None,
        hopeless: bool = False,
        left: bool = False,
    ) -> None:
        super().__init__(f"worker {pid} ended with exit code {exit_code}")
        self.noticed_at = monotonic() if noticed_at is None else noticed_at
        self.pid = pid
        self.exit_code = exit_code
        self.last_words = last_words
        self.hopeless = hopeless
        self.left = left


class SetUpFailed(WorkerGone):
    """The user's set-up of a worker failed, and would fail in the next one too; see the cause."""

    def __init__(self, pid: int | None) -> None:
        super().__init__(pid, None, NO_WORDS, hopeless=True)


@dataclass(slots=True)
class Message:
    """A batch made ready for one worker."""

    batch: int
    #: The batch in the form that the pool sends.
    data: Any = b""
    #: Deliveries that are in the message, in order.
    deliveries: list[Delivery] = field(default_factory=list)
    #: Deliveries that cannot travel, and are not in the message.
    failed: list[tuple[Delivery, Outcome]] = field(default_factory=list)
    #: Deliveries that found no room in the message: put them back.
    rest: list[Delivery] = field(default_factory=list)
    #: Whether not even the first delivery found room in shared memory: call `wait_for_room`.
    no_room: bool = False
    #: CPU time that encoding took, in seconds; 0 if it is unknown.
    encoding_s: float = 0.0
    #: Number of different kinds of deliveries, by handler, topic and attempt.
    kinds: int = 0


class LeftBehind(NamedTuple):
    """A thread that goes on in a handler after the handler's time was up."""

    thread: Thread
    delivery: Delivery
    #: Start of the delivery, in seconds of `time.monotonic()`.
    since: float


class Worker(Protocol):
    """One worker, as its companion sees it."""

    @property
    def pid(self) -> int | None:
        """Process id; None until it is known, at the latest when the worker is ready."""

    @property
    def probe(self) -> Probe | None:
        """Probe of its process; None if the process is on another machine, or not known yet."""

    @property
    def thread(self) -> Thread | None:
        """Its thread, if the worker is a thread of this process; None if it is a process."""

    @property
    def details(self) -> Details | None:
        """Details that a process on another machine reports; None for a worker on this machine."""

    def prepare(self, batch: int, deliveries: Sequence[Delivery]) -> Message:
        """Make a batch ready."""

    def offer(self, message: Message) -> None:
        """Let the worker begin the deliveries of a message, and let `take_back` take them back."""

    def fits_ahead(self, message: Message) -> bool:
        """Whether the message can certainly be sent now without waiting for the worker."""

    def send(self, message: Message) -> None:
        """Send a batch. Blocks while the worker does not read.

        If the worker is dead, nothing happens: `receive` returns the reports that it sent before,
        and then raises WorkerGone.
        """

    def wait_for_room(self, timeout_s: float) -> None:
        """Wait at most `timeout_s` seconds until a message that found no room may find some."""

    def receive(self, patience_s: float | None = None) -> Report:
        """Wait for the worker's next report.

        Args:
            patience_s: seconds after which to return the deliveries finished so far, perhaps none,
                without waiting for a report.

        Raises:
            WorkerGone: the worker is dead.
        """

    def take_back(self, most: int) -> int:
        """Take back up to `most` deliveries that it has not begun, the last ones sent.

        Returns the number of deliveries taken back. Never blocks. Call it from any thread, under
        the lane's lock. A distant worker may be asked to give back more deliveries, which one of
        its next reports returns. Until that report the worker is `recalling`.
        """

    @property
    def recalling(self) -> bool:
        """Whether the worker has not yet answered a request of `take_back` to give back more."""

    @property
    def waiting(self) -> bool:
        """Whether its handler waits for the bus. If so, the worker gets no more deliveries."""

    def running(self) -> At | None:
        """The delivery that it runs; None between two deliveries. From any thread."""

    def progress(self, at: At) -> Progress | None:
        """The last report of a delivery's handler, if it made one. From any thread.

        Args:
            at: a result of `running`.
        """

    def set_up_since(self) -> float | None:
        """The start of the user's set-up (`monotonic()`), while the set-up runs; else None.

        From any thread.
        """

    def ask_stack(self) -> Task[str]:
        """Get the worker's Python stack, in its set-up or in a handler; "" if there is no answer.

        From any thread, but one at a time. The worker goes on unharmed.
        """

    def tell_cancelled(self, at: At) -> None:
        """Let the handler of a delivery see that it is cancelled. Never blocks. From any thread.

        Args:
            at: a result of `running`.
        """

    def watch_memory(self, at: At, limit: int) -> Footprint | None:
        """Have the memory of a worker without a `probe` watched during a delivery.

        Never blocks. Called repeatedly, by the supervisor's thread alone.

        Args:
            at: a result of `running`.
            limit: the limit in bytes.

        Returns:
            The memory of the worker and its children, if it was seen above the limit. None if it
            was not, or if there is a probe.
        """

    def kill_in(self, at: At, condemn: Callable[[str], None]) -> Task[bool]:
        """Kill the worker and all processes that its handlers started, if this delivery still runs.

        The steps take a bounded time, some 0.1 s, and mostly wait: run the steps of several workers
        `in_turn`. From any thread, but one at a time.

        Args:
            at: a result of `running`.
            condemn: called with the Python stack of the handler, or "" without one. The call comes
                before the kill and while the worker is halted, so that its delivery cannot change.

        Returns:
            False if the worker no longer runs that delivery. In this case it goes on unharmed.
        """

    def hang_up(self) -> None:
        """Have `receive` raise WorkerGone, because the process is dead and no report said so.

        From any thread.
        """

    def stop(self) -> None:
        """End the worker once it has no work; release the resources of a dead one. Idempotent.

        Until this call a dead worker keeps its resources of this machine, except its process.
        """

    def kill(self) -> None:
        """End the worker at once, and all processes that its handlers started. From any thread."""


class Prepared(Protocol):
    """A process that waits to become a worker, and ends with the thread that prepared it."""

    def start(self, launched: Callable[[Worker], None], place: int = 0) -> Worker:
        """Make the process a worker, and wait until it is ready; see `Pool.start`. Call it once."""

    def abandon(self) -> None:
        """End the process, if it was not made a worker. Idempotent."""

    def fits(self) -> bool:
        """Whether a process that this thread started now would have the same settings."""


class Pool(Protocol):
    """A source of workers for a cpu lane."""

    @property
    def definitions(self) -> Definitions:
        """The encoded handlers. A worker drops a forgotten handler with one of its next batches."""

    def close(self) -> None:
        """Release the memory that the workers shared, after they have ended. Idempotent."""

    def shared_memory(self) -> SharedMemoryStats:
        """Large objects on their way to workers and back."""

    def size(self) -> int:
        """Maximum useful number of workers. The number may change if the pool is `elastic`."""

    @property
    def left_behind(self) -> Sequence[LeftBehind]:
        """The threads left behind in a handler; empty for processes."""

    @property
    def elastic(self) -> bool:
        """Whether more workers may become possible later."""

    @property
    def in_processes(self) -> bool:
        """Whether its workers are processes, which can be killed. A thread is left behind."""

    @property
    def local(self) -> bool:
        """Whether its workers use the memory of this machine."""

    @property
    def batch_s(self) -> float:
        """Work in one batch, in seconds: enough that the cost of a batch does not matter."""

    @property
    def waits_for(self) -> str:
        """The thing that is missing to start a worker, in words; empty if nothing is."""

    def prepare(self) -> Prepared | None:
        """Start a process that can become a worker later; called by its companion or the lane.

        Returns:
            None if this would save no time, or if no process can be started. In the second case
            `start` raises the error.
        """

    def start(self, launched: Callable[[Worker], None], place: int = 0) -> Worker:
        """Start a worker and wait until it is ready; called by its companion.

        Args:
            launched: called with the worker once it has been launched, before it is ready. From
                this call on the worker can be killed.
            place: the worker's number in the lane, for `current().worker`.

        Raises:
            WorkerGone: the worker died before it was ready.
        """
