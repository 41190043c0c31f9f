# SPDX-License-Identifier: MIT
"""The writer: the thread that moves records from the intake into the database."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from time import monotonic

from procbus.core.errors import JournalError
from procbus.core.locks import LOOK_UP_S, Bell, Lock, holding
from procbus.core.log import journal_log as log
from procbus.core.own_thread import OwnThread
from procbus.core.receipt import Receipt
from procbus.journal.storage.changes import Changes
from procbus.journal.storage.database import Store
from procbus.journal.storage.files import trouble
from procbus.journal.storage.frames import Half
from procbus.journal.storage.ids import Ids
from procbus.journal.storage.intake import HALF, Intake
from procbus.journal.storage.opening import sentence_on_gap

#: Interval in which the writer lets records gather, in seconds; because most deliveries are
#: finished after it, and need not be written to the database at all.
GATHER_S = 0.5
#: Threshold of the size of records in the half above which the writer does not wait that long, in
#: bytes.
_FULL_ENOUGH = HALF // 2
#: Interval between two looks at that size, in seconds.
WRITER_LOOK_S = 0.05
#: Interval before the writer tries a failed move again, or looks for requests, in seconds.
AGAIN_S = 1.0


class _Large:
    """Records that are too large for the intake, and go straight to the database."""

    __slots__ = ("done", "error", "records")

    def __init__(self, records: bytes) -> None:
        self.records = records
        self.done = threading.Event()
        self.error: Exception | None = None


class Writer:
    """Moves records into the database, in a thread that starts with the first record.

    Args:
        store: the database; while the thread runs, only this thread writes to it.
        keep_all: whether all finished deliveries are kept.
        ids: receipts to drop once the database has their outcomes.
        tidy: called in this thread after each move.
        look: called in this thread now and then, to look for requests of other processes.
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
        self._bell = Bell()
        #: Guards the start of the thread.
        self._starting = Lock()
        self._thread: threading.Thread | None = None
        self._closing = False
        #: A half whose move failed. The writer will try to move it again.
        self._unmoved: int | None = None
        #: Numbers of handlers that the database has. Before the first record, the journal adds the
        #: numbers from earlier runs.
        self.named: set[int] = set()
        #: Last generation that the database has noted.
        self._noted = 0
        self._settled: list[tuple[str, Receipt]] = []
        self._large: deque[_Large] = deque()
        #: Losses that were found, in a sentence each; and the last generation whose losses were
        #: reported.
        self.lost: list[str] = []
        self._told_of = 0
        #: Largest id of an event that was moved.
        self.last_id = 0
        #: The reason why nothing can be moved now; None while all is well.
        self.error: JournalError | None = None

    def wake(self) -> None:
        """Wake the thread, because there are records to move. From any thread; it hardly blocks."""
        self._bell.ring()
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        with self._starting:
            if self._thread is not None or self._closing:
                return
            thread = OwnThread("procbus-journal", self._run)
            self._thread = thread  # first, for code that interrupts the start
            try:
                thread.start()
            except RuntimeError:
                # The interpreter is ending, or there are too many threads. The records stay in the
                # intake until the bus is closed, or until the next bus.
                self._thread = None

    def write_large(self, records: bytes) -> None:
        """Have records written to the database, behind all records of the intake; wait for it.

        Raises:
            JournalError: the records were not written.
        """
        if holding():  # the writer may need the lock that this thread has
            raise JournalError(
                f"publish of an event of {len(records):,} bytes was called by a signal handler or "
                "a __del__ that interrupted procbus itself, and the journal cannot take one so "
                "large there: publish it again from ordinary code"
            )
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
        """Move everything, and end. Idempotent; return whether everything is in the database."""
        with self._starting:
            self._closing = True
            thread = self._thread
        self._bell.ring()
        if thread is not None and thread.is_alive():
            thread.join()
        else:
            self._move()
        return self.error is None

    # Methods for the writer's thread, or for after its end.

    def _run(self) -> None:
        while True:
            woken = self._bell.wait(AGAIN_S) or self.intake.written
            if not woken and self.error is None and not self._closing:
                self._idle()
                continue
            self._gather()
            closing = self._closing  # read before the move, so that the move takes everything
            self._move()
            if self.error is None and not closing:
                self._look_around()
            if closing:
                return

    def _idle(self) -> None:
        """While there is nothing to move: check the files, and look for requests."""
        try:
            self._store.check_there()
        except JournalError as error:
            self._failed(error)
        else:
            self._look_around()

    def _look_around(self) -> None:
        try:
            self._look()
        except Exception:  # noqa: BLE001 - this thread has to go on with its own work
            log.exception("%s: a request of the command line failed", self._store.path)

    def _gather(self) -> None:
        deadline = monotonic() + GATHER_S
        while (
            (left_s := deadline - monotonic()) > 0
            and not self._closing
            and not self._large
            and self.intake.written < _FULL_ENOUGH
            and self.error is None
        ):
            self._bell.wait(min(left_s, WRITER_LOOK_S))

    def _move(self) -> None:
        """Move all records into the database."""
        while True:
            try:
                self._store.check_there()
                self._move_half()
            except Exception as error:  # noqa: BLE001 - threads that wait get any error
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
            self._settled = self._ids.settled()  # before the swap: the half has their records
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
        # Names that were restated are known already.
        changes.handlers = [each for each in changes.handlers if each[0] not in self.named]
        if generation > self._noted and not changes.nothing:
            self._store.write(changes, {"generation": generation})
            self._noted = generation
            self.named.update(number for number, _, _ in changes.handlers)
        self._store.check_there()  # otherwise the move may have gone to a removed file
        self._unmoved = None
        self.last_id = max(self.last_id, changes.last_id)
        self.intake.release(max(self._noted, self.intake.noted))
        self._ids.forget(self._settled)
        self._settled = []
        self._tidy()

    def _tell_lost(self, read: Half) -> None:
        """Log a loss: another program wrote into the intake, or its disk or memory fails."""
        for gap in read.gaps:
            loss = sentence_on_gap(gap, read, self._store.path + "-intake")
            self.lost.append(loss)
            log.error("the journal %s has lost records: %s", self._store.path, loss)

    def _write_large(self, large: _Large) -> None:
        try:
            changes = Changes(self._keep_all)
            changes.add_frames([large.records])
            self._store.write(changes, {})
            self.last_id = max(self.last_id, changes.last_id)
        except Exception as error:  # noqa: BLE001 - the waiting thread gets it; the others go on
            large.error = self._failure_of(error)
        large.done.set()

    def _failure_of(self, error: Exception) -> JournalError:
        return error if isinstance(error, JournalError) else trouble(self._store.path, error)

    def _failed(self, error: Exception) -> None:
        failure = self._failure_of(error)
        if self.error is None:
            log.error(
                "%s. Nothing can be published until that is over; accepted events are safe in %s, "
                "and moving them is tried again every second",
                failure,
                self._store.path + "-intake",
            )
        self.error = failure
        self.intake.fail(failure)
        while self._large:
            large = self._large.popleft()
            large.error = failure
            large.done.set()
