# SPDX-License-Identifier: MIT
"""The seam between the cpu lane and what runs its work: a pool of workers.

A lane has one companion thread for each worker; it alone calls the methods of that worker, but
for `take_back`, `kill` and what only reads. Every pool passes `tests/conformance`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from procbus.core.delivery import Delivery
from procbus.core.outcome import Outcome
from procbus.pool.wire import Successes
from procbus.system.cooperative import Steps

if TYPE_CHECKING:
    from procbus.core.stats import SharedMemoryStats
    from procbus.pool.handler_cache import Definitions
    from procbus.system.footprint import Footprint
    from procbus.system.process import Details, Probe

#: The end of one delivery in a worker: its outcome, and the events that its handler published,
#: each with its topic or None.
Ended = tuple[Outcome, "list[tuple[str | None, Any]] | None"]

#: Seconds of work in one batch for a worker on this machine.
BATCH_S = 0.010

#: Where there are none.
NO_SUCCESSES = Successes((), ())


class Report(NamedTuple):
    """What a worker tells of a batch: the next deliveries of it, in order, have ended."""

    batch: int
    #: First those that succeeded and published nothing, then others.
    successes: Successes
    ends: list[Ended]
    #: Whether the worker is through with the batch, or with what was left of it.
    complete: bool
    #: So many of all that it has it gave back later, when `recalling`: the last ones sent.
    returned: int = 0


class LastWords(NamedTuple):
    """What is known of a worker's last moments."""

    #: Number of the batch it was at, 0 if none.
    batch: int
    #: Deliveries of that batch that it finished since its last report.
    ends: list[Ended]
    #: How long it had been in the handler of the next delivery, in seconds; None if in none.
    ran_s: float | None


#: Of a worker that said nothing of any batch, or that never was.
NO_WORDS = LastWords(0, [], None)


#: What a worker is at: batch, index in it, and start of the delivery in its handler. While the
#: worker loads the handler that is in the future: when it begins at the latest.
At = tuple[int, int, float]


class WorkerGone(Exception):
    """The worker is dead.

    Attributes:
        pid: its process id, None if it never started.
        exit_code: as in `subprocess`, None when unknown.
        last_words: what it was at.
        noticed_at: when its death was noticed, in seconds of `time.monotonic()`.
        hopeless: there is no use in trying to start another.
        left: no fault of what it ran, which goes back as well: it was told to end.
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
    """The user's set-up of a worker failed, and will in the next one; the cause says why."""

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
    #: Deliveries that cannot travel; they are not in the message.
    failed: list[tuple[Delivery, Outcome]] = field(default_factory=list)
    #: Deliveries that found no room in it: put them back.
    rest: list[Delivery] = field(default_factory=list)
    #: Not even the first found room in shared memory: `wait_for_room`.
    no_room: bool = False


class Worker(Protocol):
    """One worker, seen from its companion."""

    @property
    def pid(self) -> int | None:
        """Its process id; None until it is known, when it is ready at the latest."""

    @property
    def probe(self) -> Probe | None:
        """To look at its process; None where it has none of its own, or until that is known."""

    @property
    def details(self) -> Details | None:
        """How its process is, where it has none here but says so itself; else None."""

    def prepare(self, batch: int, deliveries: Sequence[Delivery]) -> Message:
        """Make a batch ready."""

    def offer(self, message: Message) -> None:
        """Let the worker begin the deliveries of a message; from here on, or `take_back` them."""

    def fits_ahead(self, message: Message) -> bool:
        """Whether the message can be sent now for sure without waiting for the worker."""

    def send(self, message: Message) -> None:
        """Send a batch. Blocks while the worker does not read.

        Where the worker is dead nothing happens: `receive` gives what it sent before, and then
        raises WorkerGone.
        """

    def wait_for_room(self, timeout_s: float) -> None:
        """Wait until there may be room for a message that had none, at most so long."""

    def receive(self, patience_s: float | None = None) -> Report:
        """Wait for the worker's next report.

        Args:
            patience_s: after so many seconds do not wait for the worker to send one, but give what
                it has finished so far, which may be nothing.

        Raises:
            WorkerGone: the worker is dead.
        """

    def take_back(self, most: int) -> int:
        """Take back up to `most` deliveries that it has not begun, the last ones sent.

        Never blocks. From any thread, under the lane's lock. Returns how many. One that is far
        away may be asked to give back more, which a report tells; until then it is `recalling`.
        """

    @property
    def recalling(self) -> bool:
        """Whether it was asked to give back more than `take_back` said, and did not answer yet."""

    def running(self) -> At | None:
        """What it is at; None between two deliveries. From any thread."""

    def set_up_since(self) -> float | None:
        """Since when it is in the user's set-up (`monotonic()`); None when it is not.

        From any thread.
        """

    def ask_stack(self) -> Steps[str]:
        """Ask it where it is, in its set-up or in a handler; "" if that cannot be had.

        From any thread, but one at a time. It goes on unharmed.
        """

    def watch_memory(self, at: At, limit: int) -> Footprint | None:
        """Have its memory watched while it is at this delivery, where it has no `probe` here.

        Never blocks. By the supervisor's thread alone, again and again.

        Args:
            at: what `running` gave.
            limit: bytes.

        Returns:
            What it and its children had there when they were seen above the limit; None while
            they were not, and where there is a probe to ask.
        """

    def kill_in(self, at: At, condemn: Callable[[str], None]) -> Steps[bool]:
        """Kill it if it is still at this delivery, with all processes that its handlers started.

        The steps take a bounded time, of some 0.1 s, most of which they wait: do those of several
        workers `in_turn`. From any thread, but one at a time.

        Args:
            at: what `running` gave.
            condemn: is called with the Python stack of where the handler is ("" if it cannot be
                had), before the kill and with the worker halted: what it is at will not change.

        Returns:
            False, and it goes on unharmed, when it is at that delivery no more.
        """

    def hang_up(self) -> None:
        """Its process is dead, though nobody said so: have `receive` raise WorkerGone.

        From any thread.
        """

    def stop(self) -> None:
        """End it, once it has nothing left to do; let go of what is left of a dead one. Idempotent.

        Until then a worker that is dead holds what it had of this machine, but for its process.
        """

    def kill(self) -> None:
        """End it at once, with all processes that its handlers started. From any thread."""


class Pool(Protocol):
    """What runs the work of a cpu lane."""

    @property
    def definitions(self) -> Definitions:
        """Its handlers as pickled. Workers let go of one that is forgotten with a next batch."""

    def close(self) -> None:
        """Let go of what its workers shared; they are gone. Idempotent."""

    def shared_memory(self) -> SharedMemoryStats:
        """What is large, on its way to workers and back."""

    def size(self) -> int:
        """How many workers it is good for. It may change where `elastic`."""

    @property
    def elastic(self) -> bool:
        """Whether more workers may become possible later."""

    @property
    def local(self) -> bool:
        """Whether its workers have the memory of this machine."""

    @property
    def batch_s(self) -> float:
        """Seconds of work in one batch: so many that what it costs does not count."""

    @property
    def waits_for(self) -> str:
        """What is missing to start a worker, in words; empty when nothing is."""

    def start(self, launched: Callable[[Worker], None]) -> Worker:
        """Start a worker and wait until it is ready; called by its companion.

        Args:
            launched: is called with the worker once it has been launched, before it is ready; it
                can be killed from then on.

        Raises:
            WorkerGone: it died before it was ready.
        """
