# SPDX-License-Identifier: MIT
"""What `bus.dead_letters` gives: dead letters to look at, filter, replay, save and load."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from os import PathLike
from typing import TYPE_CHECKING, Any, Self, SupportsIndex, overload

from procbus.letter import DeadLetter
from procbus.topic import check_pattern, matches

if TYPE_CHECKING:
    from procbus.dead_letters import DeadLetterBox
    from procbus.receipt import Receipt


class DeadLetters(tuple[DeadLetter, ...]):
    """What failed for good, oldest first, as it was when you asked. Use it from any thread.

    A tuple, which never changes; its methods work on the bus that it came from.
    """

    _box: DeadLetterBox

    def __new__(cls, letters: Iterable[DeadLetter], box: DeadLetterBox) -> Self:
        """Make them of letters, and of the box that has them."""
        made = super().__new__(cls, letters)
        made._box = box
        return made

    @overload
    def __getitem__(self, index: SupportsIndex) -> DeadLetter: ...

    @overload
    def __getitem__(self, index: slice) -> DeadLetters: ...

    def __getitem__(self, index: SupportsIndex | slice) -> DeadLetter | DeadLetters:
        """One letter, or those of a slice."""
        if isinstance(index, slice):
            return DeadLetters(super().__getitem__(index), self._box)
        return super().__getitem__(index)

    def __reduce__(self) -> tuple[type, tuple[list[DeadLetter]]]:
        """Travel and copy as a plain tuple: the bus stays where it is."""
        return tuple, (list(self),)

    def filter(
        self,
        *,
        handler: str | Callable[..., Any] | None = None,
        error: type[BaseException] | None = None,
        topic: str | None = None,
        where: Callable[[DeadLetter], bool] | None = None,
    ) -> DeadLetters:
        """Give those letters that all of the conditions hold for.

        Args:
            handler: the name of a handler, or its function.
            error: class of the last attempt's error, or a base of it.
            topic: what the event was published to, or its `event_type`; `*` and `#` stand for
                words, as in a subscription.
            where: of a letter, whether to take it.

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
        """Run events again, each for the one handler that failed, and take them off the bus.

        It publishes, and so waits while the bus is full. A letter that was replayed before runs
        once more if it is given again.

        Args:
            letter: the one to replay; None replays all that are in here.

        Returns:
            The new receipt of that letter, or of each.

        Raises:
            NoSuchHandler: a handler is not subscribed any more. Nothing was replayed.
            ProcbusError: several handlers have that name. Nothing was replayed.
            BusClosed: the bus was closed. What was not replayed stays on the bus.
            QueueFull: the bus is full and may not wait. What was not replayed stays on the bus.
        """
        if letter is None:
            return self._box.replay(self)
        return self._box.replay((letter,))[0]

    def save(self, path: str | PathLike[str]) -> int:
        """Write these letters to a file, which only you may read or write; say how many.

        They stay on the bus: `clear` takes them off. A file that is there already is replaced,
        at once and as a whole.

        Raises:
            SerializationError: an event cannot be pickled. Nothing was written.
            OSError: the file cannot be written.
        """
        from procbus.letter_file import save_letters  # only now: it imports cloudpickle

        save_letters(path, self)
        return len(self)

    def load(self, path: str | PathLike[str]) -> DeadLetters:
        """Put the letters of a file on the bus, ahead of those that it has, and return them.

        The file holds pickles, which can run any code: load only what you saved. A file is
        refused where others may have written it.

        Raises:
            ProcbusError: the file is not safe or not sound. Nothing was loaded.
            OSError: the file cannot be read.
        """
        from procbus.letter_file import load_letters  # only now: it imports cloudpickle

        letters = DeadLetters(load_letters(path), self._box)
        self._box.put_back(letters)
        return letters

    def clear(self) -> None:
        """Take these letters off the bus. What failed since stays."""
        self._box.remove(self)


def _is_of_topic(letter: DeadLetter, pattern: str) -> bool:
    topic = letter.topic
    if topic is None:
        topic = getattr(letter.event, "event_type", None)
    return isinstance(topic, str) and matches(pattern, topic)
