"""What do limits and retries cost a handler that does nothing, and the supervisor by itself?

The same tiny handler on two buses, one with every limit and one with none, in turns of some
thousand events. Then 64 workers that sleep, and the cpu time of the supervisor's thread meanwhile.
"""

from __future__ import annotations

import threading
from statistics import median
from time import clock_gettime, monotonic, perf_counter, pthread_getcpuclockid, sleep
from typing import TYPE_CHECKING, Any

from bench.model import PROCBUS, Question, Row, Settings, Target
from bench.work import nap, tiny

if TYPE_CHECKING:
    from procbus import EventBus

LIMITS: dict[str, Any] = {"timeout": 60, "retries": 3, "max_memory": "2 GiB"}
WITH, WITHOUT = "tiny cpu handler with limits", "tiny cpu handler without limits"
SHARE = "rate with limits"
FULL_TURNS = 100
FULL_COUNT = 5_000  # events in a turn
SUPERVISOR = "procbus-supervisor"
SLEEPERS = 64
FULL_WATCH_S = 6.0
SLEEP_MORE_S = 2.0  # than they are watched, ample for the last to begin before the first ends
BOUND_S = 60.0
IDLE = "supervisor, 64 workers that sleep"
IDLE_LIMITED = "supervisor, 64 workers that sleep, every limit set"


def rate(bus: EventBus, count: int) -> float:
    """Return events per second, from the first publish until all results are there."""
    began = perf_counter()
    for receipt in [bus.publish(number) for number in range(count)]:
        receipt.result()
    return count / (perf_counter() - began)


def rates(settings: Settings) -> dict[str, float]:
    """Measure both buses in turns; the share is the median of those of the turns."""
    from procbus import EventBus

    count = settings.count(FULL_COUNT)
    limited: list[float] = []
    free: list[float] = []
    with (
        EventBus([], cpu_workers=settings.workers) as with_limits,
        EventBus([], cpu_workers=settings.workers) as without,
    ):
        with_limits.subscribe(int, tiny, kind="cpu", **LIMITS)
        without.subscribe(int, tiny, kind="cpu")
        for bus in (with_limits, without):
            bus.start()
            rate(bus, count)
        for turn in range(settings.count(FULL_TURNS, at_least=2)):
            for bus in (with_limits, without) if turn % 2 else (without, with_limits):
                (limited if bus is with_limits else free).append(rate(bus, count))
    shares = [100 * ours / theirs for ours, theirs in zip(limited, free, strict=True)]
    return {WITH: median(limited), WITHOUT: median(free), SHARE: median(shares)}


def wait_for(bus: EventBus, state: str, count: int) -> None:
    """Wait until so many workers are in this state."""
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
        Row(WITH, "events/s"),
        Row(WITHOUT, "events/s"),
        Row(SHARE, "% of without", (Target(97, at_least=True, unit="%"),)),
        Row(IDLE, "% of a core", (Target(0.5, at_least=False, unit="%"),)),
        Row(IDLE_LIMITED, "% of a core"),
    ),
    contenders={PROCBUS: figures},
    rounds=3,
)
