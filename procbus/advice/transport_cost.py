# SPDX-License-Identifier: MIT
"""The cost of sending an event to a worker, estimated by pickling an event, within a time limit."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from time import thread_time
from typing import Any

from procbus.core.introspection import looks_unimportable
from procbus.core.meter import Meter
from procbus.core.user_objects import named
from procbus.system.no_fork import no_fork

#: Maximum CPU time of pickling, in seconds; because a cost above it is reason enough.
_MOST_S = 0.003
#: Speed of copying, in bytes a second: through the pipe, and into shared memory.
_PIPE = 1e9
_MEMORY = 5e9
#: Minimum size of a buffer that is copied and not pickled, in bytes.
_LARGE = 128 * 1024


class _Enough(Exception):
    """Pickling reached the time limit."""


class _Sink:
    """A file that drops the pickled bytes, and ends pickling at the time limit."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.size = 0
        self.large = 0
        self._clock = clock
        self._ends_at = clock() + _MOST_S

    def write(self, data: Any) -> int:
        size = len(data)
        if size >= _LARGE:
            self.large += size
        else:
            self.size += size
        if self._clock() > self._ends_at:
            raise _Enough
        return size

    def buffer(self, buffer: pickle.PickleBuffer) -> bool:
        with buffer.raw() as raw:
            if raw.nbytes < _LARGE:
                return True  # the buffer is pickled with the rest
            self.large += raw.nbytes
            return False


def weigh(obj: object, clock: Callable[[], float] = thread_time) -> float:
    """Return the CPU seconds that pickling and copying an object takes.

    The estimate itself takes a few milliseconds at most, and no memory, because pickling ends at a
    time limit. So for large objects the estimate is too low.

    Args:
        obj: the object.
        clock: the CPU time of this thread, in seconds.

    Raises:
        Exception: the object cannot be pickled; this is the error of pickling.
    """
    sink = _Sink(clock)
    if isinstance(obj, (str, bytes, bytearray)) and len(obj) >= _LARGE:
        return len(obj) / _MEMORY
    began_at = clock()
    try:
        pickle.Pickler(sink, 5, buffer_callback=sink.buffer).dump(obj)
    except _Enough:
        pass
    except Exception:  # noqa: BLE001 - the codec knows more, such as functions inside functions
        with no_fork:
            from procbus.codec.encoder import encode_definition  # only now: it imports cloudpickle

        began_at = clock()
        sink.size = len(encode_definition(obj))
    return clock() - began_at + sink.size / _PIPE + sink.large / _MEMORY


def weigh_delivery(
    meter: Meter, function: Callable[..., Any], event: object, result: object
) -> None:
    """Note the cost of sending a handler's event away and getting its result, or the obstacle."""
    meter.to_weigh -= 1
    what = "the handler"
    try:
        if looks_unimportable(function):
            from procbus.codec.encoder import encode_definition  # only now: it imports cloudpickle

            encode_definition(function)
        what = "its events"
        cost_s = weigh(event)
        what = "its results"
        cost_s += weigh(result)
    except BaseException as error:  # noqa: BLE001 - pickling runs the user's code
        meter.obstacle = f"{what} cannot travel to a worker ({named(error)})"
    else:
        meter.obstacle = meter.obstacle or ""
        meter.note_weight(cost_s)
