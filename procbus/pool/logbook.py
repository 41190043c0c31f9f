# SPDX-License-Identifier: MIT
"""The logbook: the delivery that a worker runs, in memory that outlives the worker.

The worker writes before a delivery and after it. The parent may read at any time to show the state.
It acts on the contents only once the worker is dead, when nothing changes any more. So no lock is
needed. The logbook is anonymous shared memory: it has no name, and nothing has to be cleaned up,
whichever process dies first.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import struct
from collections.abc import Callable
from multiprocessing.reduction import DupFd
from time import monotonic
from typing import Any, NamedTuple, Self

from procbus.core.progress import NOTE_BYTES, Amount, NoteProgress, Progress, bytes_of, checked

# Positions of the 8-byte fields in the head. `_REPORTED` is the number of the newest report.
# `_CANCELLED` names the delivery that was cancelled last, in one number.
_BATCH, _AT, _DONE, _SENT, _USED, _SINCE, _SET_UP, _STRAYS, _LEFT, _TAKEN = range(10)
_REPORTED, _CANCELLED = 10, 11
#: Number of the lowest bits of `_CANCELLED` that hold the delivery's index in its batch.
_INDEX_BITS = 20
_FIELDS = 128
#: Number of places for reports of handlers: report N lies in place N % PLACES, so that the worker
#: does not touch a report while the next two are made.
PLACES = 4
#: A report: its number, batch, index, time and form; the amounts done and in all; and the note. It
#: is one struct, so that one call writes a report.
_REPORT = "=qqqdq{done}{total}{size}p"
#: The form of a report tells which amounts are floats, and whether the total is missing.
_DONE_IS_FLOAT, _TOTAL_IS_FLOAT, _NO_TOTAL = 1, 2, 4
_LAID_OUT = [
    struct.Struct(
        _REPORT.format(
            done="d" if form & _DONE_IS_FLOAT else "Q",
            total="d" if form & _TOTAL_IS_FLOAT else "Q",
            size=1 + NOTE_BYTES,
        )
    )
    for form in range(6)
]
_REPORT_SIZE = -(-_LAID_OUT[0].size // 8) * 8
#: Maximum of tries to read a report while the worker makes others.
_TRIES = 50

_HEAD = _FIELDS + PLACES * _REPORT_SIZE
#: The batch number in the logbook of a worker that has to stop, and takes no batch any more.
ENDED = -1
#: Size of a segment: room for the unsent results of one batch, in bytes.
CAPACITY = 256 * 1024
#: Number of segments for reading in place; because the worker fills one while the parent reads.
SEGMENTS = 4


def anonymous_file(name: str) -> int:
    """Make a nameless file in memory; return its descriptor.

    Only the same user can open the file, through `/proc` of a process that has it open.
    """
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create(name)
        os.fchmod(fd, 0o600)
        return fd
    import tempfile  # only now: it takes time to import

    with tempfile.TemporaryFile() as file:  # macOS (untested): its name is gone already
        return os.dup(file.fileno())


class Page(NamedTuple):
    """The contents of a logbook."""

    #: Number of the present batch; 0 before the first.
    batch: int
    #: Index in the batch of the delivery begun last, and whether its handler is running.
    at: int
    running: bool
    #: Start of that delivery, in seconds of `time.monotonic()`.
    since: float
    #: Number of finished deliveries of the batch, and number of these whose results were sent.
    done: int
    sent: int
    #: The finished results that are not sent.
    unsent: bytes
    #: The last report of a handler, as a plain tuple: see `Reported`.
    reported: tuple[Any, ...] | None = None


class Reported(NamedTuple):
    """The last report that a handler made in this worker."""

    #: The delivery: its batch, and its index there.
    batch: int
    place: int
    #: The fields of `Progress`.
    done: Amount
    total: Amount | None
    note: str
    at: float

    def during(self, batch: int, index: int) -> Progress | None:
        """The progress of a delivery; None if this report is of another delivery."""
        return Progress(*self[2:]) if (batch, index) == self[:2] else None


class Logbook:
    """One worker's logbook, seen from either process.

    Args:
        fd: its file.
        segments: number of segments for results. With only one the parent never reads in place.
    """

    def __init__(self, fd: int, segments: int = 1) -> None:
        self._fd = fd
        self._segments = segments
        self._map = mmap.mmap(fd, _HEAD + segments * CAPACITY)
        self._view = memoryview(self._map)
        #: Start of the segment that the worker fills. Only the worker uses it.
        self._begin = _HEAD
        self._whole = self._view[:_FIELDS].cast("q")
        self._real = self._view[:_FIELDS].cast("d")
        #: Numbers of the reports. No two threads get the same.
        self._numbers = itertools.count(1)

    @classmethod
    def create(cls, fd: int | None = None, segments: int = 1) -> Self:
        """Make an empty logbook, in an empty file that is already open or in a new file."""
        fd = anonymous_file("procbus-logbook") if fd is None else fd
        os.ftruncate(fd, _HEAD + segments * CAPACITY)
        logbook = cls(fd, segments)
        logbook.open_batch(0)
        return logbook

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to a worker that is being spawned: it gets the file descriptor."""
        return _attach, (DupFd(self._fd), self._segments)

    def fileno(self) -> int:
        """The descriptor of its file."""
        return self._fd

    # Written by the worker, each field before the next step begins.

    def begin_set_up(self, now: float) -> None:
        """Note that the user's set-up of the worker begins."""
        self._real[_SET_UP] = now

    def end_set_up(self) -> None:
        """Note that the set-up has ended."""
        self._real[_SET_UP] = 0.0

    def open_batch(self, batch: int) -> None:
        """Note that a batch has arrived, and no delivery of it has begun."""
        whole = self._whole
        whole[_AT] = -1
        whole[_DONE] = whole[_SENT] = whole[_USED] = 0
        whole[_BATCH] = batch

    def begin(self, index: int, now: float) -> None:
        """Note that the handler of this delivery begins. The delivery is running until `finish`."""
        self._real[_SINCE] = now
        self._whole[_AT] = index

    def finish(self, done: int, result: bytes) -> bool:
        """Note that the first `done` deliveries are finished; keep the last result.

        Returns:
            False if there is no room. The result is not kept then: send the kept results first.
        """
        whole, begin = self._whole, self._begin
        start = begin + whole[_USED]
        end = start + len(result)
        if end > begin + CAPACITY:
            return False
        self._view[start:end] = result
        whole[_USED] = end - begin
        whole[_DONE] = done
        return True

    def begin_reports(self) -> NoteProgress:
        """Make the function that notes reports of the running handler. From any thread.

        A report is written as a whole before its number is written. So a parent finds the report
        before, if it reads meanwhile or after the worker was killed in the middle.
        """
        whole, view, numbers = self._whole, self._view, self._numbers
        batch, index = whole[_BATCH], whole[_AT]
        places = [_FIELDS + place * _REPORT_SIZE for place in range(PLACES)]
        packs = [laid_out.pack_into for laid_out in _LAID_OUT]

        def report(done: Amount, total: Amount | None, note: str) -> None:
            form, words = 0, b""
            if total is None:
                form, total = _NO_TOTAL, 0
            if note != "":
                words = bytes_of(note)
            if type(done) is not int or type(total) is not int:
                done, total = checked(done, total)
                form |= _DONE_IS_FLOAT * (type(done) is float)
                form |= _TOTAL_IS_FLOAT * (type(total) is float)
            number = next(numbers)
            place, now = places[number % PLACES], monotonic()
            try:
                packs[form](view, place, number, batch, index, now, form, done, total, words)
            except Exception:
                if self._fd < 0:  # a thread of the handler goes on after the worker
                    return
                checked(done, total)  # an int is negative, or too large
                raise
            whole[_REPORTED] = number

        return report

    def watch_cancelled(self) -> Callable[[], bool]:
        """Make the function that tells by one reading whether the running delivery is cancelled."""
        whole = self._whole
        running = whole[_BATCH] << _INDEX_BITS | whole[_AT]

        def cancelled() -> bool:
            # A thread of the handler may go on after the worker, whose logbook is closed then.
            return self._fd >= 0 and whole[_CANCELLED] == running

        return cancelled

    def began_at(self) -> float:
        """Start of the running delivery, in seconds of `time.monotonic()`."""
        return self._real[_SINCE]

    def unsent(self) -> memoryview:
        """The kept results, to be sent."""
        # In this order, for a parent that reads meanwhile: the worker writes to the next segment.
        begin = _HEAD + self._whole[_LEFT] % self._segments * CAPACITY
        return self._view[begin : begin + self._whole[_USED]]

    @property
    def shares(self) -> bool:
        """Whether the parent can read results in place."""
        return self._segments > 1

    def place(self) -> tuple[int, int] | None:
        """Place of the kept results, which may be left there for the parent to read.

        Returns:
            Start and size of the kept results. None while the parent has not read earlier results
            that the next ones would overwrite.
        """
        whole = self._whole
        if whole[_LEFT] - whole[_TAKEN] >= self._segments - 1:
            return None
        return self._begin, whole[_USED]

    def sent(self, done: int, *, left: bool = False) -> None:
        """Note that the results of the first `done` deliveries are sent; keep none.

        Args:
            done: number of finished deliveries.
            left: whether the results were left in place, and the parent knows their place.
        """
        whole = self._whole
        # The order matters: the worker may die between any two lines. At each moment `unsent`
        # begins at delivery `sent`, or repeats results that the parent has got already. (The parent
        # counts results, and skips repeated ones.)
        whole[_USED] = 0
        if left:
            whole[_LEFT] += 1
            self._begin = _HEAD + whole[_LEFT] % self._segments * CAPACITY
        whole[_DONE] = whole[_SENT] = done

    # Written by a child that a handler forked, and read by its worker.

    def note_stray(self) -> bool:
        """Note that a forked child returned from the user's code, and is being ended.

        Returns:
            Whether the worker will read this note; False if the worker has ended.
        """
        self._whole[_STRAYS] += 1
        return bool(self._whole[_BATCH] != ENDED)

    def strays(self) -> int:
        """Number of such children so far."""
        return self._whole[_STRAYS]

    # Written by the parent.

    def cancel(self, batch: int, index: int) -> None:
        """Note that a delivery was cancelled, for its handler to read."""
        self._whole[_CANCELLED] = batch << _INDEX_BITS | index

    # Read by the parent.

    def read(self) -> Page:
        """Read everything. While the worker lives, fields may be of two different moments."""
        whole, reported = self._whole, self.reported()
        return Page(
            whole[_BATCH],
            whole[_AT],
            whole[_AT] >= whole[_DONE],
            self._real[_SINCE],
            whole[_DONE],
            whole[_SENT],
            bytes(self.unsent()),
            None if reported is None else tuple(reported),
        )

    def reported(self) -> Reported | None:
        """The last report of a handler; None before the first."""
        whole = self._whole
        for _ in range(_TRIES):
            number = whole[_REPORTED]
            if not number:
                return None
            at = _FIELDS + number % PLACES * _REPORT_SIZE
            laid_out = bytes(self._view[at : at + _REPORT_SIZE])
            # Two reports later the worker writes into the third place from here, but no further.
            if 0 <= whole[_REPORTED] - number < PLACES - 1:
                return _unpacked(laid_out)
        return None

    def glance(self) -> Page | None:
        """Read everything while the worker lives; None if the contents were just changing.

        Between two sendings, results are only appended. So if nothing was sent during the reading,
        the results that were read are whole.
        """
        page = self.read()
        whole = self._whole
        return page if (whole[_BATCH], whole[_SENT]) == (page.batch, page.sent) else None

    def results(self, start: int, size: int) -> memoryview:
        """Results that the worker has left in the logbook. Call `taken` once they are read."""
        return self._view[start : start + size]

    def taken(self) -> None:
        """Let the worker overwrite the oldest results in the logbook, which have been read."""
        self._whole[_TAKEN] += 1

    def running(self) -> tuple[int, int, float] | None:
        """Batch, index and start of the delivery whose handler is running; None between two."""
        whole = self._whole
        batch, at, since = whole[_BATCH], whole[_AT], self._real[_SINCE]
        # The worker may go on during the reading. If it did not, these three belong together.
        if at < whole[_DONE] or (batch, at) != (whole[_BATCH], whole[_AT]):
            return None
        return batch, at, since

    def set_up_since(self) -> float | None:
        """Start of the user's set-up, while the set-up runs; else None."""
        return self._real[_SET_UP] or None

    def close(self) -> None:
        """Release the memory. Idempotent."""
        if self._fd < 0:
            return
        for view in (self._whole, self._real, self._view):
            view.release()
        with contextlib.suppress(BufferError):  # a traceback may hold a result that cannot be read
            self._map.close()
        os.close(self._fd)
        self._fd = -1


def _unpacked(data: bytes) -> Reported:
    form = _LAID_OUT[0].unpack_from(data)[4]
    _, batch, index, at, _, done, total, words = _LAID_OUT[form].unpack_from(data)
    note = words.decode("utf-8", "replace")
    return Reported(batch, index, done, None if form & _NO_TOTAL else total, note, at)


def _attach(duplicate: Any, segments: int) -> Logbook:
    return Logbook(duplicate.detach(), segments)
