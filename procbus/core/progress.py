# SPDX-License-Identifier: MIT
"""How far a running handler is, by its own reports: `current().progress(done, total, note)`."""

from __future__ import annotations

import operator
from collections.abc import Callable
from math import isfinite
from typing import Any, NamedTuple

#: An amount of work done, or to be done.
Amount = int | float

#: Maximum length of a note, in bytes of UTF-8; a longer one is cut at a character.
NOTE_BYTES = 200
#: Maximum of an amount that is an int; because 8 bytes hold it.
MOST = (1 << 64) - 1

#: Checks and notes a report of a handler: done, total and note.
NoteProgress = Callable[[Amount, "Amount | None", str], object]


class Progress(NamedTuple):
    """How far a running handler is: the last report that it made with `current().progress()`.

    It prints as ``4,211 of 5,000: parsing``.

    Example:
        ```python
        from procbus import EventBus, current


        def load(rows: list[str]) -> str:
            current().progress(1, len(rows), note="parsing")
            return "done"


        with EventBus(handlers=[]) as bus:
            bus.subscribe("table", load)
            receipt = bus.publish("table", ["a", "b"])
            print(receipt.deliveries[0].progress)  # while it runs: 1 of 2: parsing
        ```
    """

    #: Amount of work done, in the unit of the handler.
    done: Amount
    #: Amount of work in all; None if the handler does not know it.
    total: Amount | None
    #: A few words of the handler: at most 200 bytes of UTF-8.
    note: str
    #: Time of the report, in seconds of `time.monotonic()`.
    at: float

    def __str__(self) -> str:
        """The report in a few words, on one line."""
        text = _amount(self.done)
        if self.total is not None:
            text += f" of {_amount(self.total)}"
        note = " ".join(self.note.split())
        return f"{text}: {note}" if note else text


def _amount(amount: Amount) -> str:
    if isinstance(amount, int):
        return f"{amount:,}"
    return f"{amount:,.0f}" if amount >= 1e5 else f"{amount:,.6g}"


def checked(done: Any, total: Any) -> tuple[Amount, Amount | None]:
    """Check the amounts of a report.

    Raises:
        TypeError: an amount is no number.
        ValueError: an amount is negative, not finite, or too large.
    """
    return _checked_amount("done", done), None if total is None else _checked_amount("total", total)


def bytes_of(note: str) -> bytes:
    """Encode a note; a long one is cut at a character.

    Raises:
        TypeError: it is no string.
    """
    if not isinstance(note, str):
        raise TypeError(
            f"current().progress(note=...) takes a string, and got a {type(note).__name__}"
        )
    words = note.encode("utf-8", "replace")
    if len(words) > NOTE_BYTES:
        words = words[:NOTE_BYTES].decode("utf-8", "ignore").encode()
    return words


def _checked_amount(name: str, amount: Any) -> Amount:
    kind = type(amount)
    if kind is not int and kind is not float:
        amount = _number(name, amount)
        kind = type(amount)
    if amount < 0 or (kind is not int and not isfinite(amount)):
        raise ValueError(
            f"current().progress({name}=...) takes an amount of 0 or more, and got {amount!r}"
        )
    if kind is int and amount > MOST:
        raise ValueError(
            f"current().progress({name}=...) takes an int below 2**64, and got {amount!r}: report "
            "in a larger unit"
        )
    return amount  # type: ignore[no-any-return]


def _number(name: str, amount: Any) -> Amount:
    """Turn a number of another type, such as numpy's, into an int or float."""
    if not isinstance(amount, str | bytes | bytearray):
        try:
            return operator.index(amount)
        except TypeError:
            pass
        try:
            return float(amount)
        except (TypeError, ValueError, OverflowError):
            pass
    raise TypeError(
        f"current().progress({name}=...) takes an int or a float, and got a {type(amount).__name__}"
    )
