# SPDX-License-Identifier: MIT
"""procbus: an event bus inside your script that runs each handler on the right side of the GIL."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from procbus.advice.advice import Advice, AdviceList
    from procbus.bus import EventBus
    from procbus.core.context import current
    from procbus.core.dead_letter import DeadLetter
    from procbus.core.delivery import Delivery, DeliveryState
    from procbus.core.errors import (
        BatchFailed,
        BusClosed,
        Cancelled,
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
    from procbus.core.handler import Handler
    from procbus.core.listeners import Listening
    from procbus.core.moments import (
        Accepted,
        Listener,
        Published,
        Retried,
        Settled,
        Started,
        WorkerEnded,
        WorkerStalled,
        WorkerStarted,
    )
    from procbus.core.outcome import Outcome, OutcomeKind
    from procbus.core.progress import Progress
    from procbus.core.receipt import Receipt
    from procbus.dispatch.dead_letters import DeadLetters
    from procbus.own_executor import executor
    from procbus.pool.dask.pool import DaskPool
    from procbus.routing.registry import subscribe
    from procbus.system.freezing import freeze_support

__version__ = "0.1.0"

__all__ = [
    "Accepted",
    "Advice",
    "AdviceList",
    "BatchFailed",
    "BusClosed",
    "Cancelled",
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
    "Listener",
    "Listening",
    "MemoryLimitExceeded",
    "NoSuchHandler",
    "OptionError",
    "Outcome",
    "OutcomeKind",
    "ProcbusError",
    "Progress",
    "Published",
    "QueueFull",
    "Receipt",
    "ResumeSummary",
    "Retried",
    "SerializationError",
    "Settled",
    "Started",
    "SubscriptionError",
    "TopicError",
    "WorkerDied",
    "WorkerEnded",
    "WorkerStalled",
    "WorkerStarted",
    "current",
    "executor",
    "freeze_support",
    "subscribe",
]

#: The module of each name. Names are loaded on first use: a worker process imports this package too
#: and needs hardly any of it, and it starts only as fast as it imports.
_HOMES = {
    "Advice": "advice.advice",
    "AdviceList": "advice.advice",
    "EventBus": "bus",
    "current": "core.context",
    "Delivery": "core.delivery",
    "DeliveryState": "core.delivery",
    "Handler": "core.handler",
    "DaskPool": "pool.dask.pool",
    "DeadLetter": "core.dead_letter",
    "DeadLetters": "dispatch.dead_letters",
    "Outcome": "core.outcome",
    "Progress": "core.progress",
    "OutcomeKind": "core.outcome",
    "Receipt": "core.receipt",
    "ResumeSummary": "journal.resume",
    "Accepted": "core.moments",
    "Listener": "core.moments",
    "Listening": "core.listeners",
    "Published": "core.moments",
    "Retried": "core.moments",
    "Settled": "core.moments",
    "Started": "core.moments",
    "WorkerEnded": "core.moments",
    "WorkerStalled": "core.moments",
    "WorkerStarted": "core.moments",
    "executor": "own_executor",
    "freeze_support": "system.freezing",
    "subscribe": "routing.registry",
}


def __getattr__(name: str) -> Any:
    """Load a public name (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"procbus.{_HOMES.get(name, 'core.errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
