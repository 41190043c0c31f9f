# SPDX-License-Identifier: MIT
"""The breaker: when it stops a lane, lets it try, and has it go on; whom it tells."""

import logging
from collections.abc import Callable

import pytest

from procbus.core.errors import CircuitOpen
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.lanes import batching as breaker_module
from procbus.lanes import batching as sharing_module
from procbus.lanes.batching import TRIALS_AT_CLOSE, Batching, Breaker
from procbus.lanes.breaker import COOL_S, MOST_DEATHS, SPENT_S
from tests.parts import delivery_to, subscription_of

SHORT = "less than 1 GiB of memory left"


class Parts:
    """A breaker of a lane without workers, at a time that the test says."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.batching = Batching()
        #: What publishing raises, as it was told: None for no more.
        self.guarded: list[Callable[[], CircuitOpen] | None] = []
        self.failed: list[Outcome] = []
        self.breaker = Breaker(self.batching, self.guarded.append, self.failed.append)

    def die(self, count: int = 1) -> None:
        for _ in range(count):
            self.breaker.note_death("4711 (killed) while it ran resize")

    def open(self) -> None:
        self.die(MOST_DEATHS + 1)

    def look(self, seconds: float = 0.0, short: str = "") -> None:
        """Have the supervisor look, after so many seconds."""
        self.now += seconds
        self.breaker.look(self.now, short)

    def take(self) -> int:
        """How many of those that are ready a free worker gets."""
        return len(self.batching.next_batch(wait=False))

    def ready(self, count: int) -> None:
        subscription = subscription_of()
        subscription.average_s = 1e-6
        for number in range(count):
            self.batching.queue.put(delivery_to(subscription, number))


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    parts = Parts()
    monkeypatch.setattr(breaker_module, "monotonic", lambda: parts.now)
    monkeypatch.setattr(sharing_module, "monotonic", lambda: parts.now)
    return parts


def test_a_few_deaths_stop_nothing(parts: Parts) -> None:
    parts.ready(5)

    parts.die(MOST_DEATHS)

    assert parts.breaker.reason() == ""
    assert parts.guarded == []
    assert parts.take() == 5


def test_too_many_deaths_stop_the_lane_and_publishing_says_why(
    parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    parts.ready(5)

    parts.open()

    assert parts.take() == 0
    assert "workers died" in parts.breaker.reason()
    [make] = parts.guarded
    assert make is not None
    assert make() is not make(), "each publisher has its own, with a traceback of its own"
    text = str(make())
    assert f"{MOST_DEATHS + 1} worker processes died" in text
    assert "the last one was 4711 (killed) while it ran resize" in text
    assert f"no new work for {COOL_S:.0f} s" in text
    assert "publish again" in text
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert "what is pending waits" in record.getMessage()
    assert parts.failed == []


def test_deaths_while_it_is_open_are_told_to_nobody(parts: Parts) -> None:
    parts.open()

    parts.die(5)

    assert len(parts.guarded) == 1


def test_after_a_while_one_delivery_is_tried_and_publishing_goes_on(parts: Parts) -> None:
    parts.ready(5)
    parts.open()

    parts.look(COOL_S - 0.1)
    assert parts.take() == 0
    assert len(parts.guarded) == 1
    parts.look(0.1)

    assert parts.guarded[-1] is None
    assert parts.take() == 1
    assert parts.take() == 0


def test_a_trial_that_is_survived_has_the_lane_go_on(
    parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    parts.ready(5)
    parts.open()
    parts.look(COOL_S)
    assert parts.take() == 1

    parts.breaker.note_survival()

    assert parts.take() == 4
    assert parts.breaker.reason() == ""
    assert parts.guarded[-1] is None
    assert "the cpu lane works again" in caplog.text


def test_a_trial_that_dies_stops_it_for_longer(parts: Parts) -> None:
    parts.ready(5)
    parts.open()
    parts.look(COOL_S)
    parts.take()

    parts.die()

    assert parts.take() == 0
    make = parts.guarded[-1]
    assert make is not None
    assert f"{2 * COOL_S:.0f} s" in str(make())
    parts.look(2 * COOL_S - 0.1)
    assert parts.take() == 0
    parts.look(0.1)
    assert parts.take() == 1


def test_a_survival_of_work_given_before_keeps_the_trial_from_nothing(parts: Parts) -> None:
    parts.ready(5)
    parts.open()
    parts.breaker.note_survival()  # it had been given its work before
    assert parts.take() == 0
    parts.look(COOL_S)
    assert parts.take() == 1

    parts.breaker.note_survival()

    assert parts.take() == 4


def test_a_survival_closes_it_for_publishing_too_whoever_was_slow(parts: Parts) -> None:
    # The thread that found it open may come to say so only after the trial has begun.
    parts.open()
    parts.look(COOL_S)
    parts.guarded.append(parts.guarded[0])

    parts.breaker.note_survival()

    assert parts.guarded[-1] is None


def test_a_trial_spent_on_nothing_is_followed_by_another(parts: Parts) -> None:
    parts.ready(5)
    parts.open()
    parts.look(COOL_S)
    assert parts.take() == 1  # and it cannot travel, say

    parts.look(SPENT_S - 0.1)
    assert parts.take() == 0
    parts.look(0.1)
    assert parts.take() == 1


@pytest.mark.parametrize(("began", "taken"), [(0.0, 0), (-1.0, 1)])
def test_a_trial_in_its_handler_is_waited_for_but_not_what_began_before(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, began: float, taken: int
) -> None:
    parts.ready(5)
    parts.open()
    parts.look(COOL_S)
    assert parts.take() == 1
    at = (1, 0, parts.now + began)
    monkeypatch.setattr(parts.batching, "running", lambda: [(None, None, None, at)])

    parts.look(SPENT_S)

    assert parts.take() == taken


def test_survivals_without_deaths_are_noted_without_the_lock(parts: Parts) -> None:
    with parts.batching.queue.lock:
        parts.breaker.note_survival()


def test_after_cancelling_deaths_open_nothing(parts: Parts) -> None:
    parts.batching.queue.clear()

    parts.open()

    assert parts.guarded == []
    assert parts.breaker.reason() == ""


# Closing.


def test_a_bus_that_closes_tries_at_once_and_gives_up_after_a_few_trials(parts: Parts) -> None:
    parts.ready(5)
    parts.open()
    parts.breaker.expect_close()
    for _ in range(TRIALS_AT_CLOSE - 1):
        parts.look()
        assert parts.take() == 1
        parts.die()
        assert parts.failed == []
    parts.look()
    assert parts.take() == 1

    parts.die()

    [outcome] = parts.failed
    assert outcome.kind is OutcomeKind.WORKER_DIED
    assert isinstance(outcome.error, CircuitOpen)
    assert "closing" in str(outcome.error)
    assert outcome.started_at == 0.0


def test_what_turns_up_after_that_fails_with_the_next_trial(parts: Parts) -> None:
    parts.open()
    parts.breaker.expect_close()
    for _ in range(TRIALS_AT_CLOSE):
        parts.look()
        parts.die()

    parts.look()
    parts.die()

    assert len(parts.failed) == 2


def test_a_circuit_that_opens_while_the_bus_closes_is_tried_at_once(parts: Parts) -> None:
    parts.ready(5)
    parts.breaker.expect_close()
    parts.open()

    parts.look()

    assert parts.take() == 1


def test_a_bus_that_closes_goes_on_after_a_trial_that_is_survived(parts: Parts) -> None:
    parts.ready(5)
    parts.open()
    parts.breaker.expect_close()
    parts.look()
    assert parts.take() == 1

    parts.breaker.note_survival()

    assert parts.take() == 4
    assert parts.failed == []


# Memory.


def test_short_of_memory_nothing_is_begun_until_there_is_enough(parts: Parts) -> None:
    parts.ready(5)

    parts.look(short=SHORT)
    assert parts.take() == 0
    assert parts.breaker.reason() == SHORT
    assert parts.guarded == [], "publishing goes on: it waits"

    parts.look(0.5)
    assert parts.take() == 5
    assert parts.breaker.reason() == ""
