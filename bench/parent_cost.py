"""Where does the script's CPU time of a cpu event go?

`python -m bench.parent_cost` prints a table, in us of CPU an event: publishing, asking for results,
the companions, and how much of all that is the garbage collector's while the receipts are kept.
`at most` is the rate that the script alone allows, as a share of the limit of `payload_curve`:
of pickle and memory alone.

Figures of one thread are CPU time. The rate is by the clock, so measure on a quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import subprocess
import sys
import threading
import time
from importlib import import_module
from statistics import median

from procbus import EventBus, Receipt

from . import memory_limits
from .payload_curve_work import BYTES, DATACLASS, INT, RECORDS, STR, different, take

#: Kind, size and number of events.
WORK = (
    (INT, 1, 20_000),
    (BYTES, 1_000, 20_000),
    (BYTES, 4_000, 20_000),
    (BYTES, 16_000, 10_000),
    (STR, 1_000, 20_000),
    (STR, 4_000, 20_000),
    (DATACLASS, 1, 20_000),
    (RECORDS, 100, 2_000),
    (RECORDS, 1_000, 400),
)
ROUNDS = 15
#: Receipts that are kept while the collector's share is measured.
KEPT = 100_000
#: Objects between two collections, in place of Python's 700 or 2,000.
RARELY = 50_000

#: The script has imported these, if they are there: the collector goes through their objects too.
LIBRARIES = ("numpy", "pandas")
#: Ways to run the collector: whether to freeze what is there, and whether to collect rarely.
COLLECTORS = {
    "as Python sets it": (False, False),
    "gc.freeze()": (True, False),
    f"gc.set_threshold({RARELY:_})": (False, True),
    "both": (True, True),
}


def cpu_by_thread() -> dict[str, float]:
    """CPU seconds of each thread so far, by name."""
    return {
        thread.name: time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        for thread in threading.enumerate()
        if thread.ident
    }


def spent(before: dict[str, float], after: dict[str, float], name: str) -> float:
    """CPU seconds of all threads whose name begins so."""
    return sum(s - before.get(each, 0.0) for each, s in after.items() if each.startswith(name))


def cost_of(kind: str, size: int, count: int, rounds: int) -> tuple[float, ...]:
    """Measure CPU us an event: publishing, results, companions; and us by the clock."""
    payloads = different(kind, size)
    events = [payloads[at % len(payloads)] for at in range(count)]
    found: list[tuple[float, ...]] = []
    with EventBus([], cpu_workers=2) as bus:
        bus.subscribe(object, take, kind="cpu")
        bus.start()
        for _ in range(rounds + 2):
            began, start = time.perf_counter(), cpu_by_thread()
            receipts = [bus.publish(event) for event in events]
            published = cpu_by_thread()
            for receipt in receipts:
                Receipt.result(receipt)
            wall_s, end = time.perf_counter() - began, cpu_by_thread()
            main = threading.main_thread().name
            each = (
                spent(start, published, main),
                spent(published, end, main),
                spent(start, end, "procbus-companion"),
                wall_s,
            )
            found.append(tuple(s / count * 1e6 for s in each))
    return tuple(median(column) for column in zip(*found[2:], strict=True))


def limit_of(kind: str, size: int, count: int, rounds: int) -> float:
    """Measure us an event of pickle and memory alone, by the clock."""
    payloads = different(kind, size)
    events = [payloads[at % len(payloads)] for at in range(count)]
    times = []
    with memory_limits.shared_by(take, 2) as run:
        for _ in range(rounds + 2):
            began = time.perf_counter()
            run(events)
            times.append((time.perf_counter() - began) / count * 1e6)
    return median(times[2:])


def collector_share(count: int) -> tuple[float, float]:
    """Measure CPU us an event of the whole script, and the collector's part, with receipts kept."""
    spent_s = [0.0, 0.0]

    def note(phase: str, _: object) -> None:
        if phase == "start":
            spent_s[1] = time.perf_counter()
        else:
            spent_s[0] += time.perf_counter() - spent_s[1]

    gc.callbacks.append(note)
    try:
        with EventBus([], cpu_workers=2) as bus:
            bus.subscribe(object, take, kind="cpu")
            bus.start()
            for receipt in [bus.publish(number) for number in range(count // 5)]:
                receipt.result()
            found = []
            for _ in range(3):
                spent_s[0], began = 0.0, time.process_time()
                receipts = [bus.publish(number) for number in range(count)]
                for receipt in receipts:
                    receipt.result()
                found.append((time.process_time() - began, spent_s[0]))
                del receipts, receipt
            all_s, gc_s = sorted(found)[1]
            return all_s / count * 1e6, gc_s / count * 1e6
    finally:
        gc.callbacks.remove(note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few events: to see that it works")
    parser.add_argument("--collector", choices=COLLECTORS, help="measure this one alone")
    options = parser.parse_args()
    if options.collector:
        for library in LIBRARIES:
            with contextlib.suppress(ImportError):
                import_module(library)
        freezes, rarely = COLLECTORS[options.collector]
        if freezes:
            gc.collect()
            gc.freeze()
        if rarely:
            gc.set_threshold(RARELY, 20, 50)
        all_us, gc_us = collector_share(KEPT // 50 if options.quick else KEPT)
        print(f"{options.collector:26} {all_us:6.2f} {gc_us:6.2f} {100 * gc_us / all_us:5.0f} %")
        return
    rounds = 1 if options.quick else ROUNDS
    titles = ("publishing", "results", "companions", "script", "by the clock", "limit")
    print(f"{'us an event':14}", *(f"{title:>12}" for title in titles), f"{'at most':>8}")
    for kind, size, most in WORK:
        count = max(2, most // 100) if options.quick else most
        publishing, results, companions, wall = cost_of(kind, size, count, rounds)
        limit = limit_of(kind, size, count, rounds)
        script = publishing + results + companions
        figures = (publishing, results, companions, script, wall, limit)
        name = f"{kind} {size:,}" if kind not in (INT, DATACLASS) else kind
        print(f"{name:14}", *(f"{us:12.2f}" for us in figures), f"{limit / script:8.2f}")
    print(f"\n{f'{KEPT:,} receipts kept':26} script    gc")
    sys.stdout.flush()
    quick = ["--quick"] if options.quick else []
    for name in COLLECTORS:  # each in a script of its own: it is to begin like the others
        command = [sys.executable, "-m", "bench.parent_cost", "--collector", name, *quick]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
