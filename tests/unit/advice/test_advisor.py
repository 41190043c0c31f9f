"""The advisor of a bus: its thread, its log lines, its part in the life of the bus."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from procbus.advice.advisor import Advisor
from procbus.core.meter import Machine
from procbus.core.subscription import Subscription
from procbus.routing.lane_switch import LaneSwitch
from tests.parts import BOUND_S, FakeLane, handler_of, subscription_of

TWO_CORES = Machine(cores=2, cpu_workers=2, io_workers=32)


class Lanes:
    """Lanes with no thread to look at."""

    def io_threads(self) -> Sequence[Any]:
        return []

    def machine(self) -> Machine:
        return TWO_CORES


class Subscribed:
    """Subscriptions that stay as they are."""

    def __init__(self, *subscriptions: Subscription, switches: Sequence[LaneSwitch] = ()) -> None:
        self.subscriptions = subscriptions
        self.moved = threading.Event()
        self._switches = switches

    def all(self) -> Sequence[Subscription]:
        return [*self.subscriptions, *(each.current for each in self._switches)]

    def switches(self) -> Sequence[LaneSwitch]:
        return self._switches

    def reroute(self) -> None:
        self.moved.set()


def advisor_of(*subscriptions: Subscription) -> Advisor:
    return Advisor(Subscribed(*subscriptions), Lanes)


def waits_in_a_worker(runs: int = 100) -> Subscription:
    subscription = subscription_of(kind="cpu", name="resize")
    subscription.succeeded = runs
    for number in range(runs):
        subscription.meter.note_run(1_000 + number * 0.01, 0.02, 0.0)
    return subscription


def advisor_threads() -> int:
    return sum(thread.name == "procbus-advisor" for thread in threading.enumerate())


def test_each_advice_is_logged_once(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "procbus")
    advisor = advisor_of(waits_in_a_worker())
    advisor.stop()
    advisor.sum_up()
    advisor.sum_up()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(
        "resize is declared cpu but spends 100% of its time waiting: declare it io"
    )


def test_little_loss_is_logged_at_info(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "procbus")
    advisor_of(waits_in_a_worker(runs=12)).sum_up()
    assert [record.levelno for record in caplog.records] == [logging.INFO]


def test_thin_evidence_is_not_logged(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "procbus")
    advisor = advisor_of(waits_in_a_worker(runs=3))
    [advice] = advisor.advice()
    advisor.sum_up()
    assert advice.kind is None
    assert not caplog.records


def test_advice_is_there_at_any_time_for_every_handler():
    advisor = advisor_of(waits_in_a_worker(), subscription_of())
    assert [each.kind for each in advisor.advice()] == ["io", None]
    advisor.stop()
    assert [each.kind for each in advisor.advice()] == ["io", None]


def test_runs_are_counted_whether_they_were_measured_or_not():
    subscription = subscription_of(kind="cpu", name="short")
    subscription.succeeded = 144
    for _ in range(144):
        subscription.ran.add(0.01)
    subscription.meter.note_run(1_000.0, 0.01, 0.01)
    [advice] = advisor_of(subscription).advice()
    assert (advice.evidence.ran, advice.evidence.runs) == (144, 1)
    assert advice.text == (
        "short ran 144 times, 1.4 s in all, of which 1 were measured: too little to say"
    )


def test_thread_of_the_advisor_starts_when_stirred_and_ends_when_stopped():
    advisor = advisor_of()
    assert advisor_threads() == 0
    advisor.stir()
    advisor.stir()
    assert advisor_threads() == 1
    advisor.stop()
    advisor.stop()
    assert advisor_threads() == 0
    advisor.stir()
    assert advisor_threads() == 0


class Busy:
    """A thread of the io lane that is in one long handler all the time."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    def subject(self) -> Subscription:
        return self._subscription

    def finished(self, since: float) -> None:
        return None


class Glances:
    """Stands in for the probe, and for the lanes: notes which threads are looked at."""

    def __init__(self, threads: int, *, machine: Machine = TWO_CORES, **options: Any) -> None:
        self._machine = machine
        #: One for each time that the advisor asked about the machine.
        self.asked = threading.Semaphore(0)
        subscription = subscription_of()
        self.threads = [Busy(subscription) for _ in range(threads)]
        self.looked_at: list[Sequence[Busy]] = []
        self.looked = threading.Semaphore(0)
        probe: Any = self
        self.advisor = Advisor(
            Subscribed(subscription), lambda: self, make_probe=lambda: probe, **options
        )

    def io_threads(self) -> Sequence[Any]:
        return self.threads

    def machine(self) -> Machine:
        self.asked.release()
        return self._machine

    def look(self, threads: Sequence[Busy]) -> Sequence[Any]:
        self.looked_at.append(threads)
        self.advisor.stir()  # as if a long run had just ended
        self.looked.release()
        return []

    def wait_looked(self) -> None:
        assert self.looked.acquire(timeout=BOUND_S)

    def first(self, looks: int) -> Sequence[Sequence[Busy]]:
        """Have it look so often; say at which threads each time."""
        self.advisor.stir()
        for _ in range(looks):
            self.wait_looked()
        self.advisor.stop()
        return self.looked_at[:looks]


def test_runs_that_end_do_not_hasten_the_next_look():
    glances = Glances(1, look_s=60.0)
    glances.advisor.stir()
    glances.wait_looked()
    assert not glances.looked.acquire(timeout=0.1)
    glances.advisor.stop()
    assert len(glances.looked_at) == 1


def test_many_threads_are_looked_at_in_turns():
    glances = Glances(70)
    looks = glances.first(3)
    assert [len(threads) for threads in looks] == [32, 32, 32]
    assert set().union(*looks) == set(glances.threads)


def test_threads_are_not_looked_at_without_a_gil():
    glances = Glances(2, machine=replace(TWO_CORES, gil=False))
    glances.advisor.stir()
    for _ in range(2):  # it has not looked after the first time
        assert glances.asked.acquire(timeout=BOUND_S)
    glances.advisor.stop()
    assert glances.looked_at == []


def test_few_threads_are_all_looked_at_each_time():
    glances = Glances(32)
    assert [set(threads) for threads in glances.first(2)] == 2 * [set(glances.threads)]


def test_failure_of_the_advisor_does_not_keep_a_bus_open(
    caplog: pytest.LogCaptureFixture,
):
    class Failing(Subscribed):
        def all(self) -> Sequence[Subscription]:
            raise ValueError("math domain error")

    Advisor(Failing(), Lanes).sum_up()
    assert "procbus itself failed in its advisor" in caplog.text
    assert "math domain error" in caplog.text


def test_a_handler_that_might_have_to_go_is_weighed_first():
    subscription = subscription_of(name="spin")
    subscription.succeeded = 1_000
    for number in range(1_000):
        subscription.meter.note_run(1_000 + number * 0.001, 9e-4, 9e-4)
    advisor = advisor_of(subscription)
    assert advisor.advice()[0].kind is None
    assert subscription.meter.to_weigh == 3
    subscription.meter.note_weight(1e-5)
    subscription.meter.obstacle = ""
    assert advisor.advice()[0].kind == "cpu"


def switch_that_computes() -> LaneSwitch:
    """A handler of kind "auto" that is on threads, and computes."""
    lane: Any = FakeLane()
    switch = LaneSwitch(handler_of(kind="auto", name="spin"), lambda _: lane)
    switch.current.succeeded = 1_000
    meter = switch.current.meter
    for number in range(1_000):
        meter.note_run(1_000 + number * 0.001, 9e-4, 9e-4)
    meter.note_weight(1e-5)
    meter.obstacle = ""
    return switch


def test_a_handler_of_kind_auto_is_moved_and_the_log_says_why(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "procbus")
    switch = switch_that_computes()
    subscribed = Subscribed(switches=[switch])
    advisor = Advisor(subscribed, Lanes)
    advisor.stir()
    assert subscribed.moved.wait(BOUND_S)
    advisor.stop()
    assert switch.current.handler.kind == "cpu"
    assert "of CPU per second" in switch.current.decided
    assert [record.getMessage()[:22] for record in caplog.records] == ["moved to the cpu lane:"]


def test_handlers_do_not_move_once_the_interpreter_ends():
    switch = switch_that_computes()
    judged = threading.Semaphore(0)

    class Counting(Subscribed):
        def all(self) -> Sequence[Subscription]:
            judged.release()
            return super().all()

    advisor = Advisor(Counting(switches=[switch]), Lanes, is_ending=lambda: True)
    advisor.stir()
    for _ in range(4):
        assert judged.acquire(timeout=BOUND_S)
    advisor.stop()
    assert switch.current.handler.kind == "io"
