# SPDX-License-Identifier: MIT
"""The box of one bus for its dead letters: bounded, and the place to replay them from."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol, Self, SupportsIndex, overload

from procbus.core.context import HandlerContext, running
from procbus.core.dead_letter import DeadLetter
from procbus.core.dead_letter import letter_of as letter_of
from procbus.core.errors import NoSuchHandler, ProcbusError
from procbus.core.introspection import name_of, same_function
from procbus.core.locks import Lock, in_main_thread
from procbus.core.log import log
from procbus.core.moments import Settled
from procbus.core.topic import check_pattern, matches
from procbus.routing.router import Router

if TYPE_CHECKING:
    from procbus.core.delivery import Delivery
    from procbus.core.handler import Handler
    from procbus.core.receipt import Receipt


# The value of `bus.dead_letters`: dead letters that you can inspect, filter, replay, save and load.


class DeadLetters(tuple[DeadLetter, ...]):
    """The dead letters of a bus when you read `bus.dead_letters`, oldest first. Thread-safe.

    This is a tuple, which never changes. Its methods work on the bus that it came from.

    Example:
        ```python
        from json import loads

        from procbus import EventBus

        with EventBus(handlers=[]) as bus:
            bus.subscribe("number", loads)
            bus.publish("number", "seven").wait()
            for letter in bus.dead_letters.filter(handler=loads):
                print(letter)
            bus.dead_letters.clear()
        ```
    """

    _box: DeadLetterBox

    def __new__(cls, letters: Iterable[DeadLetter], box: DeadLetterBox) -> Self:
        """Make the tuple from letters, and from the box that has them."""
        made = super().__new__(cls, letters)
        made._box = box
        return made

    @overload
    def __getitem__(self, index: SupportsIndex) -> DeadLetter: ...

    @overload
    def __getitem__(self, index: slice) -> DeadLetters: ...

    def __getitem__(self, index: SupportsIndex | slice) -> DeadLetter | DeadLetters:
        """One letter, or the letters of a slice."""
        if isinstance(index, slice):
            return DeadLetters(super().__getitem__(index), self._box)
        return super().__getitem__(index)

    def __reduce__(self) -> tuple[type, tuple[list[DeadLetter]]]:
        """Pickle and copy as a plain tuple: the bus stays where it is."""
        return tuple, (list(self),)

    def filter(
        self,
        *,
        handler: str | Callable[..., Any] | None = None,
        error: type[BaseException] | None = None,
        topic: str | None = None,
        where: Callable[[DeadLetter], bool] | None = None,
    ) -> DeadLetters:
        """Return the letters that meet all of the conditions.

        Args:
            handler: the name of a handler, or its function.
            error: class of the last attempt's error, or a base class of that class.
            topic: the topic of the event, or its `event_type`; `*` and `#` are wildcards, as in a
                subscription.
            where: a function of a letter that returns whether to take the letter.

        Raises:
            TopicError: `topic` is malformed.
        """
        names = None if handler is None else self._box.names_of(handler)
        if topic is not None:
            check_pattern(topic)
        return DeadLetters(
            (
                letter
                for letter in self
                if (names is None or letter.handler in names)
                and (error is None or isinstance(letter.error, error))
                and (topic is None or _is_of_topic(letter, topic))
                and (where is None or where(letter))
            ),
            self._box,
        )

    @overload
    def replay(self) -> list[Receipt]: ...

    @overload
    def replay(self, letter: DeadLetter) -> Receipt: ...

    def replay(self, letter: DeadLetter | None = None) -> list[Receipt] | Receipt:
        """Run each letter's event again, for the handler that failed, and remove the letter.

        This call publishes, so it waits while the bus is full. A letter that you pass a second time
        runs a second time.

        Args:
            letter: the letter to replay; None replays all letters of this tuple.

        Returns:
            The new receipt of the letter, or of each letter.

        Raises:
            NoSuchHandler: a handler is no longer subscribed. Nothing was replayed.
            ProcbusError: several handlers have the same name. Nothing was replayed.
            BusClosed: the bus was closed. Letters not yet replayed stay on the bus.
            QueueFull: the bus is full and may not wait. Letters not yet replayed stay on the bus.
        """
        if letter is None:
            return self._box.replay(self)
        return self._box.replay((letter,))[0]

    def save(self, path: str | PathLike[str]) -> int:
        """Write these letters to a file that only you may read or write; return their number.

        They stay on the bus: `clear` removes them. An existing file is replaced, at once and as a
        whole.

        Raises:
            SerializationError: an event cannot be pickled. Nothing was written.
            OSError: the file cannot be written.
        """
        self._box.files.save(path, self)
        return len(self)

    def load(self, path: str | PathLike[str]) -> DeadLetters:
        """Put the letters of a file on the bus, before its present letters, and return them.

        The file holds pickles, which can run any code: load only files that you saved. A file that
        other users may have written is refused.

        Raises:
            ProcbusError: the file is unsafe or damaged. Nothing was loaded.
            OSError: the file cannot be read.
        """
        letters = DeadLetters(self._box.files.load(path), self._box)
        self._box.put_back(letters)
        return letters

    def clear(self) -> None:
        """Remove these letters from the bus. Letters of later failures stay."""
        self._box.remove(self)


def _is_of_topic(letter: DeadLetter, pattern: str) -> bool:
    topic = letter.topic
    if topic is None:
        topic = getattr(letter.event, "event_type", None)
    return isinstance(topic, str) and matches(pattern, topic)


class LetterFiles(Protocol):
    """Writes dead letters to files and reads them; see `DeadLetters.save` and `load`."""

    def save(self, path: str | PathLike[str], letters: Sequence[DeadLetter]) -> None:
        """Write letters to a file."""

    def load(self, path: str | PathLike[str]) -> list[DeadLetter]:
        """Read the letters of a file."""


#: Maximum number of letters that are kept. The newest ones are kept; older letters are only
#: counted.
MOST_KEPT = 1_000


class DeadLetterBox:
    """The newest dead letters of one bus. Thread-safe.

    Args:
        lock: the settlement's lock, which guards all fields.

    Attributes:
        redeliver: publishes the event of a letter again, for its handler alone; set once, when the
            bus is made.
        files: saves and loads letters; set once, when the bus is made.
        handlers: returns the subscribed handlers; set once, when the bus is made.
        removed: called with letters that were removed; set once, when the bus is made.
        dropped: number of letters that were dropped for newer ones.
        failures: number of letters that were ever added.
    """

    def __init__(self, lock: Lock) -> None:
        self._lock = lock
        self.redeliver: Callable[[DeadLetter], Receipt]
        self.files: LetterFiles
        self.handlers: Callable[[], Iterable[Handler]] = tuple
        self.removed: Callable[[Sequence[DeadLetter]], object] = len
        #: Each letter with its delivery; None for a letter from a file.
        self._kept: OrderedDict[DeadLetter, Delivery | None] = OrderedDict()
        self.dropped = 0
        self.failures = 0
        #: Dropped letters, kept until the lock is free: releasing the last reference to an event
        #: runs its `__del__`.
        self._let_go: list[DeadLetter] = []
        self._logged = False

    def __len__(self) -> int:
        """Number of letters. Reading it does not count as a look at the failures."""
        return len(self._kept)

    def add(self, letter: DeadLetter, delivery: Delivery | None = None) -> None:
        """Keep a letter, and drop the oldest one when full. Call it with the lock held."""
        self._kept[letter] = delivery
        self.failures += 1
        self._trim()

    def _trim(self) -> None:
        while len(self._kept) > MOST_KEPT:
            self._let_go.append(self._kept.popitem(last=False)[0])
            self.dropped += 1

    def tell_dropped(self) -> None:
        """Release dropped letters, and log that once. Call it without the lock, for user code."""
        if not self.dropped:
            return
        with self._lock:
            gone, self._let_go = self._let_go, []
        gone.clear()
        if self._logged:
            return
        with self._lock:
            logged, self._logged = self._logged, True
        if not logged:
            log.warning(
                "more than %s dead letters: the oldest are dropped from now on; in "
                "bus.dead_letters, save() keeps them in a file, and replay() and clear() make room",
                f"{MOST_KEPT:,}",
            )

    def newest(self, most: int) -> list[DeadLetter]:
        """The newest letters, newest first. This does not count as a look at the failures."""
        with self._lock:
            return list(islice(reversed(self._kept), most))

    def snapshot(self) -> DeadLetters:
        """The kept letters, oldest first. From now on their failures count as looked at."""
        with self._lock:
            letters = DeadLetters(self._kept, self)
            deliveries = tuple(self._kept.values())
        for delivery in deliveries:
            unseen = None if delivery is None else delivery.unseen
            if delivery is not None and unseen is not None:
                unseen.note_seen(delivery)
        return letters

    def remove(self, letters: Iterable[DeadLetter]) -> None:
        """Remove letters; ones that are not in the box are ignored."""
        letters = tuple(letters)
        with self._lock:
            for letter in letters:
                self._kept.pop(letter, None)
        self.removed(letters)

    def put_back(self, letters: Sequence[DeadLetter]) -> None:
        """Keep letters from a file as the oldest ones. A full box drops them first."""
        with self._lock:
            for letter in reversed(letters):
                self._kept[letter] = None
                self._kept.move_to_end(letter, last=False)
            self._trim()
        self.tell_dropped()

    def names_of(self, handler: str | Callable[..., Any]) -> set[str]:
        """The names of a function on this bus, and its own name. A name is returned as it is."""
        if isinstance(handler, str):
            return {handler}
        return {name_of(handler)} | {h.name for h in self.handlers() if h.function == handler}

    def replay(self, letters: Sequence[DeadLetter]) -> list[Receipt]:
        """Publish letters again, and remove each published one. See `DeadLetters.replay`."""
        handlers = tuple(self.handlers())
        for letter in letters:
            handler_for(letter, handlers)
        receipts: list[Receipt] = []
        try:
            for letter in letters:
                receipts.append(self.redeliver(letter))
                # Only now, so that a letter that could not be published is not lost.
                self.remove((letter,))
        except BaseException as error:
            error.add_note(
                f"{len(receipts)} of {len(letters)} dead letters were replayed before this; the "
                "others are still in bus.dead_letters"
            )
            raise
        return receipts


def handler_for(letter: DeadLetter, handlers: Iterable[Handler]) -> Handler:
    """Find the handler that a letter is replayed for, by its name.

    Raises:
        NoSuchHandler: there is no such handler.
        ProcbusError: several handlers have this name, and it is unknown which one failed.
    """
    named = [handler for handler in handlers if handler.name == letter.handler]
    if not named:
        raise NoSuchHandler(
            f"the dead letter of event #{letter.event_id} is for the handler {letter.handler}, "
            "which is not subscribed to this bus: subscribe it under that name, or leave the "
            "letter out with filter()"
        )
    if len(named) > 1:
        # One function may be subscribed to several topics, and lambdas share one name.
        taking = Router([(handler, handler.topics) for handler in named])
        named = list(taking.match(letter.event, letter.topic)) or named
    if not all(same_function(handler.function, named[0].function) for handler in named):
        raise ProcbusError(
            f"the dead letter of event #{letter.event_id} is for the handler {letter.handler}, but "
            f"{len(named)} handlers on this bus have that name: give each its own, with name="
        )
    return named[-1]  # the last one counts, as for an event that is published


class FailureHook:
    """The user's `on_failure` hook, as the settlement calls it.

    Args:
        hook: the user's function.
        context_of: makes the return value of `current()` in it, as in the handler.
    """

    def __init__(
        self,
        hook: Callable[[DeadLetter], object],
        context_of: Callable[[Delivery, Receipt], HandlerContext],
    ) -> None:
        self._hook = hook
        self._context_of = context_of

    def __call__(self, settled: Settled) -> None:
        """Pass a failure to the hook. This counts as a look at the failure."""
        if settled.letter is None:
            return
        delivery = settled.delivery
        # As inside the handler, so that the hook may publish and never waits for room.
        before = running.set([self._context_of, delivery, settled.receipt])
        try:
            call_hook(self._hook, settled.letter)
        finally:
            running.reset(before)
        if delivery.unseen is not None:
            delivery.unseen.note_seen(delivery)


def call_hook(hook: Callable[[DeadLetter], object], letter: DeadLetter) -> None:
    """Call the user's `on_failure` hook; log any exception that it raises, and go on."""
    try:
        hook(letter)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and in_main_thread():
            raise  # Ctrl-C, which must end the script
        log.exception("on_failure= raised for %s with event #%d", letter.handler, letter.event_id)
