# SPDX-License-Identifier: MIT
"""The supervisor: one thread that watches the workers of a bus, and the clock.

The supervisor enforces limits of time and memory. It reports workers that make no progress, holds
the cpu lane back while memory is short, and queues deliveries whose time has come: for their next
attempt, or after a delay. It never waits for a worker, except while it kills one. It kills several
workers one after the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

from procbus.core.delivery import Delivery, cancelled
from procbus.core.log import pool_log as log
from procbus.core.log_origin import about_delivery
from procbus.core.moments import WorkerStalled
from procbus.core.outcome import OutcomeKind
from procbus.core.validation import format_size
from procbus.dispatch.cancellation import end_of_grace
from procbus.dispatch.retry_queue import RetryQueue
from procbus.lanes.attempt import (
    KILLED,
    LEFT_BEHIND,
    NO_STACK,
    Verdict,
    memory_error,
    timeout_error,
)
from procbus.lanes.lane_thread import LaneThread
from procbus.supervision.stall import STALL_WINDOW_S, Activity
from procbus.system import forked_children, procfs
from procbus.system.cooperative import Task, in_turn
from procbus.system.footprint import LEAST_S, FootprintMeter
from procbus.system.no_fork import no_fork

if TYPE_CHECKING:
    from procbus.lanes.cpu import CpuLane
    from procbus.lanes.slot import Slot
    from procbus.lanes.threads import IoLane
    from procbus.pool.interface import At, Worker
    from procbus.system.footprint import Footprint
    from procbus.system.memory import MemoryWatch, OomWatch
    from procbus.system.process import Probe, Sample

#: Interval between two samples of a busy worker, in seconds.
SAMPLE_S = 0.5
#: Number of busy workers above which each is sampled less often; because sampling should take at
#: most half a percent of a core.
MANY = 32
#: Interval between two looks for handlers that began and have a limit, in seconds. After such a
#: look the end of the time limit is known, so only a limit shorter than this interval can be
#: noticed late.
SUPERVISOR_LOOK_S = 0.1
#: Time after which a worker that is not ready is logged, in seconds; because large models take as
#: long to load.
SLOW_START_S = 10.0
#: Maximum wait for the end of the thread, in seconds.
SUPERVISOR_JOIN_S = 5.0


class Supervised(Protocol):
    """The lanes of a bus, as the supervisor sees them."""

    @property
    def cpu_lanes(self) -> Sequence[CpuLane]:
        """The lanes of cpu handlers, so far."""

    @property
    def io(self) -> IoLane:
        """The io lane of threads."""

    @property
    def limited(self) -> bool:
        """Whether a handler has a limit of time or memory."""

    def pace(self, now: float) -> float:
        """Let the deliveries pass whose rate allows them now; return the time of the next look."""


class Observed:
    """The supervisor's observations of one worker. Its thread writes them, any thread may read."""

    def __init__(self, stall_window_s: float = STALL_WINDOW_S) -> None:
        #: The worker's activity, and its latest sample.
        self.activity = Activity(window_s=stall_window_s)
        self.last_sample: Sample | None = None
        #: Measures the memory of the worker and its children.
        self.footprint = FootprintMeter()
        #: The delivery in which it was last found stalled.
        self.stalled_at: At | None = None


class Supervisor:
    """Looks after the workers of one bus. `start` and `stop` may be called from any thread.

    The supervisor leaves two facts in a worker's slot, for the companion: the reason why it kills
    the worker, and the worker's memory.

    Args:
        retries: deliveries that wait for their next attempt.
        sample_s: interval between two samples of a busy worker, in seconds.
        stall_window_s: interval without any activity after which a handler is stalled, in seconds.
        watch_memory: makes the measurement of the machine's memory; None for `MemoryWatch`.
        clock: replaces `time.monotonic`.
    """

    _lanes: Supervised

    def __init__(
        self,
        retries: RetryQueue,
        *,
        sample_s: float = SAMPLE_S,
        stall_window_s: float = STALL_WINDOW_S,
        watch_memory: Callable[[], MemoryWatch] | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._retries = retries
        self._sample_s = sample_s
        self._stall_window_s = stall_window_s
        self._watch_memory = watch_memory
        self._clock = clock
        #: Guards the start.
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._memory: MemoryWatch | None = None
        self._oom: OomWatch | None = None
        self._short = False
        self._sampled_at = 0.0
        #: Whether a slow start of a worker was logged: once is enough.
        self._slow_start = False
        #: Handlers that were logged as stalled: each once.
        self._stalled: set[int] = set()
        #: Observations of each living worker. Written by the supervisor's thread alone.
        self._observed: WeakKeyDictionary[Worker, Observed] = WeakKeyDictionary()
        #: Workers with deliveries whose process was found dead at the last look.
        self._dead: set[Worker] = set()

    def look_after(
        self, lanes: Supervised, look_at_cancelled: Callable[[float], float] = lambda _: inf
    ) -> None:
        """Give the supervisor the lanes of the bus. Called once, before `start`.

        Args:
            lanes: the lanes.
            look_at_cancelled: looks at deliveries that were asked to stop, given the time; returns
                the time of the next look.
        """
        self._lanes = lanes
        self._look_at_cancelled = look_at_cancelled

    def start(self) -> bool:
        """Start the thread, if it is not running; False if no thread can be started any more."""
        with self._lock:
            if self._thread is None and not self._stopped:
                thread = LaneThread("procbus-supervisor", self._run)
                self._thread = thread  # set first: a signal handler may start it before it runs
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is ending
                    self._thread = None
                    return False
            return self._thread is not None

    def wake(self) -> None:
        """Have the supervisor look now, because there is a new limit."""
        self._retries.wake()

    def observed(self, worker: Worker) -> Observed | None:
        """Return the observations of a worker; None before the first look. From any thread."""
        return self._observed.get(worker)

    def stop(self) -> None:
        """End the thread. Idempotent."""
        with self._lock:
            self._stopped = True
            thread = self._thread
        self._retries.wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(SUPERVISOR_JOIN_S)

    # Methods of its own thread.

    def _run(self) -> None:
        wait_s = 0.0
        forked: list[bool] = []
        forked_children.watch(lambda: forked.append(True))
        while not self._stopped:
            if forked:  # in a callback of a delivery that was settled here
                forked_children.end_child(None, "a callback on procbus-supervisor")
            for delivery in self._retries.wait(wait_s):
                self._send(delivery)
            try:
                wait_s = self._look(self._clock())
            except Exception:  # noqa: BLE001 - this thread must not end: no other enforces limits
                log.exception("procbus itself failed in its supervisor, which goes on")
                wait_s = self._sample_s

    def _send(self, delivery: Delivery) -> None:
        try:
            self._retries.send(delivery)
        except Exception:  # noqa: BLE001 - the other deliveries must go on
            log.exception("procbus itself failed to queue %r, whose time has come", delivery)

    def _look(self, now: float) -> float:
        """Look at everything once; return the seconds until the next look is needed."""
        next_look = now + (SUPERVISOR_LOOK_S if self._lanes.limited else self._sample_s)
        next_look = min(next_look, self._look_at_cancelled(now), self._lanes.pace(now))
        if self._lanes.limited:
            next_look = min(next_look, self._lanes.io.expire(now))
        if lanes := self._lanes.cpu_lanes:
            next_look = min(next_look, self._look_after_cpu(lanes, now))
        return max(0.0, next_look - self._clock())

    def _look_after_cpu(self, lanes: Sequence[CpuLane], now: float) -> float:
        running = [(lane, *each) for lane in lanes for each in lane.batching.running()]
        sample_s = self._sample_s * max(1.0, len(running) / MANY)
        if now - self._sampled_at >= sample_s:
            self._sampled_at = now
            for lane in lanes:
                self._look_at_starts(lane, now)
                lane.look()
        # Without a free file descriptor nothing can be read: living workers would seem dead.
        if now == self._sampled_at and procfs.can_read():
            self._look_at_machine(lanes, now)
            dead = {each[2] for each in running if not self._sample(*each)}
            self._look_for_dead(lanes, dead, {worker for _, _, worker, _, _ in running})
        next_look = self._sampled_at + sample_s
        kills: list[Task[bool]] = []
        for lane, slot, worker, delivery, at in running:
            if slot.verdict is not None:
                continue  # the worker is dead, and its companion has not noticed yet
            handler = delivery.subscription.handler
            if now >= end_of_grace(delivery):
                kills.append(self._cancel(slot, worker, delivery, at))
                continue
            if handler.limits.timeout is not None:
                ends_at = at[2] + handler.limits.timeout
                if now >= ends_at:
                    how = KILLED if lane.pool.in_processes else LEFT_BEHIND
                    kills.append(self._time_out(slot, worker, delivery, at, how))
                    continue
                next_look = min(next_look, ends_at)
            if (limit := handler.limits.max_memory) is not None:
                if worker.probe is None:  # the worker's host reports memory, at an unknown time
                    footprint, due_at = worker.watch_memory(at, limit), now + LEAST_S
                else:
                    meter = self._of(worker).footprint
                    due = now >= meter.due_at(limit)
                    footprint = self._above(meter, worker.probe, limit) if due else None
                    due_at = meter.due_at(limit)
                if footprint is not None:
                    kills.append(self._over_memory(slot, worker, delivery, at, footprint))
                next_look = min(next_look, due_at)
        in_turn(kills)
        return next_look

    def _look_at_machine(self, lanes: Sequence[CpuLane], now: float) -> None:
        if not lanes[0].pool.local:  # its workers use the memory of other machines
            lanes[0].breaker.look(now, "")
            return
        if self._memory is None or self._oom is None:
            with no_fork:
                from procbus.system.memory import MemoryWatch, OomWatch  # only now: psutil

            self._memory = (self._watch_memory or MemoryWatch)()
            self._oom = OomWatch()
        self._oom.note()
        short = self._why_short(self._memory)
        for lane in lanes:
            lane.oom = self._oom
            lane.breaker.look(now, short)

    def _why_short(self, memory: MemoryWatch) -> str:
        """The reason why memory is too short to begin more work; empty while there is enough."""
        was_short, self._short = self._short, memory.short()
        if self._short and not was_short:
            log.warning(
                "memory is short: less than %s is left; no cpu handler begins until it is %s",
                format_size(memory.short_below),
                format_size(memory.enough_above),
            )
        elif was_short and not self._short:
            log.warning("there is enough memory again: cpu handlers go on")
        return f"less than {format_size(memory.enough_above)} of memory left" if self._short else ""

    def _look_at_starts(self, lane: CpuLane, now: float) -> None:
        """Log a worker that takes long to start, most likely in the user's set-up."""
        for slot in lane.batching.all():
            worker = slot.starting
            took_s = now - slot.starting_since
            if worker is None or self._slow_start or took_s < SLOW_START_S:
                continue
            if lane.pool.elastic and worker.pid is None:
                continue  # it waits for a place to start in
            self._slow_start = True
            if worker.set_up_since() is None:
                where, stack = "its process is slow to start", ""
            else:
                where = "it is still in worker_init, which has no time limit; its events wait"
                stack = in_turn([worker.ask_stack()])[0] or ""
            log.warning(
                "worker %s is not ready after %.3g s: %s (logged once)%s",
                worker.pid,
                took_s,
                where,
                f"\n{stack}" if stack else "",
            )

    def _of(self, worker: Worker) -> Observed:
        observed = self._observed.get(worker)
        if observed is None:
            observed = self._observed[worker] = Observed(self._stall_window_s)
        return observed

    def _sample(
        self, lane: CpuLane, slot: Slot, worker: Worker, delivery: Delivery, at: At
    ) -> bool:
        """Sample a worker that is in a handler; False if it is dead."""
        probe = worker.probe
        if probe is None:
            return True
        observed = self._of(worker)
        activity = observed.activity
        sample = probe.sample(closer=activity.quiet)
        if sample is None:
            return False
        observed.last_sample, slot.seen_bytes = sample, sample.rss
        activity.note(sample.at, sample.cpu_s, sample.io_bytes, at)
        if activity.quiet and sample.runnable:
            activity.note_starved(sample.at)
        elif activity.quiet:
            activity.note_tree(sample.at, probe.tree_cpu_s())
        if (reported := worker.progress(at)) is not None:
            activity.note_report(sample.at, reported.at)
        handler = delivery.subscription.handler
        if not activity.stalled(sample.at):
            return True
        if observed.stalled_at != at:
            observed.stalled_at = at
            listeners = lane.listeners
            if ears := listeners.worker_stalled:
                stalled = WorkerStalled(slot.name, worker.pid, sample.at, delivery, at[2])
                listeners.tell_worker(ears, stalled)
        if handler.number not in self._stalled:
            self._stalled.add(handler.number)
            log.warning(
                "worker %s is stalled: %s with event #%d has used no CPU and done no I/O for a "
                "while, after %.3g s. A handler that waits belongs to kind='io'; timeout= ends "
                "one that hangs (logged once for each handler)",
                worker.pid,
                handler.name,
                delivery.event_id,
                max(0.0, sample.at - at[2]),
                extra=about_delivery(delivery, len(delivery.earlier) + 1, worker.pid),
            )
        return True

    def _look_for_dead(
        self, lanes: Sequence[CpuLane], dead: set[Worker], running: set[Worker]
    ) -> None:
        """Close the pipe of dead workers, which a process started by a handler may keep open.

        This closes only the pipes of workers that were already dead at the last look. The pipe
        itself reports the death of any other worker.
        """
        for slot in [slot for lane in lanes for slot in lane.batching.with_work()]:
            worker = slot.worker
            if worker is None or worker in running or worker.probe is None:
                continue
            if not worker.probe.alive():
                dead.add(worker)
        for worker in dead & self._dead:
            worker.hang_up()
        self._dead = dead

    def _time_out(
        self, slot: Slot, worker: Worker, delivery: Delivery, at: At, how: str
    ) -> Task[bool]:
        def condemn(stack: str) -> None:
            now = self._clock()
            error_of = partial(timeout_error, delivery, now - at[2], stack, how)
            slot.verdict = Verdict(at, OutcomeKind.TIMED_OUT, error_of, now)

        return worker.kill_in(at, condemn)

    def _cancel(self, slot: Slot, worker: Worker, delivery: Delivery, at: At) -> Task[bool]:
        def condemn(stack: str) -> None:
            now = self._clock()
            error = cancelled(delivery, max(0.0, now - at[2])).error
            assert error is not None
            error.add_note(stack or NO_STACK)
            slot.verdict = Verdict(at, OutcomeKind.CANCELLED, lambda _: error, now)

        return worker.kill_in(at, condemn)

    def _above(self, meter: FootprintMeter, probe: Probe, limit: int) -> Footprint | None:
        """Return the memory of a worker and its children, if it is above the limit."""
        footprint = meter.measure(probe, limit)
        return footprint if footprint is not None and footprint.total > limit else None

    def _over_memory(
        self,
        slot: Slot,
        worker: Worker,
        delivery: Delivery,
        at: At,
        footprint: Footprint,
    ) -> Task[bool]:
        def condemn(stack: str) -> None:
            now, probe = self._clock(), worker.probe
            own = (probe.own_bytes() if probe is not None else None) or 0
            peak = footprint._replace(worker=max(footprint.worker, own))
            error_of = partial(memory_error, delivery, max(0.0, now - at[2]), peak, stack)
            slot.verdict = Verdict(at, OutcomeKind.OVER_MEMORY, error_of, now)

        return worker.kill_in(at, condemn)
