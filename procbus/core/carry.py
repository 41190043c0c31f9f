# SPDX-License-Identifier: MIT
"""Context variables that a bus takes along to cpu handlers: `EventBus(carry=[var, ...])`."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import Context, ContextVar
from typing import Any

from procbus.core.handler import new_number

_UNSET = object()


class Carry:
    """The variables of one bus. Immutable.

    Args:
        variables: those that cpu handlers get.
    """

    def __init__(self, variables: Sequence[ContextVar[Any]]) -> None:
        #: Workers know them by it, as they know handlers.
        self.number = new_number()
        self.variables = tuple(variables)

    def take(self, context: Context | None) -> Carried | None:
        """Take what the variables hold in a context, or in the present one; None if nothing."""
        if context is None:
            values = tuple([variable.get(_UNSET) for variable in self.variables])
        else:
            values = tuple([context.get(variable, _UNSET) for variable in self.variables])
        if all(value is _UNSET for value in values):
            return None
        return Carried(self, values)


class Carried:
    """What the variables of a bus held when an event was published."""

    __slots__ = ("_values", "carry")

    def __init__(self, carry: Carry, values: tuple[Any, ...]) -> None:
        self.carry = carry
        self._values = values

    def pairs(self) -> list[tuple[int, Any]]:
        """The variables that are set, by their place in `Carry.variables`, each with its value."""
        return [(place, value) for place, value in enumerate(self._values) if value is not _UNSET]

    def same(self, other: Carried) -> bool:
        """Whether the values are the very same objects."""
        return self.carry is other.carry and all(
            mine is its for mine, its in zip(self._values, other._values, strict=True)
        )

    def context(self) -> Context:
        """A new context in which the variables are set, and nothing else."""
        context = Context()
        for place, value in self.pairs():
            context.run(self.carry.variables[place].set, value)
        return context
