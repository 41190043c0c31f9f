"""Does memory stay flat while thousands of 10 MB arrays are streamed?

Every array is made just before it is published, as a script that reads files would. What is looked
at after each: the memory that is the parent's own, and the file in memory that blocks are parts of.
No peer stands beside it: their memory in flight has no limit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any

from bench.large_work import MB, first, numbers
from bench.model import Settings

if TYPE_CHECKING:
    from procbus import EventBus

FULL_COUNT = 1_000
EVENT_MB = 10
LIMIT_MB = 256
#: Events pending: larger than the shared memory, so that its limit is what holds them up.
PENDING = 64
GROWTH = "parent's own memory, growth after the first tenth"
OWN = "parent's own memory, highest, arrays that wait left out"
SHARED = "shared memory, highest"
SHARED_GROWTH = "shared memory, growth after the first tenth"
RATE = "10 MB arrays, streamed"
MEMORY_FILE = "memfd:procbus-events"


def own_bytes() -> int:
    """Return the resident memory of this process without what it shares."""
    import psutil

    memory = psutil.Process().memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


def shared_bytes(bus: EventBus) -> int:
    """Return the memory of all blocks: what the system says where it does, else what the bus does.

    The larger of the two, so that neither can hide what the other shows.
    """
    stats = bus.stats().shared_memory
    told = stats.in_flight + stats.kept + stats.idle
    try:
        files = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    except FileNotFoundError:
        return told
    return max(told, *(size_of(file) for file in files))


def size_of(file: str) -> int:
    """Return the memory that a file of blocks takes; 0 where it is another file."""
    try:
        return os.stat(file).st_blocks * 512 if MEMORY_FILE in os.readlink(file) else 0
    except FileNotFoundError:  # it was that of the listing, or was closed meanwhile
        return 0


def figures(settings: Settings) -> dict[str, float]:
    """Stream, and look at the memory after each event."""
    from procbus import EventBus

    count = settings.count(FULL_COUNT)
    own: list[int] = []
    shared: list[int] = []

    def arrays() -> Iterator[Any]:
        for number in range(count):
            yield numbers(EVENT_MB * MB, number)

    options: dict[str, Any] = {
        "max_pending": PENDING,
        "shared_memory_limit": LIMIT_MB * MB,
    }
    with EventBus([], cpu_workers=settings.workers, **options) as bus:
        bus.subscribe(object, first, kind="cpu")
        bus.start()
        bus.publish(0.0,).wait()
        before = own_bytes()
        began = perf_counter()
        total = 0.0
        for receipt in bus.stream(arrays()):
            total += receipt.result()
            own.append(own_bytes() - before)
            shared.append(shared_bytes(bus))
        seconds = perf_counter() - began
    if total != sum(range(count)):
        raise RuntimeError("a handler got something else")
    tenth = max(PENDING // 2, count // 10) if count > PENDING else count // 2
    return {
        GROWTH: growth(own, tenth) / MB,
        OWN: max(own) / MB,
        SHARED: max(shared) / MB,
        SHARED_GROWTH: growth(shared, tenth) / MB,
        RATE: count / seconds,
    }
