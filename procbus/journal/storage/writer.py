# SPDX-License-Identifier: MIT
"""The writer: the thread that moves what is in the intake into the database."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from time import monotonic

from procbus.core.errors import JournalError
from procbus.core.locks import LOOK_UP_S
from procbus.core.log import log
from procbus.journal.storage.changes import Changes
from procbus.journal.storage.database import Store
from procbus.journal.storage.files import trouble
from procbus.journal.storage.frames import Half
from procbus.journal.storage.ids import Ids
from procbus.journal.storage.intake import HALF, Intake
from procbus.journal.storage.opening import told_of_gap

#: How long the writer lets records gather, in seconds: most deliveries are over by then, and need
#: not be written to the database at all.
GATHER_S = 0.5
#: It does not wait that long once the half is so full.
_FULL_ENOUGH = HALF // 2
#: How often it looks how full that is, in seconds.
LOOK_S = 0.05
#: How long it waits before it tries again what failed, or looks what others ask for, in seconds.
AGAIN_S = 1.0


class _Large:
    """Records that are too large for the intake: they go straight to the database."""

    __slots__ = ("done", "error", "records")

    def __init__(self, records: bytes) -> None:
        self.records = records
        self.done = threading.Event()
        self.error: Exception | None = None


class Writer:
    """Moves records into the database, in a thread that starts with the first of them.

    Args:
        store: the database; while the thread runs, it alone writes to it.
        keep_all: whether what is finished is kept.
        ids: receipts to be let go once the database knows how they ended.
        tidy: is called after each move, in this thread.
        look: is called in this thread now and then, to see what other processes ask for.
    """

    def __init__(
        self,
        store: Store,
        keep_all: bool,
        ids: Ids,
        tidy: Callable[[], object],
        look: Callable[[], object],
    ) -> None:
        self._store = store
        self._keep_all = keep_all
        self._tidy = tidy
        self._look = look
        self._ids = ids
        #: Set by the journal, before the first record.
        self.intake: Intake
        self._wake = threading.Event()
        #: Guards the start of the thread.
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = False
        #: A half whose move failed, and is to be tried again.
        self._unmoved: int | None = None
        #: Numbers of handlers that the database has. Those that it had are added by the journal,
        #: before the first record.
        self.named: set[int] = set()
        #: The last generation that the database has noted.
        self._noted = 0
        self._settled: list[str] = []
        self._large: deque[_Large] = deque()
        #: What was found to be lost, in a sentence each; and the last generation that is told of.
        self.lost: list[str] = []
        self._told_of = 0
        #: The largest id of an event that was moved.
        self.last_id = 0
        #: Why nothing can be moved just now; None while all is well.
        self.error: JournalError | None = None

    def wake(self) -> None:
        """There is something to be moved. Never blocks for long; from any thread."""
        self._wake.set()
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        with self._starting:
            if self._thread is not None or self._closing:
                return
            thread = threading.Thread(target=self._run, name="procbus-journal", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # The interpreter is ending, or there are too many threads. What is in the intake
                # is moved when the bus is closed, or by the next one.
                return
            self._thread = thread

    def write_large(self, records: bytes) -> None:
        """Have records written to the database, behind all that is in the intake; wait for it.

        Raises:
            JournalError: they were not written.
        """
        large = _Large(records)
        self._large.append(large)
        self.wake()
        while not large.done.wait(LOOK_UP_S):
            if self._thread is None or not self._thread.is_alive():
                raise JournalError(
                    f"an event of {len(records):,} bytes cannot be journalled: the script is ending"
                )
        if large.error is not None:
            raise large.error

    def close(self) -> bool:
        """Move all, and end. Idempotent; say whether everything is in the database."""
        with self._starting:
            self._closing = True
            thread = self._thread
        self._wake.set()
        if thread is not None:
            thread.join()
        else:
            self._move()
        return self.error is None

    # In the writer's thread, or after its end.

    def _run(self) -> None:
        while True:
            woken = self._wake.wait(AGAIN_S)
            self._wake.clear()
            if not woken and self.error is None and not self._closing:
                self._idle()
                continue
            self._gather()
            closing = self._closing  # before the move, so that it takes all
            self._move()
            if self.error is None and not closing:
                self._look_around()
            if closing:
                return

    def _idle(self) -> None:
        """Nothing is to be moved: see whether the files are there, and what others ask for."""
        try:
            self._store.check_there()
        except JournalError as error:
            self._failed(error)
        else:
            self._look_around()

    def _look_around(self) -> None:
        try:
            self._look()
        except Exception:  # noqa: BLE001 - whatever it is, this thread has more to do
            log.exception("%s: what the command line asked for failed", self._store.path)

    def _gather(self) -> None:
        deadline = monotonic() + GATHER_S
        while (
            (left_s := deadline - monotonic()) > 0
            and not self._closing
            and not self._large
            and self.intake.written < _FULL_ENOUGH
            and self.error is None
        ):
            self._wake.wait(min(left_s, LOOK_S))
            self._wake.clear()

    def _move(self) -> None:
        """Move all that there is into the database."""
        while True:
            try:
                self._store.check_there()
                self._move_half()
            except Exception as error:  # noqa: BLE001 - whatever it is, those who wait are told
                self._failed(error)
                return
            if not self._large:
                break
            self._write_large(self._large.popleft())
        if self.error is not None:
            log.warning("the journal %s works again", self._store.path)
            self.error = None
            self.intake.fail(None)

    def _move_half(self) -> None:
        half = self._unmoved
        if half is None:
            self._settled = self._ids.settled()  # before the swap: their records are behind it
            half = self._unmoved = self.intake.swap()
        if half is None:
            return
        read = self.intake.read(half)
        changes = Changes(self._keep_all)
        changes.add_frames(read.frames)
        if read.gaps and read.generation > self._told_of:
            self._told_of = read.generation
            self._tell_lost(read)
        generation = self.intake.generation - 1
        # Names that are told again are nothing new.
        changes.handlers = [each for each in changes.handlers if each[0] not in self.named]
        if generation > self._noted and not changes.nothing:
            self._store.write(changes, {"generation": generation})
            self._noted = generation
            self.named.update(number for number, _, _ in changes.handlers)
        self._store.check_there()  # else it may have gone to a file that nobody will find
        self._unmoved = None
        self.last_id = max(self.last_id, changes.last_id)
        self.intake.release(max(self._noted, self.intake.noted))
        self._ids.forget(self._settled)
        self._tidy()

    def _tell_lost(self, read: Half) -> None:
        """Somebody wrote into the intake, or it is on a disk or in memory that fails."""
        for gap in read.gaps:
            told = told_of_gap(gap, read, self._store.path + "-intake")
            self.lost.append(told)
            log.error("the journal %s has lost something: %s", self._store.path, told)

    def _write_large(self, large: _Large) -> None:
        try:
            changes = Changes(self._keep_all)
            changes.add_frames([large.records])
            self._store.write(changes, {})
            self.last_id = max(self.last_id, changes.last_id)
        except Exception as error:  # noqa: BLE001 - who waits for it is told; the rest goes on
            large.error = self._told(error)
        large.done.set()

    def _told(self, error: Exception) -> JournalError:
        return error if isinstance(error, JournalError) else trouble(self._store.path, error)

    def _failed(self, error: Exception) -> None:
        told = self._told(error)
        if self.error is None:
            log.error(
                "%s. Nothing can be published until that is over; what was accepted is safe in %s, "
                "and is tried again every second",
                told,
                self._store.path + "-intake",
            )
        self.error = told
        self.intake.fail(told)
        while self._large:
            large = self._large.popleft()
            large.error = told
            large.done.set()
