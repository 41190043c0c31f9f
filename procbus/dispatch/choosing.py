# SPDX-License-Identifier: MIT
"""Choosing deliveries by handler, topic and event: for `EventBus.cancel`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from procbus.core.delivery import Delivery
from procbus.core.errors import OptionError
from procbus.core.handler import Handler
from procbus.core.introspection import name_of, same_function
from procbus.core.options import event_function
from procbus.core.receipt import Receipt
from procbus.core.topic import Topic, matches, topics_in


class Choice:
    """The deliveries that one call of `EventBus.cancel` is for.

    Args:
        handler: a function, the name of a handler, or a `Handler`; None for all handlers.
        topic: a class, a dotted string with wildcards, or several; None for all events.
        where: a function of the event; None for all events.

    Raises:
        TopicError: the topic is malformed.
        OptionError: `where` is no function of the event.
    """

    def __init__(
        self, handler: object, topic: object, where: Callable[[Any], object] | None
    ) -> None:
        self._handler = handler
        self._topics = topics_in(topic)
        self._where = checked_where(where)

    def is_for(self, handler: Handler) -> bool:
        """Whether the choice includes deliveries of this handler."""
        wanted: Any = self._handler
        if wanted is None or isinstance(wanted, Handler):
            return wanted is None or wanted.number == handler.number
        if isinstance(wanted, str):
            return wanted == handler.name
        return same_function(wanted, handler.function)

    def takes(self, delivery: Delivery) -> bool:
        """Whether the choice includes this delivery, if it is open. This runs the user's code."""
        receipt = delivery.receipt
        if receipt is None or not self.is_for(delivery.handler):
            return False
        if self._topics and not any(is_of(receipt, topic) for topic in self._topics):
            return False
        return self._where is None or bool(self._where(receipt.event))

    @property
    def handler_name(self) -> str:
        """The name of the handler, for messages."""
        named: Any = self._handler
        return named if isinstance(named, str) else name_of(named)


def checked_where(where: Callable[[Any], object] | None) -> Callable[[Any], object] | None:
    """Check the function of the event that chooses some; None for all.

    Raises:
        OptionError: it is no such function, or it is async.
    """
    try:
        event_function("where", where)
    except ValueError as error:
        raise OptionError(str(error)) from None
    return where


def is_of(receipt: Receipt, topic: Topic) -> bool:
    """Whether a handler of this topic would take the event of a receipt."""
    if receipt.topic is not None:
        return isinstance(topic, str) and matches(topic, receipt.topic)
    if isinstance(topic, str):
        event_type = getattr(receipt.event, "event_type", None)
        return isinstance(event_type, str) and matches(topic, event_type)
    return isinstance(receipt.event, topic)
