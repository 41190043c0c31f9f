# SPDX-License-Identifier: MIT
"""The cpu lane: starts companions for queued deliveries, and settles the ended ones."""

from __future__ import annotations

import itertools
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context
from time import monotonic
from typing import TYPE_CHECKING, Any

from procbus.core.carry import Carry
from procbus.core.delivery import Delivery, LastAttempt, cancelled
from procbus.core.errors import WorkerDied
from procbus.core.flow import Children, Flow
from procbus.core.handler import Handler
from procbus.core.locks import Tangled, holding, later
from procbus.core.log import pool_log as log
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.core.progress import Progress
from procbus.core.stats import LaneStats
from procbus.lanes.attempt import context_for
from procbus.lanes.batching import Batching, Breaker
from procbus.lanes.breaker import CIRCUIT_LIMITS, CircuitLimits
from procbus.lanes.companion import Companion
from procbus.lanes.recycling import RecyclingPolicy
from procbus.lanes.slot import Slot
from procbus.pool import outcomes
from procbus.pool.interface import NO_WORDS, Pool, Prepared, SetUpFailed, WorkerGone
from procbus.system.start_faults import remedy_for

if TYPE_CHECKING:
    from procbus.system.memory import OomWatch

#: Maximum time that `close` waits for a companion that should end, in seconds.
COMPANION_JOIN_S = 10.0
#: Maximum time to finish the start of a worker that is not ready when the lane closes, in seconds.
STARTING_S = 1.0
#: Maximum wait of the first publish for the launch of the first worker, in seconds.
LAUNCH_S = 30.0
#: Whether a publish waits for the launch of every worker that it makes necessary, and not only of
#: the first (15 ms each). Python 3.12 starts no thread once the script has ended. Then loky would
#: lose a half-launched process, and that process would complain on stdout.
LAUNCH_EACH = sys.version_info[:2] == (3, 12)

#: Number of starts in a row in which the worker died, after which waiting deliveries fail.
FAILED_STARTS = 10
#: Time without another start after the user's set-up failed, in seconds.
BROKEN_S = 5.0


class CpuLane:
    """The cpu lane of one bus. Thread-safe.

    The lock of `queue` is the lane's lock: see `Batching`. It also guards `_started`,
    `_failed_starts`, `_restarts`, `_past_s`, `_all_started`, `_companions` and `_reserve`.

    Args:
        pool: makes workers.
        flow: settles deliveries, publishes events of handlers, and makes publishing raise while
            workers keep dying.
        recycling: rules for replacing a worker between two deliveries.
        circuit: limits of the circuit breaker.
        broken_s: time without another start after the user's set-up failed, in seconds.
        make_companion: makes a companion.
    """

    def __init__(
        self,
        pool: Pool,
        flow: Flow,
        recycling: RecyclingPolicy,
        *,
        circuit: CircuitLimits = CIRCUIT_LIMITS,
        broken_s: float = BROKEN_S,
        make_companion: Callable[..., Companion] = Companion,
    ) -> None:
        self._new_companion = make_companion
        self.pool = pool
        self._broken_s = broken_s
        self._recycling = recycling
        self.batching = Batching(pool.batch_s, limits=circuit)
        self.queue = self.batching.queue
        self.breaker = Breaker(self.batching, flow, self.fail_ready)
        #: Has the advisor evaluate the measurements. Set by the maker of the lane.
        self.stir: Callable[[], None] = _nobody
        #: Set by the supervisor.
        self.oom: OomWatch | None = None
        self.listeners = flow.listeners
        self._settle = flow.settle
        self.settle_successes = flow.settle_successes
        self._publish_children = flow.publish_children
        #: The reason why no worker can be set up, and the time until which no start is tried.
        self._broken: WorkerDied | None = None
        self._broken_until = 0.0
        #: Seconds that ended workers existed.
        self._past_s = 0.0
        self._slots = self.batching.slots
        self._companions: list[Companion] = []
        self._started = 0
        #: A process started ahead, for the first worker.
        self._reserve: Prepared | None = None
        #: Number of failed starts in a row, of all companions together.
        self._failed_starts = 0
        self._restarts = 0
        self._all_started = False
        self._carry: Carry | None = None

    def take_along(self, carry: Carry) -> None:
        """Have workers get the values of these context variables from each publisher."""
        before, self._carry = self._carry, carry
        if before is not None:
            return
        settle_successes = self.settle_successes

        def settle_and_let_go(deliveries: Sequence[Delivery], *about: Any) -> None:
            _let_go(deliveries)
            settle_successes(deliveries, *about)

        self.settle_successes = settle_and_let_go

    # Methods for the bus.

    def put(self, delivery: Delivery) -> None:
        """Queue a delivery, and start another worker if none is free for it."""
        if self._carry is not None:
            delivery.context = self._carry.take(delivery.context)
        if not self.queue.put(delivery):
            self._settle([(delivery, cancelled(delivery))])
        elif not self._all_started:
            self._grow()

    def put_all(self, deliveries: Sequence[Delivery]) -> None:
        """Queue deliveries of one subscription, as `put` does."""
        if self._carry is not None:
            for delivery in deliveries:
                delivery.context = self._carry.take(delivery.context)
        if not self.queue.put_all(deliveries):
            self._settle([(delivery, cancelled(delivery)) for delivery in deliveries])
            return
        for _ in deliveries:
            if self._all_started or not self._grow():
                return

    def start(self) -> None:
        """Start all workers, in parallel, and wait until each is launched."""
        companions = self._grow(self.pool.size())
        for companion in companions:
            companion.slot.launched.wait(LAUNCH_S)

    def expect(self) -> None:
        """Begin the start of a first worker, because there will be work for it.

        Its process imports modules, and waits until a delivery is ready. Then it becomes a worker.
        Until then it does not count as a worker, and it ends with this thread.
        """
        if self._has_or_wants_none() or (prepared := self.pool.prepare()) is None:
            return
        kept = False
        try:
            with self.queue.lock:
                kept = not self._has_or_wants_none()
                if kept:
                    self._reserve = prepared
        finally:
            if not kept:  # `_grow` in another thread was first, or Ctrl-C came
                prepared.abandon()

    def look(self) -> None:
        """Start as many workers as there is work for, if the maximum may have become larger."""
        if self.pool.elastic:
            while self._grow():
                pass

    @property
    def ends_calls(self) -> bool:
        """Whether a handler that ran out of time is ended. On threads it goes on."""
        return self.pool.in_processes

    @property
    def launched(self) -> bool:
        """Whether `put` no longer waits for the launch of a first worker."""
        return bool(self._slots)

    def launch(self) -> None:
        """Launch a first worker, if there is none."""
        if not self._slots:
            self._grow(1)

    def release(self, delivery: Delivery) -> None:
        """Release deliveries that waited at the gate behind a settled one."""
        if self.queue.release(delivery) and not self._all_started:
            self._grow()

    def step_aside(self, delivery: Delivery) -> None:
        """Let other deliveries run while this one waits for its next attempt."""
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
        """Whether a worker is running this delivery now."""
        return any(delivery is d for _, _, d, _ in self.batching.running())

    def progress_of(self, delivery: Delivery) -> Progress | None:
        """The last report of its running handler."""
        for _, worker, running, at in self.batching.running():
            if running is delivery:
                return worker.progress(at)
        return None

    def ran_s(self, delivery: Delivery) -> float | None:
        """Time that a worker has been running this delivery, in seconds; 0 while it loads it."""
        for _, _, running, at in self.batching.running():
            if running is delivery:
                return max(0.0, monotonic() - at[2])
        return None

    def stop(self, delivery: Delivery) -> None:
        """Have the delivery's worker ask its running handler to stop."""
        for _, worker, running, at in self.batching.running():
            if running is delivery:
                worker.tell_cancelled(at)

    def cut_off(self, delivery: Delivery) -> None:
        """Do nothing: the supervisor kills the worker, or leaves its thread behind."""

    def withdraw(self, delivery: Delivery) -> bool:
        """Take a delivery back for good, from the queue or from a worker that has not begun it."""
        with self.queue.lock:
            return self.queue.locked_withdraw(delivery) or self.batching.locked_withdraw(delivery)

    def open_deliveries(self) -> list[Delivery]:
        """Its open deliveries, the waiting ones first."""
        return self.queue.waiting_deliveries() + self.batching.handed_out()

    def hold(self) -> None:
        """Begin nothing until `go_on`. Workers give back deliveries that they have not begun."""
        with self.queue.lock:
            self.queue.locked_hold()
            back = [] if self.queue.cancelled else self.batching.locked_take_all_back()
            if back:
                self.queue.locked_put_back(back)

    def go_on(self) -> None:
        """Begin deliveries again."""
        with self.queue.lock:
            self.queue.locked_go_on()
            ready = self.queue.locked_ready()
        if ready and not self._all_started:
            self._grow(min(ready, self.pool.size()), wait=False)

    def forget(self, handler: Handler) -> None:
        """Have workers drop a handler that has no pending deliveries."""
        self.pool.definitions.forget(handler.number)

    def stats(self) -> LaneStats:
        """The state of the lane."""
        slots = list(self._slots)
        busy = len(self.batching.running())
        restarts = self._restarts + sum(slot.restarts for slot in slots)
        paused = self.breaker.reason() or self.pool.waits_for
        return LaneStats(
            self.queue.depth(),
            len(slots),
            busy,
            restarts,
            abandoned=len(self.pool.left_behind),
            paused=paused,
        )

    def worker_s(self) -> float:
        """Seconds that workers existed, all together."""
        now = monotonic()
        with self.queue.lock:
            return self._past_s + sum(now - slot.started_at for slot in self._slots)

    def close(self) -> None:
        """End all workers once they have no more deliveries. Idempotent."""
        self.queue.close()
        self._drop_reserve()
        for companion in list(self._companions):
            companion.join(COMPANION_JOIN_S if companion.slot.worker is not None else STARTING_S)
            starting = companion.slot.starting
            if starting is not None and companion.is_alive():
                starting.kill()  # its set-up may hang, and no delivery waits for it
            companion.join(COMPANION_JOIN_S)
        self.pool.close()

    def cancel(self) -> None:
        """Settle all deliveries that no worker has begun as cancelled. Idempotent."""
        out = self.queue.clear()
        with self.queue.lock:
            out += self.batching.locked_take_all_back()
        self.cancel_all(out)

    def kill(self) -> None:
        """End all workers at once; their running deliveries are settled as cancelled."""
        self.queue.close()
        for slot in list(self._slots):
            worker = slot.worker or slot.starting
            if worker is not None:
                worker.kill()

    # Methods for companions.

    def look_ahead(self) -> None:
        """Note that a companion takes deliveries ahead, which another worker may have to run."""
        if not self._all_started:
            self._grow(wait=False)

    def relieve(self, slot: Slot) -> None:
        """Note that a worker is in one handler for long, so that others may take its deliveries."""
        if self._all_started and not self.pool.elastic:
            return
        with self.queue.lock:
            worker = slot.worker
            if worker is not None and worker.waiting and not self.queue.cancelled:
                self.queue.locked_put_back(slot.locked_take_back())
            needed = slot.locked_held_up() and not self.batching.locked_free()
        if needed:
            self._grow(1, wait=False)
        elif self.pool.elastic:  # the pool may have become larger, and new deliveries may wait
            self._grow(wait=False)

    def settle(
        self, settled: list[LastAttempt], published: Sequence[tuple[int, Children]] = ()
    ) -> None:
        """Settle deliveries, after publishing the events of their handlers.

        Args:
            settled: deliveries and their outcomes.
            published: index into `settled`, and the events that the handler published.
        """
        for index, events in published:
            delivery, outcome = settled[index]
            # Not in the context of this thread, in which callbacks of the user's have run.
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
        """Settle deliveries that must not run any more."""
        if deliveries:
            self._settle([(delivery, cancelled(delivery)) for delivery in deliveries])

    def note_start(self) -> None:
        """Note that a worker is ready."""
        with self.queue.lock:
            self._failed_starts = 0

    def may_try_again(self, gone: WorkerGone) -> bool:
        """Whether to try another start, after a worker died before it was ready."""
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
        """Fail the ready deliveries if no worker can be started and no other is left."""
        with self.queue.lock:
            self._remove(slot)
            if self._slots:
                return
        how = f"{outcomes.describe_exit(gone.exit_code)}; see its output on stderr"
        remedy = remedy_for(gone.__cause__)
        error = WorkerDied(
            f"no worker process can be started ({gone.__cause__ or how}): the events waiting for a "
            f"cpu handler fail with this error{f'. {remedy}' if remedy else ''}",
            pid=gone.pid,
            exit_code=gone.exit_code,
        )
        error.__cause__ = gone.__cause__
        if isinstance(gone, SetUpFailed):
            self._broken, self._broken_until = error, monotonic() + self._broken_s
        self.fail_ready(Outcome(OutcomeKind.WORKER_DIED, error=error))

    def fail_ready(self, outcome: Outcome) -> None:
        """Settle all deliveries that are ready for a worker with one outcome."""
        self._settle([(delivery, outcome) for delivery in self.queue.clear_ready()])

    def _fail_if_given_up(self) -> None:
        """Fail deliveries that come from a retry or a gate, once a closing bus has given up."""
        while (given_up := self.breaker.given_up) is not None and self.queue.seems_ready():
            self.fail_ready(given_up)

    def leave(self, slot: Slot) -> None:
        """Note that a companion ends."""
        with self.queue.lock:
            self._remove(slot)

    # Private methods, called under the lane's lock.

    def _remove(self, slot: Slot) -> None:
        self._companions = [c for c in self._companions if c.slot is not slot]
        if slot in self._slots:
            self._slots.remove(slot)
            self._restarts += slot.restarts
            self._past_s += monotonic() - slot.started_at
            self._all_started = False

    def _has_or_wants_none(self) -> bool:
        """Whether the lane has a worker, or is about to, or is closed."""
        return bool(self._slots) or self._reserve is not None or self.queue.closed

    def _make_companion(self) -> Companion:
        self._started += 1
        taken = {each.place for each in self._slots}
        place = next(each for each in itertools.count() if each not in taken)
        slot = Slot(self._started, place)
        made = self._new_companion(
            slot, self.pool, self.batching, self.breaker, self._recycling, self
        )
        self._companions.append(made)
        return made

    def _add_companion(self) -> Companion:
        added = self._make_companion()
        added.prepared, self._reserve = self._reserve, None
        added.slot.started_at = monotonic()
        self._slots.append(added.slot)
        return added

    def _drop_reserve(self) -> None:
        with self.queue.lock:
            reserve, self._reserve = self._reserve, None
        if reserve is not None:
            reserve.abandon()

    def _start(self, companion: Companion) -> None:
        try:
            companion.start()
        except RuntimeError:  # no thread can be started: Python 3.12 starts none while it ends
            self._give_up(companion)
            self.cannot_start(companion.slot, WorkerGone(None, None, NO_WORDS, hopeless=True))

    @staticmethod
    def _give_up(companion: Companion) -> None:
        """Release a companion whose thread was not started."""
        companion.slot.launched.set()
        if companion.prepared is not None:
            companion.prepared.abandon()

    def _grow(self, least: int = 0, *, wait: bool = True) -> list[Companion]:
        """Start a companion if more deliveries are ready than workers are free, or `least` ones.

        Args:
            least: number to start, if the maximum allows.
            wait: whether to wait for the launch of its worker, if that must begin before a script
                ends.
        """
        if self._broken is not None and monotonic() < self._broken_until:
            self.fail_ready(Outcome(OutcomeKind.WORKER_DIED, error=self._broken))
            return []
        size = self.pool.size()
        started: list[Companion] = []
        try:
            if (reserve := self._reserve) is not None and not reserve.fits():
                self._drop_reserve()
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
        except BaseException:  # most likely Ctrl-C
            for companion in started:
                if companion.ident is None:
                    self._give_up(companion)
                    self.leave(companion.slot)
            raise
        if started and wait and (first or LAUNCH_EACH):
            # An interpreter that is ending starts nothing. So the first worker must be launched
            # before `publish` returns, because a script may end right after it.
            _wait_for_launch(started[-1])
        return started


def _wait_for_launch(companion: Companion) -> None:
    """Wait for the launch of a worker, unless this thread was interrupted while it held a lock."""
    if not holding():
        companion.slot.launched.wait(LAUNCH_S)


def _let_go(deliveries: Iterable[Delivery]) -> None:
    """Drop the publishers' contexts of deliveries that succeeded."""
    for delivery in deliveries:
        delivery.context = None


def _nobody() -> None:
    """Do nothing: the lane has no advisor."""
