# SPDX-License-Identifier: MIT
"""The end of a delivery, as the listeners of a settlement get it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from procbus.core.dead_letter import DeadLetter
from procbus.core.delivery import Delivery
from procbus.core.outcome import Outcome
from procbus.core.receipt import Receipt


@dataclass(frozen=True, slots=True)
class Settled:
    """The end of one delivery. Immutable.

    Attributes:
        delivery: the delivery, which has its handler, its event's id and its earlier attempts.
        receipt: the receipt of the event.
        outcome: the outcome of the last attempt.
        letter: the dead letter of a delivery that failed for good; None for other ends.
    """

    delivery: Delivery
    receipt: Receipt
    outcome: Outcome
    letter: DeadLetter | None = None


#: A function that is called with the end of a delivery, in the thread that settles it and without
#: a lock, before the callbacks of the receipt. An exception of a listener is logged.
Listener = Callable[[Settled], object]
