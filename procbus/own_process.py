# SPDX-License-Identifier: MIT
"""How handlers end that run in this process, on a thread or on the event loop."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextvars import Context
from time import monotonic

from procbus.carry import Carried
from procbus.context import HandlerContext, another
from procbus.delivery import Delivery
from procbus.errors import HandlerExited, ProcbusError
from procbus.outcome import Outcome, OutcomeKind
from procbus.receipt import Receipt
from procbus.unfinished import unfinished
from procbus.user_objects import is_a, is_any, shown

Settle = Callable[[Sequence[tuple[Delivery, Outcome]]], None]
#: Makes what `current()` returns in a handler of this process.
MakeContext = Callable[[Delivery, Receipt], HandlerContext]

_new = tuple.__new__
_SUCCEEDED = OutcomeKind.SUCCEEDED


def success(value: object, started_at: float, ended_at: float, pid: int) -> Outcome:
    """Make the outcome of a handler that returned, in this process."""
    # Without Outcome's checking of arguments: half of the time, for every delivery.
    return _new(Outcome, (_SUCCEEDED, value, None, started_at, ended_at, pid, 0))


def failure(error: BaseException, delivery: Delivery, started_at: float, pid: int) -> Outcome:
    """Make the outcome of a handler that raised, in this process, just now."""
    ended_at = monotonic()
    error = own_error(error, delivery)
    return Outcome(OutcomeKind.RAISED, None, error, started_at, ended_at, pid)


def own_error(error: BaseException, delivery: Delivery) -> BaseException:
    """The error to tell of what a handler raised: that itself, unless it would end who asks.

    Raised again by `result()`, SystemExit would end the script, with status 0 as if all were well,
    and CancelledError the task. The futures of an executor have them, as the standard says.
    """
    if is_a(error, Exception) or not is_any(error, _ends_callers()):
        return error
    if delivery.subscription.answered:
        return error
    handler, event_id = delivery.handler.name, delivery.event_id
    exited = HandlerExited(
        f"{handler} raised {shown(error)} with event {event_id}: that fails the delivery, and ends "
        "nothing else. Return from the handler to end it early, or raise an exception of your own",
        handler=handler,
        event_id=event_id,
    )
    exited.__cause__ = error
    return exited


def _ends_callers() -> tuple[type[BaseException], ...]:
    kinds = (SystemExit, KeyboardInterrupt, GeneratorExit)
    # Nobody can raise the one of asyncio while that is not imported.
    loaded = sys.modules.get("asyncio.exceptions")
    return kinds if loaded is None else (*kinds, loaded.CancelledError)


def context_for(delivery: Delivery) -> Context | None:
    """The context that an attempt is to run in; None for an empty one."""
    found: Context | Carried | None = delivery.context
    if isinstance(found, Carried):
        return found.context()
    if found is None or not delivery.subscription.handler.retries:
        return found
    return another(found)  # the next attempt is to begin as this one does


def place_of(delivery: Delivery) -> str:
    """Where a thread is that runs a delivery, in words."""
    return f"the handler {delivery.handler.name} with event {delivery.event_id}"


def look_at(delivery: Delivery, outcome: Outcome) -> Outcome:
    """Give the outcome of a handler that returned: it failed if that is its work, not done yet."""
    if outcome.value is None or delivery.subscription.answered:
        return outcome  # a call of an executor: the standard has the result as it is, too
    try:
        error = unfinished(delivery.handler.name, outcome.value)
    except BaseException as raised:  # noqa: BLE001 - the class of the result is the user's code
        return failure(raised, delivery, outcome.started_at, outcome.worker_pid or os.getpid())
    if error is None:
        return outcome
    return failure(error, delivery, outcome.started_at, outcome.worker_pid or os.getpid())


def waits_for_itself(delivery: Delivery, receipt: Receipt) -> str:
    """Say why a handler that waits for this receipt would wait for ever; "" where it does not.

    Its gate lets nothing through that waits behind its own delivery.
    """
    subscription = delivery.subscription
    handler = subscription.handler
    if subscription.gate is None:
        return ""
    for other in receipt.deliveries:
        if other.receipt is None or other.subscription is not subscription:
            continue
        if handler.concurrency == 1:
            what = "concurrency=1 lets no other delivery of this handler run"
        elif handler.key is not None and other.key == delivery.key:
            what = f"key= lets no other delivery with the key {delivery.key!r} run"
        else:
            continue
        return (
            f"{handler.name} waits in event {delivery.event_id} for its own delivery of event "
            f"{receipt.id}, which would never begin: {what} before this one has ended. Do not wait "
            "for it, or let another handler do that part"
        )
    return ""


def no_thread(delivery: Delivery, error: RuntimeError) -> Outcome:
    """Make the outcome of a delivery for which no thread could be started."""
    fault = ProcbusError(
        f"{delivery.handler.name} cannot run with event {delivery.event_id}: {error}. Close the "
        "bus before the script ends, or leave it by `with`"
    )
    fault.__cause__ = error
    return Outcome(OutcomeKind.RAISED, error=fault)
