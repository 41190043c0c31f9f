# SPDX-License-Identifier: MIT
"""The handlers of a journal: each name has a number."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

from procbus.core.errors import JournalError
from procbus.core.handler import Handler, Kind
from procbus.journal.storage.records import MOST_HANDLERS, pack_handler


class HandlerNames:
    """Numbers of handlers. Thread-safe without a lock, since writing one may wait for room.

    Each operation on the dicts is atomic. Two threads may write the same number for a name.

    Args:
        known: number, kind and name of the handlers in the database.
        write: writes records.

    Attributes:
        numbers: numbers by name that are written; it only grows.
    """

    def __init__(
        self, known: Iterable[tuple[int, str, str]], write: Callable[[bytes], object]
    ) -> None:
        self._write = write
        self.numbers: dict[str, int] = {}
        self._named: dict[int, tuple[str, Kind]] = {}
        for number, kind, name in known:
            self._named[number] = name, "cpu" if kind == "cpu" else "io"
            self.numbers[name] = number
        #: Numbers by name, from the moment that the number is given.
        self._given = dict(self.numbers)
        self._next = itertools.count(max(self._named, default=0) + 1).__next__

    def number_of(self, handler: Handler) -> int:
        """Return the number of a handler; a new one if it has none.

        Raises:
            JournalError: there are no numbers left.
        """
        number = self.numbers.get(handler.name)
        if number is not None:
            return number
        number = self._given.get(handler.name) or self._given.setdefault(handler.name, self._next())
        if number > MOST_HANDLERS:
            raise JournalError(
                f"the journal has seen {MOST_HANDLERS:,} names of handlers: begin a new "
                "one, and give handlers names that stay the same"
            )
        try:
            record = pack_handler(number, handler.kind, handler.name)
        except UnicodeEncodeError as error:
            raise JournalError(
                f"the name of a handler cannot be written to the journal: {error}"
            ) from error
        self._named[number] = handler.name, handler.kind
        self._write(record)
        self.numbers[handler.name] = number
        return number

    def restated(self) -> bytes:
        """Make the records of all names again, for a new use of a half of the intake."""
        named = list(self._named.items())
        return b"".join(pack_handler(number, kind, name) for number, (name, kind) in named)

    def name_of(self, delivery: int) -> str:
        """Return the name of the handler of a delivery, by the delivery's number."""
        return self._of(delivery)[0]

    def kind_of(self, delivery: int) -> Kind:
        """Return the kind of the handler of a delivery, by the delivery's number."""
        return self._of(delivery)[1]

    def _of(self, delivery: int) -> tuple[str, Kind]:
        number = delivery & MOST_HANDLERS
        return self._named.get(number) or (name_of_nameless(number), "io")


def name_of_nameless(number: int) -> str:
    """Return a name for a handler whose own name the journal has lost."""
    return f"unknown-{number}"
