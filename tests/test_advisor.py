"""The advisor of a bus: its thread, its log lines, its part in the life of the bus."""

import logging
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from procbus.advisor import Advisor
from procbus.evidence import Machine
from procbus.subscription import Subscription
from tests.parts import subscription_of

TWO_CORES = Machine(cores=2, cpu_workers=2, io_workers=32)


class Lanes:
    """Lanes with no thread to look at."""

    def io_threads(self) -> Sequence[Any]:
        return []

    def machine(self) -> Machine:
        return TWO_CORES


class Subscribed:
    """Subscriptions that stay as they are."""

    def __init__(self, *subscriptions: Subscription) -> None:
        self.subscriptions = subscriptions

    def all(self) -> Sequence[Subscription]:
        return self.subscriptions

    def crossings(self) -> Sequence[Any]:
        return []

    def reroute(self) -> None:
        raise AssertionError("nothing moves here")


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


def test_it_says_what_it_has_to_say_once(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "procbus")
    advisor = advisor_of(waits_in_a_worker())
    advisor.stop()
    advisor.stop()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(
        "resize is declared cpu but spends 100% of its time waiting: declare it io"
    )


def test_little_loss_is_said_quietly(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "procbus")
    advisor_of(waits_in_a_worker(runs=12)).stop()
    assert [record.levelno for record in caplog.records] == [logging.INFO]


def test_thin_evidence_is_not_spoken_of(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "procbus")
    advisor = advisor_of(waits_in_a_worker(runs=3))
    [advice] = advisor.advice()
    advisor.stop()
    assert advice.kind is None
    assert not caplog.records


def test_advice_is_there_at_any_time_for_every_handler():
    advisor = advisor_of(waits_in_a_worker(), subscription_of())
    assert [each.kind for each in advisor.advice()] == ["io", None]
    advisor.stop()
    assert [each.kind for each in advisor.advice()] == ["io", None]


def test_its_thread_starts_when_it_is_stirred_and_ends_when_it_is_stopped():
    advisor = advisor_of()
    assert advisor_threads() == 0
    advisor.stir()
    advisor.stir()
    assert advisor_threads() == 1
    advisor.stop()
    assert advisor_threads() == 0
    advisor.stir()
    assert advisor_threads() == 0


def test_its_own_failure_does_not_keep_a_bus_from_closing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise ValueError("math domain error")

    subscription = waits_in_a_worker()
    advisor = advisor_of(subscription)
    monkeypatch.setattr(type(subscription.meter), "evidence", fail)
    advisor.stop()
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
