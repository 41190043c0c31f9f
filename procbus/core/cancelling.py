# SPDX-License-Identifier: MIT
"""The request to cancel a delivery, with the reason."""

from __future__ import annotations

from typing import NamedTuple

#: Time that a running handler has to end once its delivery is cancelled, in seconds, by default;
#: because a person who cancels can wait that long, and a handler can tidy up in it.
CANCEL_GRACE_S = 2.0

#: Maximum time for which `EventBus.cancel` looks for deliveries that are on their way from one
#: place to the next, in seconds; because the way takes microseconds, unless a thread gets no core.
ON_THE_WAY_S = 0.05

# Reasons for cancelling a delivery, as words of an error message.
CALLED = "cancel() was called"
CLOSED = "the bus was closed"
INTERRUPTED = "the cell that waited for it was interrupted"
STREAM_LEFT = "the stream that published it was left early"
WATCHER = "somebody cancelled it in the live view"


class CancelRequest(NamedTuple):
    """The request to cancel a delivery. If there are several requests, the first counts."""

    #: Time of the request, in seconds of `time.monotonic()`.
    at: float
    #: The reason, as words of an error message.
    why: str
    #: Whether a journal drops the delivery. Otherwise the delivery runs at the next start.
    for_good: bool
