# SPDX-License-Identifier: MIT
"""procbus: an event bus inside your script that runs each handler on the right side of the GIL."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from procbus.advice.advice import Advice, AdviceList
    from procbus.bus import EventBus
    from procbus.core.context import HandlerContext, current
    from procbus.core.dead_letter import DeadLetter
    from procbus.core.delivery import Delivery, DeliveryState
    from procbus.core.errors import (
        BatchFailed,
        BusClosed,
        Cancelled,
        CircuitOpen,
        ExpectTimeout,
        HandlerExited,
        HandlerTimeout,
        JobFailed,
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
        WorkerTraceback,
    )
    from procbus.core.handler import CallOptions, Handler, HandlerOptions, Limits
    from procbus.core.listeners import Listening
    from procbus.core.meter import Evidence, Span
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
    from procbus.core.rate import Rate
    from procbus.core.receipt import Receipt
    from procbus.core.resources import Resource, resource, use
    from procbus.core.retry import RetryPolicy
    from procbus.core.stats import (
        BusStats,
        HandlerStats,
        LaneStats,
        Percentiles,
        SharedMemoryStats,
    )
    from procbus.core.worker import CurrentWorker
    from procbus.dispatch.dead_letters import DeadLetters
    from procbus.futures.executor import BusExecutor
    from procbus.jobs.expected import Expected
    from procbus.jobs.job import Job
    from procbus.jobs.schedule import Schedule
    from procbus.jobs.state import JobDone
    from procbus.journal.resume import ResumeSummary
    from procbus.own_executor import executor
    from procbus.pool.dask.pool import DaskPool
    from procbus.routing.registry import subscribe
    from procbus.settings import BusOptions
    from procbus.supervision.health import BusHealth, WorkerHealth
    from procbus.system.freezing import freeze_support

__version__ = "1.0.0rc1"

__all__ = [
    "Accepted",
    "Advice",
    "AdviceList",
    "BatchFailed",
    "BusClosed",
    "BusExecutor",
    "BusHealth",
    "BusOptions",
    "BusStats",
    "CallOptions",
    "Cancelled",
    "CircuitOpen",
    "CurrentWorker",
    "DaskPool",
    "DeadLetter",
    "DeadLetters",
    "Delivery",
    "DeliveryState",
    "EventBus",
    "Evidence",
    "ExpectTimeout",
    "Expected",
    "Handler",
    "HandlerContext",
    "HandlerExited",
    "HandlerOptions",
    "HandlerStats",
    "HandlerTimeout",
    "Job",
    "JobDone",
    "JobFailed",
    "JournalError",
    "LaneStats",
    "Limits",
    "Listener",
    "Listening",
    "MemoryLimitExceeded",
    "NoSuchHandler",
    "OptionError",
    "Outcome",
    "OutcomeKind",
    "Percentiles",
    "ProcbusError",
    "Progress",
    "Published",
    "QueueFull",
    "Rate",
    "Receipt",
    "Resource",
    "ResumeSummary",
    "Retried",
    "RetryPolicy",
    "Schedule",
    "SerializationError",
    "Settled",
    "SharedMemoryStats",
    "Span",
    "Started",
    "SubscriptionError",
    "TopicError",
    "WorkerDied",
    "WorkerEnded",
    "WorkerHealth",
    "WorkerStalled",
    "WorkerStarted",
    "WorkerTraceback",
    "current",
    "executor",
    "freeze_support",
    "resource",
    "subscribe",
    "use",
]

#: The module of each name. Names are loaded on first use, because a worker process imports this
#: package too. A worker needs few of the names, and each import delays its start.
_HOMES = {
    "Advice": "advice.advice",
    "AdviceList": "advice.advice",
    "BusExecutor": "futures.executor",
    "BusHealth": "supervision.health",
    "BusOptions": "settings",
    "BusStats": "core.stats",
    "CallOptions": "core.handler",
    "DaskPool": "pool.dask.pool",
    "DeadLetter": "core.dead_letter",
    "DeadLetters": "dispatch.dead_letters",
    "Delivery": "core.delivery",
    "DeliveryState": "core.delivery",
    "EventBus": "bus",
    "Evidence": "core.meter",
    "Handler": "core.handler",
    "HandlerContext": "core.context",
    "HandlerOptions": "core.handler",
    "HandlerStats": "core.stats",
    "LaneStats": "core.stats",
    "Limits": "core.handler",
    "Rate": "core.rate",
    "Expected": "jobs.expected",
    "Job": "jobs.job",
    "JobDone": "jobs.state",
    "Schedule": "jobs.schedule",
    "Accepted": "core.moments",
    "Listener": "core.moments",
    "Listening": "core.listeners",
    "Outcome": "core.outcome",
    "OutcomeKind": "core.outcome",
    "Percentiles": "core.stats",
    "Progress": "core.progress",
    "Published": "core.moments",
    "Receipt": "core.receipt",
    "ResumeSummary": "journal.resume",
    "Retried": "core.moments",
    "RetryPolicy": "core.retry",
    "Settled": "core.moments",
    "SharedMemoryStats": "core.stats",
    "Span": "core.meter",
    "Started": "core.moments",
    "WorkerEnded": "core.moments",
    "WorkerHealth": "supervision.health",
    "WorkerStalled": "core.moments",
    "WorkerStarted": "core.moments",
    "current": "core.context",
    "executor": "own_executor",
    "freeze_support": "system.freezing",
    "Resource": "core.resources",
    "resource": "core.resources",
    "use": "core.resources",
    "CurrentWorker": "core.worker",
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
