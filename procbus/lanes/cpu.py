# SPDX-License-Identifier: MIT
"""The cpu lane: companions are started for what is queued, and what ends is settled."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from time import monotonic
from typing import TYPE_CHECKING, Any

from procbus.core.carry import Carry
from procbus.core.delivery import Delivery, LastAttempt, cancelled
from procbus.core.errors import WorkerDied
from procbus.core.flow import Flow, Published
from procbus.core.handler import Handler
from procbus.core.locks import Tangled, holding, later
from procbus.core.log import log
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.stats import LaneStats
from procbus.lanes.attempt import context_for
from procbus.lanes.batching import Batching, Breaker
from procbus.lanes.companion import Companion
from procbus.lanes.recycling import Wear
from procbus.lanes.slot import Slot
from procbus.pool import outcomes
from procbus.pool.interface import NO_WORDS, Pool, SetUpFailed, WorkerGone

if TYPE_CHECKING:
    from procbus.system.memory import OomWatch

#: How long `close` waits for a companion that should be through, in seconds.
JOIN_S = 10.0
#: How long it lets one finish its start whose worker is not ready yet, in seconds.
STARTING_S = 1.0
#: How long the first publish waits for the first worker to be launched, in seconds.
LAUNCH_S = 30.0
#: Whether a publish waits for the launch of every worker that it makes necessary, not only of the
#: first (15 ms each). Python 3.12 starts no thread once the script has ended, so that loky would
#: lose a process half launched then, which would complain on stdout.
LAUNCH_EACH = sys.version_info[:2] == (3, 12)

#: After so many starts in a row in which the worker died, what waits fails.
FAILED_STARTS = 10
#: How long no worker is tried after the user's set-up of one failed, in seconds.
BROKEN_S = 5.0


class CpuLane:
    """The cpu lane of one bus. Thread-safe.

    The lock of `queue` is the lane's: see `Batching`. It guards `_started`, `_failed_starts`,
    `_restarts`, `_past_s` and `_all_started` too.

    Args:
        pool: makes workers.
        flow: settles deliveries, publishes what handlers published, and has publishing raise while
            workers die and die.
        wear: when a worker is replaced between two deliveries.
    """

    def __init__(
        self,
        pool: Pool,
        flow: Flow,
        wear: Wear,
    ) -> None:
        self.pool = pool
        self._wear = wear
        self.batching = Batching(pool.batch_s)
        self.queue = self.batching.queue
        self.breaker = Breaker(self.batching, flow, self.fail_ready)
        #: Has somebody see what was measured. Set by whoever made the lane.
        self.stir: Callable[[], None] = _nobody
        #: Set by the supervisor.
        self.oom: OomWatch | None = None
        self._settle = flow.settle
        self.settle_successes = flow.settle_successes
        self._publish_children = flow.publish_children
        #: Why no worker can be set up, and until when none is tried.
        self._broken: WorkerDied | None = None
        self._broken_until = 0.0
        #: Seconds that workers have been there which are there no more.
        self._past_s = 0.0
        self._slots = self.batching.slots
        self._companions: list[Companion] = []
        self._started = 0
        #: Starts in a row that failed, of all companions together.
        self._failed_starts = 0
        self._restarts = 0
        self._all_started = False
        self._carry: Carry | None = None

    def take_along(self, carry: Carry) -> None:
        """Have workers get what these context variables hold where an event is published."""
        self._carry = carry
        settle_successes = self.settle_successes

        def settle_and_let_go(deliveries: Sequence[Delivery], *about: Any) -> None:
            _let_go(deliveries)
            settle_successes(deliveries, *about)

        self.settle_successes = settle_and_let_go

    # What the bus calls.

    def put(self, delivery: Delivery) -> None:
        """Queue a delivery, and start one more worker where none is free for it."""
        if self._carry is not None:
            delivery.context = self._carry.take(delivery.context)
        if not self.queue.put(delivery):
            self._settle([(delivery, cancelled(delivery))])
        elif not self._all_started:
            self._grow()

    def start(self) -> None:
        """Start all workers, in parallel, and wait until each is launched."""
        companions = self._grow(self.pool.size())
        for companion in companions:
            companion.slot.launched.wait(LAUNCH_S)

    def look(self) -> None:
        """Where more workers may have become possible, start those that there is work for."""
        if self.pool.elastic:
            while self._grow():
                pass

    @property
    def launched(self) -> bool:
        """Whether `put` no longer waits for the launch of a first worker."""
        return bool(self._slots)

    def launch(self) -> None:
        """Launch a first worker, if there is none."""
        if not self._slots:
            self._grow(1)

    def release(self, delivery: Delivery) -> None:
        """Let those go that waited at the gate behind a settled delivery."""
        if self.queue.release(delivery) and not self._all_started:
            self._grow()

    def step_aside(self, delivery: Delivery) -> None:
        """Let others run while a delivery waits for its next attempt."""
        if self.queue.step_aside(delivery) and not self._all_started:
            self._grow()

    def put_again(self, delivery: Delivery) -> None:
        """Queue a delivery for its next attempt."""
        if not self.queue.put_again(delivery):
            self._settle([(delivery, cancelled(delivery))])
        elif not self._all_started:
            self._grow()
        self._fail_if_given_up()

    def is_running(self, delivery: Delivery) -> bool:
        """Whether a worker is in the handler with this delivery just now."""
        return any(delivery is d for _, _, d, _ in self.batching.running())

    def withdraw(self, delivery: Delivery) -> bool:
        """Take a delivery back for good that no worker has begun, from the queue or a worker."""
        with self.queue.lock:
            return self.queue.locked_withdraw(delivery) or self.batching.locked_withdraw(delivery)

    def forget(self, handler: Handler) -> None:
        """Have workers let go of a handler that nothing is pending for."""
        self.pool.definitions.forget(handler.number)

    def stats(self) -> LaneStats:
        """The lane just now."""
        slots = list(self._slots)
        busy = len(self.batching.running())
        restarts = self._restarts + sum(slot.restarts for slot in slots)
        paused = self.breaker.reason() or self.pool.waits_for
        return LaneStats(self.queue.depth(), len(slots), busy, restarts, paused=paused)

    def worker_s(self) -> float:
        """Seconds that workers have been there, all together."""
        now = monotonic()
        with self.queue.lock:
            return self._past_s + sum(now - slot.started_at for slot in self._slots)

    def close(self) -> None:
        """End all workers once nothing is left for them. Idempotent."""
        self.queue.close()
        for companion in list(self._companions):
            companion.join(JOIN_S if companion.slot.worker is not None else STARTING_S)
            starting = companion.slot.starting
            if starting is not None and companion.is_alive():
                starting.kill()  # its set-up may hang, and there is nothing for it to do
            companion.join(JOIN_S)
        self.pool.close()

    def cancel(self) -> None:
        """Settle as cancelled all that no worker has begun. Idempotent."""
        out = self.queue.clear()
        with self.queue.lock:
            out += self.batching.locked_take_all_back()
        self.cancel_all(out)

    def kill(self) -> None:
        """End all workers at once; what they are running is settled as cancelled."""
        self.queue.close()
        for slot in list(self._slots):
            worker = slot.worker or slot.starting
            if worker is not None:
                worker.kill()

    # What companions call.

    def look_ahead(self) -> None:
        """A companion is about to take more than its worker is at: it may be another worker's."""
        if not self._all_started:
            self._grow(wait=False)

    def relieve(self, slot: Slot) -> None:
        """A worker is in one handler for long: what it has besides is for another, if need be."""
        if self._all_started:
            return
        with self.queue.lock:
            needed = slot.locked_held_up() and not self.batching.locked_free()
        if needed:
            self._grow(1, wait=False)

    def settle(
        self, settled: list[LastAttempt], published: Sequence[tuple[int, Published]] = ()
    ) -> None:
        """Settle deliveries; first publish what their handlers published.

        Args:
            settled: deliveries and their outcomes.
            published: index into `settled`, and the events published by that handler.
        """
        for index, events in published:
            delivery, outcome = settled[index]
            # Not in the context of this thread, in which callbacks of the user's ran too.
            context = context_for(delivery) or Context()
            error = context.run(self._publish_children, delivery, outcome, events)
            if error is not None:
                failed = outcome._replace(
                    kind=OutcomeKind.RAISED, value=None, error=error, dropped_events=len(events)
                )
                settled[index] = (delivery, failed)
        if self._carry is not None:
            _let_go(
                delivery for delivery, outcome in settled if outcome.kind is OutcomeKind.SUCCEEDED
            )
        self._settle(settled)

    def died(self, delivery: Delivery, gone: WorkerGone, ran_s: float, rss: int) -> Outcome:
        """Make the outcome of the delivery that a worker died with: see `Port`."""
        killed = gone.exit_code == -signal.SIGKILL
        out_of_memory = killed and self.oom is not None and self.oom.struck()
        return outcomes.died(delivery, gone, ran_s, rss, out_of_memory)

    def settle_dead(self, delivery: Delivery, outcome: Outcome) -> None:
        """Settle the delivery that a worker died with."""
        if self.queue.cancelled:
            outcome = cancelled(delivery, monotonic() - outcome.started_at)
        self._settle([(delivery, outcome)])
        self._fail_if_given_up()

    def cancel_all(self, deliveries: Sequence[Delivery]) -> None:
        """Settle deliveries that are not to be run any more."""
        if deliveries:
            self._settle([(delivery, cancelled(delivery)) for delivery in deliveries])

    def note_start(self) -> None:
        """A worker is ready."""
        with self.queue.lock:
            self._failed_starts = 0

    def may_try_again(self, gone: WorkerGone) -> bool:
        """A worker died before it was ready, for which no delivery is charged: whether to go on."""
        with self.queue.lock:
            self._failed_starts += 1
            if gone.hopeless or self._failed_starts >= FAILED_STARTS:
                return False
        if not gone.left and self.batching.wants_workers():
            how = outcomes.describe_exit(gone.exit_code)
            log.warning("worker %s died while it started (%s); another is started", gone.pid, how)
            self.breaker.note_death(f"{gone.pid} ({how}) while it started")
        return True

    def cannot_start(self, slot: Slot, gone: WorkerGone) -> None:
        """No worker can be started: if nobody else is left to do it, fail what is ready."""
        with self.queue.lock:
            self._remove(slot)
            if self._slots:
                return
        how = f"{outcomes.describe_exit(gone.exit_code)}; see what it wrote to stderr"
        error = WorkerDied(
            f"no worker process can be started ({gone.__cause__ or how}): the events waiting for a "
            "cpu handler fail with this error",
            pid=gone.pid,
            exit_code=gone.exit_code,
        )
        error.__cause__ = gone.__cause__
        if isinstance(gone, SetUpFailed):
            self._broken, self._broken_until = error, monotonic() + BROKEN_S
        self.fail_ready(Outcome(OutcomeKind.WORKER_DIED, error=error))

    def fail_ready(self, outcome: Outcome) -> None:
        """Settle all that is ready for a worker with one outcome."""
        self._settle([(delivery, outcome) for delivery in self.queue.clear_ready()])

    def _fail_if_given_up(self) -> None:
        """A closing bus tried enough: what is to be tried again, or moved up behind, fails too."""
        while (given_up := self.breaker.given_up) is not None and self.queue.seems_ready():
            self.fail_ready(given_up)

    def leave(self, slot: Slot) -> None:
        """A companion ends."""
        with self.queue.lock:
            self._remove(slot)

    # Inside, under the lane's lock.

    def _remove(self, slot: Slot) -> None:
        if slot in self._slots:
            self._slots.remove(slot)
            self._companions = [c for c in self._companions if c.slot is not slot]
            self._restarts += slot.restarts
            self._past_s += monotonic() - slot.started_at
            self._all_started = False

    def _add_companion(self) -> Companion:
        self._started += 1
        slot = Slot(self._started)
        made = Companion(slot, self.pool, self.batching, self.breaker, self._wear, self)
        self._companions.append(made)
        self._slots.append(slot)
        return made

    def _start(self, companion: Companion) -> None:
        try:
            companion.start()
        except RuntimeError:  # no thread is to be had: Python 3.12 refuses them as it ends
            companion.slot.launched.set()
            self.cannot_start(companion.slot, WorkerGone(None, None, NO_WORDS, hopeless=True))

    def _grow(self, least: int = 0, *, wait: bool = True) -> list[Companion]:
        """Start a companion if more is ready than workers are free for, or `least` of them.

        Args:
            least: how many to start, if there may be so many.
            wait: for the launch of its worker, where that must have begun before a script ends.
        """
        if self._broken is not None and monotonic() < self._broken_until:
            self.fail_ready(Outcome(OutcomeKind.WORKER_DIED, error=self._broken))
            return []
        size = self.pool.size()
        started: list[Companion] = []
        try:
            with self.queue.lock:
                missing = max(
                    least, min(1, self.queue.locked_ready() - self.batching.locked_free())
                )
                while len(self._slots) < size and len(started) < missing:
                    started.append(self._add_companion())
                self._all_started = len(self._slots) >= size
                first = len(started) == len(self._slots)
            for companion in started:
                self._start(companion)
        except Tangled:
            later(self._grow, least)
            return []
        except BaseException:  # Ctrl-C, most likely
            for companion in started:
                if companion.ident is None:
                    self.leave(companion.slot)
            raise
        if started and wait and (first or LAUNCH_EACH):
            # An interpreter that ends starts nothing any more, so the first worker has to be
            # launched before `publish` returns: a script may end right after it.
            _wait_for_launch(started[-1])
        return started


def _wait_for_launch(companion: Companion) -> None:
    """Wait for the launch of a worker, unless this thread was interrupted with a lock of ours."""
    if not holding():
        companion.slot.launched.wait(LAUNCH_S)


def _let_go(deliveries: Iterable[Delivery]) -> None:
    """Let go of what deliveries that succeeded had of their publishers' contexts."""
    for delivery in deliveries:
        delivery.context = None


def _nobody() -> None:
    """Nobody wants to see it."""
