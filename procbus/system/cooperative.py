# SPDX-License-Identifier: MIT
"""Several pieces of work that mostly wait, done in turn by one thread.

Each piece is a generator that yields where it waits. So each reads as if it were alone, and all of
them together take as long as the longest, with no thread for each.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import TypeVar

#: How long all of them wait between two turns, in seconds.
TURN_S = 0.001

Result = TypeVar("Result")
#: A piece of work; it yields where it waits for something that it looks for again and again.
Steps = Generator[None, None, Result]


def in_turn(pieces: Sequence[Steps[Result]]) -> list[Result | None]:
    """Do all of them, each to its next wait in each turn; give what each returned.

    One that raises keeps none of the others from its end.

    Raises:
        ExceptionGroup: some of them raised; with all that they raised.
    """
    results: list[Result | None] = [None] * len(pieces)
    errors: list[Exception] = []
    left = dict(enumerate(pieces))
    while left:
        for number, piece in list(left.items()):
            try:
                next(piece)
            except StopIteration as end:
                results[number] = end.value
                del left[number]
            except Exception as error:  # noqa: BLE001 - raised below
                errors.append(error)
                del left[number]
        if left:
            time.sleep(TURN_S)
    if errors:
        raise ExceptionGroup("work done in turn failed", errors)
    return results
