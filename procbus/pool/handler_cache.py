# SPDX-License-Identifier: MIT
"""The handlers that one worker knows: each is sent once, and afterwards only named by a number."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from procbus.codec import fault_path, script_globals
from procbus.codec.encoder import encode_definition, is_importable
from procbus.core.carry import Carry
from procbus.core.frames import useful_cause
from procbus.core.handler import Handler
from procbus.core.notebook import redefined
from procbus.pool.wire import HandlerDefinition

# Encoded handlers, by number, kept until a handler is forgotten.


class Definitions:
    """Encoded handlers: shared by all workers of a pool.

    Thread-safe, as each method is one step for other threads.

    Args:
        complete: adds to an encoded handler the data that a worker needs to load it.
    """

    def __init__(self, complete: Callable[[bytes], bytes] = bytes) -> None:
        self._complete = complete
        self._by_number: dict[int, bytes] = {}
        #: Makes the function that workers run for a handler.
        self.function_of: Callable[[Handler], Callable[..., Any]] = attrgetter("call")
        #: Handlers with resources, and the number of resources that were defined anew by then.
        self._needy: dict[int, None] = {}
        self._redefined = redefined.count
        #: Number of forgotten handlers; if the number has changed, `gone` has news. Any thread may
        #: forget a handler, and writes a number that no other thread writes.
        self.forgotten = 0
        self._numbers = itertools.count(1)

    def get(self, number: int) -> bytes | None:
        """Return the encoded handler; None if it was never encoded, or is forgotten."""
        return self._by_number.get(number)

    def add(self, number: int, definition: bytes) -> bytes:
        """Keep an encoded handler; return it complete."""
        self._by_number[number] = complete = self._complete(definition)
        return complete

    def forget(self, number: int) -> None:
        """Drop a handler. If it is needed again, it is pickled and sent again."""
        self._needy.pop(number, None)
        if self._by_number.pop(number, None) is not None:
            self.forgotten = next(self._numbers)

    def note_needy(self, number: int) -> None:
        """Note that a handler has resources. It is sent again if one of them is defined anew."""
        self._needy[number] = None

    def look(self) -> None:
        """Forget the handlers with resources if a resource was defined anew."""
        if self._redefined != redefined.count:
            self._redefined = redefined.count
            for number in self._needy.copy():
                self.forget(number)

    def gone(self, known: set[int]) -> list[int]:
        """Return the numbers in `known` whose handlers are forgotten."""
        return [number for number in known if number not in self._by_number]


class KnownHandlers:
    """The parent's knowledge of one worker's handlers. This knowledge belongs to the companion.

    Args:
        definitions: encoded handlers, by number: shared by all workers of a pool.
    """

    def __init__(self, definitions: Definitions) -> None:
        self._definitions = definitions
        #: Handlers that were put into a message; and new entries for a message that is not sent
        #: yet. (A message without deliveries is never sent.) The new entries become the fields
        #: `handlers`, `forgotten` and `globals` of `BatchHead`.
        self.numbers: set[int] = set()
        self.due: list[HandlerDefinition] = []
        self.forgotten_due: list[int] = []
        #: New values of the script's globals, and the number of the newest change in a message.
        self.globals_due: list[bytes] = []
        self._changes = self._changes_due = 0
        self._forgotten = 0

    def define(self, handler: Handler) -> None:
        """Have the next message define a handler.

        Raises:
            SerializationError: the handler cannot be pickled.
        """
        definition = self._definitions.get(handler.number)
        if definition is None:
            try:
                definition = encode_definition(self._definitions.function_of(handler))
            except BaseException as error:  # noqa: BLE001 - the user's code
                fault = fault_path.handler_fault(handler.function, handler.name, error)
                raise fault from useful_cause(error)
            definition = self._definitions.add(handler.number, definition)
            if _has_resources(handler):
                self._definitions.note_needy(handler.number)
        self.numbers.add(handler.number)
        limits = handler.limits.timeout, handler.limits.max_memory
        self.due.append((handler.number, handler.name, definition, limits))

    def define_variables(self, carry: Carry) -> None:
        """Have the next message define the context variables that a bus takes along."""
        definition = self._definitions.get(carry.number)
        if definition is None:
            definition = encode_definition(carry.definition)
            self._definitions.add(carry.number, definition)
        self.numbers.add(carry.number)
        self.due.append((carry.number, "carry=", definition, (None, None)))

    def begin(self) -> list[int]:
        """Begin a message, which will contain the changed globals of the script.

        Returns:
            Handlers that are no longer needed. The message will name them.
        """
        newest = script_globals.look(encode_definition, is_importable)
        if newest != self._changes_due:
            self._changes_due = newest
            self.globals_due = script_globals.since(self._changes)
        self._definitions.look()
        if self._definitions.forgotten == self._forgotten:  # the usual case
            return []
        self._forgotten = self._definitions.forgotten
        gone = self._definitions.gone(self.numbers)
        self.numbers.difference_update(gone)
        self.due = [due for due in self.due if due[0] not in gone]
        self.forgotten_due.extend(gone)
        return gone

    def sent(self) -> None:
        """Note that the message is on its way to the worker."""
        self.due.clear()
        if self.globals_due:
            self.globals_due = []
            self._changes = self._changes_due
        self.forgotten_due.clear()


def _has_resources(handler: Handler) -> bool:
    if "procbus.core.supplied" not in sys.modules:  # no handler has any
        return False
    from procbus.core.supplied import supplied_in

    return supplied_in(handler.call) is not None
