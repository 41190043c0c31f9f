# SPDX-License-Identifier: MIT
"""Several tasks that mostly wait, run in turn by one thread.

Each task is a generator that yields where it waits. So the code of a task reads as if the task ran
alone. All tasks together take as long as the longest one, and need only one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

#: Interval between two turns, in seconds.
TURN_S = 0.001

R = TypeVar("R")
#: A task as a generator; it yields each time it has to wait a little before it looks again.
Task = Generator[None, None, R]


def in_turn(
    pieces: Sequence[Task[R]], *, sleep: Callable[[float], object] = time.sleep
) -> list[R | None]:
    """Run all tasks, each to its next wait in each turn; return the result of each.

    An exception in one task stops none of the others.

    Args:
        pieces: the tasks.
        sleep: waits between two turns, for a time in seconds.

    Raises:
        ExceptionGroup: one or more tasks raised; it has all their exceptions.
    """
    results: list[R | None] = [None] * len(pieces)
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
            sleep(TURN_S)
    if errors:
        raise ExceptionGroup("work done in turn failed", errors)
    return results
