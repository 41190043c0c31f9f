# SPDX-License-Identifier: MIT
"""Group commit: one write to the disk for all who wait for one."""

from __future__ import annotations

import threading
from time import monotonic

from procbus.core.errors import JournalError
from procbus.core.locks import LOOK_UP_S
from procbus.journal.storage.intake import Intake

#: The part of the time of a flush that the next one gives those whom the last one let go.
_PATIENCE = 0.5
#: The most of it, in seconds.
_MOST_PATIENCE_S = 0.002


class GroupSync:
    """Makes what was written to the intake survive a loss of power. Thread-safe.

    One of those who wait flushes for all who are there by then; the others wait for that.
    `_lock` belongs to this object and guards all fields. It is not held while flushing.

    Those whom a flush lets go come back a moment later, with their next event. If the next flush
    began at once it would be for whoever comes first, and the others would wait for another. So it
    gives as many as the last one served a moment to come, a part of the time that it takes itself.
    (PostgreSQL has the same as `commit_delay` and `commit_siblings`.) A lone publisher never waits.
    """

    def __init__(self, intake: Intake, path: str) -> None:
        self._intake = intake
        self._path = path
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        #: Notified when as many wait as the last flush served.
        self._gathered = threading.Condition(self._lock)
        self._flushing = False
        #: So many frames are on the disk: only ever more.
        self._synced = 0
        #: How many wait for a flush that has not begun, and for how many the last one was.
        self._waiting = 0
        self._served = 1
        self._flush_s = 0.0

    def wait(self) -> None:
        """Return once all that was written before the call is on the disk.

        Raises:
            JournalError: the disk failed.
        """
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
            except BaseException:  # Ctrl-C: it waits no more
                if self._synced < written:
                    self._waiting -= 1
                raise
            self._flushing = True
        self._lead()

    def _lead(self) -> None:
        """Flush for all who are there, this thread first."""
        upto = served = 0
        began = monotonic()
        try:
            with self._changed:
                self._gathered.wait_for(
                    lambda: self._waiting >= self._served,
                    min(_MOST_PATIENCE_S, _PATIENCE * self._flush_s),
                )
                # Whoever waits has written before.
                upto, served = self._intake.frames_written, self._waiting
            began = monotonic()
            self._intake.flush()
        except OSError as error:
            upto = 0
            raise JournalError(
                f"the journal {self._path}: the disk failed to keep it ({error.strerror}): look at "
                "the system's log"
            ) from error
        except BaseException:  # Ctrl-C: somebody else has to flush
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
