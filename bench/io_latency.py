"""How long does an io event wait for its handler while every core runs cpu handlers?

The load is the same for all: one endless chain of cpu events per core, the next published when
the one before is done. Beside it one io event is published every 2 ms; measured is the time from
just before its publish to the first line of its handler, both in the parent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from statistics import quantiles
from time import perf_counter, sleep
from typing import Literal

from . import limit
from .model import LIMIT, PROCBUS, Question, Row, Settings, Target
from .work import spin

P50 = "io latency, all cores at cpu work, p50"
P99 = "io latency, all cores at cpu work, p99"
LOAD_MS = 20  # length of one cpu handler
PAUSE_S = 0.002  # between two io events
SECONDS = 2.0


@dataclass(frozen=True)
class Probe:
    """An io event that knows when it was published."""

    sent: float


@dataclass(frozen=True)
class Load:
    """A cpu event; `done` is set by its handler where handlers share the parent's memory."""

    iterations: int
    done: threading.Event | None = None


def burn(load: Load) -> None:
    """Run the cpu work of one event."""
    spin(load.iterations)
    if load.done is not None:
        load.done.set()


@dataclass(frozen=True)
class Stopwatch:
    """The io handler: notes how long each probe took to get here."""

    times: list[float] = field(default_factory=list)

    def note(self, probe: Probe) -> None:
        """Handle one probe."""
        self.times.append(perf_counter() - probe.sent)

    def probe(self, publish: Callable[[Probe], object], seconds: float) -> None:
        """Publish probes for some seconds."""
        end = perf_counter() + seconds
        while perf_counter() < end:
            sleep(PAUSE_S)
            publish(Probe(perf_counter()))

    def figures(self) -> dict[str, float]:
        """Return the percentiles in µs; call it when all probes are handled."""
        percentiles = quantiles(self.times, n=100, method="inclusive")
        return {P50: percentiles[49] * 1e6, P99: percentiles[98] * 1e6}


@contextmanager
def keep_cores_busy(chains: int, run_one: Callable[[], object]) -> Iterator[None]:
    """Call `run_one`, which runs one cpu event to its end, again and again on `chains` threads."""
    stopping = threading.Event()

    def chain() -> None:
        while not stopping.is_set():
            run_one()

    threads = [threading.Thread(target=chain) for _ in range(chains)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def procbus_latency(
    settings: Settings, seconds: float = SECONDS, kind: Literal["io", "cpu"] = "cpu"
) -> Stopwatch:
    """Both kinds on one bus with its defaults; or the cpu work declared io, on threads."""
    from procbus import EventBus

    watch = Stopwatch()
    load = Load(settings.spins_per_ms * LOAD_MS)
    with EventBus([], cpu_workers=settings.workers) as bus:
        bus.subscribe(Load, burn, kind=kind)
        bus.subscribe(Probe, watch.note, kind="io")
        bus.start()
        with keep_cores_busy(settings.workers, lambda: bus.publish(load).result()):
            watch.probe(bus.publish, settings.seconds(seconds))
    return watch


def thread_bus_latency(settings: Settings, seconds: float = SECONDS) -> Stopwatch:
    """Both kinds on the four threads of the plain bus, half of them free for io on two cores."""
    from procbus.demo.thread_bus import ThreadBus

    watch = Stopwatch()
    bus = ThreadBus(max(4, 2 * settings.workers))
    bus.subscribe(Load, burn)
    bus.subscribe(Probe, watch.note)

    def run_one() -> None:
        done = threading.Event()
        bus.publish(Load(settings.spins_per_ms * LOAD_MS, done))
        done.wait()

    with keep_cores_busy(settings.workers, run_one):
        watch.probe(bus.publish, settings.seconds(seconds))
    bus.drain()
    bus.close()
    return watch


def loky_latency(settings: Settings, seconds: float = SECONDS) -> Stopwatch:
    """Wire it by hand: cpu handlers on a loky executor, io handlers on four threads beside it."""
    from loky import ProcessPoolExecutor

    watch = Stopwatch()
    load = Load(settings.spins_per_ms * LOAD_MS)
    executor = ProcessPoolExecutor(settings.workers)
    with ThreadPoolExecutor(4) as threads:
        executor.submit(burn, load).result()
        with keep_cores_busy(settings.workers, lambda: executor.submit(burn, load).result()):
            watch.probe(lambda probe: threads.submit(watch.note, probe), settings.seconds(seconds))
    executor.shutdown()
    return watch


def bare_latency(settings: Settings, seconds: float = SECONDS) -> Stopwatch:
    """Measure one thread behind a queue, beside bare processes that burn every core."""
    watch = Stopwatch()
    queue: SimpleQueue[Probe | None] = SimpleQueue()

    def take() -> None:
        while (probe := queue.get()) is not None:
            watch.note(probe)

    iterations = settings.spins_per_ms * LOAD_MS
    with limit.bare_processes(settings.workers, limit.burn_for_ever, spin, iterations) as pipes:
        thread = threading.Thread(target=take)
        thread.start()
        for pipe in pipes:
            pipe.recv_bytes()
        watch.probe(queue.put, settings.seconds(seconds))
        queue.put(None)
        thread.join()
    return watch


def figures(latency: Callable[[Settings], Stopwatch], settings: Settings) -> dict[str, float]:
    """Take one sample and return its percentiles."""
    return latency(settings).figures()


QUESTION = Question(
    name="io_latency",
    asks="How long does an io event wait for its handler while every core runs cpu handlers?",
    rows=(
        Row(P50, "µs"),
        Row(P99, "µs", (Target(1 / 50, at_least=False, against="thread bus"),)),
    ),
    contenders={
        PROCBUS: partial(figures, procbus_latency),
        LIMIT: partial(figures, bare_latency),
        "loky": partial(figures, loky_latency),
        "thread bus": partial(figures, thread_bus_latency),
    },
    limit="one thread behind a queue, bare processes on the cores",
)
