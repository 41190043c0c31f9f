# SPDX-License-Identifier: MIT
"""Results that are unfinished work: a handler returned a generator or a coroutine.

The event would seem to succeed while its work never ran. So such a result fails the delivery.
"""

from __future__ import annotations

import sys
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import TYPE_CHECKING

from procbus.core.errors import ProcbusError

if TYPE_CHECKING:
    from procbus.core.delivery import Delivery

#: Types of results known to be finished, by id, because a class may define its own hash. The
#: classes are kept alive, so that no other class gets their id.
complete: dict[int, type] = {}
_MOST_COMPLETE = 1_000


def unfinished(handler: str, value: object) -> ProcbusError | None:
    """Make the error of a handler that returned work which nothing will run; None otherwise.

    Args:
        handler: its name.
        value: its return value.
    """
    kind = type(value)
    if id(kind) in complete:
        return None
    if kind is GeneratorType or kind is AsyncGeneratorType:
        what = "an async generator" if kind is AsyncGeneratorType else "a generator"
        advice = (
            "return a list, or publish each item with current().publish. Perhaps it is a plain "
            "function round a generator function"
        )
    elif kind is CoroutineType or _waits_to_be_awaited(value):
        what = "a coroutine" if kind is CoroutineType else f"an awaitable {kind.__qualname__}"
        advice = (
            "subscribe the async function itself, or make the function round it an async def that "
            "awaits it, with kind='io'"
        )
    else:
        if len(complete) >= _MOST_COMPLETE:
            complete.clear()
        complete[id(kind)] = kind
        return None
    if isinstance(value, GeneratorType | CoroutineType):
        _close(value)
    return ProcbusError(
        f"{handler} returned {what}: its work was not done, and it cannot travel back or be run "
        f"later: {advice}"
    )


def fault_in(delivery: Delivery, value: object) -> BaseException | None:
    """Return the failure of a handler that returned unfinished work; None if its result is whole.

    A call of an executor may return such a result, as in the standard library.

    Args:
        delivery: the delivery that ran.
        value: the return value of its handler.
    """
    if value is None or delivery.subscription.answered:
        return None
    try:
        return unfinished(delivery.handler.name, value)
    except BaseException as raised:  # noqa: BLE001 - the class of the result is the user's code
        return raised


def _waits_to_be_awaited(value: object) -> bool:
    """Whether it is awaitable and does not run by itself, as a task or a receipt does."""
    kind = type(value)
    if not any("__await__" in vars(base) for base in kind.__mro__):
        return False
    # Not imported here: a worker starts faster without them, and rarely has either.
    for module, name in (("procbus.core.receipt", "Receipt"), ("asyncio", "Future")):
        known = sys.modules.get(module)
        if known is not None and issubclass(kind, getattr(known, name)):
            return False
    return True


def _close(
    value: GeneratorType[object, object, object] | CoroutineType[object, object, object],
) -> None:
    """Keep Python from warning about a coroutine that was never awaited."""
    if isinstance(value, GeneratorType):
        begun = value.gi_running or value.gi_suspended or value.gi_frame is None
    else:
        begun = value.cr_running or value.cr_suspended or value.cr_frame is None
    if not begun:
        value.close()
