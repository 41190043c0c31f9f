# SPDX-License-Identifier: MIT
"""The handlers of a journal: each has a number there, by its name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from procbus.core.errors import JournalError
from procbus.core.handler import Handler, Kind
from procbus.journal.storage.records import MOST_HANDLERS, pack_handler


class HandlerNames:
    """Numbers of handlers. Thread-safe.

    `_lock` belongs to this object and guards the giving of numbers; it is held while that is
    written to the intake, which may wait for room there.

    Args:
        known: number, kind and name of those in the database.
        write: writes records.

    Attributes:
        numbers: by name; only ever more, each written with the lock.
    """

    def __init__(
        self, known: Iterable[tuple[int, str, str]], write: Callable[[bytes], object]
    ) -> None:
        self._lock = threading.Lock()
        self._write = write
        self.numbers: dict[str, int] = {}
        self._named: dict[int, tuple[str, Kind]] = {}
        for number, kind, name in known:
            self._named[number] = name, "cpu" if kind == "cpu" else "io"
            self.numbers[name] = number

    def number_of(self, handler: Handler) -> int:
        """The number of a handler; it gets one if it has none.

        Raises:
            JournalError: there are no more.
        """
        number = self.numbers.get(handler.name)
        if number is not None:
            return number
        with self._lock:
            number = self.numbers.get(handler.name)
            if number is None:
                number = max(self._named, default=0) + 1
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
                self._write(record)
                self._named[number] = handler.name, handler.kind
                self.numbers[handler.name] = number
        return number

    def restated(self) -> bytes:
        """Lay out the records of all numbers once more."""
        named = list(self._named.items())
        return b"".join(pack_handler(number, kind, name) for number, (name, kind) in named)

    def name_of(self, delivery: int) -> str:
        """The name of the handler of a delivery, by the delivery's number."""
        return self._of(delivery)[0]

    def kind_of(self, delivery: int) -> Kind:
        """The kind of the handler of a delivery, by the delivery's number."""
        return self._of(delivery)[1]

    def _of(self, delivery: int) -> tuple[str, Kind]:
        number = delivery & MOST_HANDLERS
        return self._named.get(number) or (name_of_nameless(number), "io")


def name_of_nameless(number: int) -> str:
    """The name that a handler gets whose own is lost from the journal."""
    return f"unknown-{number}"
