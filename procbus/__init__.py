# SPDX-License-Identifier: MIT
"""procbus: an event bus inside your script that runs each handler on the right side of the GIL."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from procbus.advice import Advice, AdviceList
    from procbus.bus import EventBus
    from procbus.context import current
    from procbus.delivery import Delivery, DeliveryState
    from procbus.errors import (
        BusClosed,
        CircuitOpen,
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
    from procbus.freezing import freeze_support
    from procbus.handler import Handler
    from procbus.letter import DeadLetter
    from procbus.letters import DeadLetters
    from procbus.outcome import Outcome, OutcomeKind
    from procbus.own_executor import executor
    from procbus.pool.dask.pool import DaskPool
    from procbus.receipt import Receipt
    from procbus.registry import subscribe

__version__ = "0.1.0"

__all__ = [
    "Advice",
    "AdviceList",
    "BusClosed",
    "CircuitOpen",
    "DaskPool",
    "DeadLetter",
    "DeadLetters",
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
    "ResumeSummary",
    "SerializationError",
    "SubscriptionError",
    "TopicError",
    "WorkerDied",
    "current",
    "executor",
    "freeze_support",
    "subscribe",
]

#: Where each name lives. They are loaded when they are first asked for: a worker process imports
#: this package too, and needs hardly any of it, but starts as fast as it imports.
_HOMES = {
    "Advice": "advice",
    "AdviceList": "advice",
    "EventBus": "bus",
    "current": "context",
    "Delivery": "delivery",
    "DeliveryState": "delivery",
    "Handler": "handler",
    "DaskPool": "pool.dask.pool",
    "DeadLetter": "letter",
    "DeadLetters": "letters",
    "Outcome": "outcome",
    "OutcomeKind": "outcome",
    "Receipt": "receipt",
    "ResumeSummary": "resume_summary",
    "executor": "own_executor",
    "freeze_support": "freezing",
    "subscribe": "registry",
}


def __getattr__(name: str) -> Any:
    """Load a public name (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"procbus.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
