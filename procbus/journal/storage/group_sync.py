# SPDX-License-Identifier: MIT
"""Group commit: one write to the disk serves all threads that wait for a write."""

from __future__ import annotations

import threading
from time import monotonic

from procbus.core.errors import JournalError
from procbus.core.locks import LOOK_UP_S, holding
from procbus.journal.storage.intake import Intake

#: Share of a flush's duration by which the next flush waits for the released threads to return.
_PATIENCE = 0.5
#: Maximum of that wait, in seconds.
_MOST_PATIENCE_S = 0.002


class GroupSync:
    """Makes records in the intake survive a loss of power. Thread-safe.

    One of the waiting threads flushes for all threads that wait by then. The other threads wait for
    this flush. The lock `_lock` guards all fields. The lock is not held during a flush.

    Threads that a flush released return a moment later, with their next event. If the next flush
    began at once, it would serve only the first of these threads, and the others would wait for a
    further flush. So the next flush first waits until as many threads have gathered as the last
    flush served. It waits for at most a part of a flush's duration. (PostgreSQL has the same in
    `commit_delay` and `commit_siblings`.) A lone publisher never waits.
    """

    def __init__(self, intake: Intake, path: str) -> None:
        self._intake = intake
        self._path = path
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        #: Notified when as many threads wait as the last flush served.
        self._gathered = threading.Condition(self._lock)
        self._flushing = False
        #: Number of frames on the disk. This number only grows.
        self._synced = 0
        #: Number of threads that wait for a flush not yet begun, and number of threads that the
        #: last flush served.
        self._waiting = 0
        self._served = 1
        self._flush_s = 0.0
        #: Threads in `wait`.
        self._inside: set[int] = set()

    def wait(self) -> None:
        """Return when everything written before the call is on the disk.

        Code that interrupts procbus must not wait for another thread, so it flushes for itself.

        Raises:
            JournalError: the disk failed.
        """
        here = threading.get_ident()
        if here in self._inside or holding():
            self._flush()
            return
        self._inside.add(here)
        try:
            self._wait()
        finally:
            self._inside.discard(here)

    def _flush(self) -> None:
        try:
            self._intake.flush()
        except OSError as error:
            raise JournalError(
                f"the journal {self._path}: the disk failed to keep it ({error.strerror}): look at "
                "the system's log"
            ) from error

    def _wait(self) -> None:
        written = self._intake.frames_written
        with self._changed:
            if self._synced >= written:
                return
            self._waiting += 1
            if self._waiting == self._served:
                self._gathered.notify()
            try:
                while self._flushing:
                    self._changed.wait(LOOK_UP_S)
                    if self._synced >= written:
                        return
            except BaseException:  # Ctrl-C: this thread no longer waits
                if self._synced < written:
                    self._waiting -= 1
                raise
            self._flushing = True
        self._lead()

    def _lead(self) -> None:
        """Flush for all waiting threads, this one first."""
        upto = served = 0
        began = monotonic()
        try:
            with self._changed:
                self._gathered.wait_for(
                    lambda: self._waiting >= self._served,
                    min(_MOST_PATIENCE_S, _PATIENCE * self._flush_s),
                )
                # Each waiting thread wrote its frame before it began to wait.
                upto, served = self._intake.frames_written, self._waiting
            began = monotonic()
            self._flush()
        except BaseException:  # the disk failed; or Ctrl-C: another thread has to flush
            upto = 0
            raise
        finally:
            with self._changed:
                self._flushing = False
                if upto:
                    self._synced = upto
                    self._flush_s = monotonic() - began
                    self._served = served
                    self._waiting -= served
                else:
                    self._waiting -= 1
                self._changed.notify_all()
