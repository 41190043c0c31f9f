"""The contenders that carry large events, beside the ones in `contenders`.

Every event has to be a new object, a view of the same array where nothing else is new: joblib keeps
what it wrote for as long as that very object lives, and would pass it on a second time for nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import contenders
from .contenders import Contender, Handler, Opener
from .model import PROCBUS

if TYPE_CHECKING:
    from collections.abc import Iterator

PIPE = "pipe alone"
#: Events under way at a time, where they are streamed.
PENDING = 64


def ray(handler: Handler, workers: int) -> Contender:
    """Start Ray on this machine, without its dashboard."""
    library: Any = import_module("ray")  # installed only for this figure
    library.init(
        num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    remote = library.remote(handler).remote
    return Contender(remote, library.get, library.shutdown)


def procbus_fan(handler: Handler, workers: int, handlers: int) -> Contender:
    """Open a bus with several handlers for every event; its result is a list."""
    from procbus import EventBus, Receipt

    bus = EventBus([], cpu_workers=workers)
    for number in range(handlers):
        bus.subscribe(object, partial(handler), kind="cpu", name=f"handler {number}")
    bus.start()
    return Contender(bus.publish, Receipt.results, bus.close)


pipe_alone: Opener = partial(contenders.procbus, shared_memory_limit=0)

LARGE_CONTENDERS: dict[str, Opener] = {
    PROCBUS: contenders.procbus,
    PIPE: pipe_alone,
    "ProcessPoolExecutor": contenders.stdlib_executor,
    "loky": contenders.loky,
    "joblib": contenders.joblib,
    "mpire": contenders.mpire,
    "distributed": contenders.distributed,
    "ray": ray,
}


def stream(contender: Contender, events: Iterable[Any], pending: int = PENDING) -> list[Any]:
    """Submit the events with at most `pending` under way, and return their results in order."""
    if contender.run_all is not None:
        results = contender.run_all(events)
        assert isinstance(results, list)
        return results
    under_way: deque[Any] = deque()
    results = []
    for event in events:
        if len(under_way) == pending:
            results.append(contender.result(under_way.popleft()))
        under_way.append(contender.submit(event))
    results.extend(map(contender.result, under_way))
    return results


@contextmanager
def fan_of(
    name: str, contender: Contender, handler: Handler, workers: int, count: int
) -> Iterator[Callable[[Any], Sequence[Any]]]:
    """Give a function that has several handlers take one event, and returns their results.

    Without a bus the same event is submitted several times at once.

    Args:
        name: of the contender.
        contender: itself, with `handler`.
        handler: what each of the handlers does.
        workers: processes.
        count: handlers.
    """
    if name != PROCBUS:
        yield lambda event: stream(contender, [event] * count)
        return
    with procbus_fan(handler, workers, count) as fan:
        yield lambda event: fan.result(fan.submit(event))
