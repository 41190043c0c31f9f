# SPDX-License-Identifier: MIT
"""The function that a worker runs for a chunk of `bus.map`: it calls the handler for each event.

A worker imports this module in its first call, while your script waits. So this module imports
little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from procbus.codec.batch_call import CallForMany, InPart
from procbus.core.unfinished import complete, unfinished
from procbus.core.user_objects import short_repr


class Chunk(CallForMany):
    """Calls a handler once for each event of a chunk.

    Args:
        function: the handler's function.
        name: the handler's name.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function = function
        self.name = name

    def __call__(self, events: Sequence[Any]) -> list[Any] | InPart:
        """Return the results; if the handler raises, the results so far and the exception."""
        function, values = self.function, []
        try:
            for event in events:
                value = function(event)
                if id(type(value)) not in complete and (wrong := unfinished(self.name, value)):
                    raise wrong
                values.append(value)
        except BaseException as error:  # noqa: BLE001 - raised where the results are taken
            return InPart(values, {len(values): error})
        return values

    def in_part(self, answer: Any, given: Sequence[Any]) -> InPart | None:
        """Cut the results off before the first that cannot travel, see `CallForMany.in_part`."""
        values = (answer.values or ()) if isinstance(answer, InPart) else answer
        for index, error, path in self._faults(values):
            fault = self._unsent(f"the event {short_repr(given[index])}", error, path)
            return InPart(values[:index], {index: fault})
        return None
