# SPDX-License-Identifier: MIT
"""How one attempt at a delivery ended, as data."""

from __future__ import annotations

import enum
from typing import Any, NamedTuple


class OutcomeKind(enum.Enum):
    """The ways in which an attempt can end.

    Example:
        ```python
        from json import loads

        from procbus import EventBus, OutcomeKind

        with EventBus(handlers=[]) as bus:
            bus.subscribe("number", loads)
            bus.publish("number", "seven").wait()
            (letter,) = bus.dead_letters
            assert letter.outcome.kind is OutcomeKind.RAISED
        ```
    """

    SUCCEEDED = "succeeded"
    RAISED = "raised"
    TIMED_OUT = "timed out"
    WORKER_DIED = "worker died"
    OVER_MEMORY = "over memory"
    CANCELLED = "cancelled"


class Outcome(NamedTuple):
    """The end of one attempt. Immutable; a tuple because one is made for every delivery.

    Example:
        ```python
        from procbus import EventBus

        with EventBus(handlers=[]) as bus:
            bus.subscribe("word", len)
            receipt = bus.publish("word", "hello")
            receipt.wait()
            outcome = receipt.deliveries[0].outcome
            assert outcome is not None
            assert outcome.value == 5
            print(outcome.ended_at - outcome.started_at, "seconds")
        ```
    """

    kind: OutcomeKind
    #: The return value of the handler; None unless it succeeded.
    value: Any = None
    #: The error; None when the handler succeeded.
    error: BaseException | None = None
    #: Start and end of the handler, in seconds of `time.monotonic()`; 0.0 when it never began.
    started_at: float = 0.0
    ended_at: float = 0.0
    #: Process that ran the handler; None when it never began.
    worker_pid: int | None = None
    #: Events published by a cpu handler that failed afterwards: they are dropped with its failure.
    dropped_events: int = 0
