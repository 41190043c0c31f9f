# SPDX-License-Identifier: MIT
"""The journal of one bus: its records while the bus runs, and its contents at the start.

`accept` writes an event before its handlers run, and `note` the ends of its deliveries, see
`procbus/journal/ends.py`. At the next start `unfinished` returns the deliveries without an end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from math import inf
from time import time
from typing import Any, Literal

from procbus.core.delivery import Delivery
from procbus.core.errors import JournalError, SerializationError
from procbus.core.own_thread import OwnThread
from procbus.core.receipt import Receipt
from procbus.core.validation import Calendar
from procbus.journal.backup import back_up
from procbus.journal.codec import Codec, CodecName, make_codec
from procbus.journal.storage import records
from procbus.journal.storage.database import Store
from procbus.journal.storage.files import cannot_write, place, prepare_files, tidy
from procbus.journal.storage.group_sync import GroupSync
from procbus.journal.storage.ids import Ids
from procbus.journal.storage.intake import HALF, Intake
from procbus.journal.storage.lock import JournalLock
from procbus.journal.storage.names import HandlerNames
from procbus.journal.storage.opening import (
    RESERVED,
    Reservation,
    identify,
    read_left,
    recover,
    user,
    what_is_in,
)
from procbus.journal.storage.queries import Queries, Recorded, Unfinished
from procbus.journal.storage.records import SHIFT
from procbus.journal.storage.writer import Writer

Durability = Literal["process", "power"]

#: Maximum of unfinished deliveries in memory at once while they are resumed.
PAGE = 500
#: Interval between two deletions of old finished records, in seconds.
TIDY_S = 60.0

#: Maximum of classes whose names are remembered.
_TYPES_KEPT = 4_096


class Journal:
    """The journal of one bus. Thread-safe, except for `close`.

    Args:
        path: path of the SQLite file; a missing file is made.
        durability: whether an accepted event survives only the death of the process, or a loss of
            power as well.
        keep_s: time for which finished deliveries are kept, in seconds.
        keep_results: whether their results are kept too.
        codec: codec for events, results and outcomes.
        half: size of a half of the intake, in bytes.
        tidy_s: interval between two deletions of old finished records, in seconds.
        reserved: number of ids reserved at a time.
        make_store: makes the database.
        make_intake: makes the intake.

    Attributes:
        closed: whether it was closed.
        ids: receipts by the ids that publishers gave.
        id: id of the journal, the same for its whole life.
        first_id: id of the first event that this bus publishes; smaller ids belong to earlier runs.
        found: contents of the journal at the start.
        keep_results: whether results are kept.
        last_job: largest number of a job at the start.
        names: numbers of the handlers.
        open_jobs: jobs that were not done at the start, or had open deliveries.
        queries: queries to the database, which lags a moment behind.

    Raises:
        JournalError: the journal cannot be opened; the message says how to mend that.
    """

    def __init__(
        self,
        path: str,
        *,
        durability: Durability = "process",
        keep_s: float = 0.0,
        keep_results: bool = False,
        codec: CodecName = "pickle",
        half: int = HALF,
        tidy_s: float = TIDY_S,
        reserved: int = RESERVED,
        make_store: Callable[[str], Store] = Store,
        make_intake: Callable[..., Intake] = Intake,
    ) -> None:
        self._make_intake = make_intake
        self._tidy_s = tidy_s
        self._reserved = reserved
        self._power = durability == "power"
        self._keep_s = keep_s
        self.keep_results = keep_results
        self.codec: Codec = make_codec(codec)
        self.path = place(path)
        self._lock = JournalLock(self.path)  # before this touches a file of another bus
        try:
            prepare_files(self.path)
            self._store = make_store(self.path)
            self.queries = Queries(self._store)
            try:
                self._open(codec, half)
            except BaseException:
                self._store.close()
                raise
        except BaseException:
            tidy(self.path)
            self._lock.release(remove=self._lock.fresh)
            raise
        self.closed = False

    def _open(self, codec: CodecName, half: int) -> None:
        store = self._store
        left = read_left(self._lock.fd, self._lock.name)
        generation = recover(store, self.queries, left, self._lock.name, keep_all=self._keep_s > 0)
        self.found = what_is_in(store, self.queries)
        self.id = identify(store, self.queries, codec, keep_all=self._keep_s > 0)
        self.first_id = self.queries.last_id() + 1
        self.open_jobs = self.queries.open_jobs()
        self.last_job = self.queries.last_job()
        self._calendar = Calendar()
        self._tidied_at = 0.0
        self._type_names: dict[type, bytes] = {}
        self.ids = Ids()
        #: Called with the numbers of dead letters that the command line asked to run again, in a
        #: thread of its own; set once, by the dispatcher.
        self.retry: Callable[[Sequence[int]], object] = len
        #: Returns the jobs of an event by its parent; None while there was no job. Set once.
        self.owners: Callable[[int | None], Sequence[int]] | None = None
        self._version = 0
        self._writer = Writer(store, self._keep_s > 0, self.ids, self._tidy, self._look)
        try:
            self._intake = self._make_intake(self._lock.fd, generation + 1, self._writer.wake, half)
            self._intake.flush()  # from here on the database records that an intake exists
        except OSError as error:
            raise cannot_write(self.path + "-intake", error) from error
        self._writer.intake = self._intake
        self._sync = GroupSync(self._intake, self.path)
        self._reservation = Reservation(
            store, self.first_id - 1, user(power=self._power), self._reserved
        )
        known = self.queries.handlers()
        self._writer.named.update(number for number, _, _ in known)
        self.names = HandlerNames(known, self._intake.append)
        self._intake.restate = self.names.restated

    # Writing events.

    def accept(
        self,
        receipt: Receipt,
        deliveries: Sequence[Delivery],
        given_id: str | None = None,
        wait: bool = True,
        due_at: float = 0.0,
        beside: bytes = b"",
    ) -> None:
        """Write an event and its deliveries; return once the records are safe.

        Args:
            receipt: receipt of the event.
            deliveries: all deliveries of the event.
            given_id: the id from the publisher.
            wait: whether to wait for the disk, with `durability="power"`.
            due_at: when the deliveries run, in seconds as of `time.time()`; 0 for now.
            beside: a record that is written together with the event.

        Raises:
            SerializationError: the event cannot be written.
            JournalError: the journal cannot be written.
        """
        self.write(self.published(receipt, deliveries, given_id, due_at) + beside, wait)

    def published(
        self,
        receipt: Receipt,
        deliveries: Sequence[Delivery],
        given_id: str | None = None,
        due_at: float = 0.0,
    ) -> bytes:
        """Make the record of an event, with the time of its deliveries if they run later."""
        event = receipt.event
        cls = type(event)
        type_name = self._type_names.get(cls) or self.type_name(cls)
        form, data = self.codec.encode(event, "event")
        handlers: Sequence[int]
        if len(deliveries) == 1:
            handler = deliveries[0].subscription.handler
            number = self.names.numbers.get(handler.name)
            handlers = (self.names.number_of(handler) if number is None else number,)
        else:
            handlers = [self.names.number_of(each.subscription.handler) for each in deliveries]
        if len(handlers) > 1 and len(set(handlers)) < len(handlers):
            names = [each.handler.name for each in deliveries]
            twice = next(name for name in names if names.count(name) > 1)
            raise JournalError(
                f"two handlers of one event have the name {twice}: the journal tells handlers "
                "apart by their names, so give each its own, with name="
            )
        try:
            published = records.pack_published(
                receipt.id,
                receipt.parent_id,
                time(),
                receipt.topic,
                type_name,
                given_id,
                form,
                data,
                handlers,
            )
        except UnicodeEncodeError as error:  # half of a surrogate pair: no database would take it
            raise SerializationError(
                f"the topic of an event cannot be written to the journal: {error}"
            ) from error
        jobs = None if self.owners is None or not handlers else self.owners(receipt.parent_id)
        if due_at or jobs:
            numbers = [receipt.id << SHIFT | each for each in handlers]
            if due_at:  # the same record as after a failed attempt, but with 0 attempts
                waits = [records.pack_retry(number, 0, due_at, b"") for number in numbers]
                published += b"".join(waits)
            if jobs:
                published += records.pack_owned(jobs, numbers)
        return published

    @property
    def generations(self) -> tuple[int, int]:
        """The generation of the intake that is written to, and the last one in the database."""
        return self._intake.generation, self._intake.noted

    def type_name(self, cls: type) -> bytes:
        """The name of a class, in bytes."""
        name = self._type_names.get(cls)
        if name is None:
            if len(self._type_names) >= _TYPES_KEPT:
                self._type_names.clear()
            name = self.codec.type_name(cls).encode()
            self._type_names[cls] = name
        return name

    def write(self, data: bytes, wait: bool = True) -> None:
        """Write records that belong together; return when the records are safe.

        Raises:
            JournalError: the journal cannot be written.
        """
        if not data:
            return
        error = self._writer.error
        if error is not None:
            raise error
        if len(data) > self._intake.most:
            self._writer.write_large(data)
            return
        self._intake.append(data)
        if wait and self._power:
            self._sync.wait()

    def make_safe(self) -> None:
        """Wait until everything written is on the disk, with `durability="power"`.

        Raises:
            JournalError: the disk failed.
        """
        if self._power:
            self._sync.wait()

    def note(self, data: bytes) -> None:
        """Write outcomes of deliveries.

        The intake keeps some room for outcomes. An outcome that finds none is dropped, and the
        delivery runs again at the next start. The writer has logged the reason.
        """
        if not data:
            return
        with contextlib.suppress(JournalError):
            if len(data) > self._intake.most:
                self._writer.write_large(data)
            else:
                self._intake.append(data, ends=True)

    # Reading.

    def unfinished(self, names: Sequence[str]) -> Iterator[Unfinished]:
        """Yield unfinished deliveries of earlier runs, in the order of their events.

        Args:
            names: names of the handlers whose deliveries are wanted.
        """
        known = self.names.numbers
        numbers = [known[name] for name in names if name in known]
        return self.queries.unfinished(numbers, self.first_id << SHIFT, PAGE)

    def result(self, recorded: Recorded) -> Any:
        """The result of a delivery that succeeded; None if the result was not kept.

        An error of decoding is passed on.
        """
        if not recorded.form or recorded.data is None:
            return None
        type_name, _, data = recorded.data.partition(b"\0")
        return self.codec.decode(recorded.form, data, type_name.decode())

    def back_up(self, dest: str) -> None:
        """Copy the journal with everything accepted so far.

        Raises:
            JournalError: it cannot be copied.
        """
        if self.closed:
            raise JournalError(f"the journal {self.path} is closed: copy the file itself")
        back_up(self._store, read_left(self._lock.fd, self._lock.name, live=True), dest)

    @property
    def lost(self) -> list[str]:
        """The losses of the journal, in a sentence each."""
        return [*self.found.lost, *self._writer.lost]

    @property
    def may_wait(self) -> bool:
        """Whether writing may wait for a disk: for each event, or because both halves are full."""
        return self._power or self._intake.crowded

    # Methods for the writer's thread.

    def start(self) -> None:
        """Begin to look for requests of the command line."""
        self._writer.wake()

    def _look(self) -> None:
        """Check whether another process has changed the database and asks for dead letters."""
        version = self._store.data_version()
        if version == self._version:
            return
        self._version = version
        if asked := self.queries.asked():
            self._store.forget_asked(asked)
            # In another thread, because publishing may need room in the intake, which this thread
            # has to make.
            OwnThread("procbus-journal-retry", self.retry, asked).start()

    def _tidy(self) -> None:
        """Reserve more ids before they run out; now and then delete old finished records."""
        self._reservation.extend(self._writer.last_id)
        now = self._calendar.now()
        if not 0 < self._keep_s < inf or 0 <= now - self._tidied_at < self._tidy_s:
            return
        self._tidied_at = now
        self._store.purge(self._tidied_at - self._keep_s)

    def close(self) -> None:
        """Move everything into the database and release the journal for another bus. Idempotent."""
        if self.closed:
            return
        self.closed = True
        moved = self._writer.close()
        if moved:
            try:
                self._reservation.end(self._writer.last_id)
            except JournalError:  # the ids stay reserved, and the journal expects an intake
                moved = False
        self._intake.fail(JournalError(f"the journal {self.path} is closed"))
        self._intake.close()
        self._store.close()
        tidy(self.path)
        self._lock.release(remove=moved)
