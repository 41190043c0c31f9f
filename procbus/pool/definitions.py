# SPDX-License-Identifier: MIT
"""Handlers as pickled, by number, until they are forgotten."""

from __future__ import annotations

from collections.abc import Callable


class Definitions:
    """Handlers that were pickled before: shared by all workers of a pool.

    Thread-safe, as each method is one step for other threads.

    Args:
        complete: adds to a handler as pickled what a worker needs to load it.
    """

    def __init__(self, complete: Callable[[bytes], bytes] = bytes) -> None:
        self._complete = complete
        self._by_number: dict[int, bytes] = {}
        #: How many were forgotten: where it has changed, `gone` has something to say.
        self.forgotten = 0

    def get(self, number: int) -> bytes | None:
        """The handler as pickled; None when it was not, or is forgotten."""
        return self._by_number.get(number)

    def add(self, number: int, definition: bytes) -> bytes:
        """Keep a handler as pickled; return it complete."""
        self._by_number[number] = complete = self._complete(definition)
        return complete

    def forget(self, number: int) -> None:
        """Let go of a handler. Should it be needed again, it is pickled and sent again."""
        if self._by_number.pop(number, None) is not None:
            self.forgotten += 1

    def gone(self, known: set[int]) -> list[int]:
        """Those of `known` that are forgotten."""
        return [number for number in known if number not in self._by_number]
