# SPDX-License-Identifier: MIT
"""The origin of a log record: the delivery in whose handler it was made, as attributes of it.

In a worker process the log handler that sends records adds these attributes. In the script a filter
on the logger adds them. While a bus lives, the factory of log records gives this filter to each
logger that a handler uses. The factory cannot add the attributes itself: `logging` would refuse an
`extra=` with one of their names. So they are added after `extra=`, and a value in `extra=` stays.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from procbus.core.context import running, running_context
from procbus.core.log import LOGS

if TYPE_CHECKING:
    from procbus.core.delivery import Delivery


class Origin(NamedTuple):
    """The origin of a record or warning. Its fields become attributes of the record."""

    worker_pid: int
    #: Name of the handler. This field and all below are None between deliveries, and in a thread
    #: that belongs to no delivery.
    handler: str | None = None
    event_id: int | None = None
    attempt: int | None = None
    #: None also for an event that was routed by its class.
    topic: str | None = None
    delivery_id: str | None = None

    def __str__(self) -> str:
        where = f"worker {self.worker_pid}"
        if self.event_id is None:
            return where
        return f"{self.handler} with event #{self.event_id}, {where}"


def origin_here(pid: int) -> Origin:
    """The origin of a record that the calling thread or task makes.

    Args:
        pid: the process that the handler runs in.
    """
    context = running_context()
    if context is None or not context.event_id:  # 0 in a listener that is told of a worker
        return Origin(pid)
    return Origin(
        pid,
        context.handler,
        context.event_id,
        context.attempt,
        context.topic,
        context.delivery_id,
    )


#: The attribute in which procbus's own records bring along an origin, until it is added to them.
_BROUGHT = "_procbus_origin"


def about(origin: Origin) -> dict[str, Origin]:
    """The `extra=` for a record of procbus's own loggers about a delivery or a worker."""
    return {_BROUGHT: origin}


#: The attribute with the key of a record that several workers may make, and that is handled once.
ONCE = "_procbus_once"


def told_once(key: str) -> dict[str, str]:
    """The `extra=` for a record of procbus's own that the script gets from one worker only."""
    return {ONCE: key}


def about_delivery(delivery: Delivery, attempt: int, pid: int | None = None) -> dict[str, Origin]:
    """The `extra=` for a record of procbus's own loggers about one attempt.

    Args:
        delivery: the delivery, which is not settled.
        attempt: number of the attempt, from 1.
        pid: the process that the handler runs in; None for this one.
    """
    receipt = delivery.receipt
    topic = None if receipt is None else receipt.topic
    name = delivery.handler.name
    return about(Origin(pid or os.getpid(), name, delivery.event_id, attempt, topic))


class _AddOrigin(logging.Filter):
    """Adds the origin to records that handlers of this process make, and to procbus's own."""

    def filter(self, record: logging.LogRecord) -> bool:
        attributes = record.__dict__
        origin: Origin | None = attributes.pop(_BROUGHT, None)
        if origin is None:
            if running.get() is None:
                return True
            origin = origin_here(os.getpid())
            if origin.event_id is None:
                return True
        for name, value in zip(Origin._fields, origin, strict=True):
            if name not in attributes:
                attributes[name] = value
        return True


_add_origin = _AddOrigin()
for _each in LOGS:
    _each.logger.addFilter(_add_origin)


class _Factory:
    """Makes log records as before, but first gives the logger the filter.

    A logger keeps the filter: another thread may be going through the list of the logger's filters,
    so a filter may be added to the end of the list, and none removed. The filter does nothing
    outside handlers.

    Args:
        before: the factory that makes the records.
    """

    def __init__(self, before: Callable[..., logging.LogRecord]) -> None:
        self.before = before

    def __call__(self, name: str, *args: Any, **kwargs: Any) -> logging.LogRecord:
        if running.get() is not None:
            # There is no logger of this name where user code makes a record of its own.
            logger = logging.root if name == "root" else _loggers.get(name)
            if isinstance(logger, logging.Logger):
                for each in logger.filters:
                    if each is _add_origin:
                        break
                else:
                    logger.addFilter(_add_origin)
        return self.before(name, *args, **kwargs)


_loggers = logging.root.manager.loggerDict

#: The buses that live. Each change of the set is one step.
_living: set[object] = set()


def add_origins(bus: object) -> None:
    """Add the origin to records of handlers in this process, until `leave_out_origins`.

    A factory that your code sets later takes the place of this one, unless it calls this one.
    """
    _living.add(bus)
    before = logging.getLogRecordFactory()
    if not isinstance(before, _Factory):
        logging.setLogRecordFactory(_Factory(before))


def leave_out_origins(bus: object) -> None:
    """Undo `add_origins` once no other bus lives, unless user code has another factory by now."""
    _living.discard(bus)
    factory = logging.getLogRecordFactory()
    if not _living and isinstance(factory, _Factory):
        logging.setLogRecordFactory(factory.before)
        for another in list(
            _living
        ):  # it began meanwhile, and may have found this factory in place
            add_origins(another)
