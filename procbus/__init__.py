# SPDX-License-Identifier: MIT
"""procbus: an event bus inside your script that runs each handler on the right side of the GIL."""

from procbus.bus import EventBus
from procbus.context import current
from procbus.dead_letters import DeadLetter
from procbus.delivery import Delivery, DeliveryState
from procbus.errors import (
    BusClosed,
    HandlerTimeout,
    JournalError,
    MemoryLimitExceeded,
    NoSuchHandler,
    OptionError,
    ProcbusError,
    QueueFull,
    SerializationError,
    SubscriptionError,
    TopicError,
    WorkerDied,
)
from procbus.handler import Handler
from procbus.outcome import Outcome, OutcomeKind
from procbus.receipt import Receipt
from procbus.registry import subscribe

__version__ = "0.1.0"

__all__ = [
    "BusClosed",
    "DeadLetter",
    "Delivery",
    "DeliveryState",
    "EventBus",
    "Handler",
    "HandlerTimeout",
    "JournalError",
    "MemoryLimitExceeded",
    "NoSuchHandler",
    "OptionError",
    "Outcome",
    "OutcomeKind",
    "ProcbusError",
    "QueueFull",
    "Receipt",
    "SerializationError",
    "SubscriptionError",
    "TopicError",
    "WorkerDied",
    "current",
    "subscribe",
]
