# SPDX-License-Identifier: MIT
"""Group commit: one write to the disk for all who wait for one."""

from __future__ import annotations

import threading
from time import monotonic, sleep

from procbus.errors import JournalError
from procbus.journal.intake import Intake

#: The part of the time of a flush for which the next one waits, and the most of it, in seconds.
_WAIT = 0.1
_MOST_WAIT_S = 0.001


class GroupSync:
    """Makes what was written to the intake survive a loss of power. Thread-safe.

    `_lock` belongs to this object and guards the flushing: whoever has it flushes for all that have
    written by then, and the others wait for it, and for nothing longer than two flushes.

    Those whom a flush let go come back a moment later with their next event. So where there were
    several, the next flush gives them that moment, a small part of the time that it takes itself:
    otherwise it would be for the first of them alone (PostgreSQL's `commit_delay` is the same).
    """

    def __init__(self, intake: Intake, path: str) -> None:
        self._intake = intake
        self._path = path
        self._lock = threading.Lock()
        #: So many frames are on the disk: only ever more.
        self._synced = 0
        #: How long the last flush took, and for how many frames it was.
        self._flush_s = 0.0
        self._shared = 0

    def wait(self) -> None:
        """Return once all that was written before the call is on the disk.

        Raises:
            JournalError: the disk failed.
        """
        written = self._intake.frames_written
        while self._synced < written:
            with self._lock:
                if self._synced >= written:
                    return
                if self._shared > 1:
                    sleep(min(_MOST_WAIT_S, self._flush_s * _WAIT))
                began = monotonic()
                upto = self._intake.frames_written
                try:
                    self._intake.flush()
                except OSError as error:
                    raise JournalError(
                        f"the journal {self._path}: the disk failed to keep it ({error.strerror}): "
                        "look at the system's log"
                    ) from error
                self._flush_s = monotonic() - began
                self._shared = upto - self._synced
                self._synced = upto
