"""How much does the parent's memory grow while events go through `stream`, small and large ones?

The small ones are 1,000,000 numbers. The large ones are the lines of a log of 300 MB, in batches of
20,000 lines. Beside the bus with its default `max_pending` stands one that has few events pending:
so much memory a careful user would get by hand.

No peer has a stream that takes from its source only as fast as there is room; their maps read the
whole source into memory first. procbus stands here alone, beside its targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from .model import PROCBUS, Question, Row, Settings, Target
from .work import tiny

FULL_COUNT = 1_000_000
GROWTH = "1,000,000 events through stream, memory growth"
RATE = "1,000,000 events through stream, rate"
LOOK_EVERY = 5_000
LINES = 20_000  # in a batch
LINE = "2026-12-03T06:00:{:02}.{:06} INFO worker-{} request {} took {} ms path=/shop/{}\n"
BATCHES = 190  # some 300 MB
FEW = 8
FEW_PENDING = f"max_pending={FEW}"
LINES_GROWTH = "300 MB of log lines in batches, memory growth"
LINES_RATE = "300 MB of log lines in batches, rate"


def words(lines: list[str]) -> int:
    """Count the words of some lines."""
    return sum(len(line.split()) for line in lines)


def write_log(path: Path, batches: int) -> None:
    """Write a log with the given number of batches."""
    lines = [LINE.format(n % 60, n, n % 17, n, n % 977, n % 31) for n in range(LINES)]
    with path.open("w") as log:
        for _ in range(batches):
            log.writelines(lines)


def lines_growth(options: dict[str, Any], settings: Settings) -> dict[str, float]:
    """Compare the highest resident memory on the way with that of the warm bus before."""
    import psutil

    from procbus import EventBus

    process = psutil.Process()
    batches = settings.count(BATCHES, at_least=10)
    with (
        TemporaryDirectory() as folder,
        EventBus([], cpu_workers=settings.workers, **options) as bus,
    ):
        path = Path(folder, "log")
        write_log(path, batches)
        bus.subscribe(list, words, kind="cpu")
        bus.start()
        bus.publish(["a"]).result()
        before = peak = process.memory_info().rss

        def source() -> Iterator[list[str]]:
            nonlocal peak
            with path.open() as log:
                while lines := list(islice(log, LINES)):
                    peak = max(peak, process.memory_info().rss)
                    yield lines

        began = perf_counter()
        found = 0
        for receipt in bus.stream(source()):
            found += receipt.result()
            peak = max(peak, process.memory_info().rss)
        seconds = perf_counter() - began
        size = path.stat().st_size
    if found != 9 * LINES * batches:
        raise RuntimeError(f"the stream counted {found} words in {batches} batches")
    return {LINES_GROWTH: (peak - before) / 1e6, LINES_RATE: size / 1e6 / seconds}


def procbus_growth(settings: Settings) -> dict[str, float]:
    """Compare the highest resident memory on the way with that of the idle bus before.

    The bus has started its workers and run one event before, so that modules and threads are
    not counted; everything that the stream itself needs is.
    """
    import psutil

    from procbus import EventBus

    process = psutil.Process()
    count = settings.count(FULL_COUNT)
    with EventBus([], cpu_workers=settings.workers) as bus:
        bus.subscribe(int, tiny, kind="cpu")
        bus.start()
        bus.publish(0).result()
        before = peak = process.memory_info().rss
        began = perf_counter()
        settled = 0
        for receipt in bus.stream(range(count)):
            settled += 1
            if settled % LOOK_EVERY == 0:
                receipt.result()
                peak = max(peak, process.memory_info().rss)
        peak = max(peak, process.memory_info().rss)
        seconds = perf_counter() - began
    if settled != count:
        raise RuntimeError(f"the stream yielded {settled} receipts for {count} events")
    return {GROWTH: (peak - before) / 1e6, RATE: settled / seconds}


def all_figures(settings: Settings) -> dict[str, float]:
    """Measure both; the lines first, because memory that the numbers leave would hide theirs."""
    return {**lines_growth({}, settings), **procbus_growth(settings)}


QUESTION = Question(
    name="stream_memory",
    asks="How much does the parent's memory grow while events go through stream?",
    rows=(
        Row(GROWTH, "MB", (Target(20, at_least=False, unit="MB"),)),
        Row(RATE, "events/s"),
        Row(LINES_GROWTH, "MB", (Target(128, at_least=False, unit="MB"),)),
        Row(LINES_RATE, "MB/s", (Target(1, at_least=True, against=FEW_PENDING),)),
    ),
    contenders={
        PROCBUS: all_figures,
        FEW_PENDING: partial(lines_growth, {"max_pending": FEW}),
    },
)
