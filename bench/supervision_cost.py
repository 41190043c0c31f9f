"""What do limits and retries cost a handler that does nothing, and the supervisor by itself?

The same tiny handler on three buses, in turns: with no limit, with limits of time, and with every
limit. Then 64 workers that sleep, and the cpu time of the supervisor's thread meanwhile. Then a
handler that reports its progress in a loop.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from statistics import median
from time import clock_gettime, monotonic, perf_counter, pthread_getcpuclockid, sleep, thread_time
from typing import TYPE_CHECKING, Any

from procbus import current

from .model import PROCBUS, Question, Row, Settings, Target
from .work import nap, tiny

if TYPE_CHECKING:
    from procbus import EventBus

TIMED: dict[str, Any] = {"timeout": 60, "retries": 3}
LIMITS: dict[str, Any] = {**TIMED, "max_memory": "2 GiB"}
FREE = "tiny cpu handler without limits"
# Row of the rate to the options of the handler.
VARIANTS: dict[str, dict[str, Any]] = {
    FREE: {},
    "tiny cpu handler with timeout and retries": TIMED,
    "tiny cpu handler with timeout, retries, max_memory": LIMITS,
}
FULL_OPENINGS = 4
FULL_TURNS = 30
TURN_S = 0.03
WARM_UP = 2_000
SUPERVISOR = "procbus-supervisor"
SLEEPERS = 64
FULL_WATCH_S = 6.0
SLEEP_MORE_S = 2.0  # than they are watched, ample for the last to begin before the first ends
BOUND_S = 60.0
FULL_REPORTS = 200_000
REPORTS_TURNS = 5
IDLE = "supervisor, 64 workers that sleep"
IDLE_LIMITED = "supervisor, 64 workers that sleep, every limit set"
REPORT = "a call of current().progress() in a cpu handler"


def report(count: int) -> float:
    """A handler that reports its progress; returns the microseconds of CPU time for a report."""
    found = []
    for _ in range(REPORTS_TURNS):
        began = thread_time()
        for done in range(count):
            current().progress(done, count, "page")
        reported = thread_time()
        for _ in range(count):
            pass
        found.append(2 * reported - began - thread_time())
    return 1e6 * min(found) / count


def rate(bus: EventBus, count: int) -> float:
    """Return events per second, from the first publish until all results are there."""
    began = perf_counter()
    for receipt in [bus.publish(number) for number in range(count)]:
        receipt.result()
    return count / (perf_counter() - began)


def take_turns(settings: Settings, found: dict[str, list[float]]) -> None:
    """Open a bus for each variant and add their rates, one of each in every turn."""
    from procbus import EventBus

    with ExitStack() as stack:
        buses = {}
        for row, options in VARIANTS.items():
            bus = stack.enter_context(EventBus([], cpu_workers=settings.workers))
            bus.subscribe(int, tiny, kind="cpu", **options)
            bus.start()
            rate(bus, 20)
            count = round(TURN_S * rate(bus, settings.count(WARM_UP)))
            buses[row] = bus, settings.count(count)
        rows = list(buses)
        for turn in range(settings.count(FULL_TURNS, at_least=2)):
            first = turn % len(rows)
            for row in rows[first:] + rows[:first]:
                found[row].append(rate(*buses[row]))


def rates(settings: Settings) -> dict[str, float]:
    """Measure all variants in turns; a share is the median of the turns' shares."""
    found: dict[str, list[float]] = {row: [] for row in VARIANTS}
    # Two equal buses differ by one or two percent, for as long as they are open.
    for _ in range(settings.count(FULL_OPENINGS, at_least=1)):
        take_turns(settings, found)
    figures = {row: median(each) for row, each in found.items()}
    for row, each in found.items():
        if row != FREE:
            ratios = [ours / free for ours, free in zip(each, found[FREE], strict=True)]
            figures[share_row(row)] = 100 * median(ratios)
    return figures


def share_row(row: str) -> str:
    """Name the row of a rate in proportion to that without limits."""
    return f"{row}: share of the rate without"


def wait_for(bus: EventBus, state: str, count: int) -> None:
    """Wait until a number of workers are in this state."""
    deadline = monotonic() + BOUND_S
    while monotonic() < deadline:
        if sum(w.kind == "cpu" and w.state == state for w in bus.health()) == count:
            return
        sleep(0.05)
    raise RuntimeError(f"not all of {count} workers are {state} after {BOUND_S:g} s")


def supervisor_share(bus: EventBus, topic: str, sleepers: int, seconds: float) -> float:
    """Have every worker sleep, and return the supervisor's cpu time in % of one core."""
    wait_for(bus, "idle", sleepers)
    receipts = [bus.publish(topic, seconds + SLEEP_MORE_S) for _ in range(sleepers)]
    wait_for(bus, "busy", sleepers)
    (thread,) = (each for each in threading.enumerate() if each.name == SUPERVISOR)
    assert thread.ident is not None
    clock = pthread_getcpuclockid(thread.ident)  # psutil's figures come in steps of 10 ms
    began, began_cpu = monotonic(), clock_gettime(clock)
    sleep(seconds)
    cpu, watched = clock_gettime(clock) - began_cpu, monotonic() - began
    if any(receipt.done for receipt in receipts):
        raise RuntimeError("a worker did not sleep to the end")
    for receipt in receipts:
        receipt.result()
    return 100 * cpu / watched


def figures(settings: Settings) -> dict[str, float]:
    """Measure the rates, then the supervisor: without limits, then with them."""
    from procbus import EventBus

    found = rates(settings)
    sleepers = settings.count(SLEEPERS, at_least=4)
    seconds = settings.seconds(FULL_WATCH_S)
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("report", report, kind="cpu")
        found[REPORT] = bus.publish("report", settings.count(FULL_REPORTS)).result()
    with EventBus([], cpu_workers=sleepers) as bus:
        bus.subscribe("nap", nap, kind="cpu", name="nap")
        bus.start()
        found[IDLE] = supervisor_share(bus, "nap", sleepers, seconds)
        bus.subscribe("limited", nap, kind="cpu", name="limited nap", **LIMITS)
        found[IDLE_LIMITED] = supervisor_share(bus, "limited", sleepers, seconds)
    return found


QUESTION = Question(
    name="supervision_cost",
    asks="What do limits cost a handler that does nothing, and the supervisor by itself?",
    rows=(
        *(Row(row, "events/s") for row in VARIANTS),
        *(
            Row(share_row(row), "%", (Target(97, at_least=True, unit="%"),))
            for row in VARIANTS
            if row != FREE
        ),
        Row(IDLE, "% of a core", (Target(0.5, at_least=False, unit="%"),)),
        Row(IDLE_LIMITED, "% of a core"),
        Row(REPORT, "us", (Target(0.5, at_least=False, unit="us"),)),
    ),
    contenders={PROCBUS: figures},
    rounds=3,
)
