# SPDX-License-Identifier: MIT
"""The io lane for plain functions: its queue, and as many threads as that needs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from contextvars import copy_context
from math import inf
from time import monotonic

from procbus.context import kept
from procbus.delivery import Delivery, cancelled
from procbus.errors import ProcbusError
from procbus.io_thread import IoThread
from procbus.limits import timeout_error
from procbus.locks import Tangled, later
from procbus.log import log
from procbus.outcome import Outcome, OutcomeKind
from procbus.own_process import MakeContext, Settle, no_thread
from procbus.queue import LaneQueue
from procbus.stats import LaneStats

#: Threads at most that wait for the bus in a handler while another has their place.
MOST_LENT = 1_000


class IoLane:
    """The threads of one bus. Thread-safe.

    The lock of `queue` is the lane's. It guards the queue, the gates, the lists of threads, and how
    many of them wait.

    Args:
        threads: at most so many; each is started when nobody else is free.
        settle: settles deliveries.
        make_context: makes what `current()` returns in a handler.
        stir: is called now and then while runs were measured.
    """

    def __init__(
        self,
        threads: int,
        settle: Settle,
        make_context: MakeContext,
        stir: Callable[[], None] = lambda: None,
    ) -> None:
        self.stir = stir
        self.queue = LaneQueue()
        self.size = threads
        self._settle = settle
        self._make_context = make_context
        self._threads: list[IoThread] = []
        #: Threads left behind in a handler that ran out of time. There are `threads` of them at
        #: most: from then on, one that is left behind keeps its place.
        self._abandoned: list[IoThread] = []
        #: Seconds that threads have been there which are there no more.
        self._past_s = 0.0
        #: Threads whose handler waits for the bus: others have their places.
        self._lent = 0
        self.crowded = False
        self._numbers = itertools.count(1)

    def put(self, delivery: Delivery) -> None:
        """Queue a delivery, and start one more thread where none is free for it."""
        if (context := copy_context()) and (own := kept(context)) is not None:
            delivery.context = own
        if not self.queue.put(delivery):
            self._settle([(delivery, cancelled(delivery))])
        if self.queue.starved and not self.full:
            self.grow()

    def release(self, delivery: Delivery) -> None:
        """Let those go that waited at the gate behind a settled delivery."""
        if self.queue.release(delivery) and self.queue.starved:
            self.grow()

    def step_aside(self, delivery: Delivery) -> None:
        """Let others run while a delivery waits for its next attempt."""
        if self.queue.step_aside(delivery) and self.queue.starved:
            self.grow()

    def put_again(self, delivery: Delivery) -> None:
        """Queue a delivery for its next attempt."""
        if not self.queue.put_again(delivery):
            self._settle([(delivery, cancelled(delivery))])
        if self.queue.starved and not self.full:
            self.grow()

    def is_running(self, delivery: Delivery) -> bool:
        """Whether a thread is in the handler with this delivery just now."""
        return any(t.at_hand is delivery and not t.abandoned for t in list(self._threads))

    def withdraw(self, delivery: Delivery) -> bool:
        """Take a delivery back for good that has not begun."""
        return self.queue.withdraw(delivery)

    def threads(self) -> list[IoThread]:
        """The threads that there are just now."""
        return list(self._threads)

    def abandoned_threads(self) -> list[IoThread]:
        """Threads that are left behind in a handler that ran out of time."""
        with self.queue.lock:
            return [*self._abandoned, *(thread for thread in self._threads if thread.abandoned)]

    def worker_s(self) -> float:
        """Seconds that threads have been there, all together."""
        now = monotonic()
        with self.queue.lock:
            return self._past_s + sum(now - thread.started_at for thread in self._threads)

    def stats(self) -> LaneStats:
        """The lane just now."""
        threads = self.threads()
        busy = sum(thread.at_hand is not None for thread in threads)
        left_behind = len(self.abandoned_threads())
        return LaneStats(self.queue.depth(), len(threads), busy, 0, abandoned=left_behind)

    def close(self, timeout: float | None = None) -> None:
        """End the threads once nothing is ready; wait for each at most so long. Idempotent."""
        self.queue.close()
        deadline = None if timeout is None else monotonic() + timeout
        for thread in self.threads():
            thread.join(None if deadline is None else max(0.0, deadline - monotonic()))

    def cancel(self) -> None:
        """Settle as cancelled all that no thread has begun. Idempotent."""
        self._settle([(delivery, cancelled(delivery)) for delivery in self.queue.clear()])

    def kill(self) -> None:
        """Settle as cancelled what the threads are running; a thread itself cannot be killed."""
        self.queue.close()
        now = monotonic()
        at_hand = [(t.at_hand, now - t.since) for t in self.threads()]
        self._settle([(d, cancelled(d, ran_s)) for d, ran_s in at_hand if d is not None])

    def prime(self) -> None:
        """Start a first thread, if there is none."""
        with self.queue.lock:
            self.queue.starved = self.queue.starved or not self._threads
        if not self._threads:
            self.grow()

    @property
    def full(self) -> bool:
        """Whether all threads that there may be were started."""
        there = len(self._threads)
        return there - self._lent >= self.size or there >= self.size + MOST_LENT

    def grow(self) -> None:
        """Start one more thread for a starved queue, if there may be more."""
        thread: IoThread | None = None
        try:
            with self.queue.lock:
                if self.full or self.queue.closed or not self.queue.starved:
                    return
                self.queue.locked_started()
                thread = IoThread(self, next(self._numbers), self._settle, self._make_context)
                self._threads.append(thread)
            thread.start()
        except Tangled:
            later(self.grow)
        except RuntimeError as error:  # the interpreter is ending, or there are too many threads
            if self._drop(thread):
                waiting = self.queue.clear_ready()
                self._settle([(delivery, no_thread(delivery, error)) for delivery in waiting])
        except BaseException:  # Ctrl-C, most likely
            self._drop(thread)
            raise

    def _drop(self, thread: IoThread | None) -> bool:
        """Let go of a thread that was not started; say whether none is left to work."""
        with self.queue.lock:
            if thread is None or thread.ident is not None or thread not in self._threads:
                return False
            self._threads.remove(thread)
            self.queue.locked_not_started()
            return len(self._threads) <= self._lent

    def lend(self, thread: IoThread) -> None:
        """A thread waits for the bus in its handler: another may take its place.

        Raises:
            ProcbusError: there are too many that wait, and none is left to do what they wait for.
        """
        with self.queue.lock:
            if thread not in self._threads:
                return  # left behind, and replaced
            there = len(self._threads)
            if there >= self.size + MOST_LENT and there - self._lent <= 1:
                raise ProcbusError(
                    f"{self._lent} handlers wait for what other handlers are to do, and no more "
                    "threads are started for those: make the handlers that wait async, and await "
                    "the receipt, or let the handler that is waited for publish what it found"
                )
            thread.lent = True
            self._lent += 1
            if self.queue.locked_ready():
                self.queue.locked_wake()
        if self.queue.starved and not self.full:
            self.grow()

    def take_back(self, thread: IoThread) -> None:
        """A thread has waited. Where another has its place, the next that looks for work ends."""
        with self.queue.lock:
            self._locked_take_back(thread)

    def _locked_take_back(self, thread: IoThread) -> None:
        if thread.lent:
            thread.lent = False
            self._lent -= 1
            self._locked_count()

    def _locked_count(self) -> None:
        self.crowded = len(self._threads) - self._lent > self.size
        if self.crowded:
            self.queue.starved = True  # threads look closer then

    def leave(self, thread: IoThread, delivery: Delivery) -> bool:
        """Whether a thread is to end, since there are too many: its delivery is queued again."""
        with self.queue.lock:
            self._locked_count()
            if not self.crowded:
                return False
            self._locked_remove(thread)
            self.queue.locked_put_back([delivery])
            return True

    def left(self, thread: IoThread) -> None:
        """A thread ends: the lane does, or the thread came back that was left behind."""
        with self.queue.lock:
            if thread in self._threads:
                self._locked_remove(thread)
            elif thread in self._abandoned:
                self._abandoned.remove(thread)
            self._locked_replace()
        if self.queue.starved:
            self.grow()

    def expire(self, now: float) -> float:
        """Settle what has run out of time; return when the next will have.

        Args:
            now: in seconds of `time.monotonic()`.
        """
        next_end = inf
        for thread in self.threads():
            limited = thread.limited
            if limited is None:
                continue
            delivery, ends_at = limited
            if now < ends_at:
                next_end = min(next_end, ends_at)
            elif thread.abandon(limited):
                self._replace(thread, delivery)
        return next_end

    def _replace(self, thread: IoThread, delivery: Delivery) -> None:
        """Go on without a thread that cannot be stopped."""
        with self.queue.lock:
            self._locked_replace()
        log.warning(
            "%s is left behind in %s with event %d, which ran out of time: Python cannot stop a "
            "thread. %d are left behind now, of which %d were replaced. Give what the handler "
            "waits for a timeout of its own, or use kind='cpu', whose workers can be killed",
            thread.name,
            delivery.handler.name,
            delivery.event_id,
            len(self.abandoned_threads()),
            len(self._abandoned),
        )
        ran_s = monotonic() - thread.since
        error = timeout_error(delivery, ran_s, thread.stack(), "its thread was left behind")
        outcome = Outcome(
            OutcomeKind.TIMED_OUT, None, error, thread.since, monotonic(), os.getpid()
        )
        self._settle([(delivery, outcome)])
        if self.queue.starved and not self.full:
            self.grow()

    def _locked_replace(self) -> None:
        """Make room for others in place of threads that were left behind, as many as there may be.

        The lock is held. Call `grow` after it, if the queue is starved.
        """
        for thread in [thread for thread in self._threads if thread.abandoned]:
            if len(self._abandoned) < self.size:
                self._locked_remove(thread)
                self._abandoned.append(thread)
        if self.queue.locked_ready():
            self.queue.locked_wake()

    def _locked_remove(self, thread: IoThread) -> None:
        self._threads.remove(thread)
        self._locked_take_back(thread)
        self._locked_count()
        self._past_s += monotonic() - thread.started_at
