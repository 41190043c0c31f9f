# SPDX-License-Identifier: MIT
"""Group commit: one write to the disk for all who wait for one."""

from __future__ import annotations

import threading

from procbus.errors import JournalError
from procbus.journal.intake import Intake


class GroupSync:
    """Makes what was written to the intake survive a loss of power. Thread-safe.

    `_lock` belongs to this object and guards the flushing: whoever has it flushes for all that have
    written by then, and the others wait for it, and for nothing longer than two flushes.
    """

    def __init__(self, intake: Intake, path: str) -> None:
        self._intake = intake
        self._path = path
        self._lock = threading.Lock()
        #: So many frames are on the disk: only ever more.
        self._synced = 0

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
                upto = self._intake.frames_written
                try:
                    self._intake.flush()
                except OSError as error:
                    raise JournalError(
                        f"the journal {self._path}: the disk failed to keep it ({error.strerror}): "
                        "look at the system's log"
                    ) from error
                self._synced = upto
