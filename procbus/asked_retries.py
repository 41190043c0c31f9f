# SPDX-License-Identifier: MIT
"""Dead letters that the command line asks a running bus to run again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from procbus.context import HandlerContext, running
from procbus.errors import ProcbusError
from procbus.journaled_settlement import JournaledSettlement
from procbus.letter import DeadLetter
from procbus.log import log
from procbus.recorded import RecordedDeliveries

if TYPE_CHECKING:
    from procbus.dispatcher import Dispatcher


class AskedRetries:
    """Runs dead letters again by their numbers in the journal, in a thread of the journal's.

    Args:
        dispatcher: of the bus.
        settlement: has the dead letters that are at hand.
        recorded: has those of runs before.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        settlement: JournaledSettlement,
        recorded: RecordedDeliveries,
    ) -> None:
        self._dispatcher = dispatcher
        self._settlement = settlement
        self._recorded = recorded

    def retry(self, numbers: Sequence[int]) -> None:
        """Run these again; those that are not there any more are passed over."""
        dispatcher = self._dispatcher
        at_hand = {number: letter for letter, number in self._settlement.numbers.copy().items()}
        others = [number for number in numbers if number not in at_hand]
        for letter, number in self._recorded.dead_letters(len(others), others) if others else ():
            self._settlement.remember(letter, number)
            at_hand[number] = letter
        # As from a handler: it does not wait for room, so that a bus can close meanwhile.
        name = "procbus journal retry"
        context = HandlerContext(
            name, 0, None, None, 1, dispatcher.publish, dispatcher, dispatcher.run
        )
        before = running.set(context)
        try:
            for number in numbers:
                if number in at_hand:
                    self._retry_one(at_hand[number])
        finally:
            running.reset(before)

    def _retry_one(self, letter: DeadLetter) -> None:
        try:
            self._settlement.dead_letters.replay((letter,))
        except ProcbusError as error:
            log.warning("a dead letter was not run again, as the command line asked: %s", error)
