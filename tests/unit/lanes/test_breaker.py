# SPDX-License-Identifier: MIT
"""The circuit breaker: when it stops a lane, lets it try, and has it go on; whom it tells."""

import logging
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from procbus.core.errors import CircuitOpen
from procbus.core.flow import Circuit
from procbus.core.outcome import Outcome, OutcomeKind
from procbus.lanes.batching import TRIALS_AT_CLOSE, Batching, Breaker
from procbus.lanes.breaker import CIRCUIT_LIMITS, CircuitBreaker, CircuitState
from tests.parts import delivery_to, subscription_of

CLOSED, OPEN, TRIAL = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.TRIAL
COOL_S, MOST_COOL_S = CIRCUIT_LIMITS.cool_s, CIRCUIT_LIMITS.most_cool_s
MOST_DEATHS, DEATHS_WINDOW_S = CIRCUIT_LIMITS.most_deaths, CIRCUIT_LIMITS.deaths_window_s
SPENT_S, TRICKLE_S = CIRCUIT_LIMITS.spent_s, CIRCUIT_LIMITS.trickle_s
SHORT = "less than 1 GiB of memory left"


# The circuit, told the time.


def die(circuit: CircuitBreaker, now: float, count: int = MOST_DEATHS + 1) -> list[bool]:
    return [circuit.note_death(now) for _ in range(count)]


def opened(now: float = 100.0) -> CircuitBreaker:
    """A circuit that has opened just now."""
    circuit = CircuitBreaker()
    assert die(circuit, now) == [False] * MOST_DEATHS + [True]
    return circuit


def trial(circuit: CircuitBreaker, now: float, running: Sequence[float] = ()) -> bool:
    return circuit.look(now, "", running).trial


@pytest.mark.parametrize(("spacing", "opens"), [(1.0, True), (1.001, False)])
def test_only_deaths_inside_of_the_window_count(spacing: float, opens: bool) -> None:
    circuit = CircuitBreaker()
    step_s = spacing * DEATHS_WINDOW_S / MOST_DEATHS

    noted = [circuit.note_death(n * step_s) for n in range(MOST_DEATHS + 1)]

    assert noted == [False] * MOST_DEATHS + [opens]


def test_each_failed_trial_doubles_the_wait_up_to_a_bound_until_one_is_survived() -> None:
    circuit = opened(0.0)
    waits = []
    for _ in range(6):
        now = circuit.trial_at
        assert trial(circuit, now)
        assert circuit.note_death(now)
        waits.append(circuit.trial_at - now)
    assert waits == [10.0, 20.0, 40.0, MOST_COOL_S, MOST_COOL_S, MOST_COOL_S]
    assert circuit.failed_trials == 6

    trial(circuit, circuit.trial_at)
    assert circuit.note_survival()

    assert circuit.state is CLOSED
    assert (circuit.deaths, circuit.failed_trials) == (0, 0)
    die(circuit, 3000.0)
    assert circuit.trial_at == 3000.0 + COOL_S, "it does not remember how long it was open before"


def test_trial_that_was_not_taken_is_not_repeated_and_ends_with_the_next_death() -> None:
    circuit = opened(0.0)
    assert trial(circuit, 10.0)

    assert not trial(circuit, 1e9)
    assert circuit.note_death(1e9)  # of a worker that had its work before

    assert circuit.most() == 0


def trickles(circuit: CircuitBreaker, now: float, running: Sequence[float] = ()) -> bool:
    return circuit.look(now, SHORT, running).wakes


def test_idle_lane_begins_one_delivery_if_memory_stays_short() -> None:
    circuit = CircuitBreaker()
    trickles(circuit, 50.0)
    assert not trickles(circuit, 50.0 + TRICKLE_S, running=[49.0]), "it is not idle"

    assert not trickles(circuit, 100.0), "it counts from when all was idle"
    assert not trickles(circuit, 100.0 + TRICKLE_S - 0.1)
    assert trickles(circuit, 100.0 + TRICKLE_S)

    assert circuit.most() == 1
    circuit.begin(100.0 + TRICKLE_S)
    assert circuit.most() == 0
    assert not trickles(circuit, 100.0 + TRICKLE_S + 1), "the next one after as long again"
    assert trickles(circuit, 100.0 + 2 * TRICKLE_S)


def test_open_circuit_is_the_first_reason() -> None:
    circuit = opened()
    circuit.hurry()

    assert circuit.look(100.0, SHORT, []).trial, "trials alone let something through now"
    assert "workers died" in circuit.reason()
    circuit.begin(100.0)
    assert not trickles(circuit, 100.0 + TRICKLE_S, running=[100.0])


class AnyCircuit(RuleBasedStateMachine):
    """After any events in any order an open circuit lets no delivery through, and ends."""

    def __init__(self) -> None:
        super().__init__()
        self.circuit = CircuitBreaker()
        self.now = 1000.0
        self.short = ""
        #: Deaths since the last survival, while it was closed.
        self.deaths: list[float] = []
        #: When the running delivery began, if one runs.
        self.running: list[float] = []

    @rule(
        seconds=st.sampled_from(
            [0.0, 0.1, 1.0, DEATHS_WINDOW_S / MOST_DEATHS, 4.9, 5.0, 31.0, 61.0]
        )
    )
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(count=st.sampled_from([1, 1, 5, MOST_DEATHS]))
    def workers_die(self, count: int) -> None:
        for _ in range(count):
            before = self.circuit.state
            if before is CLOSED:
                self.deaths.append(self.now)
            recent = [at for at in self.deaths if self.now - at <= DEATHS_WINDOW_S]
            opens = self.circuit.note_death(self.now)
            assert opens == (self.circuit.state is OPEN and before is not OPEN)
            if before is CLOSED:
                assert opens == (len(recent) > MOST_DEATHS)
            elif before is TRIAL:
                assert opens
        self.running.clear()

    @rule()
    def a_worker_survives(self) -> None:
        before = self.circuit.state
        closes = self.circuit.note_survival()
        assert closes == (before is TRIAL), "it closes after a trial, and by nothing else"
        if before is not OPEN:
            self.deaths.clear()
        self.running.clear()

    @rule(short=st.sampled_from(["", SHORT]))
    def look(self, short: str) -> None:
        before, due = self.circuit.state, self.now >= self.circuit.trial_at
        found = self.circuit.look(self.now, short, self.running)
        assert found.stops == bool(short and not self.short)
        if before is OPEN:
            assert found.trial == due
        if found.trial:
            assert before is not CLOSED
            assert self.circuit.most() == 1
        elif found.wakes:
            assert short or self.short
            assert self.circuit.most() == 1 or not short
        self.short = short

    @precondition(lambda self: self.circuit.most())
    @rule(runs=st.booleans())
    def begin(self, runs: bool) -> None:
        assert self.circuit.most() == 1
        self.circuit.begin(self.now)
        assert self.circuit.most() == 0
        self.running = [self.now] if runs else []

    @precondition(lambda self: self.circuit.state is not CLOSED)
    @rule()
    def a_trial_that_takes_for_ever_is_followed_by_another(self) -> None:
        self.now += MOST_COOL_S
        self.look(self.short)
        assert self.circuit.state is TRIAL
        assert self.circuit.most() == 1

    @precondition(lambda self: self.circuit.most() is not None)
    @rule()
    def it_is_never_stuck(self) -> None:
        self.running.clear()
        for seconds in (MOST_COOL_S, TRICKLE_S):
            self.now += seconds
            self.look(self.short)
        assert self.circuit.most() == 1

    @rule()
    def hurry(self) -> None:
        before = self.circuit.state
        self.circuit.hurry()
        assert self.circuit.state is before

    @invariant()
    def an_open_circuit_lets_nothing_through_and_says_why(self) -> None:
        assert (self.circuit.most() is not None) == bool(self.circuit.reason())
        if self.circuit.state is OPEN:
            assert self.circuit.most() == 0
            assert self.circuit.deaths > 0
            assert self.circuit.trial_at <= self.now + MOST_COOL_S


TestAnyCircuit = AnyCircuit.TestCase


# In a lane: publishers, settlement and queue.


class Running(Batching):
    """Batching of a lane whose handlers began at the times that the test says."""

    began_at: Sequence[float] = ()

    def running(self) -> Any:
        return [(None, None, None, (1, index, at)) for index, at in enumerate(self.began_at)]


class Parts:
    """A breaker of a lane without workers, at a time that the test says."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.batching = Running(clock=lambda: self.now)
        #: Makers of the error that publishing raises, as it was told: None ends that.
        self.guarded: list[Callable[[], CircuitOpen] | None] = []
        self.failed: list[Outcome] = []
        #: Called once, before the flow is told: by another thread, in a real lane.
        self.before_telling: Callable[[], None] | None = None
        flow: Any = SimpleNamespace(guard=self.guard)
        self.breaker = Breaker(self.batching, flow, self.failed.append)
        subscription = subscription_of()
        subscription.average_s = 1e-6
        for number in range(5):
            self.batching.queue.put(delivery_to(subscription, number))

    def guard(self, circuit: Circuit) -> None:
        meanwhile, self.before_telling = self.before_telling, None
        if meanwhile is not None:
            meanwhile()
        self.guarded.append(circuit.refusal)

    def die(self, count: int = 1) -> None:
        for _ in range(count):
            self.breaker.note_death("4711 (killed) while it ran resize")

    def open(self) -> None:
        self.die(MOST_DEATHS + 1)

    def look(self, seconds: float = 0.0, short: str = "") -> None:
        """Have the supervisor look, after `seconds`."""
        self.now += seconds
        self.breaker.look(self.now, short)

    def take(self) -> int:
        """Number of ready deliveries that a free worker gets."""
        return len(self.batching.next_batch(wait=False))


@pytest.fixture
def parts() -> Parts:
    return Parts()


def test_a_few_deaths_and_deaths_with_a_survival_between_them_stop_nothing(parts: Parts) -> None:
    parts.die(MOST_DEATHS)
    parts.breaker.note_survival()
    parts.die(MOST_DEATHS)

    assert parts.breaker.reason() == ""
    assert parts.guarded == []
    assert parts.take() == 5


def test_too_many_deaths_stop_the_lane_and_publishing_says_why(
    parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    parts.open()
    parts.die(5)  # an open circuit reports no deaths

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
    assert "pending deliveries wait" in record.getMessage()
    assert parts.failed == []


@pytest.mark.parametrize("closing", [False, True])
def test_a_trial_that_is_survived_has_the_lane_and_publishing_go_on(
    parts: Parts, caplog: pytest.LogCaptureFixture, closing: bool
) -> None:
    parts.open()
    assert len(parts.guarded) == 1
    if closing:
        parts.breaker.expect_close()
        parts.look()
    else:
        parts.look(COOL_S - 0.1)
        assert parts.take() == 0
        parts.look(0.1)
    assert parts.guarded[-1] is None
    assert parts.take() == 1
    assert parts.take() == 0

    parts.breaker.note_survival()

    assert parts.take() == 4
    assert parts.breaker.reason() == ""
    assert parts.failed == []
    assert "the cpu lane works again" in caplog.text


def test_publishing_follows_the_circuit_though_the_thread_that_opened_it_is_late(
    parts: Parts,
) -> None:
    def try_and_survive() -> None:
        parts.look(COOL_S)
        parts.breaker.note_survival()

    parts.before_telling = try_and_survive
    parts.open()

    assert len(parts.guarded) == 3
    assert parts.guarded[-1] is None


def test_publishing_is_refused_though_the_thread_that_began_the_trial_is_late(
    parts: Parts,
) -> None:
    parts.open()
    parts.before_telling = parts.die
    parts.look(COOL_S)

    assert len(parts.guarded) == 3
    assert parts.guarded[-1] is not None


@pytest.mark.parametrize(
    ("began", "later_s", "taken"),
    [
        (0.0, SPENT_S, 0),  # a trial in its handler is waited for,
        (0.0, MOST_COOL_S - 0.001, 0),
        (0.0, MOST_COOL_S, 1),  # but not for ever;
        (-1.0, SPENT_S - 0.001, 0),
        (-1.0, SPENT_S, 1),  # and earlier work is not
    ],
)
def test_a_trial_is_followed_by_another_if_it_is_unused_or_takes_too_long(
    parts: Parts, began: float, later_s: float, taken: int
) -> None:
    parts.open()
    parts.look(COOL_S)
    assert parts.take() == 1
    parts.batching.began_at = [parts.now + began]

    parts.look(later_s)

    assert parts.take() == taken
    assert parts.batching.circuit.failed_trials == 0


def test_survivals_without_deaths_are_noted_without_the_lock(parts: Parts) -> None:
    with parts.batching.queue.lock:
        parts.breaker.note_survival()

    assert parts.guarded == []


def test_after_cancelling_deaths_open_nothing(parts: Parts) -> None:
    parts.batching.queue.clear()

    parts.open()

    assert parts.guarded == []
    assert parts.breaker.reason() == ""


def test_short_of_memory_nothing_is_begun_until_there_is_enough(parts: Parts) -> None:
    parts.look(short=SHORT)
    assert parts.take() == 0
    assert parts.breaker.reason() == SHORT
    assert parts.guarded == [], "publishing goes on: it waits"

    parts.look(0.5)
    assert parts.take() == 5
    assert parts.breaker.reason() == ""


# Closing.


@pytest.mark.parametrize("closes_first", [False, True])
def test_a_bus_that_closes_tries_at_once_and_gives_up_after_a_few_trials(
    parts: Parts, closes_first: bool
) -> None:
    if closes_first:
        parts.breaker.expect_close()
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

    parts.look()
    parts.die()
    assert len(parts.failed) == 2, "what turns up after that fails with the next trial"
