# SPDX-License-Identifier: MIT
"""A thread of the io lane: its measurements of runs, and the objects it keeps of them."""

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from procbus import EventBus
from procbus.core.delivery import Delivery
from procbus.core.handler import make_handler
from procbus.core.meter import ONE_IN
from procbus.core.outcome import Outcome
from procbus.core.subscription import Subscription
from procbus.lanes.threads import IoLane
from tests.parts import BOUND_S, FlowOf, delivery_to, double


def test_a_thread_that_waits_keeps_no_event_alive():
    class Event:
        pass

    with EventBus([], io_workers=1) as bus:
        bus.subscribe(Event, lambda e: None)
        event: Any = Event()
        gone = weakref.ref(event)
        bus.publish(event).wait(BOUND_S)
        del event
        bus.subscribe(int, double)
        bus.publish(1).wait(BOUND_S)
        assert gone() is None


def run_on_threads(function: Callable[[Any], Any], count: int, **options: Any) -> Subscription:
    """Run a handler several times in a row on one thread; return its subscription."""
    done = threading.Semaphore(0)

    def settle(settled: Sequence[tuple[Delivery, Outcome]]) -> None:
        for delivery, outcome in settled:
            subscription.note_run(outcome.ended_at - outcome.started_at)
            delivery.end(outcome)
            done.release()

    lane = IoLane(1, FlowOf(settle), **options)
    subscription = Subscription(make_handler(function, "t"), lane)
    for number in range(count):
        lane.put(delivery_to(subscription, number, number))
        assert done.acquire(timeout=BOUND_S)
    lane.close(BOUND_S)
    return subscription


def test_a_long_run_is_measured_each_time() -> None:
    def nap(event: Any) -> None:
        time.sleep(0.002)

    subscription = run_on_threads(nap, 10)
    evidence = subscription.meter.evidence("io", False, 0.0)
    assert evidence.runs == 10
    assert evidence.wall_s >= 0.002
    assert evidence.cpu_s < evidence.wall_s / 2


def test_of_short_runs_a_few_stand_for_all() -> None:
    measured = [0]

    def nothing(event: Any) -> None:
        measured[0] += 1

    subscription = run_on_threads(nothing, 6 * ONE_IN)
    assert measured[0] == 6 * ONE_IN
    # The first is measured for itself; one that was held up for long too, on a busy machine.
    assert 5 * ONE_IN <= subscription.meter.runs <= 7 * ONE_IN + 1


def test_long_run_among_short_ones_is_measured_for_itself() -> None:
    def handle(event: Any) -> None:
        if event == 20:  # no one whose turn it is to be measured
            time.sleep(0.3)

    subscription = run_on_threads(handle, 25)
    evidence = subscription.meter.evidence("io", False, 0.0)
    assert 0.3 <= evidence.seen_s < 0.3 * ONE_IN / 2, "it stands for itself, not for many"


def test_a_run_that_raises_is_measured_too() -> None:
    def fail(event: Any) -> None:
        time.sleep(0.002)
        raise KeyError

    assert run_on_threads(fail, 3).meter.runs == 3


def test_long_runs_stir_the_advisor() -> None:
    stirred = threading.Event()

    def nap(event: Any) -> None:
        time.sleep(0.15)

    run_on_threads(nap, 2, stir=stirred.set)
    assert stirred.is_set()


def test_event_is_weighed_by_the_thread_that_runs_it() -> None:
    lanes: list[Subscription] = []

    def handle(event: Any) -> str:
        lanes[0].meter.to_weigh = 1
        time.sleep(0.002)
        return "result"

    done = threading.Semaphore(0)
    lane = IoLane(1, FlowOf(lambda _: done.release()))
    lanes.append(Subscription(make_handler(handle, "t"), lane))
    lane.put(delivery_to(lanes[0]))
    assert done.acquire(timeout=BOUND_S)
    lane.close(BOUND_S)
    assert lanes[0].meter.obstacle is not None
    assert lanes[0].meter.to_weigh == 0
