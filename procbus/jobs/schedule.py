# SPDX-License-Identifier: MIT
"""Schedules: events that are published again and again, by the clock."""

from __future__ import annotations

import threading
from contextlib import suppress
from contextvars import Context
from datetime import datetime
from math import inf
from typing import Any, Protocol

from procbus.core.errors import BusClosed, JournalError, OptionError
from procbus.core.locks import Bell
from procbus.core.log import log
from procbus.core.receipt import Receipt
from procbus.core.ticks import Ticks
from procbus.core.validation import shown
from procbus.dispatch.dispatcher import Dispatcher
from procbus.lanes.lane_thread import LaneThread

#: Maximum wait for a tick by the time of day, in seconds; because the clock of the machine may be
#: set, and goes on while the machine is suspended.
_LOOK_S = 1.0
#: Maximum wait for any other tick, in seconds.
_LONG_S = 3_600.0
#: Maximum time for the thread to end, in seconds: it may be in code of the user's.
_JOIN_S = 0.5


class Clocks(Protocol):
    """The two clocks of a bus."""

    def now(self) -> float:
        """The time of the clock that cannot be set, in seconds."""

    def wall(self) -> float:
        """The time of day, in seconds as of `time.time()`."""


class Course:
    """A schedule as it goes on. `Schedules` alone writes it."""

    __slots__ = (
        "due",
        "event",
        "fails",
        "last",
        "name",
        "published",
        "receipt",
        "skipped",
        "ticks",
        "told",
        "topic",
    )

    def __init__(self, name: str, ticks: Ticks, event: Any, topic: str | None) -> None:
        self.name = name
        self.ticks = ticks
        self.event = event
        self.topic = topic
        #: The next tick: by the time of day if the schedule's times follow that, else by the clock
        #: that cannot be set. Infinite once the schedule has ended.
        self.due = inf
        #: The last tick of this run, in seconds as of `time.time()`; 0 for none.
        self.last = 0.0
        self.published = self.skipped = 0
        #: The receipt of its last event.
        self.receipt: Receipt | None = None
        #: Whether a tick was left out, and that was logged.
        self.told = False
        #: Whether the last tick could not publish, and that was logged.
        self.fails = False


class Schedule:
    """A schedule of a bus: the return value of `EventBus.every`. Thread-safe; read it at any time.

    Example:
        ```python
        from procbus import EventBus

        with EventBus(handlers=[]) as bus:
            bus.subscribe("report", print)
            schedule = bus.every("1 day", "report", "sales")
            print(schedule.name, schedule.next_at)
            schedule.cancel()
            assert schedule.cancelled
        ```
    """

    __slots__ = ("_course", "_schedules")

    def __init__(self, course: Course, schedules: Schedules) -> None:
        self._course = course
        self._schedules = schedules

    @property
    def name(self) -> str:
        """The name of the schedule. With a journal it goes on after a restart under this name."""
        return self._course.name

    @property
    def times(self) -> str:
        """The times of the schedule as text, such as "5 min" or "0 9 * * mon-fri"."""
        return self._course.ticks.written

    @property
    def next_at(self) -> datetime | None:
        """The next tick, in local time; None once the schedule has ended."""
        at = self._schedules.next_at(self._course)
        return datetime.fromtimestamp(at).astimezone() if at < inf else None

    @property
    def last_at(self) -> datetime | None:
        """The last tick, in local time; None before the first tick of this run."""
        at = self._course.last
        return datetime.fromtimestamp(at).astimezone() if at else None

    @property
    def published(self) -> int:
        """Number of events that the schedule has published in this run."""
        return self._course.published

    @property
    def skipped(self) -> int:
        """Number of ticks without an event: the last event was not settled, or the bus refused."""
        return self._course.skipped

    @property
    def cancelled(self) -> bool:
        """Whether the schedule has ended: by `cancel`, or with its bus."""
        return self._course.due == inf

    def cancel(self) -> None:
        """End the schedule. An event that it has already published still runs. Idempotent."""
        self._schedules.end(self._course)

    def __repr__(self) -> str:
        """Show the name, the times and the counters."""
        state = "ended" if self.cancelled else "on"
        return (
            f"<Schedule {self.name!r} ({self.times}): {state}, {self.published} published, "
            f"{self.skipped} skipped>"
        )


class Schedules:
    """The schedules of one bus. Thread-safe.

    Publishing may wait for room, and runs code of the user's. So the schedules have their own
    thread. On a bus for tests there is no thread, and the clock of the test makes the ticks.

    Args:
        dispatcher: publishes the events.
        clocks: the clocks of the bus.
        turned: whether a test turns the clock, and calls `let_pass`.
    """

    def __init__(self, dispatcher: Dispatcher, clocks: Clocks, *, turned: bool) -> None:
        self._dispatcher = dispatcher
        self._clocks = clocks
        self._turned = turned
        #: Guards the start of the thread, and the names.
        self._lock = threading.RLock()
        self._bell = Bell()
        self._all: dict[str, Course] = {}
        self._thread: LaneThread | None = None
        self._stopped = False

    def add(self, ticks: Ticks, event: Any, topic: str | None, name: str | None) -> Schedule:
        """Begin a schedule. Its first tick is the next by its times, or now if a tick was missed.

        Raises:
            OptionError: the bus has a schedule of this name.
            BusClosed: the bus is closed, or the script is ending.
            JournalError: the journal cannot be read or written.
        """
        of = topic if topic is not None else type(event).__qualname__
        course = Course(name or f"{of} every {ticks.written}", ticks, event, topic)
        with self._lock:
            if self._stopped:
                raise BusClosed("the bus is closed, and begins no schedule")
            if course.name in self._all:
                raise OptionError(
                    f"this bus has a schedule {course.name!r} already: cancel that first, or "
                    "give this one a name of its own, with name="
                )
            self._all[course.name] = course
        try:
            due = self._first_tick(course)
            with self._lock:
                self._start()
                if course.name in self._all:  # it is not closed meanwhile
                    course.due = due
        except BaseException:
            with self._lock:
                self._all.pop(course.name, None)
            raise
        self._bell.ring()
        return Schedule(course, self)

    def _first_tick(self, course: Course) -> float:
        journal, ticks = self._dispatcher.journal, course.ticks
        now, wall = self._time_of(ticks), self._clocks.wall()
        last = now
        if journal is not None:
            before = journal.last_tick(course.name)
            if before is None:
                journal.note_tick(journal.tick(course.name, course.ticks.written, wall))
            else:  # not later than now, though the clock may have been set back
                last = now - max(0.0, wall - before)
        return ticks.next_of(last)

    def _start(self) -> None:
        if self._thread is not None or self._turned:
            return
        thread = LaneThread("procbus-schedules", self._run)
        self._thread = thread
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending
            self._thread = None
            raise BusClosed("the script is ending, and no schedule can begin any more") from None

    def end(self, course: Course) -> None:
        """Cancel a schedule."""
        with self._lock:
            if self._all.get(course.name) is not course:
                return
            del self._all[course.name]
            course.due = inf
        self._forget(course)

    def _forget(self, course: Course) -> None:
        """Have the journal forget a schedule, so that later ticks do not count as missed."""
        journal = self._dispatcher.journal
        if journal is not None:
            with suppress(JournalError):
                journal.note_tick(journal.tick(course.name, course.ticks.written, 0.0))

    def stop(self) -> None:
        """End all schedules, because the bus is closing. Idempotent."""
        with self._lock:
            self._stopped = True
            for course in self._all.values():
                course.due = inf
            self._all.clear()
        self._bell.ring()

    def join(self) -> None:
        """Wait for the end of the thread, unless code of the user's holds it up."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_S)

    # Ticking.

    def due_at(self) -> float:
        """The time of the next tick, by the clock that cannot be set; infinite if there is none."""
        with self._lock:
            return min((self._due_of(each) for each in self._all.values()), default=inf)

    def next_at(self, course: Course) -> float:
        """The next tick of a schedule, as of `time.time()`; infinite once it has ended."""
        due = course.due
        if course.ticks.by_wall:
            return due
        return self._clocks.wall() + (due - self._clocks.now())

    def _due_of(self, course: Course) -> float:
        due = course.due
        if course.ticks.by_wall:
            return self._clocks.now() + (due - self._clocks.wall())
        return due

    def _time_of(self, ticks: Ticks) -> float:
        return self._clocks.wall() if ticks.by_wall else self._clocks.now()

    def let_pass(self, now: float) -> None:
        """Publish the events that are due by then, the earliest first."""
        with self._lock:
            due = [(self._due_of(each), each) for each in self._all.values()]
        for due_at, course in sorted(due, key=lambda pair: pair[0]):
            if due_at <= now and not self._stopped:
                self._tick(course)

    def _run(self) -> None:
        while not self._stopped:
            self.let_pass(self._clocks.now())
            longest_s = _LONG_S
            with self._lock:
                if any(each.ticks.by_wall for each in self._all.values()):
                    longest_s = _LOOK_S
            self._bell.wait(max(0.0, min(longest_s, self.due_at() - self._clocks.now())))

    def _tick(self, course: Course) -> None:
        ticks = course.ticks
        with self._lock:
            due, now = course.due, self._time_of(ticks)
            if due == inf:  # cancelled meanwhile
                return
            course.due = ticks.after(due, now)
            at = self._clocks.wall() - max(0.0, now - ticks.latest(due, now))
            course.last = at
        journal = self._dispatcher.journal
        record = b"" if journal is None else journal.tick(course.name, course.ticks.written, at)
        try:
            receipt = course.receipt
            if receipt is None or receipt.done:
                course.receipt = Context().run(self._publish, course, record)
                course.published += 1
                course.fails = False
            else:
                self._skip(course, record)
        except BusClosed:
            self.stop()
        except Exception as error:  # noqa: BLE001 - the other schedules must go on
            course.skipped += 1
            if not course.fails:
                course.fails = True
                log.error(
                    "the schedule %r could not publish (logged once, until it can): %s",
                    course.name,
                    error,
                )
        if course.due == inf and not self._stopped:
            self._forget(course)  # the schedule was cancelled before the tick was written

    def _publish(self, course: Course, record: bytes) -> Receipt:
        return self._dispatcher.publish_tick(course.event, course.topic, record)

    def _skip(self, course: Course, record: bytes) -> None:
        course.skipped += 1
        if self._dispatcher.journal is not None:
            self._dispatcher.journal.note_tick(record)
        if not course.told:
            course.told = True
            log.warning(
                "the schedule %r left out a tick: its last event is not settled yet (logged once). "
                "If the handlers often take longer than the interval, give every() a longer one",
                course.name,
            )


def check_name(name: object) -> None:
    """Refuse an object that cannot be the name of a schedule.

    Raises:
        OptionError: the object is no string, or the string cannot be written.
    """
    if name is not None and (not isinstance(name, str) or not name.isprintable() or not name):
        raise OptionError(f"name must be a string of printable characters, not {shown(name)}")
