# SPDX-License-Identifier: MIT
"""The bound on the pending deliveries of a bus, and the line of publishers that wait for room.

Publishers wait while the bus is full. Handlers do not wait, because they would wait for each other.
"""

from __future__ import annotations

import inspect
import threading
from collections import deque
from collections.abc import Callable
from math import inf
from time import monotonic
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Literal, TypeVar

from procbus.core.errors import BusClosed, QueueFull
from procbus.core.locks import (
    LOOK_UP_S,
    Bell,
    Lock,
    Tangled,
    acquire,
    catch_up,
    check_may_wait,
    holding,
    later,
)
from procbus.system import exit_hooks

if TYPE_CHECKING:
    from procbus.core.receipt import Receipt

OnFull = Literal["block", "raise"]

#: A number above that of any pending deliveries.
_ANY = 1 << 62

#: Maximum number of pending deliveries when a handler publishes, as a multiple of `max_pending`;
#: because a handler that waits for room could deadlock the bus. Above this maximum a handler gets
#: QueueFull too.
AVALANCHE = 10

#: Maximum time for which a publisher that found room again waits for more room, in seconds; because
#: otherwise it would be woken for a few events at a time.
ROOM_GATHER_S = 0.005


#: Maximum of deliveries that may enter, or leave, between two looks at the number of pending ones.
#: Below 257, for whose numbers Python has one object each: without a GIL it costs as much as the
#: rest of `enter` if one thread frees a number that another has made.
BETWEEN_LOOKS = 128

#: A number so far below that of any pending deliveries that `leave` looks as rarely as it may.
_NEVER = -BETWEEN_LOOKS

#: Prefixes of the names of threads that make room: they settle deliveries, or other threads wait
#: for them.
MAKE_ROOM = (
    "procbus-companion-",
    "procbus-io-",
    "procbus-loop",
    "procbus-supervisor",
    "procbus-later",
)


#: Code of the functions that have entered deliveries before these are in their lane.
_holders: set[CodeType] = set()

_Function = TypeVar("_Function")


def holds_room(function: _Function) -> _Function:
    """Mark a function that enters deliveries before it puts them into their lane.

    A signal handler or a `__del__` that interrupts the function must not wait for room. It would
    wait for those deliveries, which the interrupted function still has to queue.
    """
    assert isinstance(function, FunctionType)
    _holders.add(function.__code__)
    return function


def _holders_under_way() -> int:
    """Number of marked functions that this thread is in. Two that call each other count as one."""
    found, held = 0, False
    frame = inspect.currentframe()
    while frame is not None:
        holds = frame.f_code in _holders
        found += holds and not held
        held = holds
        frame = frame.f_back
    return found


class Disturbed(Exception):
    """Raised in a publisher that waits for room and has to check again whether it may publish."""


class PlaceInLine:
    """A place in the line for room. Guarded by the lock of the admission."""

    __slots__ = ("call", "called", "count", "granted", "is_thread")

    def __init__(self, count: int, call: Callable[[], object], is_thread: bool) -> None:
        self.count = count
        self.call = call
        self.is_thread = is_thread
        #: Whether the place has left the line; and whether its deliveries are counted in.
        self.called = False
        self.granted = False


class Admission:
    """Counts pending deliveries. Thread-safe.

    The lock `_lock` guards all fields but `when_full`. No call blocks while it is held.

    `enter` and `leave` count in two small numbers, until they have to look closer. The number of
    pending deliveries follows from these: it is `_granted - _allowed - _gone`.

    Publishers that wait for room stand in one line, the first come first. When there is room, as
    many are called as fit. A task of an event loop gets its room when it is called; a thread takes
    its room afterwards.

    Attributes:
        when_full: called, without the lock, when a publisher begins to wait for room. Then events
            of batch handlers stop waiting for their batch to fill, because this publisher cannot
            publish the missing events. Set once, when the bus is made.
    """

    def __init__(self, max_pending: int, on_full: OnFull) -> None:
        self.max_pending = max_pending
        self.when_full: Callable[[], object] = _nothing
        self._on_full = on_full
        self._lock = Lock()
        self._try_lock = self._lock.acquire
        self._unlock = self._lock.release
        self._low_water = max_pending - max_pending // 8
        #: Number of deliveries that were allowed to enter, without the ones that had left at the
        #: last look of `leave`.
        self._granted = 0
        #: How many of these have not entered yet: from 0 on `enter` looks closer. Below 0 if an
        #: event with several deliveries got in.
        self._allowed = 0
        #: Number of deliveries that have left since that look; and the number from which on `leave`
        #: looks again.
        self._gone = 0
        self._look_at = BETWEEN_LOOKS
        self._line: deque[PlaceInLine] = deque()
        #: Number of threads that were called and have not entered yet.
        self._called = 0
        #: Threads that gather room, called when pending falls to `_low_water`; and threads that
        #: wait until nothing is pending.
        self._gathering: list[Bell] = []
        self._draining: list[Bell] = []
        #: Number of pending deliveries that a thread waits for: `_ANY` in line, `_low_water`, or 0;
        #: and `_NEVER` while none waits.
        self._awaited = _NEVER
        self._refusing = False
        #: Number of calls of `disturb`.
        self._disturbed = 0
        #: Number of pending deliveries from which on publishers wait: `max_pending`, or 0 when
        #: refusing.
        self._limit = max_pending

    @property
    def pending(self) -> int:
        """Deliveries published and not yet settled."""
        with self._lock:
            return self._granted - self._allowed - self._gone

    @property
    def room(self) -> int:
        """Number of deliveries that would fill the bus, but one at least."""
        return max(1, self.max_pending - self.pending)

    @property
    def disturbed(self) -> int:
        """Number of calls of `disturb`."""
        return self._disturbed

    @property
    def blocked(self) -> int:
        """Number of threads and tasks in line."""
        return len(self._line)

    def enter(self, count: int, nested: bool, seen: int = 0, patient: bool = False) -> None:
        """Count new deliveries in, after waiting for room if necessary.

        Args:
            count: number of deliveries.
            nested: whether a handler publishes them: then it never waits.
            seen: the value of `disturbed` before the caller checked that it may publish.
            patient: whether to wait even if the bus was made with `on_full="raise"`.

        Raises:
            QueueFull: no room, and waiting is not wanted or not possible.
            BusClosed: the bus was closed, before or while waiting.
            Disturbed: it would have to wait, and `disturb` was called meanwhile or before.
        """
        entered = False
        try:
            if not self._try_lock(False):
                acquire(self._lock)
            if self._allowed <= 0:
                self._locked_look_closer(count, nested, seen, patient)
            self._allowed -= count
            entered = True
            self._unlock()
        except BaseException:  # Ctrl-C may come while the lock is being taken or released
            if entered:
                self.leave(count)
            elif self._lock.owned():
                self._unlock()
            raise

    def ask(self, count: int, when_room: Callable[[], object]) -> PlaceInLine | None:
        """Count deliveries in if there is room; otherwise return a new place in line.

        `when_room` is called once the place has its room, or has to check again: see `granted`.
        It must not raise.

        Raises:
            QueueFull: no room, and the bus was made with `on_full="raise"`.
            BusClosed: the bus was closed.
        """
        with self._lock:
            if self._refusing:
                raise _closed()
            if not count or self._granted - self._allowed - self._gone < self.max_pending:
                self._allowed -= count
                return None
            if self._on_full == "raise":
                raise QueueFull(self._full())
            place = PlaceInLine(count, when_room, False)
            self._awaited, self._look_at = _ANY, 1
            self._line.append(place)
        self.when_full()
        return place

    def give_up(self, place: PlaceInLine) -> None:
        """Leave the line, and return granted room."""
        with self._lock:
            granted, place.granted = place.granted, False
            if not place.called:
                place.called = True
                self._line.remove(place)
        if granted:
            self.leave(place.count)

    def leave(self, count: int) -> None:
        """Count settled deliveries out."""
        calls: list[PlaceInLine] | None = None
        left = False
        try:
            if not self._try_lock(False):
                acquire(self._lock)
            self._gone += count
            left = True
            if self._gone >= self._look_at:
                calls = self._locked_call()
        except Tangled:
            later(self.leave, count)
            return
        except BaseException:  # Ctrl-C
            if not self._lock.owned():
                acquire(self._lock)
            if not left:
                self._gone += count
            self._unlock()
            raise
        self._unlock()
        if calls:
            for place in calls:
                place.call()

    def wait_empty(self, timeout: float | None) -> bool:
        """Wait until nothing is pending; return whether that happened within `timeout` seconds."""
        check_may_wait(interrupts=_holders_under_way() > 0)
        catch_up()
        deadline = inf if timeout is None else monotonic() + timeout
        bell = Bell()
        with self._lock:
            self._draining.append(bell)
            self._locked_note()
        try:
            while self.pending and (left_s := deadline - monotonic()) > 0:
                bell.wait(min(left_s, LOOK_UP_S))
                catch_up()
            return not self.pending
        finally:
            with self._lock:
                self._draining.remove(bell)
                self._locked_note()

    def disturb(self) -> None:
        """Have waiting publishers check again whether they may publish."""
        with self._lock:
            self._disturbed += 1
            calls = self._locked_call_all()
        for place in calls:
            place.call()

    def refuse(self) -> None:
        """Refuse further events from outside handlers; release waiting publishers. Idempotent."""
        with self._lock:
            self._refusing = True
            self._limit = 0
            self._granted -= self._allowed
            self._allowed = 0
            calls = self._locked_call_all()
        for place in calls:
            place.call()

    # Called under the lock. The number of pending deliveries is written out where no call, after
    # which others might run, may come between a look at it and its consequence.

    def _locked_call(self) -> list[PlaceInLine]:
        """Call as many waiting publishers as there is room for.

        Returns:
            Places of tasks, to be called without the lock.
        """
        if self._granted - self._allowed - self._gone == 0:
            for bell in self._draining:
                bell.ring()
        calls: list[PlaceInLine] = []
        while (
            self._line
            and self._granted - self._allowed - self._gone + self._called < self.max_pending
        ):
            place = self._line.popleft()
            place.called = True
            if place.is_thread:
                self._called += 1
                place.call()
            else:
                self._allowed -= place.count
                place.granted = True
                calls.append(place)
        if self._granted - self._allowed - self._gone <= self._low_water:
            for bell in self._gathering:
                bell.ring()
        self._locked_note()
        return calls

    def _locked_call_all(self) -> list[PlaceInLine]:
        """Call all waiting publishers, with or without room."""
        calls: list[PlaceInLine] = []
        while self._line:
            place = self._line.popleft()
            place.called = True
            if place.is_thread:
                self._called += 1
                place.call()
            else:
                calls.append(place)
        for bell in self._gathering:
            bell.ring()
        return calls

    def _locked_note(self) -> None:
        """Note how many deliveries may leave before `leave` has to look again."""
        # No call, after which others might run.
        if self._line:
            self._awaited = _ANY
        elif self._gathering:
            self._awaited = self._low_water
        else:
            self._awaited = 0 if self._draining else _NEVER
        self._granted -= self._gone
        self._gone = 0
        # At least as many leave before the awaited number is reached: more may enter meanwhile.
        above = self._granted - self._allowed - self._awaited
        self._look_at = 1 if above < 1 else above if above < BETWEEN_LOOKS else BETWEEN_LOOKS

    def _locked_look_closer(self, count: int, nested: bool, seen: int, patient: bool) -> None:
        """Check whether deliveries may enter, after a wait for room; and allow some more."""
        if self._granted - self._allowed - self._gone >= self._limit:
            if nested:
                self._check_nested()
            else:
                self._locked_wait_for_room(count, seen, patient)
        # No call, after which others might run.
        room = self._limit - (self._granted - self._allowed - self._gone)
        allowed = 0 if room < 0 else room if room < BETWEEN_LOOKS else BETWEEN_LOOKS
        self._granted += allowed - self._allowed
        self._allowed = allowed

    def _locked_wait_for_room(self, count: int, seen: int, patient: bool) -> None:
        asked = again = False
        while (
            count
            and self._granted - self._allowed - self._gone >= self.max_pending
            and not self._refusing
        ):
            if self._disturbed != seen:
                raise Disturbed
            if self._on_full == "raise" and not patient:
                raise QueueFull(self._full())
            if not asked:
                if self._must_not_wait():
                    self._check_nested()
                    return
                asked = True  # there may be room by now
            else:
                self._locked_stand_in_line(count, again)
                again = True
        if self._refusing:
            raise _closed()

    def _must_not_wait(self) -> bool:
        """Whether this thread makes the room itself, or was interrupted while it held it or a lock.

        The garbage collector may run a `__del__` that publishes in any thread.
        """
        self._unlock()
        try:
            must_not = (
                holding()
                or threading.current_thread().name.startswith(MAKE_ROOM)
                or _holders_under_way() > 1
            )
            if not must_not:
                self.when_full()
            return must_not
        finally:
            acquire(self._lock)

    def _locked_stand_in_line(self, count: int, again: bool) -> None:
        bell = Bell()
        place = PlaceInLine(count, bell.ring, True)
        self._awaited, self._look_at = _ANY, 1
        if again:  # other publishers were quicker
            self._line.appendleft(place)
        else:
            self._line.append(place)
        try:
            self._unlock()
            try:
                while not bell.wait(LOOK_UP_S):
                    pass
            finally:
                acquire(self._lock)
            pending = self._granted - self._allowed - self._gone
            if pending > self._low_water and not self._refusing:
                self._locked_gather()
        except BaseException:  # Ctrl-C: the next in line may have the room
            self._locked_step_out(place)
            for each in self._locked_call():
                each.call()
            raise
        self._locked_step_out(place)

    def _locked_step_out(self, place: PlaceInLine) -> None:
        if place.called:
            self._called -= 1
        else:
            place.called = True
            self._line.remove(place)

    def _locked_gather(self) -> None:
        bell = Bell()
        self._gathering.append(bell)
        self._locked_note()
        try:
            self._unlock()
            try:
                bell.wait(ROOM_GATHER_S)
            finally:
                acquire(self._lock)
        finally:
            self._gathering.remove(bell)

    def _check_nested(self) -> None:
        pending = self._granted - self._allowed - self._gone
        if self._refusing and not pending:
            # A thread or task that a handler left behind publishes: no handler is running any more.
            raise _closed()
        full = pending >= self.max_pending
        if full and (self._on_full == "raise" or pending >= AVALANCHE * self.max_pending):
            raise QueueFull(self._full_nested())

    def _full_nested(self) -> str:
        bound = (
            'up to max_pending, because of on_full="raise"'
            if self._on_full == "raise"
            else f"up to {AVALANCHE} times max_pending"
        )
        return (
            f"{self.pending} deliveries are pending (max_pending={self.max_pending}): a handler "
            f"never waits for room, and may fill the bus {bound}. In an io handler "
            "iterate bus.stream(...) (in an async one bus.astream(...)); otherwise publish "
            "fewer events, or raise max_pending"
        )

    def _full(self) -> str:
        return (
            f"{self.pending} deliveries are pending (max_pending={self.max_pending}): publish "
            'more slowly, raise max_pending, or use on_full="block" or bus.stream()'
        )


class Reserved:
    """An event that waits for room on the bus, or has its room and is about to be published."""

    def __init__(
        self,
        admission: Admission,
        place: PlaceInLine,
        deliver: Callable[[], Receipt],
        dropped: Callable[[], object],
    ) -> None:
        self._admission = admission
        self._place = place
        self._deliver = deliver
        self._dropped = dropped

    def publish(self) -> Receipt | None:
        """Publish the event; None if it got no room, so that it must be tried again."""
        if not self._place.granted:
            self.give_up()
            return None
        self._place.granted = False
        return self._deliver()

    def give_up(self) -> None:
        """Drop the event, because it need not be published any more."""
        self._admission.give_up(self._place)
        self._dropped()


def _nothing() -> None:
    """Stand in for `when_full` until the bus is made."""


_CLOSED = "the bus is closed and takes no more events: publish before close(), or make a new bus"
_ENDED = (
    "the bus takes no more events because the script has ended: publish before that, and not in a "
    "hook of atexit or in a thread that outlives the script"
)


def _closed() -> BusClosed:
    return BusClosed(_ENDED if exit_hooks.ending else _CLOSED)
