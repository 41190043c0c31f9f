"""Does memory stay flat while thousands of 10 MB arrays are streamed?

Memory is flat if its median does not rise from the first tenth of the stream to the last. The
number of arrays under way goes up and down, below a bound, so a second figure includes these ups
and downs: the highest after the first tenth, less the highest in it.

Every array is made just before it is published, as a script that reads files would. Two amounts are
measured after each event: the memory that is the parent's own, and the file in memory that all
blocks are parts of. Beside the bus with its default `max_pending` stands one that has few events
pending.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .large_work import MB, first, numbers
from .model import PROCBUS, Question, Row, Settings, Target

if TYPE_CHECKING:
    from procbus import EventBus

FULL_COUNT = 1_000
EVENT_MB = 10
LIMIT_MB = 256
FEW = 16
FEW_PENDING = f"max_pending={FEW}"
OWN = "parent's own memory above that of the idle bus, highest"
OWN_GROWTH = "parent's own memory, from the first tenth to the last"
OWN_PEAKS = "parent's own memory, highest after the first tenth less highest in it"
SHARED = "shared memory, highest"
SHARED_GROWTH = "shared memory, from the first tenth to the last"
RATE = "10 MB arrays, streamed"
MEMORY_FILE = "memfd:procbus-events"


def own_bytes() -> int:
    """Return the resident memory of this process, without what it shares where that is told."""
    import psutil

    memory = psutil.Process().memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


def shared_bytes(bus: EventBus) -> int:
    """Return the memory of all blocks.

    The larger of what the bus and, on Linux, the system say: neither can hide what the other shows.
    """
    stats = bus.stats().shared_memory
    told = stats.in_flight + stats.kept + stats.idle
    try:
        files = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    except FileNotFoundError:
        return told
    return max(told, *(size_of(file) for file in files))


def size_of(file: str) -> int:
    """Return the memory that a file of blocks takes; 0 for any other file."""
    try:
        return os.stat(file).st_blocks * 512 if MEMORY_FILE in os.readlink(file) else 0
    except FileNotFoundError:  # it was that of the listing, or was closed meanwhile
        return 0


def growth(found: list[int]) -> float:
    """Return by how many MB the median of the last tenth is above that of the first."""
    tenth = max(1, len(found) // 10)
    return max(0.0, median(found[-tenth:]) - median(found[:tenth])) / MB


def growth_of_peak(found: list[int]) -> float:
    """Return by how many MB the highest of the first tenth was passed."""
    tenth = max(1, len(found) // 10)
    return max(0, max(found[tenth:]) - max(found[:tenth])) / MB


def figures(options: dict[str, Any], settings: Settings) -> dict[str, float]:
    """Stream through a bus with these options, and look at the memory after each event."""
    from procbus import EventBus

    count = settings.count(FULL_COUNT)
    own: list[int] = []
    shared: list[int] = []
    total = 0.0

    def arrays() -> Iterator[Any]:
        for number in range(count):
            yield numbers(EVENT_MB * MB, number)

    limit = LIMIT_MB * MB
    with EventBus([], cpu_workers=settings.workers, shared_memory_limit=limit, **options) as bus:
        bus.subscribe(object, first, kind="cpu")
        bus.start()
        bus.publish([0.0]).result()
        before = own_bytes()
        began = perf_counter()
        for receipt in bus.stream(arrays()):
            total += receipt.result()
            own.append(own_bytes() - before)
            shared.append(shared_bytes(bus))
        seconds = perf_counter() - began
    if total != sum(range(count)):
        raise RuntimeError("a handler got something else")
    return {
        OWN: max(own) / MB,
        OWN_GROWTH: growth(own),
        OWN_PEAKS: growth_of_peak(own),
        SHARED: max(shared) / MB,
        SHARED_GROWTH: growth(shared),
        RATE: count / seconds,
    }


UNDER_LIMIT = Target(LIMIT_MB, at_least=False, unit="MB")
FLAT = Target(20, at_least=False, unit="MB")

QUESTION = Question(
    name="large_stream",
    asks=f"Does memory stay flat while 10 MB arrays are streamed, {LIMIT_MB} MB to be shared?",
    rows=(
        Row(OWN, "MB", (UNDER_LIMIT,)),
        Row(OWN_GROWTH, "MB", (FLAT,)),
        Row(OWN_PEAKS, "MB", (FLAT,)),
        Row(SHARED, "MB", (UNDER_LIMIT,)),
        Row(SHARED_GROWTH, "MB"),
        Row(RATE, "events/s"),
    ),
    contenders={
        PROCBUS: partial(figures, {}),
        FEW_PENDING: partial(figures, {"max_pending": FEW}),
    },
    rounds=3,
    time_limit=1200.0,
    needs=("numpy",),
)
