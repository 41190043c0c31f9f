# SPDX-License-Identifier: MIT
"""The brake: how many deliveries may be begun, whatever engages it and lets it go."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from procbus.lanes.breaker import MOST_COOL_S, MOST_DEATHS, SPENT_S, TRICKLE_S, Brake, CircuitState


def opened(now: float = 100.0) -> Brake:
    brake = Brake()
    for _ in range(MOST_DEATHS + 1):
        brake.note_death(now)
    assert brake.circuit.state is CircuitState.OPEN
    return brake


def test_a_brake_that_nothing_engages_lets_everything_through() -> None:
    brake = Brake()

    assert brake.most() is None
    assert brake.reason() == ""


def test_an_open_circuit_lets_nothing_through_and_says_why() -> None:
    brake = opened()

    assert brake.most() == 0
    assert brake.reason() == (
        f"{MOST_DEATHS + 1} workers died, and no delivery between them was survived"
    )


def test_a_trial_lets_one_delivery_through() -> None:
    brake = opened(100.0)

    assert not brake.begin_trial(100.0, False)
    assert brake.begin_trial(200.0, False)

    assert brake.most() == 1
    brake.begin(200.0)
    assert brake.most() == 0


def test_a_trial_that_was_spent_on_nothing_lets_another_one_through() -> None:
    brake = opened(100.0)
    brake.begin_trial(200.0, False)
    brake.begin(210.0)

    assert not brake.begin_trial(210.0 + SPENT_S, True), "it is under way"
    assert brake.most() == 0
    assert brake.begin_trial(210.0 + SPENT_S, False)
    assert brake.most() == 1


def test_a_trial_that_nobody_took_ends_with_the_next_death() -> None:
    brake = opened(100.0)
    brake.begin_trial(200.0, False)

    assert brake.note_death(200.0)  # of one that had its work before

    assert brake.most() == 0


def test_short_of_memory_nothing_is_begun() -> None:
    brake = Brake()
    brake.short = "no memory"

    assert brake.most() == 0
    assert brake.reason() == "no memory"

    brake.short = ""
    assert brake.most() is None


def test_short_of_memory_for_long_with_nothing_running_one_is_begun() -> None:
    brake = Brake()
    brake.short = "no memory"

    assert not brake.trickle(100.0, idle=True)
    assert not brake.trickle(100.0 + TRICKLE_S - 0.1, idle=True)
    assert brake.trickle(100.0 + TRICKLE_S, idle=True)

    assert brake.most() == 1
    brake.begin(100.0 + TRICKLE_S)
    assert brake.most() == 0
    assert not brake.trickle(100.0 + TRICKLE_S + 1, idle=True), "the next one after as long again"
    assert brake.trickle(100.0 + 2 * TRICKLE_S, idle=True)


def test_what_runs_may_be_what_memory_is_missing_for() -> None:
    brake = Brake()
    brake.short = "no memory"
    brake.trickle(100.0, idle=True)

    assert not brake.trickle(100.0 + TRICKLE_S, idle=False)
    assert not brake.trickle(100.0 + TRICKLE_S + 1, idle=True), "it counts from when all was idle"


def test_a_trickle_that_nobody_took_is_no_trial() -> None:
    brake = Brake()
    brake.short = "no memory"
    brake.trickle(100.0, idle=True)
    assert brake.trickle(100.0 + TRICKLE_S, idle=True)

    for _ in range(MOST_DEATHS + 1):
        brake.note_death(140.0)
    brake.short = ""

    assert brake.circuit.state is CircuitState.OPEN
    assert brake.most() == 0


def test_an_open_circuit_is_the_reason_that_is_told_first() -> None:
    brake = opened()
    brake.short = "no memory"

    assert "workers died" in brake.reason()
    assert not brake.trickle(100.0, idle=True)
    assert not brake.trickle(1e6, idle=True), "trials alone let something through now"


class AnyBrake(RuleBasedStateMachine):
    """Whatever happens, an open circuit lets nothing through, and nothing is stuck for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.brake = Brake()
        self.now = 1000.0

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 31.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(count=st.sampled_from([1, MOST_DEATHS + 1]))
    def workers_die(self, count: int) -> None:
        for _ in range(count):
            self.brake.note_death(self.now)

    @rule()
    def a_worker_survives(self) -> None:
        self.brake.circuit.note_survival()

    @rule(short=st.booleans(), idle=st.booleans())
    def look(self, short: bool, idle: bool) -> None:
        self.brake.short = "no memory" if short else ""
        trial = self.brake.begin_trial(self.now, not idle)
        trickle = not trial and self.brake.trickle(self.now, idle)
        if trial or trickle:
            assert self.brake.most() == 1
        if trickle:
            assert short

    @precondition(lambda self: self.brake.most())
    @rule()
    def begin(self) -> None:
        before = self.brake.most()
        self.brake.begin(self.now)
        assert before == 1
        assert self.brake.most() == 0

    @precondition(lambda self: self.brake.most() is not None)
    @rule()
    def it_is_never_stuck(self) -> None:
        for seconds in (MOST_COOL_S, TRICKLE_S):
            self.now += seconds
            self.look(bool(self.brake.short), True)
        assert self.brake.most() == 1

    @invariant()
    def an_open_circuit_lets_nothing_through(self) -> None:
        engaged = bool(self.brake.reason())
        assert (self.brake.most() is not None) == engaged
        if self.brake.circuit.state is CircuitState.OPEN:
            assert self.brake.most() == 0


TestAnyBrake = AnyBrake.TestCase
