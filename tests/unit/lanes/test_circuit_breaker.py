# SPDX-License-Identifier: MIT
"""The circuit: what opens it, what a trial does, and that it is never stuck."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from procbus.lanes.breaker import (
    COOL_S,
    MOST_COOL_S,
    MOST_DEATHS,
    SPENT_S,
    WINDOW_S,
    Circuit,
    CircuitState,
)

CLOSED, OPEN, TRIAL = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.TRIAL


def opened(now: float = 100.0) -> Circuit:
    """A circuit that has opened just now."""
    circuit = Circuit()
    for _ in range(MOST_DEATHS):
        assert not circuit.note_death(now)
    assert circuit.note_death(now)
    return circuit


def test_one_death_more_than_the_limit_opens_it() -> None:
    circuit = opened(100.0)

    assert circuit.state is OPEN
    assert circuit.deaths == MOST_DEATHS + 1
    assert circuit.trial_at == 100.0 + COOL_S


def test_deaths_outside_of_the_window_do_not_count() -> None:
    circuit = Circuit()
    step_s = WINDOW_S / MOST_DEATHS * 1.001

    assert not any(circuit.note_death(n * step_s) for n in range(10 * MOST_DEATHS))
    assert circuit.state is CLOSED


def test_deaths_just_inside_of_the_window_count() -> None:
    circuit = Circuit()

    outcomes = [circuit.note_death(n * WINDOW_S / MOST_DEATHS) for n in range(MOST_DEATHS + 1)]

    assert outcomes == [False] * MOST_DEATHS + [True]


def test_a_survival_between_the_deaths_starts_the_count_anew() -> None:
    circuit = Circuit()
    for _ in range(MOST_DEATHS):
        circuit.note_death(100.0)

    assert not circuit.note_survival()

    assert circuit.deaths == 0
    assert not any(circuit.note_death(100.0) for _ in range(MOST_DEATHS))


def test_no_trial_begins_before_its_time() -> None:
    circuit = opened(100.0)

    assert not circuit.begin_trial(100.0 + COOL_S - 0.001, False)
    assert circuit.begin_trial(100.0 + COOL_S, False)
    assert circuit.state is TRIAL


def test_a_closed_circuit_needs_no_trial() -> None:
    assert not Circuit().begin_trial(1e9, False)


def test_a_trial_that_is_survived_closes_it_with_a_clean_slate() -> None:
    circuit = opened()
    circuit.begin_trial(1000.0, False)
    circuit.note_death(1000.0)
    circuit.begin_trial(2000.0, False)

    assert circuit.note_survival()

    assert circuit.state is CLOSED
    assert (circuit.deaths, circuit.failed_trials) == (0, 0)
    for _ in range(MOST_DEATHS + 1):
        circuit.note_death(3000.0)
    assert circuit.trial_at == 3000.0 + COOL_S, "it does not remember how long it was open before"


def test_each_trial_that_fails_doubles_the_wait_up_to_a_bound() -> None:
    circuit = opened(0.0)
    waits = []
    now = 0.0
    for _ in range(6):
        now = circuit.trial_at
        assert circuit.begin_trial(now, False)
        assert circuit.note_death(now)
        waits.append(circuit.trial_at - now)

    assert waits == [10.0, 20.0, 40.0, MOST_COOL_S, MOST_COOL_S, MOST_COOL_S]
    assert circuit.failed_trials == 6


def test_while_it_is_open_deaths_and_survivals_are_those_of_work_given_before() -> None:
    circuit = opened(100.0)

    assert not circuit.note_death(101.0)
    assert not circuit.note_survival()

    assert circuit.state is OPEN
    assert circuit.trial_at == 100.0 + COOL_S
    assert circuit.deaths == MOST_DEATHS + 1, "why it is open can still be told"


def on_trial(now: float) -> Circuit:
    """A circuit for whose trial a delivery was taken just now."""
    circuit = opened(0.0)
    assert circuit.begin_trial(now, False)
    circuit.note_taken(now)
    return circuit


def test_a_trial_that_was_spent_on_nothing_is_followed_by_another() -> None:
    # By a delivery that cannot travel, say, or that was put back.
    circuit = on_trial(10.0)

    assert not circuit.begin_trial(10.0 + SPENT_S - 0.001, False)
    assert circuit.begin_trial(10.0 + SPENT_S, False)

    assert circuit.state is TRIAL
    assert circuit.failed_trials == 0


def test_a_trial_that_is_under_way_is_waited_for() -> None:
    circuit = on_trial(10.0)

    assert not circuit.begin_trial(10.0 + SPENT_S, True)
    assert not circuit.begin_trial(10.0 + MOST_COOL_S - 0.001, True)
    assert circuit.begin_trial(10.0 + MOST_COOL_S, True), "but not for ever"


def test_a_trial_that_nobody_took_yet_is_not_repeated() -> None:
    circuit = opened(0.0)
    assert circuit.begin_trial(10.0, False)

    assert not circuit.begin_trial(1e9, False)


def test_in_a_hurry_a_trial_that_failed_is_followed_at_once() -> None:
    circuit = opened(100.0)

    circuit.hurry()

    for _ in range(3):
        assert circuit.begin_trial(100.0, False)
        circuit.note_taken(100.0)
        assert not circuit.begin_trial(100.0, False)
        assert circuit.note_death(100.0)
    assert circuit.failed_trials == 3


def test_one_that_opens_in_a_hurry_is_tried_at_once() -> None:
    circuit = Circuit()
    circuit.hurry()
    for _ in range(MOST_DEATHS + 1):
        circuit.note_death(100.0)

    assert circuit.begin_trial(100.0, False)


class AnyCircuit(RuleBasedStateMachine):
    """Whatever happens in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self.circuit = Circuit()
        self.now = 1000.0
        #: Deaths since the last survival, while it was closed.
        self.deaths: list[float] = []
        #: Whether a delivery was taken for the trial.
        self.taken = False

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, WINDOW_S / MOST_DEATHS, 4.9, 5.0, 31.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(count=st.sampled_from([1, 1, 5, MOST_DEATHS]))
    def workers_die(self, count: int) -> None:
        for _ in range(count):
            before = self.circuit.state
            if before is CLOSED:
                self.deaths.append(self.now)
            recent = [at for at in self.deaths if self.now - at <= WINDOW_S]
            opens = self.circuit.note_death(self.now)
            assert opens == (self.circuit.state is OPEN and before is not OPEN)
            if before is CLOSED:
                assert opens == (len(recent) > MOST_DEATHS)
            elif before is TRIAL:
                assert opens

    @rule()
    def a_worker_survives(self) -> None:
        before = self.circuit.state
        closes = self.circuit.note_survival()
        assert closes == (before is TRIAL), "it closes after a trial, and by nothing else"
        if before is not OPEN:
            self.deaths.clear()

    @rule(under_way=st.booleans())
    def look(self, under_way: bool) -> None:
        before, due = self.circuit.state, self.now >= self.circuit.trial_at
        begins = self.circuit.begin_trial(self.now, under_way)
        if before is OPEN:
            assert begins == due
        if begins:
            self.taken = False
            assert before is not CLOSED

    @precondition(lambda self: self.circuit.state is TRIAL)
    @rule()
    def take(self) -> None:
        self.taken = True
        self.circuit.note_taken(self.now)

    @precondition(lambda self: self.circuit.state is not CLOSED)
    @rule(under_way=st.booleans())
    def it_is_never_stuck(self, under_way: bool) -> None:
        self.now += MOST_COOL_S
        before = self.circuit.state
        begins = self.circuit.begin_trial(self.now, under_way)
        assert begins or (before is TRIAL and not self.taken), "or there is one to be taken"
        self.taken = self.taken and not begins
        assert self.circuit.state is TRIAL

    @rule()
    def hurry(self) -> None:
        self.circuit.hurry()

    @invariant()
    def its_reason_can_be_told(self) -> None:
        if self.circuit.state is OPEN:
            assert self.circuit.deaths > 0
            assert self.circuit.trial_at <= self.now + MOST_COOL_S


TestAnyCircuit = AnyCircuit.TestCase


@pytest.mark.parametrize("state", [CLOSED, OPEN, TRIAL])
def test_hurry_alone_changes_no_state(state: CircuitState) -> None:
    circuit = Circuit() if state is CLOSED else opened()
    if state is TRIAL:
        circuit.begin_trial(1e6, False)

    circuit.hurry()

    assert circuit.state is state
