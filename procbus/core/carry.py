# SPDX-License-Identifier: MIT
"""Context variables that a bus takes along to cpu handlers: `EventBus(carry=[var, ...])`.

A `contextvars.Context` cannot be pickled. So the bus reads the variables that you name when you
publish, sends their values with the event, and sets them in the worker before the handler runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import Context, ContextVar
from typing import Any

from procbus.core.handler import new_number

_UNSET = object()


class Translated:
    """A variable of the publisher whose value becomes the value of another one for the handler.

    Args:
        source: the publisher's variable.
        target: the handler's variable. In a worker it is the object that `source` unpickles to.
    """

    def __init__(self, source: ContextVar[Any], target: ContextVar[Any]) -> None:
        self.source = source
        self.target = target


class Carry:
    """The variables of one bus. Immutable.

    Args:
        variables: the variables whose values cpu handlers get.
    """

    def __init__(self, variables: Sequence[ContextVar[Any] | Translated]) -> None:
        #: Workers look the variables up by this number, as they look up a handler by its number.
        self.number = new_number()
        #: The variables travel to workers in this form, and arrive as the variables to set.
        self.definition = tuple(variables)
        #: The variables to read, and the ones to set in this process.
        self.variables = tuple([v.source if isinstance(v, Translated) else v for v in variables])
        self.targets = tuple([v.target if isinstance(v, Translated) else v for v in variables])

    def take(self, context: Context | None) -> Carried | None:
        """Read the variables in a context, or in the present one; None if none of them is set."""
        if context is None:
            values = tuple([variable.get(_UNSET) for variable in self.variables])
        else:
            values = tuple([context.get(variable, _UNSET) for variable in self.variables])
        if all(value is _UNSET for value in values):
            return None
        return Carried(self, values)


class Carried:
    """The values that the variables of a bus had when an event was published."""

    __slots__ = ("_values", "carry")

    def __init__(self, carry: Carry, values: tuple[Any, ...]) -> None:
        self.carry = carry
        self._values = values

    def pairs(self) -> list[tuple[int, Any]]:
        """The variables that are set: each one's place in `Carry.variables`, and its value."""
        return [(place, value) for place, value in enumerate(self._values) if value is not _UNSET]

    def same(self, other: Carried) -> bool:
        """Whether the values are the very same objects."""
        return self.carry is other.carry and all(
            mine is its for mine, its in zip(self._values, other._values, strict=True)
        )

    def context(self) -> Context:
        """A new context in which the variables are set, and nothing else."""
        context = Context()
        self.set_in(context)
        return context

    def set_in(self, context: Context) -> None:
        """Set the variables in a context."""
        for place, value in self.pairs():
            context.run(self.carry.targets[place].set, value)

    def exchanged(self, variable: ContextVar[Any], value: Any) -> Carried:
        """The same values, except for one variable of the publisher."""
        pairs = zip(self.carry.variables, self._values, strict=True)
        return Carried(self.carry, tuple([value if v is variable else old for v, old in pairs]))
