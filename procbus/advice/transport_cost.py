# SPDX-License-Identifier: MIT
"""What it would cost to send an event to a worker, found out by pickling one, with a bound."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from time import perf_counter
from typing import Any

from procbus.core.introspection import looks_unimportable
from procbus.core.meter import Meter
from procbus.core.user_objects import named

#: Pickling is given up after so many seconds: it costs at least that then, which says enough.
_MOST_S = 0.003
#: How fast bytes are copied, in bytes a second: through the pipe, and into shared memory.
_PIPE = 1e9
_MEMORY = 5e9
#: A buffer of so many bytes is copied, not pickled.
_LARGE = 128 * 1024


class _Enough(Exception):
    """It took too long."""


class _Sink:
    """Takes what is pickled and throws it away, for so long."""

    def __init__(self) -> None:
        self.size = 0
        self.large = 0
        self._ends_at = perf_counter() + _MOST_S

    def write(self, data: Any) -> int:
        size = len(data)
        if size >= _LARGE:
            self.large += size
        else:
            self.size += size
        if perf_counter() > self._ends_at:
            raise _Enough
        return size

    def buffer(self, buffer: pickle.PickleBuffer) -> bool:
        with buffer.raw() as raw:
            if raw.nbytes < _LARGE:
                return True  # it goes with the rest
            self.large += raw.nbytes
            return False


def weigh(obj: object) -> float:
    """Return the seconds that it takes to pickle and copy an object.

    It takes some ms itself at most, and no memory, so of what would take longer it returns less.

    Raises:
        Exception: it cannot be pickled; whatever that raised.
    """
    sink = _Sink()
    if isinstance(obj, (str, bytes, bytearray)) and len(obj) >= _LARGE:
        return len(obj) / _MEMORY
    began_at = perf_counter()
    try:
        pickle.Pickler(sink, 5, buffer_callback=sink.buffer).dump(obj)
    except _Enough:
        pass
    except Exception:  # noqa: BLE001 - the codec knows more: what is local to a function, say
        from procbus.codec.encoder import encode_definition  # only now: it imports cloudpickle

        began_at = perf_counter()
        sink.size = len(encode_definition(obj))
    return perf_counter() - began_at + sink.size / _PIPE + sink.large / _MEMORY


def weigh_delivery(
    meter: Meter, function: Callable[..., Any], event: object, result: object
) -> None:
    """Note what it would cost to send a handler's event away and to get its result, or why not."""
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
